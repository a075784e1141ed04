"""Reads ONNX's convolutions, poolings, paddings and resizings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinykd.formats.onnx.layout import Value, channels_last
from tinykd.formats.onnx.reader import Node
from tinykd.ir import conv_output_size, spatial_paddings
from tinykd.ir.ops import Padding, same_padding
from tinykd.ir.resize import nearest_positions

Pair = tuple[int, int]
_LARGEST_SIDE = 1 << 16


def read_map(node: Node, value: Value) -> tuple[str, Pair]:
    """Return a map (1, H, W, C) and its (H, W); a sequence (1, C, L) is a map of height 1.

    Raises:
        UnsupportedModelError: a value of another rank.
    """
    rank = len(value.shape)
    if rank not in (3, 4):
        raise node.refusal(f"its input has shape {list(value.shape)}; only maps and sequences are supported")
    size = (1, value.shape[2]) if rank == 3 else value.shape[2:]
    return node.arrange(value, channels_last(rank), (1, *size, value.shape[1])), (size[0], size[1])


def bind_map(node: Node, value: Value, name: str) -> None:
    """Say that the node's output is the map `name`, of the rank of its input `value`."""
    rank = len(value.shape)
    shape = node.reader.tensors[name].shape
    node.bind(name, shape if rank == 4 else (1, *shape[2:]), channels_last(rank))


def _pair(node: Node, key: str, rank: int, default: int = 1) -> Pair:
    """Return an attribute of each spatial axis as (height, width)."""
    given = tuple(node.attrs.get(key) or [default] * (rank - 2))
    if len(given) != rank - 2:
        raise node.refusal(f"{key} {list(given)} for {rank - 2} spatial axes")
    return (default, given[0]) if rank == 3 else (given[0], given[1])


