"""How to draw one op of each kind onto a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing.frame import LARGEST_SCALE, LEAST_SCALE, MAX_ELEMENTS, Frame, Shape
from tinykd.ir import ACTIVATIONS, SPECS, Graph, Quant, conv_output_size, same_padding

NOISE = 74.0
"""Standard deviation of uniform int8 noise."""
PROBABILITY = Quant.per_tensor(1 / 256, -128)
SINE = Quant.per_tensor(1 / 128, 0)

Draw = Callable[[Frame], Any]


def _sides(frame: Frame, size: int, *, window: int = 5) -> tuple[int, int, int, tuple[int, int]]:
    """Draw kernel, stride, dilation of one axis and TensorFlow's SAME padding for them (VALID is the caller's)."""
    kernel, stride = frame.integer(1, window), frame.integer(1, 3)
    dilation = frame.integer(1, 3) if kernel > 1 else 1
    return kernel, stride, dilation, same_padding(size, kernel, stride, dilation)


def _valid_sides(frame: Frame, size: int, *, window: int = 5) -> tuple[int, int, int, tuple[int, int]]:
    kernel, stride = frame.integer(1, min(window, size)), frame.integer(1, 3)
    dilation = frame.integer(1, min(3, (size - 1) // (kernel - 1))) if kernel > 1 else 1
    return kernel, stride, dilation, (0, 0)


def _uneven_sides(frame: Frame, size: int) -> tuple[int, int, int, tuple[int, int]]:
    """Draw what our engine is given once PADs are folded: any padding, up to more than the kernel, on either side."""
    kernel = frame.choice([k for k in (3, 1, 2, 5, 7) if k <= size + 4] or [1])
    before, after = frame.integer(0, kernel), frame.integer(0, kernel)
    after = max(after, kernel - size - before)
    return kernel, frame.choice((1, 2, 3)), 1, (before, after)


def _wide_window(frame: Frame, shape: Shape) -> tuple[tuple[int, int], dict[str, Any]]:
    """Draw a window that kernels are made for, at any place beside the map, or any other one."""
    style = frame.choice(("same", "same", "same", "uneven", "square", "any"))
    if style == "same":
        kernel, stride = frame.choice((*[(3, 1)] * 4, (3, 2), (1, 1), (5, 1), (7, 1), (5, 2), (7, 2), (1, 2)))
        pads = tuple(side for size in shape[1:3] for side in same_padding(size, kernel, stride))
        return (kernel, kernel), {"stride": (stride, stride), "dilation": (1, 1), "padding": pads}
    side = _sides if style == "any" else _uneven_sides
    (k_h, s_h, d_h, p_h), (k_w, s_w, d_w, p_w) = (side(frame, size) for size in shape[1:3])
    if style == "square":
        k_w, s_w = k_h, s_h
        p_w = (p_h[0], max(p_h[1], k_w - shape[2] - p_h[0]))
    return (k_h, k_w), {"stride": (s_h, s_w), "dilation": (d_h, d_w), "padding": (*p_h, *p_w)}


def _window(frame: Frame, shape: Shape) -> tuple[tuple[int, int], dict[str, Any]]:
    """Draw the kernel and the other attributes of a convolution over (1, H, W, C)."""
    if frame.wide:
        return _wide_window(frame, shape)
    side = _sides if frame.flag() else _valid_sides
    (k_h, s_h, d_h, p_h), (k_w, s_w, d_w, p_w) = side(frame, shape[1]), side(frame, shape[2])
    return (k_h, k_w), {"stride": (s_h, s_w), "dilation": (d_h, d_w), "padding": (*p_h, *p_w)}


def _out_sides(shape: Shape, kernel: tuple[int, int], attrs: dict[str, Any]) -> tuple[int, int]:
    """Return height and width of a convolution's output."""
    pads = (attrs["padding"][:2], attrs["padding"][2:])
    rows, columns = (
        conv_output_size(*values)
        for values in zip(shape[1:3], kernel, attrs["stride"], pads, attrs["dilation"], strict=True)
    )
    return rows, columns


def _activation(frame: Frame) -> str:
    # Without one, some kernels can do what they cannot otherwise.
    return frame.choice((*["none"] * 4, *ACTIVATIONS) if frame.wide else ACTIVATIONS)


