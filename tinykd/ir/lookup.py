"""The 256-entry table of an int8 op that maps each value by itself: what every input becomes, to the last bit.

The NumPy reference and the firmware read the same table, so the multi-step fixed-point arithmetic of these ops exists
here only. `docs/spec-int8.md` states it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import InternalError
from tinykd.ir.fixedpoint import logistic, multiply_by_quantized_multiplier, rounding_shift_right, tanh
from tinykd.ir.graph import Graph, Op
from tinykd.ir.requant import (
    HARD_SWISH_LEFT_SHIFT,
    QMAX,
    QMIN,
    SIGMOID_INTEGER_BITS,
    hard_swish_params,
    leaky_relu_params,
    relu6_range,
    rescale_params,
    sigmoid_params,
)

INT16_MIN, INT16_MAX = -(1 << 15), (1 << 15) - 1


def table(graph: Graph, op: Op) -> np.ndarray:
    """Return the int8 outputs (256,) of a unary int8 op; entry q + 128 belongs to the input value q.

    Raises:
        InternalError: the op is no map of int8 values one by one (see `has_table`).
        InvalidModelError: TFLite Micro does not define the op for these scales.
    """
    if not has_table(graph, op):
        raise InternalError(f"op '{op.source}' ({op.kind}) maps no int8 values one by one")
    values = _TABLES[op.kind](graph, op, np.arange(QMIN, QMAX + 1, dtype=np.int64))
    return np.clip(values, QMIN, QMAX).astype(np.int8)


def has_table(graph: Graph, op: Op) -> bool:
    """Whether `table` knows the op: a unary elementwise kind, int8 in and int8 out."""
    return op.kind in _TABLES and all(graph.tensor(name).dtype == "int8" for name in (op.inputs[0], op.outputs[0]))


def _rescale(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
    constants = rescale_params(graph, op)
    scaled = multiply_by_quantized_multiplier(x - constants.input_zero_point, constants.multiplier, constants.shift)
    return np.clip(scaled + constants.output_zero_point, constants.out_min, constants.out_max)


def _relu6(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
    return np.clip(x, *relu6_range(graph, op))


def _leaky_relu(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
    constants = leaky_relu_params(graph, op)
    centred = x - constants.input_zero_point
    positive = multiply_by_quantized_multiplier(centred, constants.positive_multiplier, constants.positive_shift)
    negative = multiply_by_quantized_multiplier(centred, constants.negative_multiplier, constants.negative_shift)
    return np.where(centred >= 0, positive, constants.negative_sign * negative) + constants.output_zero_point


def _sigmoid(
    function: Callable[[np.ndarray, int], np.ndarray], fractional_bits: int, output_zero_point: int
) -> Callable[[Graph, Op, np.ndarray], np.ndarray]:
    def values(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
        constants = sigmoid_params(graph, op)
        centred = x - constants.input_zero_point
        inside = np.abs(centred) < constants.radius
        scaled = multiply_by_quantized_multiplier(
            np.where(inside, centred, 0), constants.multiplier, constants.left_shift
        )
        result = rounding_shift_right(function(scaled, SIGMOID_INTEGER_BITS), 31 - fractional_bits) + output_zero_point
        # A radius of 0 leaves nothing inside; the zero point then counts as negative.
        return np.where(inside, result, np.where(centred <= -constants.radius, QMIN, QMAX))

    return values


def _hard_swish(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
    constants = hard_swish_params(graph, op)
    fine = (x - constants.input_zero_point) << HARD_SWISH_LEFT_SHIFT
    on_output_scale = _high_mul_16(fine, constants.output_multiplier)
    relu, shift = fine, constants.relu_shift
    # The last bit of a left shift follows the multiplication, so that only it can saturate the result.
    if shift > 0:
        relu = np.clip(relu << (shift - 1), INT16_MIN, INT16_MAX)
    relu = _high_mul_16(relu, constants.relu_multiplier)
    relu = np.clip(relu << 1, INT16_MIN, INT16_MAX) if shift > 0 else _shift_right_16(relu, -shift)
    relu = (relu + (1 << 15)) >> 1
    product = relu * on_output_scale
    # Rounded towards zero: it cancels the bias of the roundings before.
    product = np.sign(product) * (np.abs(product) >> 15)
    return _wrap_int16(_shift_right_16(product, -constants.output_shift) + constants.output_zero_point)


def _high_mul_16(a: np.ndarray, b: int) -> np.ndarray:
    """Return a * b / 2**15 rounded to nearest, halves up, of int16 values (never both -2**15 here)."""
    nudged = a * b + np.where(a * b >= 0, 1 << 14, 1 - (1 << 14))
    return np.sign(nudged) * (np.abs(nudged) >> 15)


def _shift_right_16(x: np.ndarray, exponent: int) -> np.ndarray:
    """Return x / 2**exponent as RoundingDivideByPOT does on int16: beyond 15 bits its mask overflows to -1."""
    if exponent > 15:
        return (x >> exponent) + (x >= 0)
    return rounding_shift_right(x, exponent)


def _wrap_int16(x: np.ndarray) -> np.ndarray:
    return ((x + (1 << 15)) & 0xFFFF) - (1 << 15)


_TABLES: Mapping[str, Callable[[Graph, Op, np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "logistic": _sigmoid(logistic, 8, QMIN),
        "tanh": _sigmoid(tanh, 7, 0),
        "hard_swish": _hard_swish,
        "relu": _rescale,
        "relu6": _relu6,
        "leaky_relu": _leaky_relu,
        "quantize": _rescale,
    }
)
