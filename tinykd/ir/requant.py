"""The integer constants of each quantised op, derived from its scales exactly as TFLite Micro's Prepare does.

One home for this arithmetic: the NumPy reference computes with these numbers and the code generator prints them.
`docs/spec-int8.md` states the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tinykd.errors import InvalidModelError
from tinykd.ir.graph import Graph, Op, Tensor
from tinykd.ir.quant import Quant, quantize_multiplier

QMIN, QMAX = -128, 127
ADD_LEFT_SHIFT = 20
SOFTMAX_INTEGER_BITS = 5
SIGMOID_INTEGER_BITS = 4
HARD_SWISH_LEFT_SHIFT = 7
_BOUND_LIMIT = (1 << 31) - 256
"""What the quantised bound of an activation must stay below, so that int32 holds it with a zero point added."""


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
    """Constants of the int8 ADD and SUB: both inputs are shifted left by `ADD_LEFT_SHIFT` and scaled alike."""

    zero_points: tuple[int, int]
    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    output_multiplier: int
    output_shift: int
    output_zero_point: int
    out_min: int
    out_max: int


@dataclass(frozen=True)
class MulParams:
    """Constants of the int8 MUL: the product of both inputs less their zero points is requantised once."""

    zero_points: tuple[int, int]
    multiplier: int
    shift: int
    output_zero_point: int
    out_min: int
    out_max: int


@dataclass(frozen=True)
class RescaleParams:
    """Constants of an op that requantises each value by one factor: RELU, QUANTIZE from integers."""

    input_zero_point: int
    multiplier: int
    shift: int
    output_zero_point: int
    out_min: int
    out_max: int


@dataclass(frozen=True)
class TwoSlopeParams:
    """Constants of LEAKY_RELU and PRELU: one factor from zero up, one below.

    A PRELU multiplies what lies below zero by its slope less `slope_zero_point` first. `negative_sign` is -1 for a
    LEAKY_RELU with a negative alpha: the result of the factor's magnitude is negated.
    """

    input_zero_point: int
    slope_zero_point: int
    positive_multiplier: int
    positive_shift: int
    negative_multiplier: int
    negative_shift: int
    negative_sign: int
    output_zero_point: int


@dataclass(frozen=True)
class HardSwishParams:
    """Constants of HARD_SWISH: 16-bit multipliers; shifts > 0 shift left.

    The `output` factor takes inputs, shifted left by `HARD_SWISH_LEFT_SHIFT`, to the output's scale; the `relu` factor
    takes them to the scale at which 2**15 stands for 3.
    """

    input_zero_point: int
    output_multiplier: int
    output_shift: int
    relu_multiplier: int
    relu_shift: int
    output_zero_point: int


@dataclass(frozen=True)
class SigmoidParams:
    """Constants of LOGISTIC and TANH: inputs `radius` or more from the zero point saturate, others become Q4.27."""

    input_zero_point: int
    multiplier: int
    left_shift: int
    radius: int


@dataclass(frozen=True)
class SvdfParams:
    """Constants of SVDF: one factor from the feature sums to the state, one from the time sums to the output."""

    input_zero_point: int
    feature_multiplier: int
    feature_shift: int
    time_multiplier: int
    time_shift: int
    output_zero_point: int


@dataclass(frozen=True)
class SoftmaxParams:
    """Constants of the int8 SOFTMAX: differences to the maximum below `diff_min` count as zero."""

    multiplier: int
    left_shift: int
    diff_min: int


@dataclass(frozen=True)
class MeanParams:
    """Constants of the int8 MEAN.

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
    """Return the int8 (min, max) that a fused activation leaves, divided in float32 and rounded as TFLite does.

    Raises:
        InvalidModelError: the activation is unknown.
    """

    def quantized(value: float) -> int:
        steps = _rounded_steps(value, quant)
        return quant.zero_point + (steps if value >= 0 else -steps)

    bounds = {"none": (None, None), "relu": (0.0, None), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0)}
    if activation not in bounds:
        raise InvalidModelError(f"unknown activation '{activation}'")
    low, high = bounds[activation]
    return (
        QMIN if low is None else max(QMIN, quantized(low)),
        QMAX if high is None else min(QMAX, quantized(high)),
    )


def _rounded_steps(value: float, quant: Quant) -> int:
    """Return round(|value| / scale), divided in float32, halves up."""
    return int(np.floor(np.float64(np.abs(np.float32(value)) / np.float32(quant.scale)) + 0.5))


def _check_bound(op: Op, quant: Quant, value: float) -> None:
    if _rounded_steps(value, quant) >= _BOUND_LIMIT:
        raise InvalidModelError(f"{op.kind} '{op.source}': {value:g} is beyond int32 at the scale {quant.scale:g}")