def _weights(frame: Frame, shape: Shape, axis: int, *, per_tensor: bool) -> str:
    """Draw int8 weights with one scale, or one for each slice along `axis`; some slices may be all zeros."""
    label = f"weights{axis}"
    like = [name for name in frame.tensors if name.startswith(label) and frame.shape(name) == shape]
    source = frame.choice(("new", "new", "same", "copy")) if like else "new"
    if source != "new":
        name = frame.choice(like)
        data = frame.tensors[name].data
        assert data is not None
        return name if source == "same" else frame.constant(label, data, frame.quant_of(name))
    base, channels = frame.scale(-12, -2), 1 if per_tensor else shape[axis]
    scales = np.full(channels, base)
    if channels > 1 and frame.flag():
        scales *= 2.0 ** np.random.default_rng(frame.integer(0, 1 << 16)).uniform(-3, 3, channels)
    quant = Quant(tuple(float(np.float32(scale)) for scale in scales), (0,) * channels, axis)
    data = frame.data(shape, "int8", frame.choice((-127, -128)), 127)
    if frame.choice((False, False, True)):
        dead = np.random.default_rng(frame.integer(0, 1 << 16)).random(shape[axis]) < 0.5
        data[(slice(None),) * axis + (dead,)] = 0
    return frame.constant(label, data, quant)


def _bias(frame: Frame, quant: Quant, count: int) -> list[str]:
    """Draw the third input: none, or int32 values of any size."""
    if frame.choice((True, False, False)):
        return []
    bound = 1 << frame.integer(0, 29)
    return [frame.constant("bias", frame.data((count,), "int32", -bound, bound), quant)]


def _bias_quant(frame: Frame, x: str, weights: str) -> Quant:
    scales = tuple(float(np.float32(frame.quant_of(x).scale * scale)) for scale in frame.quant_of(weights).scales)
    return Quant(scales, (0,) * len(scales), None if len(scales) == 1 else 0)


def _product(
    frame: Frame, kind: str, x: str, weights: str, channels: int, fan_in: int, shape: Shape | None, **attrs: Any
) -> None:
    """Append an op that sums products, with a bias and an output that mostly uses its range."""
    inputs = [x, weights, *_bias(frame, _bias_quant(frame, x, weights), channels)]
    step = frame.quant_of(x).scale * float(np.median(frame.quant_of(weights).scales))
    # TFLite compares the bias's scale with the product of scales in steps of the output.
    quant = frame.quant(step * NOISE * math.sqrt(fan_in), least=max(LEAST_SCALE, step * 2.0**-12))
    frame.emit(kind, inputs, [quant], shapes=None if shape is None else [shape], activation=_activation(frame), **attrs)


def _conv_2d(frame: Frame) -> None:
    x = frame.pick((4,), batch_one=True)
    kernel, attrs = _window(frame, frame.shape(x))
    depth = frame.shape(x)[3]
    channels = frame.channels(6, math.prod(_out_sides(frame.shape(x), kernel, attrs)) * math.prod(kernel) * depth)
    weights = _weights(frame, (channels, *kernel, depth), 0, per_tensor=frame.flag())
    _product(frame, "conv_2d", x, weights, channels, math.prod(kernel) * depth, None, **attrs)


def _depthwise_conv_2d(frame: Frame) -> None:
    x = frame.pick((4,), batch_one=True)
    kernel, attrs = _window(frame, frame.shape(x))
    channels = frame.shape(x)[3] * frame.choice((1, 1, 1, 1, 2, 3) if frame.wide else (1, 1, 2, 3))
    weights = _weights(frame, (1, *kernel, channels), 3, per_tensor=frame.flag())
    _product(frame, "depthwise_conv_2d", x, weights, channels, math.prod(kernel), None, **attrs)


def _transpose_side(frame: Frame, size: int, same: bool) -> tuple[int, int, tuple[int, int]]:
    """Draw kernel, stride and the cut of one axis: TensorFlow's SAME or VALID for one of the outputs that suit."""
    kernel, stride = frame.integer(1, 4), frame.integer(1, 3)
    full = (size - 1) * stride + kernel
    if not same:
        return kernel, stride, (0, -frame.integer(0, stride - 1))
    output = size * stride - frame.integer(0, stride - 1)
    before = same_padding(output, kernel, stride)[0]
    return kernel, stride, (before, full - before - output)


