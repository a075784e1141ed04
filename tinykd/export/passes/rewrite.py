"""What the passes share: finding the only reader of a value, and joining an op into its producer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinykd.ir import Graph, Op


def sole_producer(graph: Graph, op: Op, kinds: tuple[str, ...]) -> int | None:
    """Return the index of the op that writes `op`'s first input, if it is one of `kinds` and nothing else reads it."""
    name = op.inputs[0]
    index = graph.producers().get(name)
    if index is None or graph.ops[index].kind not in kinds:
        return None
    if name in graph.outputs or len(graph.consumers()[name]) != 1:
        return None
    return index


def absorb(graph: Graph, producer: int, consumer: int, attrs: dict[str, Any]) -> list[Op]:
    """Return the ops with `consumer` removed and its output written by `producer`, which takes `attrs`.

    The joined op stands where the consumer stood, under the producer's source.
    """
    joined = replace(
        graph.ops[producer],
        outputs=graph.ops[consumer].outputs,
        attrs={**graph.ops[producer].attrs, **attrs},
    )
    ops = list(graph.ops)
    ops[consumer] = joined
    del ops[producer]
    return ops
