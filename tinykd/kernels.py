"""Which C kernel runs which op, and the constants that it is given. One row per kernel, the faster ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import (
    Graph,
    Op,
    Tensor,
    activation_range,
    add_params,
    mean_params,
    requantization,
    softmax_params,
    spatial_padding,
    tensor_quant,
)

SOFTMAX_MAX_CHANNELS = 4095
MEAN_MAX_AREA = 1 << 23


@dataclass(frozen=True)
class Call:
    """One call of a kernel, as C needs it.

    Attributes:
        function: the kernel, for example "tk_conv_2d".
        struct: type of its parameter block, for example "tk_conv_2d_t".
        fields: members of the parameter block in the order of the C struct; a string is the key of an array.
        arrays: key -> constant int8 or int32 array, flattened.
        inputs: tensor names passed as pointers, before the output.
    """

    function: str
    struct: str
    fields: Mapping[str, int | str]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A row of `KERNELS`: `applies` says whether the kernel can run an op, `call` derives its constants."""

    function: str
    applies: Callable[[Graph, Op], bool]
    call: Callable[[Graph, Op, str], Call]


def select(graph: Graph, op: Op, where: str) -> Call:
    """Return the call of the first kernel that can run the op.

    Args:
        where: how errors name the op.

    Raises:
        UnsupportedModelError: no kernel can, or a constant leaves the range that the kernels are proven for.
    """
    for kernel in KERNELS.get(op.kind, ()):
        if kernel.applies(graph, op):
            return kernel.call(graph, op, where)
    raise UnsupportedModelError(
        f"{where}: the firmware has no kernel for it", f"Kernels exist for: {', '.join(sorted(KERNELS))}."
    )


def _always(graph: Graph, op: Op) -> bool:
    return True


def _is_pointwise(graph: Graph, op: Op) -> bool:
    kernel = graph.tensor(op.inputs[1]).shape[1:3]
    return kernel == (1, 1) and tuple(op.attrs["stride"]) == (1, 1) and not any(op.attrs["padding"])


def _has_multiplier_one(graph: Graph, op: Op) -> bool:
    return graph.tensor(op.inputs[1]).shape[3] == graph.tensor(op.inputs[0]).shape[3]


