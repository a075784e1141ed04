"""Int8 graphs for tests: single ops with awkward parameters, and random small networks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tinykd.ir import (
    DTYPES,
    Graph,
    Op,
    Quant,
    Tensor,
    conv_output_size,
    output_shapes,
    same_padding,
    spatial_paddings,
    verify,
)

ZERO_POINTS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int32": (-100000, 100000)}

needs_oracle = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("tflite_micro"), reason="the tflite-micro wheel is not installed"
)


def public_models() -> list[Path]:
    """The public .tflite files in the folder that TINYKD_MODELS names."""
    folder = os.environ.get("TINYKD_MODELS")
    return sorted(Path(folder).glob("*.tflite")) if folder else []


needs_public_models = pytest.mark.skipif(
    not public_models(), reason="TINYKD_MODELS does not name a folder with public .tflite models"
)


class Builder:
    """Builds an int8 graph op by op with random scales, zero points and weights.

    Each method adds one op that reads `x`, the newest tensor, makes its output the new `x`, and returns its name.
    Scales and zero points that are not given are random.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "int8") -> None:
        self.rng = rng
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.graph_inputs: list[str] = []
        self.x = self.input("input", shape, dtype)

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "int8", quant: Quant | None = None) -> str:
        """Add a graph input."""
        self.graph_inputs.append(name)
        return self.activation(name, shape, quant, dtype)

    def quant(self, scale: float | None = None, dtype: str = "int8") -> Quant:
        low, high = ZERO_POINTS[dtype]
        zero_point = self.rng.choice([low, -3, 0, 17, high] if dtype == "int8" else [low, 0, high])
        return Quant.per_tensor(scale or float(self.rng.uniform(0.005, 0.1)), int(zero_point))

    def activation(self, name: str, shape: tuple[int, ...], quant: Quant | None = None, dtype: str = "int8") -> str:
        if quant is None and dtype != "float32":
            quant = self.quant(dtype=dtype)
        self.tensors[name] = Tensor(name, tuple(int(dim) for dim in shape), dtype, quant)
        return name

    def constant(
        self, shape: tuple[int, ...], quant: Quant | None = None, dtype: str = "int8", limit: int = 128
    ) -> str:
        """Add a constant of random integers from -limit to limit - 1."""
        name = f"constant_{len(self.tensors)}"
        data = self.rng.integers(-limit, limit, shape).astype(DTYPES[dtype])
        self.tensors[name] = Tensor(name, shape, dtype, quant or self.quant(), data)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def scale(self, name: str) -> float:
        quant = self.tensors[name].quant
        assert quant is not None
        return quant.scale

    def _emit(
        self,
        kind: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...] | None = None,
        quant: Quant | None = None,
        dtype: str = "int8",
        **attrs,
    ) -> str:
        """Add an op; without a shape, its output has the one that its inputs determine."""
        name = f"{kind}_{len(self.ops)}"
        op = Op(kind, inputs, (name,), attrs, name)
        if shape is None:
            shape = output_shapes(Graph("", self.tensors, (), (), ()), op)[0]
        if kind == "arg_max":
            self.tensors[name] = Tensor(name, shape, dtype)
        else:
            self.activation(name, shape, quant, dtype)
        self.ops.append(op)
        self.x = name
        return name

    def _moved(self, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...] | None = None, **attrs) -> str:
        """Add an op whose output has its input's scale and zero point."""
        return self._emit(kind, inputs, shape, self.tensors[inputs[0]].quant, **attrs)

    def _weights(
        self, shape: tuple[int, ...], channels: int, axis: int | None, fan_in: int, bias: bool = True
    ) -> tuple[str, ...]:
        rng, index = self.rng, len(self.ops)
        name = f"w{index}"
        count = 1 if axis is None else channels
        # Scales such that outputs use their range: neither all zero nor all saturated.
        scales = tuple(float(np.float32(s)) for s in rng.uniform(0.2, 3.0, count) / np.sqrt(fan_in) / 40)
        data = rng.integers(-127, 128, shape).astype(np.int8)
        self.tensors[name] = Tensor(name, shape, "int8", Quant(scales, (0,) * count, axis), data)
        if not bias:
            return (name,)
        values = rng.integers(-3000, 3000, channels).astype(np.int32)
        bias_scales = tuple(float(np.float32(scale * self.scale(self.x))) for scale in scales)
        quant = Quant(bias_scales, (0,) * count, None if axis is None else 0)
        self.tensors[f"b{index}"] = Tensor(f"b{index}", (channels,), "int32", quant, values)
        return name, f"b{index}"

    def _windowed(self, kernel, stride, dilation, same):
        _, height, width, _ = self.shape(self.x)
        pad = (0, 0, 0, 0)
        if same:
            pad = (
                *same_padding(height, kernel[0], stride[0], dilation[0]),
                *same_padding(width, kernel[1], stride[1], dilation[1]),
            )
        out = (
            conv_output_size(height, kernel[0], stride[0], pad[:2], dilation[0]),
            conv_output_size(width, kernel[1], stride[1], pad[2:], dilation[1]),
        )
        return pad, out

    def conv(
        self,
        channels,
        kernel=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
        same=True,
        activation="none",
        per_channel=True,
        bias=True,
    ):
        pad, out = self._windowed(kernel, stride, dilation, same)
        depth = self.shape(self.x)[3]
        axis = 0 if per_channel else None
        weights = self._weights((channels, *kernel, depth), channels, axis, kernel[0] * kernel[1] * depth, bias)
        return self._emit(
            "conv_2d",
            (self.x, *weights),
            (1, *out, channels),
            stride=stride,
            dilation=dilation,
            padding=pad,
            activation=activation,
        )

    def depthwise(
        self, multiplier=1, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), same=True, activation="none", bias=True
    ):
        pad, out = self._windowed(kernel, stride, dilation, same)
        channels = self.shape(self.x)[3] * multiplier
        weights = self._weights((1, *kernel, channels), channels, 3, kernel[0] * kernel[1], bias)
        return self._emit(
            "depthwise_conv_2d",
            (self.x, *weights),
            (1, *out, channels),
            stride=stride,
            dilation=dilation,
            padding=pad,
            activation=activation,
        )

    def transpose_conv(
        self, channels, kernel=(3, 3), stride=(2, 2), same=True, activation="none", per_channel=True, bias=True, grow=0
    ):
        """A transposed convolution; `grow` more rows and columns lie where only the bias reaches."""
        _, height, width, depth = self.shape(self.x)
        padding = []
        for size, span, step in zip((height, width), kernel, stride, strict=True):
            full = (size - 1) * step + span
            if same:
                # The output is `stride` times as large; what SAME padding would add to it is cut off.
                before, _ = same_padding(size * step, span, step)
                padding += [before, full - before - size * step - grow]
            else:
                padding += [0, -grow]
        axis = 0 if per_channel else None
        weights = self._weights((channels, *kernel, depth), channels, axis, kernel[0] * kernel[1] * depth, bias)
        return self._emit(
            "transpose_conv", (self.x, *weights), stride=stride, padding=tuple(padding), activation=activation
        )

    def dense(self, outputs, per_channel=False, activation="none", bias=True, rows=1):
        """A dense layer of one row of all elements, or of `rows` rows that its output keeps apart."""
        count = self.tensors[self.x].num_elements // rows
        weights = self._weights((outputs, count), outputs, 0 if per_channel else None, count, bias)
        shape = (1, outputs) if rows == 1 else (*self.shape(self.x)[:-1], outputs)
        return self._emit("fully_connected", (self.x, *weights), shape, activation=activation)

    def svdf(self, units, rank=1, memory=3, time_limit=300, activation="none"):
        """An SVDF; time weights lie within plus and minus `time_limit`."""
        filters, depth = units * rank, self.shape(self.x)[1]
        rng, index = self.rng, len(self.ops)
        feature = self.constant((filters, depth), Quant.per_tensor(float(rng.uniform(0.001, 0.02)), 0), limit=127)
        state_scale = self.scale(self.x) * self.scale(feature) * float(rng.uniform(0.05, 2.0)) * np.sqrt(depth)
        time_quant = Quant.per_tensor(float(rng.uniform(0.5, 2.0)) / time_limit, 0)
        time = self.constant((filters, memory), time_quant, "int16", time_limit)
        bias_quant = Quant.per_tensor(float(np.float32(state_scale)) * self.scale(time), 0)
        bias = self.constant((units,), bias_quant, "int32", 2000)
        state = f"state_{index}"
        state_quant = Quant.per_tensor(state_scale, 0)
        self.tensors[state] = Tensor(state, (1, filters * memory), "int16", state_quant, variable=True)
        output_scale = state_scale * float(rng.uniform(5.0, 100.0))
        quant = self.quant(output_scale)
        return self._emit("svdf", (self.x, feature, time, bias, state), None, quant, rank=rank, activation=activation)

    def add(self, other, activation="none", quant=None):
        return self._emit("add", (self.x, other), None, quant, activation=activation)

    def sub(self, other, activation="none", quant=None):
        return self._emit("sub", (self.x, other), None, quant, activation=activation)

    def mul(self, other, activation="none", quant=None):
        near = self.scale(self.x) * self.scale(other) * float(self.rng.uniform(10.0, 200.0))
        return self._emit("mul", (self.x, other), None, quant or self.quant(near), activation=activation)

    def extreme(self, kind, other):
        """A maximum or minimum; `other` must have the scale and zero point of `x`."""
        return self._moved(kind, (self.x, other))

    def prelu(self, shape=None, quant=None):
        """A PRELU with one slope per channel, or slopes of any shape that broadcasts."""
        slopes = self.constant(shape or self.shape(self.x)[-1:], Quant.per_tensor(0.01, int(self.rng.integers(-9, 9))))
        return self._emit("prelu", (self.x, slopes), None, quant)

    def unary(self, kind, quant=None, **attrs):
        """A logistic, tanh, hard_swish, relu, relu6, leaky_relu (alpha) or int8 quantize."""
        fixed = {"logistic": Quant.per_tensor(1 / 256, -128), "tanh": Quant.per_tensor(1 / 128, 0)}
        return self._emit(kind, (self.x,), None, fixed.get(kind, quant), **attrs)

    def quantize(self, quant=None, dtype="int8"):
        return self._emit("quantize", (self.x,), None, quant, dtype)

    def dequantize(self):
        return self._emit("dequantize", (self.x,), None, None, "float32")

    def arg_max(self, axis=-1):
        return self._emit("arg_max", (self.x,), None, None, "int32", axis=axis % len(self.shape(self.x)))

    def pool(self, kind, kernel=(2, 2), stride=(2, 2), same=False, activation="none"):
        pad, out = self._windowed(kernel, stride, (1, 1), same)
        shape = (1, *out, self.shape(self.x)[3])
        return self._moved(kind, (self.x,), shape, kernel=kernel, stride=stride, padding=pad, activation=activation)

    def mean(self, keep_dims=False, axes=(1, 2), quant=None):
        return self._emit("mean", (self.x,), None, quant, axes=axes, keep_dims=keep_dims)

    def pad(self, padding, value=None):
        """Pad by (top, bottom, left, right), or by a pair for each axis."""
        paddings = spatial_paddings(padding) if isinstance(padding[0], int) else padding
        return self._moved("pad", (self.x,), paddings=paddings, value=value)

    def reshape(self, shape):
        return self._moved("reshape", (self.x,), shape)

    def transpose(self, perm):
        return self._moved("transpose", (self.x,), perm=perm)

    def concatenate(self, others, axis=-1):
        """Join x with others of its scale and zero point."""
        return self._moved("concatenation", (self.x, *others), axis=axis % len(self.shape(self.x)))

    def split(self, sizes, axis=-1):
        """Cut x into parts and return their names; the first one becomes x."""
        source, axis = self.x, axis % len(self.shape(self.x))
        names = tuple(f"split_{len(self.ops)}_{number}" for number in range(len(sizes)))
        for name, size in zip(names, sizes, strict=True):
            shape = (*self.shape(source)[:axis], size, *self.shape(source)[axis + 1 :])
            self.activation(name, shape, self.tensors[source].quant)
        self.ops.append(Op("split", (source,), names, {"axis": axis}, names[0]))
        self.x = names[0]
        return names

    def strided_slice(self, begin, end, strides, shrink_axes=()):
        return self._moved("strided_slice", (self.x,), begin=begin, end=end, strides=strides, shrink_axes=shrink_axes)

    def resize(self, size, align_corners=False, half_pixel_centers=False):
        shape = (1, *size, self.shape(self.x)[3])
        return self._moved(
            "resize_nearest_neighbor",
            (self.x,),
            shape,
            align_corners=align_corners,
            half_pixel_centers=half_pixel_centers,
        )

    def softmax(self, beta=1.0):
        return self._emit("softmax", (self.x,), None, Quant.per_tensor(1 / 256, -128), beta=beta)

    def graph(self, name="test", outputs=None) -> Graph:
        """Return the graph of what was built; its only output is `x`, unless some are named."""
        return verify(Graph(name, self.tensors, tuple(self.ops), tuple(self.graph_inputs), tuple(outputs or (self.x,))))

    def inputs(self, count: int) -> np.ndarray:
        """Return random int8 values (count, ...) of the first input."""
        return self.rng.integers(-128, 128, (count, *self.shape("input")[1:])).astype(np.int8)


