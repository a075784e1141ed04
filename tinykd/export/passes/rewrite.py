"""What the passes share: finding the only reader of a value, joining ops, taking one out, renaming what ops read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def renamed(graph: Graph, names: Mapping[str, str], dropped: Collection[int] = ()) -> Graph:
    """Return the graph with the tensors `names` read under other names, and without the ops `dropped` (by index)."""
    ops = [
        replace(op, inputs=tuple(names.get(name, name) for name in op.inputs))
        for index, op in enumerate(graph.ops)
        if index not in dropped
    ]
    return graph.with_ops(ops)


def bypass(graph: Graph, index: int) -> Graph | None:
    """Return the graph without op `index`, whose output equals its first input; None where an edge forbids it."""
    x, y = graph.ops[index].inputs[0], graph.ops[index].outputs[0]
    if graph.tensor(x).is_constant or graph.tensor(x).variable:
        return None
    if y not in graph.outputs:
        return renamed(graph, {y: x}, {index})
    if x in graph.inputs or x in graph.outputs:
        return None
    # The edge keeps its name: whoever computes the value writes it under that name.
    ops = [
        replace(
            op,
            inputs=tuple(y if name == x else name for name in op.inputs),
            outputs=tuple(y if name == x else name for name in op.outputs),
        )
        for number, op in enumerate(graph.ops)
        if number != index
    ]
    return graph.with_ops(ops)
