"""Which values each element of each activation can take: the analysis that the exact int8 passes rest on.

Every element has an interval of int8 values. An interval is carried through an op by the op's own integer arithmetic:
nearly all of it is monotone (double rounding, clamps, maxima, means), so the ends of the intervals give the ends of the
result, and the reference computes them. Sums of products take their smallest and largest value from the signs of the
weights. Elements are taken as independent, which can only make intervals too wide, never too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tinykd.export.passes.evaluate import evaluate
from tinykd.export.windows import padded, windows
from tinykd.ir import Graph, Op, activation_range, requantization, tensor_quant
from tinykd.ir.fixedpoint import INT32_MAX, INT32_MIN, multiply_by_quantized_multiplier
from tinykd.ir.lookup import has_table, table
from tinykd.ir.requant import QMAX, QMIN, mean_params, mul_params


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest value of each element of an int8 activation, both int8 arrays of its shape."""

    low: np.ndarray
    high: np.ndarray

    @property
    def fixed(self) -> np.ndarray:
        """Bool array: the elements that have one value whatever the input is."""
        return self.low == self.high

    def fixed_channels(self) -> np.ndarray:
        """Bool (C,): the channels (last axis) that have one value, the same at every position."""
        low, high = self.low.reshape(-1, self.low.shape[-1]), self.high.reshape(-1, self.high.shape[-1])
        return (low == low[0]).all(axis=0) & (high == low[0]).all(axis=0)


def value_ranges(graph: Graph) -> dict[str, Bounds]:
    """Return the bounds of every int8 tensor of a graph, constants included.

    Graph inputs and variables may hold anything. What has no rule is taken to reach every int8 value.
    """
    bounds: dict[str, Bounds] = {}
    for name, tensor in graph.tensors.items():
        if tensor.dtype == "int8":
            bounds[name] = Bounds(tensor.data, tensor.data) if tensor.data is not None else _anything(tensor.shape)
    for op in graph.ops:
        if any(name and name not in bounds for name in _operands(op)) or any(y not in bounds for y in op.outputs):
            continue
        rule = _RULES.get(op.kind)
        if rule is not None:
            bounds.update(zip(op.outputs, rule(graph, op, bounds), strict=True))
    return bounds