def random_network(seed: int, *, blocks: bool = True) -> Builder:
    """A random small network with residual connections, pools and a classifier.

    With `blocks` it also has branches, gates and other ops that a plain convolutional network does without.
    """
    rng = np.random.default_rng(seed)
    kinds = ["conv", "depthwise", "residual", "pool", "pad", *(["block"] if blocks else [])]
    activations = ["none", "relu", "relu6"]
    size = int(rng.integers(5, 14))
    builder = Builder(rng, (1, size, size + int(rng.integers(0, 3)), int(rng.integers(1, 5))))
    for _ in range(int(rng.integers(1, 6))):
        activation = str(rng.choice(activations))
        kernel = int(rng.choice([1, 2, 3, 5]))
        stride = int(rng.choice([1, 1, 2]))
        height, width = builder.shape(builder.x)[1:3]
        same = bool(rng.integers(0, 2)) or kernel > min(height, width)
        kind = rng.choice(kinds)
        if kind == "conv":
            builder.conv(int(rng.integers(1, 9)), (kernel, kernel), (stride, stride), same=same, activation=activation)
        elif kind == "depthwise":
            multiplier = int(rng.integers(1, 3))
            builder.depthwise(multiplier, (kernel, kernel), (stride, stride), same=same, activation=activation)
        elif kind == "residual":
            start = builder.x
            builder.conv(builder.shape(start)[3], (3, 3), activation=activation)
            join = builder.sub if blocks and rng.integers(0, 2) else builder.add
            join(start, activation=str(rng.choice(activations)))
        elif kind == "pool" and min(height, width) >= 2:
            builder.pool(str(rng.choice(["average_pool_2d", "max_pool_2d"])), same=bool(rng.integers(0, 2)))
        elif kind == "pad":
            builder.pad(tuple(int(p) for p in rng.integers(0, 3, 4)))
        elif kind == "block":
            BLOCKS[int(rng.integers(len(BLOCKS)))](builder)
    if rng.integers(0, 2):
        builder.mean(keep_dims=bool(rng.integers(0, 2)))
    if rng.integers(0, 2):
        builder.reshape((1, builder.tensors[builder.x].num_elements))
    builder.dense(
        int(rng.integers(2, 11)), per_channel=bool(rng.integers(0, 2)), activation=str(rng.choice(activations))
    )
    if rng.integers(0, 2):
        builder.softmax()
    return builder