def _transpose_conv(frame: Frame) -> None:
    x = frame.pick((4,), batch_one=True, largest=MAX_ELEMENTS // 2)
    same = frame.flag()
    (k_h, s_h, p_h), (k_w, s_w, p_w) = (_transpose_side(frame, size, same) for size in frame.shape(x)[1:3])
    depth, channels = frame.shape(x)[3], frame.integer(1, 4)
    weights = _weights(frame, (channels, k_h, k_w, depth), 0, per_tensor=frame.flag())
    attrs = {"stride": (s_h, s_w), "padding": (*p_h, *p_w)}
    _product(frame, "transpose_conv", x, weights, channels, k_h * k_w * depth, None, **attrs)


def _fully_connected(frame: Frame) -> None:
    x = frame.pick(largest=MAX_ELEMENTS)
    channels = frame.channels(8, frame.size(x))
    shape = frame.shape(x)
    flat = frame.flag()
    depth = frame.size(x) if flat else shape[-1]
    weights = _weights(frame, (channels, depth), 0, per_tensor=frame.flag())
    rows = frame.size(x) // depth
    output = (1, channels) if flat else frame.choice(((*shape[:-1], channels), (rows, channels)))
    _product(frame, "fully_connected", x, weights, channels, depth, output)


def _svdf(frame: Frame) -> None:
    x, rank = frame.pick((2,), batch_one=True), frame.integer(1, 3)
    units, memory = frame.integer(1, 4), frame.integer(1, 5)
    filters, depth = rank * units, frame.shape(x)[1]
    feature = _weights(frame, (filters, depth), 0, per_tensor=True)
    step = frame.quant_of(x).scale * frame.quant_of(feature).scale
    state_quant = Quant.per_tensor(step * NOISE * math.sqrt(depth) * 2.0 ** frame.integer(-10, -4), 0)
    time_quant = Quant.per_tensor(frame.scale(-18, -10), 0)
    time = frame.constant("time", frame.data((filters, memory), "int16", -32767, 32767), time_quant)
    product = state_quant.scale * time_quant.scale
    bound = 1 << frame.integer(0, 24)
    bias = frame.constant("bias", frame.data((units,), "int32", -bound, bound), Quant.per_tensor(product, 0))
    state = f"state_{len(frame.ops)}"
    frame.add_variable(state, (1, filters * memory), "int16", state_quant)
    near = product * 2.0**28 * math.sqrt(rank * memory) / 128
    quant = frame.quant(near, least=max(LEAST_SCALE, product * 2.0**-12))
    frame.emit("svdf", [x, feature, time, bias, state], [quant], rank=rank, activation=frame.choice(("relu", "none")))


def _broadcast(frame: Frame, shape: Shape) -> Shape:
    """Draw a shape that broadcasts to `shape`."""
    kept = tuple(dim if frame.flag() else 1 for dim in shape)
    return kept[frame.integer(0, len(kept) - 1) if kept[0] == 1 and frame.flag() else 0 :]


def _partner(frame: Frame, x: str, quant: Quant | None = None) -> str:
    """Draw the other operand: an activation whose shape broadcasts with x's, x itself, or a constant.

    `quant` is what it must have; None leaves that open.
    """

    def suits(name: str) -> bool:
        try:
            whole = np.broadcast_shapes(frame.shape(name), frame.shape(x))
        except ValueError:
            return False
        return math.prod(whole) <= frame.largest and (quant is None or frame.quant_of(name) == quant)

    if frame.flag():
        own = quant or frame.quant(frame.quant_of(x).scale)
        return frame.constant("operand", frame.data(_broadcast(frame, frame.shape(x)), "int8", -128, 127), own)
    return frame.choice([name for name in reversed(frame.activations()) if suits(name)])


def _pair(frame: Frame, equal: bool) -> list[str]:
    x = frame.pick()
    operands = [x, _partner(frame, x, frame.quant_of(x) if equal else None)]
    return operands[::-1] if frame.flag() else operands


def _sum(frame: Frame, kind: str) -> None:
    operands = _pair(frame, equal=False)
    largest = max(frame.quant_of(name).scale for name in operands)
    # Beyond this factor TFLite's multiplier for the output is no longer below 1, and it aborts.
    quant = frame.quant(2 * largest, least=max(LEAST_SCALE, largest * 2.0**-17))
    frame.emit(kind, operands, [quant], activation=_activation(frame))


def _mul(frame: Frame) -> None:
    operands = _pair(frame, equal=False)
    product = math.prod(frame.quant_of(name).scale for name in operands)
    frame.emit("mul", operands, [frame.quant(product * NOISE)], activation=_activation(frame))


def _extremum(frame: Frame, kind: str) -> None:
    operands = _pair(frame, equal=True)
    frame.emit(kind, operands, [frame.quant_of(operands[0])])


def _pool(frame: Frame, kind: str) -> None:
    x = frame.pick((4,), batch_one=True)
    side = _sides if frame.flag() else _valid_sides
    (k_h, s_h, _, _), (k_w, s_w, _, _) = (side(frame, size) for size in frame.shape(x)[1:3])
    padding = (0, 0, 0, 0)
    if side is _sides:
        height, width = frame.shape(x)[1:3]
        padding = (*same_padding(height, k_h, s_h), *same_padding(width, k_w, s_w))
    attrs = {"kernel": (k_h, k_w), "stride": (s_h, s_w), "padding": padding}
    frame.emit(kind, [x], [frame.quant_of(x)], activation=_activation(frame), **attrs)


def _mean(frame: Frame) -> None:
    x = frame.pick()
    rank = len(frame.shape(x))
    axes = (1, 2) if rank == 4 and frame.flag() else tuple(axis for axis in range(1, rank) if frame.flag())
    frame.emit("mean", [x], [frame.quant(frame.quant_of(x).scale)], axes=axes or (rank - 1,), keep_dims=frame.flag())


def _pad(frame: Frame) -> None:
    x = frame.pick(largest=MAX_ELEMENTS // 4)
    quant = frame.quant_of(x)
    axes = len(frame.shape(x))
    # As a convolution may take it over, or any other.
    padded = (1, 2) if axes == 4 and frame.flag() else range(1, axes)
    paddings = tuple((frame.integer(0, 2), frame.integer(0, 2)) if axis in padded else (0, 0) for axis in range(axes))
    value = None
    if frame.choice((False, False, True)):
        value = frame.integer(-128, 126)
        value += value >= quant.zero_point
    frame.emit("pad", [x], [quant], paddings=paddings, value=value)


def _reshape(frame: Frame) -> None:
    x = frame.pick()
    rest, dims = frame.size(x), []
    for _ in range(frame.integer(0, 3)):
        divisors = [number for number in range(1, rest + 1) if rest % number == 0]
        dims.append(frame.choice(divisors))
        rest //= dims[-1]
    # Mostly with a batch of 1, as most ops want it.
    batch = frame.choice(((1,), (1,), ()))
    frame.emit("reshape", [x], [frame.quant_of(x)], shapes=[(*batch, *dims, rest)])


def _transpose(frame: Frame) -> None:
    x = frame.pick()
    maker = frame.maker(x)
    if maker is not None and maker.kind == "transpose" and frame.flag():
        perm = tuple(int(axis) for axis in np.argsort(maker.attrs["perm"]))
    else:
        fixed = frame.choice(((0,), (0,), ()))
        perm = (*fixed, *frame.permutation(range(len(fixed), len(frame.shape(x)))))
    frame.emit("transpose", [x], [frame.quant_of(x)], perm=perm)


def _concatenation(frame: Frame) -> None:
    x = frame.pick(largest=MAX_ELEMENTS)
    shape, quant = frame.shape(x), frame.quant_of(x)
    axis = frame.integer(1, len(shape) - 1)

    def suits(name: str) -> bool:
        other = frame.shape(name)
        fits = len(other) == len(shape) and all(
            a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)) if i != axis
        )
        return name == x or (fits and frame.quant_of(name) == quant and frame.size(name) <= MAX_ELEMENTS)

    maker = frame.maker(x)
    if maker is not None and maker.kind == "split" and frame.flag():
        frame.emit("concatenation", maker.outputs, [quant], axis=maker.attrs["axis"])
        return
    operands = [x]
    for number in range(frame.integer(0, 3)):
        if frame.flag():
            own = (*shape[:axis], frame.integer(1, 3), *shape[axis + 1 :])
            operands.append(frame.constant(f"part{number}", frame.data(own, "int8", -128, 127), quant))
        else:
            operands.append(frame.choice([name for name in reversed(frame.activations()) if suits(name)]))
    frame.emit("concatenation", frame.permutation(operands), [quant], axis=axis)


