"""Fuses RELU and RELU6 into the op that computes their input."""

from __future__ import annotations

from tinykd.errors import UnsupportedModelError
from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph

_TAKES_ACTIVATION = ("conv_2d", "depthwise_conv_2d", "fully_connected", "add", "average_pool_2d", "max_pool_2d")


def fuse_activation(graph: Graph) -> Graph:
    """Return the graph without separate activation ops.

    Raises:
        UnsupportedModelError: an activation whose input is also read by something else.
    """
    while True:
        index = next((i for i, op in enumerate(graph.ops) if op.kind in ("relu", "relu6")), None)
        if index is None:
            return graph
        op = graph.ops[index]
        producer = sole_producer(graph, op, _TAKES_ACTIVATION)
        if producer is None or graph.ops[producer].attrs["activation"] not in ("none", op.kind):
            raise UnsupportedModelError(
                f"op {index} ({op.kind}, {op.source}) cannot be fused: its input is read elsewhere too, or is no "
                "convolution, dense layer, addition or pooling",
                "Use the activation directly behind the layer.",
            )
        graph = graph.with_ops(absorb(graph, producer, index, {"activation": op.kind}))
