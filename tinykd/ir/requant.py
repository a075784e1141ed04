"""The integer constants of each quantised op, derived from its scales exactly as TFLite Micro's Prepare does.

One home for this arithmetic: the NumPy reference computes with these numbers and the code generator prints them.
`docs/spec-int8.md` states the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinykd.errors import InvalidModelError
from tinykd.ir.graph import Graph, Op, Tensor
from tinykd.ir.quant import Quant, quantize_multiplier

QMIN, QMAX = -128, 127
ADD_LEFT_SHIFT = 20
SOFTMAX_INTEGER_BITS = 5


@dataclass(frozen=True)
class Requantization:
    """Fixed-point factors from accumulator to output, one per output channel.

    real factor ~= multipliers * 2**(shifts - 31); shifts > 0 shift left. `out_min`, `out_max` clamp the int8 output.
    """

    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]
    input_zero_point: int
    output_zero_point: int
    out_min: int
    out_max: int


@dataclass(frozen=True)
class AddParams:
    """Constants of the int8 ADD: both inputs are shifted left by `ADD_LEFT_SHIFT` and scaled to a common scale."""

    zero_points: tuple[int, int]
    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    output_multiplier: int
    output_shift: int
    output_zero_point: int
    out_min: int
    out_max: int


@dataclass(frozen=True)
class SoftmaxParams:
    """Constants of the int8 SOFTMAX: differences to the maximum below `diff_min` count as zero."""

    multiplier: int
    left_shift: int
    diff_min: int


@dataclass(frozen=True)
class MeanParams:
    """Constants of the int8 MEAN over H and W.

    `multiplier` and `shift` take the sum of the inputs, less `zero_sum` (input zero point times their number), to the
    output: the division by the number is folded into them.
    """

    multiplier: int
    shift: int
    zero_sum: int
    output_zero_point: int


def tensor_quant(tensor: Tensor) -> Quant:
    """Return a tensor's quantisation; InvalidModelError when it has none."""
    if tensor.quant is None:
        raise InvalidModelError(f"tensor '{tensor.name}' ({tensor.dtype}) has no quantisation parameters")
    return tensor.quant


def activation_range(quant: Quant, activation: str) -> tuple[int, int]:
    """Return the int8 (min, max) that a fused activation leaves, rounded in float32 as TFLite does."""

    def quantized(value: float) -> int:
        real = np.float32(value) / np.float32(quant.scale)
        # A scale so small that the bound lies beyond int32 leaves the whole int8 range.
        if abs(float(real)) > 1e6:
            return QMAX
        magnitude = np.floor(np.abs(real) + np.float32(0.5))
        return quant.zero_point + int(np.copysign(magnitude, real))

    if activation == "none":
        return QMIN, QMAX
    low = max(QMIN, quantized(0.0))
    if activation == "relu":
        return low, QMAX
    if activation == "relu6":
        return low, min(QMAX, quantized(6.0))
    raise InvalidModelError(f"unknown activation '{activation}'")


def requantization(graph: Graph, op: Op) -> Requantization:
    """Return the constants of a conv_2d, depthwise_conv_2d or fully_connected op."""
    x = tensor_quant(graph.tensor(op.inputs[0]))
    weights = tensor_quant(graph.tensor(op.inputs[1]))
    y = tensor_quant(graph.tensor(op.outputs[0]))
    channels = graph.tensor(op.outputs[0]).shape[-1]
    scales = weights.scales if len(weights.scales) > 1 else weights.scales * channels
    pairs = [quantize_multiplier(x.scale * scale / y.scale) for scale in scales]
    low, high = activation_range(y, op.attrs["activation"])
    return Requantization(
        tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), x.zero_point, y.zero_point, low, high
    )


def add_params(graph: Graph, op: Op) -> AddParams:
    """Return the constants of an add op."""
    first, second = (tensor_quant(graph.tensor(name)) for name in op.inputs)
    y = tensor_quant(graph.tensor(op.outputs[0]))
    common = 2.0 * max(first.scale, second.scale)
    multiplier_1, shift_1 = quantize_multiplier(first.scale / common)
    multiplier_2, shift_2 = quantize_multiplier(second.scale / common)
    out_multiplier, out_shift = quantize_multiplier(common / ((1 << ADD_LEFT_SHIFT) * y.scale))
    low, high = activation_range(y, op.attrs["activation"])
    return AddParams(
        (first.zero_point, second.zero_point),
        (multiplier_1, multiplier_2),
        (shift_1, shift_2),
        out_multiplier,
        out_shift,
        y.zero_point,
        low,
        high,
    )


def softmax_params(graph: Graph, op: Op) -> SoftmaxParams:
    """Return the constants of a softmax op."""
    scale = tensor_quant(graph.tensor(op.inputs[0])).scale
    real = min(op.attrs["beta"] * scale * (1 << (31 - SOFTMAX_INTEGER_BITS)), (1 << 31) - 1.0)
    if real <= 1.0:
        raise InvalidModelError(
            f"softmax '{op.source}': input scale {scale:g} times beta {op.attrs['beta']:g} is too small for TFLite"
        )
    multiplier, left_shift = quantize_multiplier(real)
    radius = ((1 << SOFTMAX_INTEGER_BITS) - 1) * (1 << (31 - SOFTMAX_INTEGER_BITS)) / (1 << left_shift)
    return SoftmaxParams(multiplier, left_shift, -int(np.floor(radius)))


def mean_params(graph: Graph, op: Op) -> MeanParams:
    """Return the constants of a mean op, folded as TFLite's QuantizedMeanOrSum folds them (integer division)."""
    x = graph.tensor(op.inputs[0])
    x_quant, y_quant = tensor_quant(x), tensor_quant(graph.tensor(op.outputs[0]))
    multiplier, shift = quantize_multiplier(x_quant.scale / y_quant.scale)
    count = x.shape[1] * x.shape[2]
    # The multiplier keeps 31 bits, and the total right shift stays within 31.
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return MeanParams((multiplier << extra) // count, shift - extra, x_quant.zero_point * count, y_quant.zero_point)