def _split(frame: Frame) -> None:
    x = frame.pick()
    shape = frame.shape(x)
    axis = frame.integer(1, len(shape) - 1)
    parts, rest = [], shape[axis]
    equal = [number for number in range(1, 5) if rest % number == 0]
    maker = frame.maker(x)
    if maker is not None and maker.kind == "concatenation" and frame.flag():
        axis = maker.attrs["axis"]
        parts = [frame.shape(name)[axis] for name in maker.inputs]
    elif frame.flag():
        count = frame.choice(equal)
        parts = [rest // count] * count
    else:
        while rest > 1 and len(parts) < 3 and frame.flag():
            parts.append(frame.integer(1, rest - 1))
            rest -= parts[-1]
        parts.append(rest)
    shapes = [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]
    frame.emit("split", [x], [frame.quant_of(x)] * len(parts), shapes=shapes, axis=axis)


def _strided_slice(frame: Frame) -> None:
    # TFLite Micro refuses five axes.
    x = frame.pick((4, 3, 2))
    begin, end, strides, shrink = [0], [frame.shape(x)[0]], [1], []
    for axis, size in enumerate(frame.shape(x)[1:], 1):
        first, step = frame.integer(0, size - 1), frame.choice((1, 1, 2, 3, -1, -2))
        last = frame.integer(first + 1, size) if step > 0 else frame.integer(-1, first - 1)
        if frame.choice((False, False, True)) and len(shrink) < len(frame.shape(x)) - 2:
            shrink.append(axis)
            step, last = 1, first + 1
        begin.append(first)
        end.append(last)
        strides.append(step)
    frame.emit(
        "strided_slice",
        [x],
        [frame.quant_of(x)],
        begin=tuple(begin),
        end=tuple(end),
        strides=tuple(strides),
        shrink_axes=tuple(shrink),
    )


def _resize(frame: Frame) -> None:
    x = frame.pick((4,), batch_one=True, largest=MAX_ELEMENTS)
    channels = frame.shape(x)[3]
    corners, centers = frame.choice(((False, False), (False, True), (True, False)))
    frame.emit(
        "resize_nearest_neighbor",
        [x],
        [frame.quant_of(x)],
        shapes=[(1, frame.integer(1, 12), frame.integer(1, 12), channels)],
        align_corners=corners,
        half_pixel_centers=centers,
    )


def _softmax(frame: Frame) -> None:
    # TFLite wants beta times scale above 2**-26.
    x = frame.pick(least_scale=2.0**-21)
    frame.emit("softmax", [x], [PROBABILITY], beta=frame.real(0.25, 4.0))


def _fixed(frame: Frame, kind: str, quant: Quant) -> None:
    frame.emit(kind, [frame.pick()], [quant])


def _rescaled(frame: Frame, kind: str, **attrs: Any) -> None:
    x = frame.pick()
    frame.emit(kind, [x], [frame.quant(frame.quant_of(x).scale)], **attrs)


def _hard_swish(frame: Frame) -> None:
    x = frame.pick()
    scale = frame.quant_of(x).scale
    # TFLite's factor from the input, shifted left by seven bits, to the output must be below 1.
    frame.emit("hard_swish", [x], [frame.quant(scale, least=max(LEAST_SCALE, scale * 2.0**-6.9))])


def _prelu(frame: Frame) -> None:
    x = frame.pick()
    shape = frame.shape(x)
    slopes_quant = Quant.per_tensor(frame.scale(-10, -4), frame.zero_point())
    own = frame.choice(((1,) * (len(shape) - 2) + shape[-1:], shape[1:], shape))
    slopes = frame.constant("slopes", frame.data(own, "int8", -128, 127), slopes_quant)
    frame.emit("prelu", [x, slopes], [frame.quant(frame.quant_of(x).scale)])


def _quantize(frame: Frame) -> None:
    """Requantise an activation, to another type where the graph ends, or take a graph input of another type."""
    dtype = frame.choice(("int8", "float32", "uint8", "int16", "int32", "to uint8", "to int16", "to int32"))
    if dtype == "int8":
        _rescaled(frame, "quantize")
        return
    if dtype.startswith("to "):
        dtype = dtype[3:]
        x = frame.pick()
        step = {"uint8": 1.0, "int16": 2.0**-8, "int32": 2.0**-12}[dtype]
        scale = min(max(frame.quant_of(x).scale * step * frame.scale(-3, 3), LEAST_SCALE), LARGEST_SCALE)
        zero_point = frame.integer(0, 255) if dtype == "uint8" else 0
        frame.emit("quantize", [x], [Quant.per_tensor(scale, zero_point)], dtype=dtype)
        return
    scale = frame.scale()
    zero_point = frame.integer(0, 255) if dtype == "uint8" else 0
    shape = frame.new_shape(frame.choice((4, 3, 2)))
    x = frame.new_input(shape, dtype, None if dtype == "float32" else Quant.per_tensor(scale, zero_point))
    steps = {"int16": 2.0**8, "int32": 2.0**12}.get(dtype, 1.0)
    frame.emit("quantize", [x], [frame.quant(scale * steps)])


def _dequantize(frame: Frame) -> None:
    frame.emit("dequantize", [frame.pick()], [None], dtype="float32")


def _arg_max(frame: Frame) -> None:
    x = frame.pick()
    axis = frame.integer(1, len(frame.shape(x)) - 1)
    frame.emit("arg_max", [x], [None], dtype="int32", axis=axis)


KINDS: Mapping[str, Draw] = MappingProxyType(
    {
        "reshape": _reshape,
        "relu": lambda frame: _rescaled(frame, "relu"),
        "relu6": lambda frame: _rescaled(frame, "relu6"),
        "leaky_relu": lambda frame: _rescaled(frame, "leaky_relu", alpha=frame.real(-1.0, 2.0)),
        "prelu": _prelu,
        "logistic": lambda frame: _fixed(frame, "logistic", PROBABILITY),
        "tanh": lambda frame: _fixed(frame, "tanh", SINE),
        "hard_swish": _hard_swish,
        "softmax": _softmax,
        "add": lambda frame: _sum(frame, "add"),
        "sub": lambda frame: _sum(frame, "sub"),
        "mul": _mul,
        "maximum": lambda frame: _extremum(frame, "maximum"),
        "minimum": lambda frame: _extremum(frame, "minimum"),
        "transpose": _transpose,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "pad": _pad,
        "mean": _mean,
        "average_pool_2d": lambda frame: _pool(frame, "average_pool_2d"),
        "max_pool_2d": lambda frame: _pool(frame, "max_pool_2d"),
        "resize_nearest_neighbor": _resize,
        "fully_connected": _fully_connected,
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "transpose_conv": _transpose_conv,
        "svdf": _svdf,
        "quantize": _quantize,
        "dequantize": _dequantize,
        "arg_max": _arg_max,
    }
)
"""How each kind is drawn, the plainest first: graphs shrink towards them."""

FOLLOWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pad": ("conv_2d", "depthwise_conv_2d", "max_pool_2d", "pad"),
        "conv_2d": ("conv_2d", "depthwise_conv_2d", "relu", "relu6", "add", "mean"),
        "depthwise_conv_2d": ("conv_2d", "relu6", "add", "mean"),
        "transpose_conv": ("conv_2d", "concatenation"),
        "concatenation": ("split", "conv_2d", "concatenation"),
        "split": ("concatenation", "conv_2d", "add"),
        "transpose": ("transpose", "reshape"),
        "reshape": ("reshape", "fully_connected", "transpose"),
        "mean": ("reshape", "fully_connected"),
        "fully_connected": ("fully_connected", "relu", "softmax", "svdf", "arg_max"),
        "svdf": ("svdf", "fully_connected"),
        "quantize": ("quantize", "dequantize", "conv_2d"),
    }
)
"""What often stands behind a kind in real models: passes look for such pairs."""

