"""Ops that compute nothing: each output element is an input element, or padding."""

from __future__ import annotations

import numpy as np

from tinykd.export.reference.values import Values, operand
from tinykd.ir import Graph, Op, tensor_quant
from tinykd.ir.resize import nearest_positions


def pad(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the input with its borders filled."""
    value = op.attrs["value"]
    if value is None:
        value = tensor_quant(graph.tensor(op.outputs[0])).zero_point
    return np.pad(values[op.inputs[0]], ((0, 0), *op.attrs["paddings"]), constant_values=value)


def reshape(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the same elements under the output's shape."""
    return values[op.inputs[0]].reshape(-1, *graph.tensor(op.outputs[0]).shape)


def transpose(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the input with its axes permuted."""
    return values[op.inputs[0]].transpose(0, *(axis + 1 for axis in op.attrs["perm"]))


def concatenation(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the inputs joined along an axis."""
    parts = [operand(graph, op, index, values) for index in range(len(op.inputs))]
    count = max(len(part) for part in parts)
    # A constant is one sample for all.
    whole = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
    return np.concatenate(whole, axis=op.attrs["axis"] + 1)


def split(graph: Graph, op: Op, values: Values) -> tuple[np.ndarray, ...]:
    """Return the parts of the input along an axis, as long as the outputs are."""
    axis = op.attrs["axis"]
    ends = np.cumsum([graph.tensor(name).shape[axis] for name in op.outputs])
    return tuple(np.split(values[op.inputs[0]], ends[:-1], axis=axis + 1))


def strided_slice(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return x[begin:end:strides], without the axes that the op drops."""
    steps = zip(op.attrs["begin"], op.attrs["end"], op.attrs["strides"], strict=True)
    cuts = (slice(None), *(slice(begin, end if end >= 0 else None, stride) for begin, end, stride in steps))
    return values[op.inputs[0]][cuts].reshape(-1, *graph.tensor(op.outputs[0]).shape)


def resize_nearest_neighbor(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, C): the input at the nearest rows and columns."""
    x, shape = values[op.inputs[0]], graph.tensor(op.outputs[0]).shape
    rows, columns = (nearest_positions(x.shape[axis + 1], shape[axis], **op.attrs) for axis in (1, 2))
    return x[:, :, rows][:, :, :, columns]