def accumulate(graph: Graph, op: Op, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sums of products of an op with weights, without its bias: int64, of the output's shape.

    Args:
        x: integers of the input's shape, what padding stands for subtracted (so that padding is 0).
        weights: integers of the weights' shape.
    """
    shape = graph.tensor(op.outputs[0]).shape
    if op.kind == "fully_connected":
        return (_exact(x.reshape(-1, weights.shape[1])) @ _exact(weights.T)).astype(np.int64).reshape(shape)
    if op.kind == "transpose_conv":
        return _scatter(op, x, weights, shape)
    x = padded(x, op.attrs["padding"], 0)
    taken = windows(x, weights.shape[1:3], op, shape)
    if op.kind == "conv_2d":
        columns = _exact(taken.reshape(-1, weights[0].size))
        return (columns @ _exact(weights.reshape(len(weights), -1).T)).astype(np.int64).reshape(shape)
    taps = weights[0].reshape(*weights.shape[1:3], x.shape[3], -1)
    acc = np.zeros((1, *shape[1:3], *taps.shape[2:]), np.int64)
    for row, column in np.ndindex(*taps.shape[:2]):
        acc += taken[:, :, :, row, column, :, None] * taps[row, column]
    return acc.reshape(shape)


def accumulator_bounds(graph: Graph, op: Op, x: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest accumulator, bias included, of an op with weights: int64, the output's shape.

    With s = low + high and d = high - low, the ends of a sum of products are (w·s - |w|·d) / 2 and (w·s + |w|·d) / 2.
    """
    zero = tensor_quant(graph.tensor(op.inputs[0])).zero_point
    low, high = x.low.astype(np.int64) - zero, x.high.astype(np.int64) - zero
    weights = weights_of(graph, op)
    middle = accumulate(graph, op, low + high, weights)
    radius = accumulate(graph, op, high - low, np.abs(weights))
    bias = bias_of(graph, op)
    return (middle - radius) // 2 + bias, (middle + radius) // 2 + bias


def requantize(graph: Graph, op: Op, acc: np.ndarray) -> np.ndarray:
    """Return the int8 outputs of an op with weights for accumulators (..., channels) within int32."""
    constants = requantization(graph, op)
    scaled = multiply_by_quantized_multiplier(acc, np.array(constants.multipliers), np.array(constants.shifts))
    return np.clip(scaled + constants.output_zero_point, constants.out_min, constants.out_max).astype(np.int8)


def weights_of(graph: Graph, op: Op) -> np.ndarray:
    """Return the weights of an op less their zero points, int64, in their own shape."""
    tensor = graph.tensor(op.inputs[1])
    assert tensor.data is not None
    return tensor.data.astype(np.int64) - tensor_quant(tensor).zero_point


def bias_of(graph: Graph, op: Op) -> np.ndarray:
    """Return the bias of an op with weights as int64 (channels,); zeros when it has none."""
    name = op.inputs[2] if len(op.inputs) > 2 else ""
    if not name:
        return np.zeros(graph.tensor(op.outputs[0]).shape[-1], np.int64)
    data = graph.tensor(name).data
    assert data is not None
    return data.astype(np.int64)


def _exact(x: np.ndarray) -> np.ndarray:
    # A sum of 2**20 products of 2**9 by 2**8 stays below the 2**53 up to which float64 counts exactly.
    return x.astype(np.float64)


def _scatter(op: Op, x: np.ndarray, weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    (stride_h, stride_w), (top, _, left, _) = op.attrs["stride"], op.attrs["padding"]
    _, height, width, channels = x.shape
    count, kernel_h, kernel_w, _ = weights.shape
    full = np.zeros(((height - 1) * stride_h + kernel_h, (width - 1) * stride_w + kernel_w, count), np.int64)
    for row, column in np.ndindex(kernel_h, kernel_w):
        part = _exact(x.reshape(-1, channels)) @ _exact(weights[:, row, column].T)
        rows = slice(row, row + (height - 1) * stride_h + 1, stride_h)
        columns = slice(column, column + (width - 1) * stride_w + 1, stride_w)
        full[rows, columns] += part.astype(np.int64).reshape(height, width, count)
    acc = np.zeros(shape, np.int64)
    kept = full[max(top, 0) :, max(left, 0) :]
    at_row, at_column = max(-top, 0), max(-left, 0)
    kept = kept[: shape[1] - at_row, : shape[2] - at_column]
    acc[0, at_row : at_row + kept.shape[0], at_column : at_column + kept.shape[1]] = kept
    return acc


def _operands(op: Op) -> tuple[str, ...]:
    """The inputs whose values move: weights and biases are read by their own rules."""
    return op.inputs[:1] if op.kind in _WEIGHTED else op.inputs


def _anything(shape: tuple[int, ...]) -> Bounds:
    return Bounds(np.full(shape, QMIN, np.int8), np.full(shape, QMAX, np.int8))


_Rule = Callable[[Graph, Op, Mapping[str, Bounds]], tuple[Bounds, ...]]


def _weighted(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    low, high = accumulator_bounds(graph, op, bounds[op.inputs[0]])
    constants = requantization(graph, op)
    # Beyond int32 the C code wraps, and no order is kept.
    left = np.maximum(np.array(constants.shifts, np.int64), 0)
    wraps = (low < INT32_MIN >> left) | (high > INT32_MAX >> left)
    ends = [requantize(graph, op, np.where(wraps, 0, acc)) for acc in (low, high)]
    return (
        Bounds(
            np.where(wraps, constants.out_min, ends[0]).astype(np.int8),
            np.where(wraps, constants.out_max, ends[1]).astype(np.int8),
        ),
    )


def _monotone(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    """Ops that grow with each of their inputs, and those that only move elements."""
    return _corners(graph, op, bounds, [(0,) * len(op.inputs), (1,) * len(op.inputs)])


def _corners(graph: Graph, op: Op, bounds: Mapping[str, Bounds], corners: list[tuple[int, ...]]) -> tuple[Bounds, ...]:
    """Evaluate the op on the named ends of its inputs (0 low, 1 high): the results bound the output."""
    results = []
    for corner in corners:
        ends = [
            None if graph.tensor(name).is_constant else (bounds[name].low, bounds[name].high)[end]
            for name, end in zip(op.inputs, corner, strict=True)
        ]
        results.append(evaluate(graph, op, ends))
    return tuple(Bounds(np.minimum.reduce(ys), np.maximum.reduce(ys)) for ys in zip(*results, strict=True))


def _sum(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    return _corners(graph, op, bounds, [(0, 0), (1, 1)] if op.kind == "add" else [(0, 1), (1, 0)])


def _product(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    # A product of two differences to zero points takes 16 bits and a sign.
    if mul_params(graph, op).shift > 14:
        y = graph.tensor(op.outputs[0])
        low, high = activation_range(tensor_quant(y), op.attrs["activation"])
        return (Bounds(np.full(y.shape, low, np.int8), np.full(y.shape, high, np.int8)),)
    return _corners(graph, op, bounds, [(0, 0), (0, 1), (1, 0), (1, 1)])


def _mean(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    if mean_params(graph, op).shift > 0:
        return (_anything(graph.tensor(op.outputs[0]).shape),)
    return _monotone(graph, op, bounds)


def _unary(graph: Graph, op: Op, bounds: Mapping[str, Bounds]) -> tuple[Bounds, ...]:
    """Any function of one element: the extremes of its table within the interval, monotone or not."""
    if not has_table(graph, op):
        return (_anything(graph.tensor(op.outputs[0]).shape),)
    values = table(graph, op)
    lows, highs = np.empty((256, 256), np.int8), np.empty((256, 256), np.int8)
    for start in range(256):
        lows[start, start:] = np.minimum.accumulate(values[start:])
        highs[start, start:] = np.maximum.accumulate(values[start:])
    x = bounds[op.inputs[0]]
    at = (x.low.astype(np.int64) + 128, x.high.astype(np.int64) + 128)
    return (Bounds(lows[at], highs[at]),)


_WEIGHTED = ("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected")
_MONOTONE = (
    "average_pool_2d",
    "max_pool_2d",
    "maximum",
    "minimum",
    "pad",
    "reshape",
    "transpose",
    "concatenation",
    "split",
    "strided_slice",
    "resize_nearest_neighbor",
)
_TABLED = ("logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "quantize")

_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        **dict.fromkeys(_WEIGHTED, _weighted),
        **dict.fromkeys(_MONOTONE, _monotone),
        **dict.fromkeys(_TABLED, _unary),
        "add": _sum,
        "sub": _sum,
        "mul": _product,
        "mean": _mean,
    }
)