FLOAT_ONLY = frozenset({"batch_norm"})
"""Kinds of float graphs only: an int8 graph has none."""
DEVICE_KINDS = tuple(kind for kind in KINDS if kind != "dequantize")
"""Kinds that a device runs."""
MOST_OPS = 10


def int8_kinds() -> set[str]:
    """Return the kinds that an int8 graph may have: each needs a strategy."""
    return set(SPECS) - FLOAT_ONLY


@st.composite
def graphs(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    kind: str,
    kinds: tuple[str, ...],
    most_ops: int = MOST_OPS,
    *,
    wide: bool = False,
) -> Graph:
    """Draw an int8 graph of at most `most_ops` ops of the given kinds, one of which is an op of `kind`.

    A `wide` one has sizes that matter to the kernels, and paddings that no file can say.
    """
    frame = Frame(draw, wide=wide)
    frame.new_input(frame.new_shape(4))
    if not wide and frame.flag():
        frame.new_input(frame.new_shape(frame.choice((4, 3, 2, 5))))
    count = frame.integer(1, most_ops)
    place = frame.integer(0, count - 1)
    last = ""
    for index in range(count):
        likely = [name for name in FOLLOWERS.get(last, ()) if name in kinds]
        frame.follows = bool(likely) and frame.choice((False, True, True))
        last = kind if index == place else frame.choice(likely if frame.follows else kinds)
        KINDS[last](frame)
    return frame.graph()
