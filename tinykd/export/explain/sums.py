"""The arithmetic of ops that add up products or values: convolutions, dense layers, SVDF, pooling, MEAN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.export.explain.steps import (
    Explainer,
    Explanation,
    Index,
    Values,
    clamped,
    finished,
    requantized,
    shaped,
)
from tinykd.ir import Graph, Op, activation_range, mean_params, requantization, tensor_quant
from tinykd.ir.fixedpoint import INT32_MAX, INT32_MIN, wrap_int32
from tinykd.ir.requant import QMAX, QMIN, svdf_params


def _bias(graph: Graph, op: Op, channel: int) -> int:
    data = graph.tensor(op.inputs[2]).data if len(op.inputs) > 2 and op.inputs[2] else None
    return 0 if data is None else int(data[channel])


def _accumulated(
    graph: Graph, op: Op, pairs: Iterator[tuple[int, int]], taps: int, channel: int, told: Explanation
) -> int:
    """Return the output for one element whose (x, weight) pairs lie inside the input, out of `taps`."""
    constants = requantization(graph, op)
    weight_zero = tensor_quant(graph.tensor(op.inputs[1])).zero_point
    zero = constants.input_zero_point
    products = [(x - zero) * (w - weight_zero) for x, w in pairs]
    total, bias = sum(products), _bias(graph, op, channel)
    told.say("products inside the input", f"{len(products):,} of {taps:,}; x has zero point {zero}")
    told.say("sum of (x - zero point) * weight", total)
    if products:
        told.say("its largest product", max(products, key=abs))
    told.say("bias", bias)
    acc = total + bias
    told.say("accumulator", acc)
    if not INT32_MIN <= acc <= INT32_MAX:
        told.say("beyond int32", "the result is undefined in TFLite, too")
    scaled = requantized(acc, constants.multipliers[channel], constants.shifts[channel], told)
    return finished(scaled, constants.output_zero_point, constants.out_min, constants.out_max, told)


def _taps(op: Op, size: tuple[int, int], kernel: tuple[int, int], at: Index) -> Iterator[tuple[int, int, int, int]]:
    """Yield (kernel row, kernel column, input row, input column) of the taps inside the input."""
    dilation = op.attrs.get("dilation", (1, 1))
    top, left = op.attrs["padding"][0], op.attrs["padding"][2]
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            y = at[0] * op.attrs["stride"][0] - top + row * dilation[0]
            x = at[1] * op.attrs["stride"][1] - left + column * dilation[1]
            if 0 <= y < size[0] and 0 <= x < size[1]:
                yield row, column, y, x


def _conv_2d(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, weights = shaped(graph, values, op.inputs[0])[0], shaped(graph, values, op.inputs[1])
    _, kernel_h, kernel_w, depth = weights.shape
    channel = index[3]
    pairs = (
        (int(x[row_in, column_in, c]), int(weights[channel, row, column, c]))
        for row, column, row_in, column_in in _taps(op, x.shape[:2], (kernel_h, kernel_w), index[1:3])
        for c in range(depth)
    )
    return _accumulated(graph, op, pairs, kernel_h * kernel_w * depth, channel, told)


def _depthwise_conv_2d(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, weights = shaped(graph, values, op.inputs[0])[0], shaped(graph, values, op.inputs[1])
    _, kernel_h, kernel_w, channels = weights.shape
    channel = index[3]
    source = channel // (channels // x.shape[2])
    pairs = (
        (int(x[row_in, column_in, source]), int(weights[0, row, column, channel]))
        for row, column, row_in, column_in in _taps(op, x.shape[:2], (kernel_h, kernel_w), index[1:3])
    )
    return _accumulated(graph, op, pairs, kernel_h * kernel_w, channel, told)


def _transpose_conv(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x, weights = shaped(graph, values, op.inputs[0])[0], shaped(graph, values, op.inputs[1])
    _, kernel_h, kernel_w, depth = weights.shape
    stride_h, stride_w = op.attrs["stride"]
    top, left = op.attrs["padding"][0], op.attrs["padding"][2]
    channel = index[3]
    # An input position adds its kernel from `position * stride - padding` on: these are the ones that reach here.
    places = [
        (row, column, (index[1] + top - row) // stride_h, (index[2] + left - column) // stride_w)
        for row in range(kernel_h)
        for column in range(kernel_w)
        if (index[1] + top - row) % stride_h == 0 and (index[2] + left - column) % stride_w == 0
    ]
    pairs = (
        (int(x[y, z, c]), int(weights[channel, row, column, c]))
        for row, column, y, z in places
        if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]
        for c in range(depth)
    )
    return _accumulated(graph, op, pairs, kernel_h * kernel_w * depth, channel, told)


def _fully_connected(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    weights = shaped(graph, values, op.inputs[1])
    shape = graph.tensor(op.outputs[0]).shape
    row = int(np.ravel_multi_index(index[:-1], shape[:-1])) if len(shape) > 1 else 0
    x = shaped(graph, values, op.inputs[0]).reshape(-1, weights.shape[1])[row]
    pairs = ((int(a), int(b)) for a, b in zip(x, weights[index[-1]], strict=True))
    return _accumulated(graph, op, pairs, weights.shape[1], index[-1], told)


def _wrapped(value: int) -> int:
    """Return a sum as an int32 holds it."""
    return int(wrap_int32(np.array([value], np.int64))[0])


def _svdf(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = svdf_params(graph, op)
    feature, time = (shaped(graph, values, op.inputs[number]).astype(np.int64) for number in (1, 2))
    x = values[op.inputs[0]].reshape(-1).astype(np.int64) - constants.input_zero_point
    # Without a history the state is the one that every model starts with.
    state = np.zeros(time.shape, np.int64)
    if op.inputs[4] in values:
        state = values[op.inputs[4]].reshape(time.shape).astype(np.int64)
    rank, unit, acc = op.attrs["rank"], index[-1], 0
    for number in range(unit * rank, (unit + 1) * rank):
        what = f"filter {number}"
        total = int((x * feature[number]).sum())
        total = _wrapped(total)
        told.say(f"{what}: sum of (x - zero point) * feature weight", total)
        newest = requantized(total, constants.feature_multiplier, constants.feature_shift, told, what)
        newest = min(max(newest, -(1 << 15)), (1 << 15) - 1)
        told.say(f"{what}: newest value of its state", newest)
        memory = [*(int(value) for value in state[number, 1:]), newest]
        part = sum(value * int(weight) for value, weight in zip(memory, time[number], strict=True))
        told.say(f"{what}: sum of state * time weight", part)
        acc += part
    bias = _bias(graph, Op(op.kind, (*op.inputs[:2], op.inputs[3]), op.outputs), unit)
    told.say("bias", bias)
    acc = _wrapped(acc + bias)
    told.say("accumulator", acc)
    scaled = requantized(acc, constants.time_multiplier, constants.time_shift, told)
    return finished(scaled, constants.output_zero_point, QMIN, QMAX, told)


def _window(graph: Graph, op: Op, values: Values, index: Index, told: Explanation) -> list[int]:
    x = shaped(graph, values, op.inputs[0])[0]
    taken = [int(x[y, z, index[3]]) for _, _, y, z in _taps(op, x.shape[:2], op.attrs["kernel"], index[1:3])]
    shown = ", ".join(map(str, taken[:16])) + (", ..." if len(taken) > 16 else "")
    told.say(f"the {len(taken)} values of the window inside the input", shown)
    return taken


def _activated(graph: Graph, op: Op, value: int, told: Explanation) -> int:
    return clamped(value, *activation_range(tensor_quant(graph.tensor(op.outputs[0])), op.attrs["activation"]), told)


def _average_pool_2d(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    taken = _window(graph, op, values, index, told)
    total, count = sum(taken), len(taken)
    told.say("sum", total)
    mean = (total + count // 2) // count if total > 0 else -((count // 2 - total) // count)
    told.say(f"divided by {count}, halves away from zero", mean)
    return _activated(graph, op, mean, told)


def _max_pool_2d(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    largest = max(_window(graph, op, values, index, told))
    told.say("the largest", largest)
    return _activated(graph, op, largest, told)


def _mean(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = mean_params(graph, op)
    axes = op.attrs["axes"]
    x = shaped(graph, values, op.inputs[0])
    kept = iter(index)
    place: list[int | slice] = []
    for axis in range(x.ndim):
        if axis in axes:
            place.append(slice(None))
            if op.attrs["keep_dims"]:
                next(kept)
        else:
            place.append(next(kept))
    taken = x[tuple(place)].astype(np.int64)
    total = int(taken.sum())
    told.say(f"sum of {taken.size:,} values", total)
    told.say(
        "less input zero point * their number", f"{total:,} - ({constants.zero_sum:,}) = {total - constants.zero_sum:,}"
    )
    scaled = requantized(total - constants.zero_sum, constants.multiplier, constants.shift, told, "mean")
    return finished(scaled, constants.output_zero_point, QMIN, QMAX, told)


EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "transpose_conv": _transpose_conv,
        "fully_connected": _fully_connected,
        "svdf": _svdf,
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
    }
)
