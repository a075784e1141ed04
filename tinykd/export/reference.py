"""The NumPy integer reference: what every op of an int8 graph computes, to the last bit.

It equals TFLite Micro's reference kernels (double rounding) on every activation; the tests hold it there. It runs
many inputs at once: activations are (N, ...) arrays although the graph says batch 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export.windows import map_batches, padded, window_counts, windows
from tinykd.ir import (
    Graph,
    Op,
    activation_range,
    add_params,
    mean_params,
    requantization,
    softmax_params,
    tensor_quant,
)
from tinykd.ir.fixedpoint import (
    doubling_high_mul,
    exp_on_negative_values,
    multiply_by_quantized_multiplier,
    reciprocal,
    rounding_shift_right,
)
from tinykd.ir.requant import ADD_LEFT_SHIFT, QMAX, QMIN, SOFTMAX_INTEGER_BITS, Requantization

Values = dict[str, np.ndarray]


def run(graph: Graph, x: np.ndarray, *, keep_all: bool = False, batch: int = 64) -> Values:
    """Run an int8 graph on many inputs.

    Args:
        graph: every activation int8, one input.
        x: int8, (N, *input shape without the batch dimension).
        keep_all: return every activation instead of the graph's outputs only.
        batch: inputs worked on at once; bounds the memory used.

    Returns:
        tensor name -> int8 array (N, *shape without the batch dimension).

    Raises:
        UnsupportedModelError: an op has no integer reference.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for values in map_batches(lambda part: _run_batch(graph, part, keep_all), x, batch):
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def run_output(graph: Graph, x: np.ndarray, *, batch: int = 64) -> np.ndarray:
    """Return the only output of `run`, flattened to (N, elements)."""
    output = run(graph, x, batch=batch)[graph.outputs[0]]
    return output.reshape(len(x), -1)


def _run_batch(graph: Graph, x: np.ndarray, keep_all: bool) -> Values:
    values: Values = {graph.inputs[0]: x.reshape(len(x), *graph.tensor(graph.inputs[0]).shape[1:])}
    last_use = {name: readers[-1] for name, readers in graph.consumers().items()}
    for index, op in enumerate(graph.ops):
        kernel = KERNELS.get(op.kind)
        if kernel is None:
            raise UnsupportedModelError(f"op {index} ({op.kind}, {op.source}) has no integer reference")
        values[op.outputs[0]] = kernel(graph, op, values)
        if keep_all:
            continue
        for name in op.inputs:
            if last_use.get(name) == index and name not in graph.outputs:
                values.pop(name, None)
    return values if keep_all else {name: values[name] for name in graph.outputs}


def _requantize(acc: np.ndarray, constants: Requantization) -> np.ndarray:
    scaled = multiply_by_quantized_multiplier(acc, np.array(constants.multipliers), np.array(constants.shifts))
    return np.clip(scaled + constants.output_zero_point, constants.out_min, constants.out_max).astype(np.int8)


