"""Every op kind of the IR: its inputs, its attributes, its MAC count. One row per op."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tinykd.ir.graph import Graph, Op

ACTIVATIONS = ("none", "relu", "relu6")


@dataclass(frozen=True)
class OpSpec:
    """What an op kind looks like.

    Attributes:
        inputs: (least, most) number of inputs.
        attrs: names of its attributes, all required.
        macs: multiply-accumulates of one op, from its graph.
        note: one line for the manual: shapes and meaning.
    """

    inputs: tuple[int, int]
    attrs: tuple[str, ...]
    macs: Callable[[Graph, Op], int]
    note: str


def _no_macs(graph: Graph, op: Op) -> int:
    return 0


def _conv_macs(graph: Graph, op: Op) -> int:
    _, kernel_h, kernel_w, channels_in = graph.tensor(op.inputs[1]).shape
    return graph.tensor(op.outputs[0]).num_elements * kernel_h * kernel_w * channels_in


def _depthwise_macs(graph: Graph, op: Op) -> int:
    _, kernel_h, kernel_w, _ = graph.tensor(op.inputs[1]).shape
    return graph.tensor(op.outputs[0]).num_elements * kernel_h * kernel_w


def _dense_macs(graph: Graph, op: Op) -> int:
    return graph.tensor(op.outputs[0]).num_elements * graph.tensor(op.inputs[1]).shape[-1]


_CONV = ("stride", "dilation", "padding", "activation")
_POOL = ("kernel", "stride", "padding", "activation")

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
        "fully_connected": OpSpec(
            (2, 3), ("activation",), _dense_macs, "x (1, ...) flattened to (1, Cin), weights (Cout, Cin), bias (Cout,)."
        ),
        "add": OpSpec((2, 2), ("activation",), _no_macs, "Elementwise sum of two activations of the same shape."),
        "average_pool_2d": OpSpec((1, 1), _POOL, _no_macs, "x (1, H, W, C); padding does not count in the mean."),
        "max_pool_2d": OpSpec((1, 1), _POOL, _no_macs, "x (1, H, W, C)."),
        "mean": OpSpec(
            (1, 1), ("keep_dims",), _no_macs, "Mean of x (1, H, W, C) over H and W: (1, C), or (1, 1, 1, C)."
        ),
        "pad": OpSpec(
            (1, 1), ("padding",), _no_macs, "x (1, H, W, C) padded by (top, bottom, left, right) with its zero point."
        ),
        "reshape": OpSpec((1, 1), (), _no_macs, "The same elements under the output's shape."),
        "softmax": OpSpec((1, 1), ("beta",), _no_macs, "Softmax over the last axis; output scale 1/256, zero -128."),
        "relu": OpSpec((1, 1), (), _no_macs, "max(x, 0): float graphs only; a pass fuses it into its producer."),
        "relu6": OpSpec((1, 1), (), _no_macs, "min(max(x, 0), 6): float graphs only; fused by a pass."),
        "batch_norm": OpSpec(
            (5, 5),
            ("epsilon",),
            _no_macs,
            "x, gamma, beta, mean, variance, each (C,): float graphs only; folded by a pass.",
        ),
    }
)


def op_macs(graph: Graph, op: Op) -> int:
    """Return the multiply-accumulates of one op (padding positions counted, as the field does)."""
    return SPECS[op.kind].macs(graph, op)


def graph_macs(graph: Graph) -> int:
    """Return the multiply-accumulates of one inference."""
    return sum(op_macs(graph, op) for op in graph.ops)


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return TensorFlow's SAME padding (before, after) along one axis."""
    span = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def conv_output_size(size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int = 1) -> int:
    """Return the output size of a convolution or pooling along one axis."""
    return (size + pad[0] + pad[1] - ((kernel - 1) * dilation + 1)) // stride + 1