def _padding(node: Node, rank: int, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Padding:
    mode = node.attrs.get("auto_pad", b"NOTSET") or b"NOTSET"
    if mode == b"VALID":
        return (0, 0, 0, 0)
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        pairs = [same_padding(*row) for row in zip(size, kernel, stride, dilation, strict=True)]
        # SAME_LOWER puts the odd row or column before the map.
        (top, bottom), (left, right) = pairs if mode == b"SAME_UPPER" else [pair[::-1] for pair in pairs]
        return top, bottom, left, right
    if mode != b"NOTSET":
        raise node.refusal(f"auto_pad {mode!r} is unknown")
    pads = list(node.attrs.get("pads") or [0] * 2 * (rank - 2))
    if len(pads) != 2 * (rank - 2) or min(pads) < 0:
        raise node.refusal(f"pads {pads}; one before and one after each spatial axis, none negative")
    if rank == 3:
        return 0, 0, pads[0], pads[1]
    return pads[0], pads[2], pads[1], pads[3]


def _output_size(size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    return (
        conv_output_size(size[0], kernel[0], stride[0], padding[:2], dilation[0]),
        conv_output_size(size[1], kernel[1], stride[1], padding[2:], dilation[1]),
    )


def _kernels(node: Node, value: Value) -> np.ndarray:
    """Return the weights with two spatial axes."""
    weights = node.constant(1)
    if weights.ndim != len(value.shape) or weights.ndim not in (3, 4):
        raise node.refusal("only 1-D and 2-D convolutions are supported", "Unroll the third spatial axis.")
    return weights if weights.ndim == 4 else weights[:, :, None]


def conv(node: Node) -> None:
    """Conv: one convolution, a depthwise one, or one for each of several groups."""
    value = node.value()
    weights = _kernels(node, value)
    rank, channels = len(value.shape), value.shape[1]
    x, size = read_map(node, value)
    group = node.attrs.get("group", 1)
    kernel = (weights.shape[2], weights.shape[3])
    stride, dilation = _pair(node, "strides", rank), _pair(node, "dilations", rank)
    padding = _padding(node, rank, size, kernel, stride, dilation)
    attrs: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "activation": "none"}
    height, width = _output_size(size, kernel, stride, padding, dilation)
    count = len(weights)
    if group < 1 or channels % group or count % group or weights.shape[1] * group != channels:
        raise node.refusal(f"weights {list(weights.shape)} in {group} groups for {channels} input channels")

    def one(source: str, name: str, taken: slice, kind: str, order: tuple[int, ...]) -> str:
        part = "" if taken == slice(None) else f"{taken.start}"
        nhwc = weights[taken].transpose(order)
        bias = node.constant(2)[taken] if node.has(2) else np.zeros(count, np.float32)[taken]
        inputs = (
            source,
            node.weights(f"weights{part}", nhwc, 1, taken),
            node.weights(f"bias{part}", bias, 2 if node.has(2) else None, taken),
        )
        return node.op(kind, inputs, name, (1, height, width, len(bias)), **attrs)

    out = node.proto.output[0]
    if group == 1:
        one(x, out, slice(None), "conv_2d", (0, 2, 3, 1))
    elif group == channels:
        one(x, out, slice(None), "depthwise_conv_2d", (1, 2, 3, 0))
    else:
        # A convolution of each group's channels; what they give has one quantisation, as the whole would have.
        inside, outside = channels // group, count // group
        parts = [f"{out}/input{number}" for number in range(group)]
        node.split(x, parts, 3, [inside] * group)
        results = [
            one(part, f"{out}/group{number}", slice(number * outside, (number + 1) * outside), "conv_2d", (0, 2, 3, 1))
            for number, part in enumerate(parts)
        ]
        node.op("concatenation", results, out, (1, height, width, count), axis=3)
    bind_map(node, value, out)


def conv_transpose(node: Node) -> None:
    """ConvTranspose: its pads cut rows and columns off the full output, output_padding adds some."""
    value = node.value()
    weights = _kernels(node, value)
    rank = len(value.shape)
    x, size = read_map(node, value)
    kernel = (weights.shape[2], weights.shape[3])
    stride, extra = _pair(node, "strides", rank), _pair(node, "output_padding", rank, 0)
    if node.attrs.get("group", 1) != 1 or _pair(node, "dilations", rank) != (1, 1):
        raise node.refusal(
            "only transposed convolutions of one group without dilation are supported",
            "Upsample with Resize (nearest) and convolve.",
        )
    if node.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or node.attrs.get("output_shape"):
        raise node.refusal("auto_pad and output_shape are not supported", "Export explicit pads.")
    top, bottom, left, right = _padding(node, rank, size, kernel, stride, (1, 1))
    padding = (top, bottom - extra[0], left, right - extra[1])
    height = (size[0] - 1) * stride[0] + kernel[0] - padding[0] - padding[1]
    width = (size[1] - 1) * stride[1] + kernel[1] - padding[2] - padding[3]
    nhwc = weights.transpose(1, 2, 3, 0)
    bias = node.constant(2) if node.has(2) else np.zeros(len(nhwc), np.float32)
    inputs = (x, node.weights("weights", nhwc, 1), node.weights("bias", bias, 2 if node.has(2) else None))
    shape = (1, height, width, len(nhwc))
    node.op("transpose_conv", inputs, node.proto.output[0], shape, stride=stride, padding=padding, activation="none")
    bind_map(node, value, node.proto.output[0])


def pool(kind: str) -> Callable[[Node], None]:
    """Return the handler of MaxPool or AveragePool."""

    def handler(node: Node) -> None:
        value = node.value()
        rank = len(value.shape)
        x, size = read_map(node, value)
        if _pair(node, "dilations", rank) != (1, 1) or (len(node.proto.output) > 1 and node.proto.output[1]):
            raise node.refusal("dilated poolings and indices are not supported")
        if "kernel_shape" not in node.attrs:
            raise node.refusal("has no kernel_shape")
        kernel, stride = _pair(node, "kernel_shape", rank), _pair(node, "strides", rank)
        padding = _padding(node, rank, size, kernel, stride, (1, 1))
        counted = kind == "average_pool_2d" and bool(node.attrs.get("count_include_pad", 0))
        if node.attrs.get("ceil_mode", 0):
            grown = _ceil_padding(size, kernel, stride, padding)
            if counted and grown != padding:
                raise node.refusal(
                    "ceil_mode with count_include_pad is not supported", "Pad the map so that the windows fit."
                )
            padding = grown
        if counted and any(padding):
            size = (size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3])
            shape = (1, *size, value.shape[1])
            x = node.op(
                "pad", (x,), f"{node.proto.output[0]}/padded", shape, paddings=spatial_paddings(padding), value=None
            )
            padding = (0, 0, 0, 0)
        shape = (1, *_output_size(size, kernel, stride, padding, (1, 1)), value.shape[1])
        attrs: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "activation": "none"}
        bind_map(node, value, node.op(kind, (x,), node.proto.output[0], shape, **attrs))

    return handler


