"""The arithmetic of ops that only move values, and of ARG_MAX."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.export.explain.steps import Explainer, Explanation, Index, Values, shaped
from tinykd.ir import Graph, Op, tensor_quant
from tinykd.ir.resize import nearest_positions


def _copied(value: np.ndarray, at: tuple[int, ...], told: Explanation, what: str = "the input") -> int:
    told.say(f"copied from {what}'s element", list(at))
    return int(value[at])


def _pad(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x = shaped(graph, values, op.inputs[0])
    at = tuple(i - before for i, (before, _) in zip(index, op.attrs["paddings"], strict=True))
    if all(0 <= i < size for i, size in zip(at, x.shape, strict=True)):
        return _copied(x, at, told)
    value = op.attrs["value"]
    if value is None:
        value = tensor_quant(graph.tensor(op.outputs[0])).zero_point
        told.say("padding: the output's zero point", int(value))
    else:
        told.say("padding: the op's value", int(value))
    return int(value)


def _reshape(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, shape = shaped(graph, values, op.inputs[0]), graph.tensor(op.outputs[0]).shape
    flat = int(np.ravel_multi_index(index, shape))
    return _copied(x, tuple(int(i) for i in np.unravel_index(flat, x.shape)), told)


def _transpose(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x = shaped(graph, values, op.inputs[0])
    at = [0] * x.ndim
    for axis, place in zip(op.attrs["perm"], index, strict=True):
        at[axis] = place
    return _copied(x, tuple(at), told)


def _concatenation(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    at, axis = list(index), op.attrs["axis"]
    for number, name in enumerate(op.inputs):
        x = shaped(graph, values, name)
        if at[axis] < x.shape[axis]:
            return _copied(x, tuple(at), told, f"input {number}")
        at[axis] -= x.shape[axis]
    raise IndexError(f"element {index} lies beyond the inputs of '{op.source}'")


def _split(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    at, axis = list(index), op.attrs["axis"]
    at[axis] += sum(graph.tensor(name).shape[axis] for name in op.outputs[:output])
    return _copied(shaped(graph, values, op.inputs[0]), tuple(at), told)


def _strided_slice(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, kept = shaped(graph, values, op.inputs[0]), list(index)
    at = []
    for axis, (begin, step) in enumerate(zip(op.attrs["begin"], op.attrs["strides"], strict=True)):
        at.append(begin if axis in op.attrs["shrink_axes"] else begin + step * kept.pop(0))
    return _copied(x, tuple(at), told)


def _resize(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, shape = shaped(graph, values, op.inputs[0]), graph.tensor(op.outputs[0]).shape
    at = list(index)
    for axis in (1, 2):
        at[axis] = int(nearest_positions(x.shape[axis], shape[axis], **op.attrs)[at[axis]])
    return _copied(x, tuple(at), told)


def _arg_max(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, axis = shaped(graph, values, op.inputs[0]), op.attrs["axis"]
    row = np.moveaxis(x, axis, -1)[index]
    told.say("the largest of its row", int(row.max()))
    value = int(row.argmax())
    told.say("its first place", value)
    return value


EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {
        "pad": _pad,
        "reshape": _reshape,
        "transpose": _transpose,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "resize_nearest_neighbor": _resize,
        "arg_max": _arg_max,
    }
)
