"""Int8 graphs for tests: single ops with awkward parameters, and random small networks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tinykd.ir import Graph, Op, Quant, Tensor, conv_output_size, same_padding, spatial_paddings, verify

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
    """Builds an int8 graph op by op with random scales, zero points and weights."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.rng = rng
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.x = self.activation("input", shape)

    def quant(self, scale: float | None = None) -> Quant:
        return Quant.per_tensor(
            scale or float(self.rng.uniform(0.005, 0.1)), int(self.rng.choice([-128, -3, 0, 17, 127]))
        )

    def activation(self, name: str, shape: tuple[int, ...], quant: Quant | None = None) -> str:
        self.tensors[name] = Tensor(name, tuple(int(dim) for dim in shape), "int8", quant or self.quant())
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def _emit(self, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], quant: Quant | None = None, **attrs):
        name = f"{kind}_{len(self.ops)}"
        self.activation(name, shape, quant)
        self.ops.append(Op(kind, inputs, (name,), attrs, name))
        self.x = name
        return name

    def _weights(self, shape: tuple[int, ...], channels: int, axis: int | None, fan_in: int) -> tuple[str, str]:
        rng, index = self.rng, len(self.ops)
        name, bias = f"w{index}", f"b{index}"
        count = 1 if axis is None else channels
        # Scales such that outputs use their range: neither all zero nor all saturated.
        scales = tuple(float(np.float32(s)) for s in rng.uniform(0.2, 3.0, count) / np.sqrt(fan_in) / 40)
        data = rng.integers(-127, 128, shape).astype(np.int8)
        self.tensors[name] = Tensor(name, shape, "int8", Quant(scales, (0,) * count, axis), data)
        values = rng.integers(-3000, 3000, channels).astype(np.int32)
        x_quant = self.tensors[self.x].quant
        assert x_quant is not None
        bias_scales = tuple(float(np.float32(scale * x_quant.scale)) for scale in scales)
        quant = Quant(bias_scales, (0,) * count, None if axis is None else 0)
        self.tensors[bias] = Tensor(bias, (channels,), "int32", quant, values)
        return name, bias

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

    def conv(self, channels, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), same=True, activation="none"):
        pad, out = self._windowed(kernel, stride, dilation, same)
        depth = self.shape(self.x)[3]
        weights = self._weights((channels, *kernel, depth), channels, 0, kernel[0] * kernel[1] * depth)
        return self._emit(
            "conv_2d",
            (self.x, *weights),
            (1, *out, channels),
            stride=stride,
            dilation=dilation,
            padding=pad,
            activation=activation,
        )

    def depthwise(self, multiplier=1, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), same=True, activation="none"):
        pad, out = self._windowed(kernel, stride, dilation, same)
        channels = self.shape(self.x)[3] * multiplier
        weights = self._weights((1, *kernel, channels), channels, 3, kernel[0] * kernel[1])
        return self._emit(
            "depthwise_conv_2d",
            (self.x, *weights),
            (1, *out, channels),
            stride=stride,
            dilation=dilation,
            padding=pad,
            activation=activation,
        )

    def dense(self, outputs, per_channel=False, activation="none"):
        count = self.tensors[self.x].num_elements
        weights = self._weights((outputs, count), outputs, 0 if per_channel else None, count)
        return self._emit("fully_connected", (self.x, *weights), (1, outputs), activation=activation)

    def add(self, other, activation="none"):
        return self._emit("add", (self.x, other), self.shape(self.x), activation=activation)

    def pool(self, kind, kernel=(2, 2), stride=(2, 2), same=False, activation="none"):
        pad, out = self._windowed(kernel, stride, (1, 1), same)
        quant = self.tensors[self.x].quant
        shape = (1, *out, self.shape(self.x)[3])
        return self._emit(
            kind, (self.x,), shape, quant, kernel=kernel, stride=stride, padding=pad, activation=activation
        )

    def mean(self, keep_dims=False):
        channels = self.shape(self.x)[3]
        shape = (1, 1, 1, channels) if keep_dims else (1, channels)
        return self._emit("mean", (self.x,), shape, axes=(1, 2), keep_dims=keep_dims)

    def pad(self, padding):
        _, height, width, channels = self.shape(self.x)
        shape = (1, height + padding[0] + padding[1], width + padding[2] + padding[3], channels)
        return self._emit(
            "pad", (self.x,), shape, self.tensors[self.x].quant, paddings=spatial_paddings(padding), value=None
        )

    def reshape(self, shape):
        return self._emit("reshape", (self.x,), shape, self.tensors[self.x].quant)

    def softmax(self, beta=1.0):
        return self._emit("softmax", (self.x,), self.shape(self.x), Quant.per_tensor(1 / 256, -128), beta=beta)

    def graph(self, name="test") -> Graph:
        return verify(Graph(name, self.tensors, tuple(self.ops), ("input",), (self.x,)))

    def inputs(self, count: int) -> np.ndarray:
        return self.rng.integers(-128, 128, (count, *self.shape("input")[1:])).astype(np.int8)


def random_network(seed: int) -> Builder:
    """A random small network with residual connections, pools and a classifier."""
    rng = np.random.default_rng(seed)
    activations = ["none", "relu", "relu6"]
    size = int(rng.integers(5, 14))
    builder = Builder(rng, (1, size, size + int(rng.integers(0, 3)), int(rng.integers(1, 5))))
    for _ in range(int(rng.integers(1, 6))):
        activation = str(rng.choice(activations))
        kernel = int(rng.choice([1, 2, 3, 5]))
        stride = int(rng.choice([1, 1, 2]))
        height, width = builder.shape(builder.x)[1:3]
        same = bool(rng.integers(0, 2)) or kernel > min(height, width)
        kind = rng.choice(["conv", "depthwise", "residual", "pool", "pad"])
        if kind == "conv":
            builder.conv(int(rng.integers(1, 9)), (kernel, kernel), (stride, stride), same=same, activation=activation)
        elif kind == "depthwise":
            multiplier = int(rng.integers(1, 3))
            builder.depthwise(multiplier, (kernel, kernel), (stride, stride), same=same, activation=activation)
        elif kind == "residual":
            start = builder.x
            builder.conv(builder.shape(start)[3], (3, 3), activation=activation)
            builder.add(start, activation=str(rng.choice(activations)))
        elif kind == "pool" and min(height, width) >= 2:
            builder.pool(str(rng.choice(["average_pool_2d", "max_pool_2d"])), same=bool(rng.integers(0, 2)))
        elif kind == "pad":
            builder.pad(tuple(int(p) for p in rng.integers(0, 3, 4)))
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
