"""Kernels that slide a window over a map: convolutions, transposed convolutions, pooling, padding, resizing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, Tensor, activation_range, requantization, spatial_padding, tensor_quant
from tinykd.ir.requant import Requantization
from tinykd.kernels.call import (
    Call,
    Field,
    arguments,
    bias,
    check_reach,
    edges,
    folded_bias,
    u16,
    weights,
    within,
)
from tinykd.kernels.layout import strides
from tinykd.kernels.moves import copy_fields, make_move

Calls = Callable[[Graph, Op, str], tuple[Call, ...]]


def is_pointwise(graph: Graph, op: Op) -> bool:
    """Kernel 1x1, stride 1, no padding."""
    kernel = graph.tensor(op.inputs[1]).shape[1:3]
    return kernel == (1, 1) and tuple(op.attrs["stride"]) == (1, 1) and not any(op.attrs["padding"])


def has_multiplier_one(graph: Graph, op: Op) -> bool:
    """As many output as input channels."""
    return graph.tensor(op.inputs[1]).shape[3] == graph.tensor(op.inputs[0]).shape[3]


def pads_map(graph: Graph, op: Op) -> bool:
    """Pads height and width of (1, H, W, C) with the real 0."""
    return spatial_padding(op) is not None and graph.tensor(op.inputs[0]).shape[0] == 1


def factors(constants: Requantization) -> dict[str, np.ndarray]:
    """Return the factors per channel as arrays."""
    return {
        "multiplier": np.array(constants.multipliers, np.int32),
        "shift": np.array(constants.shifts, np.int8),
    }


def conv_fields(sizes: dict[str, int], constants: Requantization, where: str) -> dict[str, Field]:
    """Return the parameter block `tk_conv_2d_t`."""
    return {
        **u16(sizes, where),
        "in_zero": constants.input_zero_point,
        "out_zero": constants.output_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        **{name: name for name in ("weights", "bias", "multiplier", "shift")},
    }


def conv(function: str, channel_axis: int) -> Calls:
    """Return what derives the call of a convolution; `channel_axis` is the weights' axis of output channels."""

    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        x, y = edges(graph, op, where)
        taps = weights(graph, op.inputs[1], where)
        constants = requantization(graph, op)
        sizes = {
            **_sizes(x, y, taps, op),
            "dilation_h": op.attrs["dilation"][0],
            "dilation_w": op.attrs["dilation"][1],
            "pad_top": op.attrs["padding"][0],
            "pad_left": op.attrs["padding"][2],
        }
        folded = folded_bias(graph, op, taps, channel_axis, constants.input_zero_point, where)
        return (
            Call(
                function,
                "tk_conv_2d_t",
                conv_fields(sizes, constants, where),
                arguments(op.inputs[0], op.outputs[0]),
                {"weights": taps, "bias": folded, **factors(constants)},
            ),
        )

    return calls


def _sizes(x: Tensor, y: Tensor, taps: np.ndarray, op: Op) -> dict[str, int]:
    """Return the sizes that a convolution and a transposed one both have; `taps` is (.., kernel_h, kernel_w, ..)."""
    return {
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "in_c": x.shape[3],
        "out_h": y.shape[1],
        "out_w": y.shape[2],
        "out_c": y.shape[3],
        "kernel_h": taps.shape[1],
        "kernel_w": taps.shape[2],
        "stride_h": op.attrs["stride"][0],
        "stride_w": op.attrs["stride"][1],
    }


def transpose_conv(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a transposed convolution."""
    x, y = edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    values = bias(graph, op, 2, len(taps), where)
    check_reach(values, np.abs(taps.astype(np.int64)).sum(axis=(1, 2, 3)), where)
    cuts = {"pad_top": op.attrs["padding"][0], "pad_left": op.attrs["padding"][2]}
    fields: dict[str, Field] = {
        **u16(_sizes(x, y, taps, op), where),
        **{name: within(value, -0x8000, 0x7FFF, name, where) for name, value in cuts.items()},
        "in_zero": constants.input_zero_point,
        "out_zero": constants.output_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        **{name: name for name in ("weights", "bias", "multiplier", "shift")},
    }
    arrays = {"weights": taps, "bias": values.astype(np.int32), **factors(constants)}
    return (Call("tk_transpose_conv", "tk_transpose_conv_t", fields, arguments(op.inputs[0], op.outputs[0]), arrays),)


def pool(function: str) -> Calls:
    """Return what derives the call of a pooling kernel."""

    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        x, y = edges(graph, op, where)
        low, high = activation_range(tensor_quant(y), op.attrs["activation"])
        kernel, padding = op.attrs["kernel"], op.attrs["padding"]
        if max(padding[:2]) >= kernel[0] or max(padding[2:]) >= kernel[1]:
            raise UnsupportedModelError(f"{where}: a window lies wholly in the padding {tuple(padding)}")
        sizes = {
            "in_h": x.shape[1],
            "in_w": x.shape[2],
            "channels": x.shape[3],
            "out_h": y.shape[1],
            "out_w": y.shape[2],
            "kernel_h": kernel[0],
            "kernel_w": kernel[1],
            "stride_h": op.attrs["stride"][0],
            "stride_w": op.attrs["stride"][1],
            "pad_top": padding[0],
            "pad_left": padding[2],
        }
        fields = {**u16(sizes, where), "out_min": low, "out_max": high}
        return (Call(function, "tk_pool_2d_t", fields, arguments(op.inputs[0], op.outputs[0])),)

    return calls


def pad(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call that pads height and width."""
    x, y = edges(graph, op, where)
    padding = spatial_padding(op)
    if padding is None:
        raise UnsupportedModelError(f"{where}: pads by {op.attrs['paddings']}; this kernel pads height and width")
    top, bottom, left, right = padding
    sizes = {
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "channels": x.shape[3],
        "pad_top": top,
        "pad_bottom": bottom,
        "pad_left": left,
        "pad_right": right,
    }
    fields = {**u16(sizes, where), "value": tensor_quant(y).zero_point}
    return (Call("tk_pad", "tk_pad_t", fields, arguments(op.inputs[0], op.outputs[0])),)


def pad_nd(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call that pads any axes with any value."""
    x, y = edges(graph, op, where)
    whole = strides(y.shape)
    origin = sum(before * stride for (before, _), stride in zip(op.attrs["paddings"], whole, strict=True))
    axes = list(zip(x.shape, strides(x.shape), whole, strict=True))
    copy = copy_fields(make_move(graph, x.name, y.name, axes), where)
    value = op.attrs["value"]
    fields: dict[str, Field] = {
        **{f"copy.{name}": field for name, field in copy.items()},
        "count": y.num_elements,
        "origin": origin,
        "value": tensor_quant(y).zero_point if value is None else int(value),
    }
    return (Call("tk_pad_nd", "tk_pad_nd_t", fields, arguments(x.name, y.name)),)