def _matmul(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the exact integer product of x (N, K) and weights (M, K), as int64 (N, M).

    Floating-point BLAS is exact while every partial sum stays below the mantissa: 2**24 or 2**53.
    """
    bound = weights.shape[1] * 255 * 128
    dtype = np.float32 if bound < 1 << 24 else np.float64
    return (x.astype(dtype) @ weights.astype(dtype).T).astype(np.int64)


def _bias(graph: Graph, op: Op) -> np.ndarray | int:
    name = op.inputs[2] if len(op.inputs) > 2 else ""
    if not name:
        return 0
    data = graph.tensor(name).data
    assert data is not None
    return data.astype(np.int64)


def _weights(graph: Graph, op: Op) -> np.ndarray:
    """Return the weights less their zero point (0 for everything that converters write today)."""
    tensor = graph.tensor(op.inputs[1])
    assert tensor.data is not None
    return tensor.data.astype(np.int32) - tensor_quant(tensor).zero_point


def _conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = requantization(graph, op)
    weights = _weights(graph, op)
    x = values[op.inputs[0]].astype(np.int16) - np.int16(constants.input_zero_point)
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(x, op.attrs["padding"], 0)
    columns = windows(x, weights.shape[1:3], op, shape).reshape(-1, weights[0].size)
    acc = _matmul(columns, weights.reshape(len(weights), -1)) + _bias(graph, op)
    return _requantize(acc, constants).reshape(-1, *shape[1:])


def _depthwise_conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = requantization(graph, op)
    weights = _weights(graph, op)[0]
    x = values[op.inputs[0]].astype(np.int32) - constants.input_zero_point
    shape = graph.tensor(op.outputs[0]).shape
    multiplier = shape[3] // x.shape[3]
    x = padded(x, op.attrs["padding"], 0)
    taken = windows(x, weights.shape[:2], op, shape)
    acc = np.zeros((len(x), *shape[1:3], x.shape[3], multiplier), np.int32)
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            taps = weights[row, column].reshape(x.shape[3], multiplier)
            acc += taken[:, :, :, row, column, :, None] * taps
    return _requantize(acc.reshape(-1, *shape[1:]).astype(np.int64) + _bias(graph, op), constants)


def _fully_connected(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = requantization(graph, op)
    x = values[op.inputs[0]]
    x = x.reshape(len(x), -1).astype(np.int32) - constants.input_zero_point
    acc = _matmul(x, _weights(graph, op)) + _bias(graph, op)
    return _requantize(acc, constants).reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _add(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = add_params(graph, op)
    total: np.ndarray | int = 0
    for name, zero_point, multiplier, shift in zip(
        op.inputs, constants.zero_points, constants.multipliers, constants.shifts, strict=True
    ):
        shifted = (values[name].astype(np.int64) - zero_point) << ADD_LEFT_SHIFT
        total = total + multiply_by_quantized_multiplier(shifted, multiplier, shift)
    assert isinstance(total, np.ndarray)
    scaled = multiply_by_quantized_multiplier(total, constants.output_multiplier, constants.output_shift)
    return np.clip(scaled + constants.output_zero_point, constants.out_min, constants.out_max).astype(np.int8)


def _rounded_mean(acc: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Return acc / count rounded to nearest, halves away from zero, with C's truncating division."""
    half = np.asarray(count) // 2
    return np.where(acc > 0, (acc + half) // count, -((half - acc) // count))


def _average_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    shape = graph.tensor(op.outputs[0]).shape
    x = values[op.inputs[0]].astype(np.int32)
    taken = windows(padded(x, op.attrs["padding"], 0), op.attrs["kernel"], op, shape)
    mean = _rounded_mean(taken.sum(axis=(3, 4)), window_counts(x.shape[1:3], op, shape))
    return np.clip(mean, *activation_range(tensor_quant(graph.tensor(op.outputs[0])), op.attrs["activation"])).astype(
        np.int8
    )


def _max_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(values[op.inputs[0]], op.attrs["padding"], QMIN)
    largest = windows(x, op.attrs["kernel"], op, shape).max(axis=(3, 4))
    return np.clip(
        largest, *activation_range(tensor_quant(graph.tensor(op.outputs[0])), op.attrs["activation"])
    ).astype(np.int8)


def _mean(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = mean_params(graph, op)
    acc = values[op.inputs[0]].astype(np.int64).sum(axis=(1, 2)) - constants.zero_sum
    mean = multiply_by_quantized_multiplier(acc, constants.multiplier, constants.shift) + constants.output_zero_point
    return np.clip(mean, QMIN, QMAX).astype(np.int8).reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _pad(graph: Graph, op: Op, values: Values) -> np.ndarray:
    value = op.attrs["value"]
    if value is None:
        value = tensor_quant(graph.tensor(op.outputs[0])).zero_point
    return np.pad(values[op.inputs[0]], op.attrs["paddings"], constant_values=value)


def _reshape(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _softmax(graph: Graph, op: Op, values: Values) -> np.ndarray:
    constants = softmax_params(graph, op)
    x = values[op.inputs[0]].astype(np.int64)
    difference = x - x.max(axis=-1, keepdims=True)
    counted = difference >= constants.diff_min
    scaled = doubling_high_mul(np.where(counted, difference, 0) << constants.left_shift, np.int64(constants.multiplier))
    exponentials = exp_on_negative_values(scaled, SOFTMAX_INTEGER_BITS)
    sum_bits = 12
    total = np.where(counted, rounding_shift_right(exponentials, sum_bits), 0).sum(axis=-1, keepdims=True)
    scale, bits_over_unit = reciprocal(total, sum_bits)
    probability = rounding_shift_right(doubling_high_mul(exponentials, scale), bits_over_unit + 31 - 8)
    return np.where(counted, np.clip(probability + QMIN, QMIN, QMAX), QMIN).astype(np.int8)


Kernel = Callable[[Graph, Op, Values], np.ndarray]

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "fully_connected": _fully_connected,
        "add": _add,
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "softmax": _softmax,
    }
)
