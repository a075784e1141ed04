"""Fuses RELU, RELU6 and RELU_N1_TO_1 into the op that computes their input."""

from __future__ import annotations

import numpy as np

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph, Op
from tinykd.ir.ops import SPECS

_TAKES_ACTIVATION = tuple(kind for kind, spec in SPECS.items() if "activation" in spec.attrs)


def fuse_activation(graph: Graph) -> Graph:
    """Return the graph with each activation in the op before it, where nothing else reads that op's output.

    The others stay ops of their own. The smaller of 1 and the larger of -1 and x is RELU_N1_TO_1.
    """
    index = 0
    while index < len(graph.ops):
        fused = _fused(graph, index)
        if fused is None:
            index += 1
        else:
            graph, index = fused, max(index - 1, 0)
    return graph


def _fused(graph: Graph, index: int) -> Graph | None:
    """Return the graph with the activation op `index` fused, or None."""
    op = graph.ops[index]
    if op.kind in ("relu", "relu6"):
        producer = sole_producer(graph, op, _TAKES_ACTIVATION)
        if producer is None or graph.ops[producer].attrs["activation"] not in ("none", op.kind):
            return None
        return graph.with_ops(absorb(graph, producer, index, {"activation": op.kind}))
    if not _bounds(graph, op, "minimum", 1.0):
        return None
    lower = sole_producer(graph, op, ("maximum",))
    if lower is None or not _bounds(graph, graph.ops[lower], "maximum", -1.0):
        return None
    producer = sole_producer(graph, graph.ops[lower], _TAKES_ACTIVATION)
    if producer is None or graph.ops[producer].attrs["activation"] != "none":
        return None
    ops = absorb(graph, producer, index, {"activation": "relu_n1_to_1"})
    return graph.with_ops([other for other in ops if other is not graph.ops[lower]])


def _bounds(graph: Graph, op: Op, kind: str, bound: float) -> bool:
    """Whether an op is the maximum or minimum of an activation and the constant `bound`."""
    data = graph.tensor(op.inputs[1]).data if op.kind == kind else None
    return data is not None and data.size == 1 and float(np.ravel(data)[0]) == bound