def _int8(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype != "int8":
        raise UnsupportedModelError(
            f"{where}: tensor '{tensor.name}' is {tensor.dtype}; the kernels take int8",
            "Export the model with full integer quantisation.",
        )
    return tensor


def _u16(value: int, what: str, where: str) -> int:
    if not 0 <= value <= 0xFFFF:
        raise UnsupportedModelError(f"{where}: {what} is {value}; the kernels take at most 65535")
    return int(value)


def _weights(graph: Graph, op: Op, where: str) -> np.ndarray:
    tensor = _int8(graph.tensor(op.inputs[1]), where)
    if tensor.data is None:
        raise UnsupportedModelError(f"{where}: its weights '{tensor.name}' are computed, not constant")
    if any(tensor_quant(tensor).zero_points):
        raise UnsupportedModelError(f"{where}: the weights '{tensor.name}' have a zero point; the kernels take 0 only")
    return tensor.data


def _folded_bias(graph: Graph, op: Op, weights: np.ndarray, axis: int, zero_point: int, where: str) -> np.ndarray:
    """Return bias - zero_point * sum(weights) per output channel, after proving that no accumulator leaves int32."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    wide = weights.astype(np.int64)
    bias = np.zeros(weights.shape[axis], np.int64)
    if len(op.inputs) > 2 and op.inputs[2]:
        tensor = graph.tensor(op.inputs[2])
        if tensor.data is None or tensor.dtype != "int32":
            raise UnsupportedModelError(f"{where}: its bias '{tensor.name}' must be a constant of int32")
        bias = tensor.data.astype(np.int64)
    reach = np.abs(bias) + 256 * np.abs(wide).sum(axis=others)
    if int(reach.max()) >= 1 << 31:
        channel = int(reach.argmax())
        raise UnsupportedModelError(
            f"{where}: output channel {channel} can sum up to {int(reach[channel])}, beyond int32 (2147483647)",
            "Such a model has no defined result in TFLite either; look for a wrong bias scale.",
        )
    return (bias - zero_point * wide.sum(axis=others)).astype(np.int32)


def _conv_call(function: str, channel_axis: int) -> Callable[[Graph, Op, str], Call]:
    def call(graph: Graph, op: Op, where: str) -> Call:
        x, y = (_int8(graph.tensor(name), where) for name in (op.inputs[0], op.outputs[0]))
        weights = _weights(graph, op, where)
        constants = requantization(graph, op)
        sizes = {
            "in_h": x.shape[1],
            "in_w": x.shape[2],
            "in_c": x.shape[3],
            "out_h": y.shape[1],
            "out_w": y.shape[2],
            "out_c": y.shape[3],
            "kernel_h": weights.shape[1],
            "kernel_w": weights.shape[2],
            "stride_h": op.attrs["stride"][0],
            "stride_w": op.attrs["stride"][1],
            "dilation_h": op.attrs["dilation"][0],
            "dilation_w": op.attrs["dilation"][1],
            "pad_top": op.attrs["padding"][0],
            "pad_left": op.attrs["padding"][2],
        }
        return Call(
            function,
            "tk_conv_2d_t",
            {
                **{name: _u16(value, name, where) for name, value in sizes.items()},
                "in_zero": constants.input_zero_point,
                "out_zero": constants.output_zero_point,
                "out_min": constants.out_min,
                "out_max": constants.out_max,
                "weights": "weights",
                "bias": "bias",
                "multiplier": "multiplier",
                "shift": "shift",
            },
            {
                "weights": weights,
                "bias": _folded_bias(graph, op, weights, channel_axis, constants.input_zero_point, where),
                "multiplier": np.array(constants.multipliers, np.int32),
                "shift": np.array(constants.shifts, np.int8),
            },
            op.inputs[:1],
        )

    return call


def _fully_connected(graph: Graph, op: Op, where: str) -> Call:
    _int8(graph.tensor(op.inputs[0]), where)
    _int8(graph.tensor(op.outputs[0]), where)
    weights = _weights(graph, op, where)
    constants = requantization(graph, op)
    per_channel = len(tensor_quant(graph.tensor(op.inputs[1])).scales) > 1
    count = len(weights) if per_channel else 1
    return Call(
        "tk_fully_connected",
        "tk_fully_connected_t",
        {
            "in_c": weights.shape[1],
            "out_c": weights.shape[0],
            "out_zero": constants.output_zero_point,
            "out_min": constants.out_min,
            "out_max": constants.out_max,
            "channel_step": int(per_channel),
            "weights": "weights",
            "bias": "bias",
            "multiplier": "multiplier",
            "shift": "shift",
        },
        {
            "weights": weights,
            "bias": _folded_bias(graph, op, weights, 0, constants.input_zero_point, where),
            "multiplier": np.array(constants.multipliers[:count], np.int32),
            "shift": np.array(constants.shifts[:count], np.int8),
        },
        op.inputs[:1],
    )


def _add(graph: Graph, op: Op, where: str) -> Call:
    tensors = [_int8(graph.tensor(name), where) for name in (*op.inputs, *op.outputs)]
    constants = add_params(graph, op)
    return Call(
        "tk_add",
        "tk_add_t",
        {
            "count": tensors[2].num_elements,
            "a_zero": constants.zero_points[0],
            "b_zero": constants.zero_points[1],
            "out_zero": constants.output_zero_point,
            "out_min": constants.out_min,
            "out_max": constants.out_max,
            "a_shift": constants.shifts[0],
            "b_shift": constants.shifts[1],
            "out_shift": constants.output_shift,
            "a_multiplier": constants.multipliers[0],
            "b_multiplier": constants.multipliers[1],
            "out_multiplier": constants.output_multiplier,
        },
        inputs=op.inputs,
    )


def _pool_call(function: str) -> Callable[[Graph, Op, str], Call]:
    def call(graph: Graph, op: Op, where: str) -> Call:
        x, y = (_int8(graph.tensor(name), where) for name in (op.inputs[0], op.outputs[0]))
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
        return Call(
            function,
            "tk_pool_2d_t",
            {**{name: _u16(value, name, where) for name, value in sizes.items()}, "out_min": low, "out_max": high},
            inputs=op.inputs,
        )

    return call


def _mean(graph: Graph, op: Op, where: str) -> Call:
    x, _ = (_int8(graph.tensor(name), where) for name in (op.inputs[0], op.outputs[0]))
    if op.attrs["axes"] != (1, 2) or len(x.shape) != 4:
        raise UnsupportedModelError(f"{where}: mean over axes {list(op.attrs['axes'])}; the kernel takes H and W")
    constants = mean_params(graph, op)
    area = x.shape[1] * x.shape[2]
    if area > MEAN_MAX_AREA:
        raise UnsupportedModelError(f"{where}: mean over {area} positions; the limit is {MEAN_MAX_AREA}")
    return Call(
        "tk_mean",
        "tk_mean_t",
        {
            "area": area,
            "channels": x.shape[3],
            "zero_sum": constants.zero_sum,
            "multiplier": constants.multiplier,
            "out_zero": constants.output_zero_point,
            "shift": constants.shift,
        },
        inputs=op.inputs[:1],
    )


def _pad(graph: Graph, op: Op, where: str) -> Call:
    x, y = (_int8(graph.tensor(name), where) for name in (op.inputs[0], op.outputs[0]))
    padding = spatial_padding(op)
    if padding is None:
        raise UnsupportedModelError(f"{where}: pads by {op.attrs['paddings']}; the kernel pads height and width")
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
    return Call(
        "tk_pad",
        "tk_pad_t",
        {**{name: _u16(value, name, where) for name, value in sizes.items()}, "value": tensor_quant(y).zero_point},
        inputs=op.inputs[:1],
    )


def _softmax(graph: Graph, op: Op, where: str) -> Call:
    x, y = (_int8(graph.tensor(name), where) for name in (op.inputs[0], op.outputs[0]))
    quant = tensor_quant(y)
    if quant.scale != 1 / 256 or quant.zero_point != -128:
        raise UnsupportedModelError(
            f"{where}: output scale {quant.scale:g}, zero point {quant.zero_point}; TFLite's is 1/256 and -128"
        )
    channels = x.shape[-1]
    if channels > SOFTMAX_MAX_CHANNELS:
        raise UnsupportedModelError(f"{where}: {channels} classes; the fixed-point sum holds {SOFTMAX_MAX_CHANNELS}")
    constants = softmax_params(graph, op)
    return Call(
        "tk_softmax",
        "tk_softmax_t",
        {
            "rows": x.num_elements // channels,
            "channels": channels,
            "multiplier": constants.multiplier,
            "left_shift": constants.left_shift,
            "diff_min": constants.diff_min,
        },
        inputs=op.inputs,
    )


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "conv_2d": (
            Kernel("tk_conv_2d_1x1", _is_pointwise, _conv_call("tk_conv_2d_1x1", 0)),
            Kernel("tk_conv_2d", _always, _conv_call("tk_conv_2d", 0)),
        ),
        "depthwise_conv_2d": (
            Kernel("tk_depthwise_conv_2d_m1", _has_multiplier_one, _conv_call("tk_depthwise_conv_2d_m1", 3)),
            Kernel("tk_depthwise_conv_2d", _always, _conv_call("tk_depthwise_conv_2d", 3)),
        ),
        "fully_connected": (Kernel("tk_fully_connected", _always, _fully_connected),),
        "add": (Kernel("tk_add", _always, _add),),
        "average_pool_2d": (Kernel("tk_average_pool_2d", _always, _pool_call("tk_average_pool_2d")),),
        "max_pool_2d": (Kernel("tk_max_pool_2d", _always, _pool_call("tk_max_pool_2d")),),
        "mean": (Kernel("tk_mean", _always, _mean),),
        "pad": (Kernel("tk_pad", _always, _pad),),
        "softmax": (Kernel("tk_softmax", _always, _softmax),),
    }
)