def _ceil_padding(size: Pair, kernel: Pair, stride: Pair, padding: Padding) -> Padding:
    """Return the padding with which rounding down gives as many windows as rounding up does without."""
    grown = list(padding)
    for axis in range(2):
        before, after = padding[2 * axis : 2 * axis + 2]
        windows = -(-(size[axis] + before + after - kernel[axis]) // stride[axis]) + 1
        # No window may begin in the padding behind the map.
        if (windows - 1) * stride[axis] >= size[axis] + before:
            windows -= 1
        missing = (windows - 1) * stride[axis] + kernel[axis] - size[axis] - before - after
        grown[2 * axis + 1] += max(missing, 0)
    return grown[0], grown[1], grown[2], grown[3]


def global_pool(kind: str) -> Callable[[Node], None]:
    """Return the handler of GlobalAveragePool ("mean") or GlobalMaxPool ("max_pool_2d")."""

    def handler(node: Node) -> None:
        value = node.value()
        x, size = read_map(node, value)
        shape = (1, 1, 1, value.shape[1])
        if kind == "mean":
            node.op("mean", (x,), node.proto.output[0], shape, axes=(1, 2), keep_dims=True)
        else:
            attrs: dict[str, Any] = {"kernel": size, "stride": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
            node.op(kind, (x,), node.proto.output[0], shape, **attrs)
        bind_map(node, value, node.proto.output[0])

    return handler


def reduce_mean(node: Node) -> None:
    """ReduceMean over any axes but the batch."""
    value = node.value()
    rank = len(value.shape)
    axes = node.axes(rank)
    if not axes:
        if node.attrs.get("noop_with_empty_axes", 0):
            node.pass_on(value)
            return
        axes = list(range(rank))
    if 0 in axes:
        raise node.refusal(f"a mean over axes {sorted(axes)} includes the batch", "Keep the batch out of the mean.")
    keep = bool(node.attrs.get("keepdims", 1))
    perm = node.layout(value)
    x = node.arrange(value, perm)
    shape = tuple(1 if axis in axes else value.shape[axis] for axis in perm)
    inside = tuple(sorted(perm.index(axis) for axis in set(axes)))
    if not keep:
        shape = tuple(dim for axis, dim in zip(perm, shape, strict=True) if axis not in axes)
        left = sorted(axis for axis in perm if axis not in axes)
        perm = tuple(left.index(axis) for axis in perm if axis not in axes)
    node.emit("mean", (x,), shape, perm, axes=inside, keep_dims=keep)


def pad(node: Node) -> None:
    """Pad with a constant."""
    value = node.value()
    rank = len(value.shape)
    if node.attrs.get("mode", b"constant") != b"constant":
        raise node.refusal(
            f"pads in mode '{node.attrs['mode'].decode(errors='replace')}'", "Only constant padding is supported."
        )
    axes = node.axes(rank, 3) or list(range(rank))
    pads = node.constant(1).reshape(-1).astype(int).tolist()
    if len(pads) != 2 * len(axes) or min(pads, default=0) < 0:
        raise node.refusal(
            f"pads {pads} of axes {axes}; one before and one after each, none negative", "Crop with Slice."
        )
    pairs = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if not any(pads):
        node.pass_on(value)
        return
    fill = node.scalar(2, 0.0)
    perm = node.layout(value)
    paddings = tuple(pairs.get(axis, (0, 0)) for axis in perm)
    shape = tuple(value.shape[axis] + sum(pair) for axis, pair in zip(perm, paddings, strict=True))
    node.emit("pad", (node.arrange(value, perm),), shape, perm, paddings=paddings, value=None if fill == 0 else fill)


def resize(node: Node) -> None:
    """Resize to the nearest neighbour, where RESIZE_NEAREST_NEIGHBOR takes the very same ones."""
    value = node.value()
    if len(value.shape) != 4 or node.attrs.get("mode", b"nearest") != b"nearest":
        raise node.refusal("only nearest resizing of maps is supported", "Resize with mode='nearest'.")
    axes = [node.axis(axis, 4) for axis in node.attrs.get("axes", range(4))]
    sizes, scales = list(value.shape), [1.0] * 4
    if node.has(3):
        if node.attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise node.refusal("keep_aspect_ratio_policy is not supported", "Give the size of both axes.")
        for axis, size in zip(axes, node.constant(3).reshape(-1).tolist(), strict=True):
            sizes[axis], scales[axis] = int(size), size / value.shape[axis]
    elif node.has(2):
        for axis, scale in zip(axes, node.constant(2).reshape(-1).tolist(), strict=True):
            sizes[axis], scales[axis] = math.floor(value.shape[axis] * scale), scale
    if sizes[:2] != list(value.shape[:2]) or min(sizes) < 1 or max(sizes) > _LARGEST_SIDE:
        raise node.refusal(
            f"resizes {list(value.shape)} to {sizes}; only height and width can change, to 65536 at most"
        )
    wanted = [_nearest(node, value.shape[axis], sizes[axis], scales[axis]) for axis in (2, 3)]
    for align_corners, half_pixel in ((False, False), (False, True), (True, False)):
        found = [
            nearest_positions(
                value.shape[axis], sizes[axis], align_corners=align_corners, half_pixel_centers=half_pixel
            )
            for axis in (2, 3)
        ]
        if all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)):
            x, _ = read_map(node, value)
            attrs: dict[str, Any] = {"align_corners": align_corners, "half_pixel_centers": half_pixel}
            node.op("resize_nearest_neighbor", (x,), node.proto.output[0], (1, *sizes[2:], sizes[1]), **attrs)
            bind_map(node, value, node.proto.output[0])
            return
    raise node.refusal(
        "takes other neighbours than RESIZE_NEAREST_NEIGHBOR can",
        "Use coordinate_transformation_mode asymmetric and floor.",
    )


