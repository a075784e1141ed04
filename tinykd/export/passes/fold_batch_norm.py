"""Folds batch normalisation, and sums and products with constants, into the convolution or dense layer before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph, Op, Tensor

_WEIGHTED = ("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected")


@dataclass(frozen=True)
class _Line:
    """y = factor * x + offset for each channel, float64 (C,); x is activation `x`."""

    x: str
    factor: np.ndarray
    offset: np.ndarray


def fold_batch_norm(graph: Graph) -> Graph:
    """Return the graph without batch_norm ops, and without arithmetic that a convolution or dense layer can do.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with x = w * a + b becomes one convolution with
    w' = w * k and b' = (b - mean) * k + beta, where k = gamma / sqrt(variance + epsilon), in float64. A product
    or sum with a constant for each channel is folded in the same way. Where no convolution of its own comes before,
    batch normalisation becomes a depthwise 1x1 convolution, of vectors a product and a sum.
    """
    index = 0
    while index < len(graph.ops):
        line = _line(graph, graph.ops[index])
        if line is not None and (folded := _into_weights(graph, index, line)) is not None:
            graph = folded
        elif line is not None and graph.ops[index].kind == "batch_norm":
            graph = _as_op(graph, index, line)
        else:
            index += 1
    return graph


def _line(graph: Graph, op: Op) -> _Line | None:
    """Return what an op computes, if that is a line for each channel."""
    if op.kind == "batch_norm":
        gamma, beta, mean, variance = (_value(graph, name) for name in op.inputs[1:])
        factor = gamma / np.sqrt(variance + op.attrs["epsilon"])
        return _Line(op.inputs[0], factor, beta - mean * factor)
    if op.kind not in ("add", "sub", "mul") or op.attrs["activation"] != "none":
        return None
    shape = graph.tensor(op.outputs[0]).shape
    first = graph.tensor(op.inputs[0]).is_constant
    x, constant = (op.inputs[1], op.inputs[0]) if first else op.inputs
    tensor = graph.tensor(constant)
    if tensor.data is None or graph.tensor(x).is_constant or graph.tensor(x).shape != shape:
        return None
    if tensor.num_elements not in (1, tensor.shape[-1] if tensor.shape else 1):
        return None
    values = np.broadcast_to(tensor.data.astype(np.float64).reshape(-1), shape[-1:])
    ones, zeros = np.ones(shape[-1]), np.zeros(shape[-1])
    if op.kind == "mul":
        return _Line(x, values, zeros)
    if op.kind == "add":
        return _Line(x, ones, values)
    return _Line(x, -ones, values) if first else _Line(x, ones, -values)


def _into_weights(graph: Graph, index: int, line: _Line) -> Graph | None:
    """Return the graph with op `index` folded into the op that computes its input, if that has weights of its own."""
    follower = replace(graph.ops[index], inputs=(line.x,))
    producer = sole_producer(graph, follower, _WEIGHTED)
    if producer is None or graph.ops[producer].attrs["activation"] != "none":
        return None
    op = graph.ops[producer]
    names = op.inputs[1:3]
    # Weights that another layer reads as well must stay as they are.
    if any(len(graph.consumers()[name]) != 1 for name in names):
        return None
    weights, bias = _value(graph, names[0]), _value(graph, names[1])
    # Output channels are the last axis of depthwise weights and the first one of all others.
    along = line.factor if op.kind == "depthwise_conv_2d" else line.factor.reshape(-1, *[1] * (weights.ndim - 1))
    tensors = dict(graph.tensors)
    for name, value in zip(names, (weights * along, bias * line.factor + line.offset), strict=True):
        tensors[name] = Tensor(name, value.shape, "float32", None, value.astype(np.float32))
    return graph.with_ops(absorb(graph, producer, index, {}), tensors)


def _as_op(graph: Graph, index: int, line: _Line) -> Graph:
    """Return the graph with the batch_norm op `index` as a depthwise 1x1 convolution, or as a product and a sum."""
    op = graph.ops[index]
    name, shape = op.outputs[0], graph.tensor(op.outputs[0]).shape
    tensors = dict(graph.tensors)

    def constant(part: str, value: np.ndarray) -> str:
        found = f"{name}/{part}"
        tensors[found] = Tensor(found, value.shape, "float32", None, value.astype(np.float32))
        return found

    if len(shape) == 4:
        inputs = (line.x, constant("weights", line.factor.reshape(1, 1, 1, -1)), constant("bias", line.offset))
        attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
        ops = [replace(op, kind="depthwise_conv_2d", inputs=inputs, attrs=attrs)]
    else:
        scaled = f"{name}/scaled"
        tensors[scaled] = Tensor(scaled, shape, "float32")
        attrs = {"activation": "none"}
        ops = [
            Op("mul", (line.x, constant("factor", line.factor)), (scaled,), attrs, op.source),
            Op("add", (scaled, constant("offset", line.offset)), (name,), attrs, op.source),
        ]
    return graph.with_ops([*graph.ops[:index], *ops, *graph.ops[index + 1 :]], tensors)


def _value(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data.astype(np.float64)
