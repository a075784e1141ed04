"""Folds batch normalisation into the weights and bias of the convolution or dense layer before it."""

from __future__ import annotations

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph, Tensor


def fold_batch_norm(graph: Graph) -> Graph:
    """Return the graph without batch_norm ops.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with x = w * a + b becomes one convolution with
    w' = w * k and b' = (b - mean) * k + beta, where k = gamma / sqrt(variance + epsilon), computed in float64.

    Raises:
        UnsupportedModelError: a batch_norm that follows something else.
    """
    while True:
        index = next((i for i, op in enumerate(graph.ops) if op.kind == "batch_norm"), None)
        if index is None:
            return graph
        norm = graph.ops[index]
        producer = sole_producer(graph, norm, ("conv_2d", "depthwise_conv_2d", "fully_connected"))
        if producer is None or graph.ops[producer].attrs["activation"] != "none":
            raise UnsupportedModelError(
                f"op {index} (batch_norm, {norm.source}) does not follow a convolution of its own"
            )
        op = graph.ops[producer]
        gamma, beta, mean, variance = (_value(graph, name) for name in norm.inputs[1:])
        factor = gamma / np.sqrt(variance + norm.attrs["epsilon"])
        weights, bias = _value(graph, op.inputs[1]), _value(graph, op.inputs[2])
        # Output channels are the last axis of depthwise weights and the first one of all others.
        along = factor if op.kind == "depthwise_conv_2d" else factor.reshape(-1, *[1] * (weights.ndim - 1))
        tensors = dict(graph.tensors)
        for name, value in ((op.inputs[1], weights * along), (op.inputs[2], (bias - mean) * factor + beta)):
            tensors[name] = Tensor(name, value.shape, "float32", None, value.astype(np.float32))
        graph = graph.with_ops(absorb(graph, producer, index, {}), tensors)


def _value(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data.astype(np.float64)