def _nearest(node: Node, size: int, result: int, scale: float) -> np.ndarray:
    """Return which of `size` inputs each of `result` outputs takes, as ONNX's Resize says."""
    mode = node.attrs.get("coordinate_transformation_mode", b"half_pixel")
    at = np.arange(result, dtype=np.float64)
    if mode == b"asymmetric":
        place = at / scale
    elif mode == b"half_pixel" or (mode == b"pytorch_half_pixel" and result > 1):
        place = (at + 0.5) / scale - 0.5
    elif mode == b"pytorch_half_pixel":
        place = np.zeros(result)
    elif mode == b"align_corners":
        place = at * (size - 1) / (result - 1) if result > 1 else np.zeros(result)
    else:
        raise node.refusal(f"coordinate_transformation_mode {mode.decode(errors='replace')} is not supported")
    rounding: dict[bytes, Callable[[np.ndarray], np.ndarray]] = {
        b"round_prefer_floor": lambda x: np.ceil(x - 0.5),
        b"round_prefer_ceil": lambda x: np.floor(x + 0.5),
        b"floor": np.floor,
        b"ceil": np.ceil,
    }
    nearest = rounding.get(node.attrs.get("nearest_mode", b"round_prefer_floor"))
    if nearest is None:
        raise node.refusal("has an unknown nearest_mode")
    return np.clip(nearest(place), 0, size - 1).astype(np.int64)
