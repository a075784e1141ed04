"""Ops whose every output element comes from the elements at its own place, and SOFTMAX."""

from __future__ import annotations

import numpy as np

from tinykd.export.reference.values import Values, operand, requantized
from tinykd.ir import Graph, Op, add_params, softmax_params, tensor_quant
from tinykd.ir.fixedpoint import (
    INT32_MAX,
    INT32_MIN,
    doubling_high_mul,
    exp_on_negative_values,
    multiply_by_quantized_multiplier,
    reciprocal,
    rounding_shift_right,
    wrap_int32,
)
from tinykd.ir.graph import DTYPES
from tinykd.ir.lookup import has_table, table
from tinykd.ir.requant import (
    ADD_LEFT_SHIFT,
    QMAX,
    QMIN,
    SOFTMAX_INTEGER_BITS,
    mul_params,
    prelu_params,
    rescale_params,
)


def add(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the sum, or for a sub the difference, of two operands."""
    constants = add_params(graph, op)
    # 256 values each: what an operand adds is looked up.
    terms = []
    for index in range(2):
        centred = np.arange(QMIN, QMAX + 1, dtype=np.int64) - constants.zero_points[index]
        scaled = multiply_by_quantized_multiplier(
            centred << ADD_LEFT_SHIFT, constants.multipliers[index], constants.shifts[index]
        )
        terms.append(_looked_up(scaled, operand(graph, op, index, values)))
    total = terms[0] + terms[1] if op.kind == "add" else terms[0] - terms[1]
    limits = constants.out_min, constants.out_max
    return requantized(total, constants.output_multiplier, constants.output_shift, constants.output_zero_point, limits)


def mul(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the product of two operands."""
    constants = mul_params(graph, op)
    first, second = (
        operand(graph, op, index, values).astype(np.int64) - constants.zero_points[index] for index in range(2)
    )
    limits = constants.out_min, constants.out_max
    return requantized(first * second, constants.multiplier, constants.shift, constants.output_zero_point, limits)


def maximum(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the larger of two operands of equal scale."""
    return np.maximum(operand(graph, op, 0, values), operand(graph, op, 1, values))


def minimum(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the smaller of two operands of equal scale."""
    return np.minimum(operand(graph, op, 0, values), operand(graph, op, 1, values))


def prelu(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return x where it is positive, slope * x elsewhere."""
    constants = prelu_params(graph, op)
    x = operand(graph, op, 0, values).astype(np.int64) - constants.input_zero_point
    slopes = operand(graph, op, 1, values).astype(np.int64) - constants.slope_zero_point
    positive = requantized(x, constants.positive_multiplier, constants.positive_shift, constants.output_zero_point)
    negative = requantized(
        x * slopes, constants.negative_multiplier, constants.negative_shift, constants.output_zero_point
    )
    return np.where(x >= 0, positive, negative)


def mapped(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return what the op's table makes of each int8 value."""
    return _looked_up(table(graph, op), values[op.inputs[0]])


def quantize(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return floats or integers in the output's parameters and type."""
    if has_table(graph, op):
        return mapped(graph, op, values)
    x, y = values[op.inputs[0]], graph.tensor(op.outputs[0])
    limits = np.iinfo(DTYPES[y.dtype])
    if x.dtype == np.float32:
        quant = tensor_quant(y)
        integers = _quantized_floats(x, np.float32(quant.scale), quant.zero_point)
    else:
        constants = rescale_params(graph, op)
        centred = wrap_int32(x.astype(np.int64) - constants.input_zero_point)
        scaled = multiply_by_quantized_multiplier(centred, constants.multiplier, constants.shift)
        integers = scaled + constants.output_zero_point
    return np.clip(integers, limits.min, limits.max).astype(limits.dtype)


def _quantized_floats(x: np.ndarray, scale: np.float32, zero_point: int) -> np.ndarray:
    """Return round(x / scale) + zero_point as int64, halves away from zero.

    C leaves the conversion to int32 open for NaN and beyond its range; like x86-64, this gives the smallest int32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        real = (x / scale).astype(np.float64)
    steps = np.copysign(np.floor(np.abs(real) + 0.5), real)
    defined = (steps >= INT32_MIN) & (steps <= INT32_MAX)
    integers = np.where(defined, steps, INT32_MIN).astype(np.int64)
    return wrap_int32(integers + zero_point)


def dequantize(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return scale * (q - zero point) in float32."""
    x = tensor_quant(graph.tensor(op.inputs[0]))
    centred = values[op.inputs[0]].astype(np.int32) - np.int32(x.zero_point)
    return (np.float32(x.scale) * centred.astype(np.float32)).astype(DTYPES["float32"])


def softmax(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the softmax over the last axis, with output scale 1/256 and zero point -128."""
    constants = softmax_params(graph, op)
    x = values[op.inputs[0]]
    below = x.max(axis=-1, keepdims=True).astype(np.int16) - x
    # 256 possible differences to the maximum: their exponentials are looked up.
    differences = -np.arange(QMAX - QMIN + 1, dtype=np.int64)
    counted = differences >= constants.diff_min
    scaled = doubling_high_mul(np.where(counted, differences, 0) << constants.left_shift, constants.multiplier)
    exponentials = exp_on_negative_values(scaled, SOFTMAX_INTEGER_BITS)
    sum_bits = 12
    terms = np.where(counted, rounding_shift_right(exponentials, sum_bits), 0)
    scale, bits_over_unit = reciprocal(terms[below].sum(axis=-1, keepdims=True), sum_bits)
    probability = rounding_shift_right(doubling_high_mul(exponentials[below], scale), bits_over_unit + 31 - 8)
    return np.where(counted[below], np.clip(probability + QMIN, QMIN, QMAX), QMIN).astype(np.int8)


def _looked_up(entries: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return entries[x + 128] for int8 x."""
    # The bits of a negative int8 read as uint8 are its value plus 256.
    return np.roll(entries, QMAX + 1)[x.view(np.uint8)]
