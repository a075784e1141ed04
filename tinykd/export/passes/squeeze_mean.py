"""Joins a mean and the reshape behind it that drops the averaged axes, as in global average pooling and flattening."""

from __future__ import annotations

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph


def squeeze_mean(graph: Graph) -> Graph:
    """Return the graph with `mean(keep_dims) -> reshape without these axes` as one `mean` without kept dimensions."""
    for index in reversed(range(len(graph.ops))):
        op = graph.ops[index]
        producer = sole_producer(graph, op, ("mean",)) if op.kind == "reshape" else None
        if producer is None:
            continue
        axes = graph.ops[producer].attrs["axes"]
        shape = graph.tensor(graph.ops[producer].inputs[0]).shape
        if graph.tensor(op.outputs[0]).shape == tuple(dim for axis, dim in enumerate(shape) if axis not in axes):
            graph = graph.with_ops(absorb(graph, producer, index, {"keep_dims": False}))
    return graph