def _factor(real: float, op: Op) -> tuple[int, int]:
    """Return `quantize_multiplier(real)` of an op.

    Raises:
        InvalidModelError: the factor is 2**30 or more: TFLite Micro shifts an int32 by more than its bits then.
    """
    if real >= 1 << 30:
        raise InvalidModelError(
            f"{op.kind} '{op.source}': its scales make a factor of {real:g}; it must be below 2**30"
        )
    return quantize_multiplier(real)


def requantization(graph: Graph, op: Op) -> Requantization:
    """Return the constants of a conv_2d, depthwise_conv_2d, transpose_conv or fully_connected op."""
    x = tensor_quant(graph.tensor(op.inputs[0]))
    weights = tensor_quant(graph.tensor(op.inputs[1]))
    y = tensor_quant(graph.tensor(op.outputs[0]))
    channels = graph.tensor(op.outputs[0]).shape[-1]
    scales = weights.scales if len(weights.scales) > 1 else weights.scales * channels
    pairs = [_factor(x.scale * scale / y.scale, op) for scale in scales]
    low, high = activation_range(y, op.attrs["activation"])
    return Requantization(
        tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), x.zero_point, y.zero_point, low, high
    )


def add_params(graph: Graph, op: Op) -> AddParams:
    """Return the constants of an add or sub op.

    Raises:
        InvalidModelError: an input's scale is 2**19 times the output's or more.
    """
    first, second = (tensor_quant(graph.tensor(name)) for name in op.inputs)
    y = tensor_quant(graph.tensor(op.outputs[0]))
    common = 2.0 * max(first.scale, second.scale)
    multiplier_1, shift_1 = quantize_multiplier(first.scale / common)
    multiplier_2, shift_2 = quantize_multiplier(second.scale / common)
    real = common / ((1 << ADD_LEFT_SHIFT) * y.scale)
    if real >= 1.0:
        raise InvalidModelError(
            f"{op.kind} '{op.source}': the larger input scale {common / 2:g} must be below 2**19 times the output's "
            f"{y.scale:g}: TFLite Micro ends the program otherwise"
        )
    out_multiplier, out_shift = quantize_multiplier(real)
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


def pool_range(graph: Graph, op: Op) -> tuple[int, int]:
    """Return what the activation of a pooling op leaves of the int8 range."""
    return activation_range(tensor_quant(graph.tensor(op.outputs[0])), op.attrs["activation"])


def relu6_range(graph: Graph, op: Op) -> tuple[int, int]:
    """Return what a relu6 op leaves of the int8 range: TFLite Micro never looks at its output's parameters.

    Raises:
        InvalidModelError: 6 is beyond int32 at the input's scale.
    """
    x = tensor_quant(graph.tensor(op.inputs[0]))
    _check_bound(op, x, 6.0)
    return activation_range(x, "relu6")


def mul_params(graph: Graph, op: Op) -> MulParams:
    """Return the constants of a mul op."""
    first, second = (tensor_quant(graph.tensor(name)) for name in op.inputs)
    y = tensor_quant(graph.tensor(op.outputs[0]))
    multiplier, shift = _factor(first.scale * second.scale / y.scale, op)
    low, high = activation_range(y, op.attrs["activation"])
    return MulParams((first.zero_point, second.zero_point), multiplier, shift, y.zero_point, low, high)


def rescale_params(graph: Graph, op: Op) -> RescaleParams:
    """Return the constants of a relu op, or of a quantize op that reads integers."""
    x, y = tensor_quant(graph.tensor(op.inputs[0])), tensor_quant(graph.tensor(op.outputs[0]))
    multiplier, shift = _factor(x.scale / y.scale, op)
    low, high = activation_range(y, "relu" if op.kind == "relu" else "none")
    return RescaleParams(x.zero_point, multiplier, shift, y.zero_point, low, high)


def leaky_relu_params(graph: Graph, op: Op) -> TwoSlopeParams:
    """Return the constants of a leaky_relu op."""
    x, y = tensor_quant(graph.tensor(op.inputs[0])), tensor_quant(graph.tensor(op.outputs[0]))
    positive = _factor(x.scale / y.scale, op)
    alpha = float(np.float32(op.attrs["alpha"]))
    negative = _factor(x.scale * abs(alpha) / y.scale, op)
    return TwoSlopeParams(x.zero_point, 0, *positive, *negative, -1 if alpha < 0 else 1, y.zero_point)


def prelu_params(graph: Graph, op: Op) -> TwoSlopeParams:
    """Return the constants of a prelu op."""
    x, slopes = (tensor_quant(graph.tensor(name)) for name in op.inputs)
    y = tensor_quant(graph.tensor(op.outputs[0]))
    positive = _factor(x.scale / y.scale, op)
    negative = _factor(x.scale * slopes.scale / y.scale, op)
    return TwoSlopeParams(x.zero_point, slopes.zero_point, *positive, *negative, 1, y.zero_point)