def _activation_block(builder: Builder) -> None:
    kind = str(builder.rng.choice(["logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "prelu"]))
    if kind == "prelu":
        builder.prelu()
    elif kind == "leaky_relu":
        builder.unary(kind, alpha=0.2)
    else:
        builder.unary(kind)


def _gate_block(builder: Builder) -> None:
    """Squeeze and excite: channels multiplied by what their means say."""
    start = builder.x
    builder.mean(keep_dims=True)
    builder.conv(builder.shape(start)[3], (1, 1))
    builder.unary("logistic")
    builder.mul(start)


def _branch_block(builder: Builder) -> None:
    """Channels cut in two; one half is pooled, then both are joined again, the other way round."""
    channels = builder.shape(builder.x)[3]
    if channels > 1:
        kept, _ = builder.split((channels // 2, channels - channels // 2))
        builder.x = builder.ops[-1].outputs[1]
        builder.pool("max_pool_2d", (3, 3), (1, 1), same=True)
        builder.concatenate([kept])


def _upwards_block(builder: Builder) -> None:
    height, width = builder.shape(builder.x)[1:3]
    if height * width <= 64:
        if builder.rng.integers(0, 2):
            builder.transpose_conv(3, (3, 3), (2, 2), activation="relu")
        else:
            builder.resize((2 * height, 2 * width))


def _moving_block(builder: Builder) -> None:
    """Rows and columns swapped, every other row kept, new scales, and a floor under the values."""
    builder.transpose((0, 2, 1, 3))
    shape = builder.shape(builder.x)
    builder.strided_slice((0, 0, 0, 0), shape, (1, 2, 1, 1))
    builder.quantize()
    builder.extreme("maximum", builder.constant(builder.shape(builder.x)[3:], builder.tensors[builder.x].quant))


BLOCKS = (_activation_block, _gate_block, _branch_block, _upwards_block, _moving_block)
