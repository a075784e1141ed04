"""Joins a global average pooling and the flattening behind it into one MEAN that drops H and W."""

from __future__ import annotations

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph


def squeeze_mean(graph: Graph) -> Graph:
    """Return the graph with `mean(keep_dims) -> reshape to (1, C)` replaced by `mean` without kept dimensions."""
    for index in reversed(range(len(graph.ops))):
        op = graph.ops[index]
        if op.kind != "reshape" or len(graph.tensor(op.outputs[0]).shape) != 2:
            continue
        producer = sole_producer(graph, op, ("mean",))
        if producer is not None:
            graph = graph.with_ops(absorb(graph, producer, index, {"keep_dims": False}))
    return graph