def hard_swish_params(graph: Graph, op: Op) -> HardSwishParams:
    """Return the constants of a hard_swish op.

    Raises:
        InvalidModelError: the input's scale is 128 times the output's or more, which TFLite Micro refuses, or more
            than its shifts of an int32 define.
    """
    x, y = tensor_quant(graph.tensor(op.inputs[0])), tensor_quant(graph.tensor(op.outputs[0]))
    fine_scale = x.scale / (1 << HARD_SWISH_LEFT_SHIFT)
    output_multiplier, output_shift = quantize_multiplier(fine_scale / y.scale)
    relu_multiplier, relu_shift = _factor(fine_scale * (1 << 15) / 3, op)
    if output_shift > 0:
        raise InvalidModelError(
            f"hard_swish '{op.source}': input scale {x.scale:g} must be below 128 times the output scale {y.scale:g}"
        )
    return HardSwishParams(
        x.zero_point,
        _upper_half(output_multiplier),
        output_shift,
        _upper_half(relu_multiplier),
        relu_shift,
        y.zero_point,
    )


def _upper_half(multiplier: int) -> int:
    """Return a multiplier's 16 upper bits, rounded and kept within int16."""
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1)


def sigmoid_params(graph: Graph, op: Op) -> SigmoidParams:
    """Return the constants of a logistic or tanh op.

    Raises:
        InvalidModelError: the input scale lies outside what TFLite's fixed point defines.
    """
    x = tensor_quant(graph.tensor(op.inputs[0]))
    fractional_bits = 31 - SIGMOID_INTEGER_BITS
    # A float32 scale has 24 bits: its mantissa times 2**31 is exact.
    mantissa, left_shift = math.frexp(x.scale * (1 << fractional_bits))
    multiplier = int(mantissa * (1 << 31))
    if not 0 <= left_shift < 63:
        raise InvalidModelError(f"{op.kind} '{op.source}': TFLite does not define it for input scale {x.scale:g}")
    radius = ((1 << SIGMOID_INTEGER_BITS) - 1) * (1 << fractional_bits) // (1 << left_shift)
    return SigmoidParams(x.zero_point, multiplier, left_shift, radius)


def svdf_params(graph: Graph, op: Op) -> SvdfParams:
    """Return the constants of an svdf op.

    Raises:
        InvalidModelError: the state is not symmetric; TFLite Micro starts it at 0, which must stand for 0.
    """
    x, feature, time, state = (tensor_quant(graph.tensor(op.inputs[index])) for index in (0, 1, 2, 4))
    y = tensor_quant(graph.tensor(op.outputs[0]))
    if state.zero_point:
        raise InvalidModelError(f"svdf '{op.source}': its state has zero point {state.zero_point} instead of 0")
    to_state = _factor(x.scale * feature.scale / state.scale, op)
    to_output = _factor(state.scale * time.scale / y.scale, op)
    return SvdfParams(x.zero_point, *to_state, *to_output, y.zero_point)


def softmax_params(graph: Graph, op: Op) -> SoftmaxParams:
    """Return the constants of a softmax op.

    Raises:
        InvalidModelError: the input scale times beta is so small that TFLite Micro ends the program.
    """
    scale = tensor_quant(graph.tensor(op.inputs[0])).scale
    real = min(float(np.float32(op.attrs["beta"])) * scale * (1 << (31 - SOFTMAX_INTEGER_BITS)), (1 << 31) - 1.0)
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
    multiplier, shift = _factor(x_quant.scale / y_quant.scale, op)
    count = int(np.prod([x.shape[axis] for axis in op.attrs["axes"]]))
    # The multiplier keeps 31 bits, and the total right shift stays within 31.
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return MeanParams((multiplier << extra) // count, shift - extra, x_quant.zero_point * count, y_quant.zero_point)


_CONSTANTS: Mapping[str, Callable[[Graph, Op], object]] = MappingProxyType(
    {
        **dict.fromkeys(("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected"), requantization),
        **dict.fromkeys(("add", "sub"), add_params),
        **dict.fromkeys(("relu", "quantize"), rescale_params),
        **dict.fromkeys(("logistic", "tanh"), sigmoid_params),
        "mul": mul_params,
        "prelu": prelu_params,
        "leaky_relu": leaky_relu_params,
        "hard_swish": hard_swish_params,
        "svdf": svdf_params,
        "softmax": softmax_params,
        "mean": mean_params,
        **dict.fromkeys(("average_pool_2d", "max_pool_2d"), pool_range),
        "relu6": relu6_range,
    }
)


def check_defined(graph: Graph, op: Op) -> None:
    """Raise when TFLite Micro does not define an int8 op for the scales that it has (it crashes, or overflows).

    Raises:
        InvalidModelError: names the op, the scale and the limit.
    """
    bound = {"relu6": 6.0, "relu_n1_to_1": 1.0}.get(op.attrs.get("activation", "none"))
    if bound is not None:
        _check_bound(op, tensor_quant(graph.tensor(op.outputs[0])), bound)
    constants = _CONSTANTS.get(op.kind)
    if constants is not None and all(graph.tensor(name).dtype != "float32" for name in op.inputs if name):
        constants(graph, op)
