"""Every op kind of the IR: how many inputs and outputs it has, its attributes, its MAC count. One row per op.

`shapes.py` holds the rule of each one's output shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tinykd.ir.graph import Graph, Op

ACTIVATIONS = ("none", "relu", "relu6", "relu_n1_to_1")
MANY = 1 << 16
"""The upper end of a variable number of inputs or outputs."""

Padding = tuple[int, int, int, int]
"""(top, bottom, left, right)."""


@dataclass(frozen=True)
class OpSpec:
    """What an op kind looks like.

    Attributes:
        inputs: (least, most) number of inputs.
        attrs: names of its attributes, all required.
        macs: multiply-accumulates of one op, from its graph; its docstring is the manual's formula.
        note: one line for the manual: shapes and meaning.
        outputs: (least, most) number of outputs.
    """

    inputs: tuple[int, int]
    attrs: tuple[str, ...]
    macs: Callable[[Graph, Op], int]
    note: str
    outputs: tuple[int, int] = (1, 1)


def _no_macs(graph: Graph, op: Op) -> int:
    """none"""
    return 0


def _conv_macs(graph: Graph, op: Op) -> int:
    """elements of the output · kH · kW · Cin"""
    _, kernel_h, kernel_w, channels_in = graph.tensor(op.inputs[1]).shape
    return graph.tensor(op.outputs[0]).num_elements * kernel_h * kernel_w * channels_in


def _depthwise_macs(graph: Graph, op: Op) -> int:
    """elements of the output · kH · kW"""
    _, kernel_h, kernel_w, _ = graph.tensor(op.inputs[1]).shape
    return graph.tensor(op.outputs[0]).num_elements * kernel_h * kernel_w


def _transpose_conv_macs(graph: Graph, op: Op) -> int:
    """elements of the input · kH · kW · Cout"""
    channels_out, kernel_h, kernel_w, _ = graph.tensor(op.inputs[1]).shape
    return graph.tensor(op.inputs[0]).num_elements * kernel_h * kernel_w * channels_out


def _dense_macs(graph: Graph, op: Op) -> int:
    """elements of the output · Cin"""
    return graph.tensor(op.outputs[0]).num_elements * graph.tensor(op.inputs[1]).shape[-1]


def _svdf_macs(graph: Graph, op: Op) -> int:
    """F · Cin + F · T"""
    return graph.tensor(op.inputs[1]).num_elements + graph.tensor(op.inputs[2]).num_elements


_CONV = ("stride", "dilation", "padding", "activation")
_POOL = ("kernel", "stride", "padding", "activation")
_ELEMENTWISE = "the shape of its input"

SPECS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "conv_2d": OpSpec(
            (2, 3),
            _CONV,
            _conv_macs,
            "x (1, H, W, Cin), weights (Cout, kH, kW, Cin), bias (Cout,). stride, dilation: (h, w); "
            "padding: (top, bottom, left, right), filled with the input's zero point.",
        ),
        "depthwise_conv_2d": OpSpec(
            (2, 3),
            _CONV,
            _depthwise_macs,
            "x (1, H, W, C), weights (1, kH, kW, C * multiplier), bias (C * multiplier,).",
        ),
        "transpose_conv": OpSpec(
            (2, 3),
            ("stride", "padding", "activation"),
            _transpose_conv_macs,
            "x (1, H, W, Cin), weights (Cout, kH, kW, Cin), bias (Cout,). Each input position adds a kernel to the "
            "output; padding: rows and columns cut off it, negative where only the bias reaches.",
        ),
        "fully_connected": OpSpec(
            (2, 3),
            ("activation",),
            _dense_macs,
            "x read as rows of Cin, weights (Cout, Cin), bias (Cout,); output: as many rows of Cout.",
        ),
        "svdf": OpSpec(
            (5, 5),
            ("rank", "activation"),
            _svdf_macs,
            "x (1, Cin), feature weights (F, Cin), time weights (F, T) int16, bias (F / rank,), "
            "state (1, F * T) int16, a variable. Output (1, F / rank).",
        ),
        "add": OpSpec((2, 2), ("activation",), _no_macs, "Elementwise sum; shapes broadcast."),
        "sub": OpSpec((2, 2), ("activation",), _no_macs, "Elementwise difference; shapes broadcast."),
        "mul": OpSpec((2, 2), ("activation",), _no_macs, "Elementwise product; shapes broadcast."),
        "maximum": OpSpec((2, 2), (), _no_macs, "Elementwise maximum of equal scales; shapes broadcast."),
        "minimum": OpSpec((2, 2), (), _no_macs, "Elementwise minimum of equal scales; shapes broadcast."),
        "average_pool_2d": OpSpec((1, 1), _POOL, _no_macs, "x (1, H, W, C); padding does not count in the mean."),
        "max_pool_2d": OpSpec((1, 1), _POOL, _no_macs, "x (1, H, W, C)."),
        "mean": OpSpec((1, 1), ("axes", "keep_dims"), _no_macs, "Mean over axes, a sorted tuple without the batch."),
        "pad": OpSpec(
            (1, 1),
            ("paddings", "value"),
            _no_macs,
            "paddings: (before, after) of each axis; value: the integer (in float graphs the real number) that fills "
            "them, None for the real number 0.",
        ),
        "reshape": OpSpec((1, 1), (), _no_macs, "The same elements under the output's shape."),
        "transpose": OpSpec((1, 1), ("perm",), _no_macs, "Axis i of the output is axis perm[i] of the input."),
        "concatenation": OpSpec((1, MANY), ("axis",), _no_macs, "Joined along axis; all of one quantisation."),
        "split": OpSpec(
            (1, 1),
            ("axis",),
            _no_macs,
            "Cut along axis into the outputs, in order; all of one quantisation.",
            outputs=(1, MANY),
        ),
        "strided_slice": OpSpec(
            (1, 1),
            ("begin", "end", "strides", "shrink_axes"),
            _no_macs,
            "x[begin:end:strides] for each axis; begin inside the axis, end exclusive (-1 before the first with a "
            "negative stride). shrink_axes: axes of length 1 that the output drops.",
        ),
        "resize_nearest_neighbor": OpSpec(
            (1, 1),
            ("align_corners", "half_pixel_centers"),
            _no_macs,
            "x (1, H, W, C) to the height and width of the output.",
        ),
        "softmax": OpSpec((1, 1), ("beta",), _no_macs, "Softmax over the last axis; output scale 1/256, zero -128."),
        "logistic": OpSpec((1, 1), (), _no_macs, "1 / (1 + exp(-x)); output scale 1/256, zero -128."),
        "tanh": OpSpec((1, 1), (), _no_macs, "Hyperbolic tangent; output scale 1/128, zero 0."),
        "hard_swish": OpSpec((1, 1), (), _no_macs, "x * relu6(x + 3) / 6."),
        "relu": OpSpec((1, 1), (), _no_macs, "max(x, 0); a pass fuses it into its producer where it can."),
        "relu6": OpSpec((1, 1), (), _no_macs, "min(max(x, 0), 6); fused where it can be."),
        "leaky_relu": OpSpec((1, 1), ("alpha",), _no_macs, "x where positive, alpha * x elsewhere."),
        "prelu": OpSpec((2, 2), (), _no_macs, "x where positive, slopes * x elsewhere; the slopes broadcast."),
        "quantize": OpSpec((1, 1), (), _no_macs, "To the output's parameters: from float32 or from other integers."),
        "dequantize": OpSpec((1, 1), (), _no_macs, "From integers to float32."),
        "arg_max": OpSpec((1, 1), ("axis",), _no_macs, "Index (int32) of the largest value along axis, the first."),
        "batch_norm": OpSpec(
            (5, 5),
            ("epsilon",),
            _no_macs,
            "x, gamma, beta, mean, variance, each (C,): float graphs only; folded by a pass.",
        ),
    }
)

BINARY = ("add", "sub", "mul", "maximum", "minimum", "prelu")
"""Ops of two inputs whose shapes broadcast."""
UNARY = ("softmax", "logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "quantize", "dequantize")
"""Ops whose output has the shape of their only input."""


def op_macs(graph: Graph, op: Op) -> int:
    """Return the multiply-accumulates of one op (padding positions counted, as the field does)."""
    return SPECS[op.kind].macs(graph, op)


def graph_macs(graph: Graph) -> int:
    """Return the multiply-accumulates of one inference."""
    return sum(op_macs(graph, op) for op in graph.ops)


def op_label(index: int, op: Op) -> str:
    """Return how messages name an op: its index, its kind and where it came from."""
    return f"op {index} ({op.kind}, {op.source or op.outputs[0]})"


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return TensorFlow's SAME padding (before, after) along one axis."""
    span = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def conv_output_size(size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int = 1) -> int:
    """Return the output size of a convolution or pooling along one axis."""
    return (size + pad[0] + pad[1] - ((kernel - 1) * dilation + 1)) // stride + 1


def spatial_padding(op: Op) -> Padding | None:
    """Return a pad op's (top, bottom, left, right) if it pads H and W of (1, H, W, C) with the real 0, else None."""
    paddings = op.attrs["paddings"]
    if op.attrs["value"] is not None or len(paddings) != 4 or any(paddings[0]) or any(paddings[3]):
        return None
    return (*paddings[1], *paddings[2])


def spatial_paddings(padding: Padding) -> tuple[tuple[int, int], ...]:
    """Return the `paddings` of a pad op that pads H and W by (top, bottom, left, right)."""
    top, bottom, left, right = padding
    return ((0, 0), (top, bottom), (left, right), (0, 0))
