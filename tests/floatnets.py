"""Small float graphs for tests of quantisation: layers with random weights, built one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinykd.ir import Graph, Op, Quant, Tensor, conv_output_size, same_padding, spatial_paddings, verify

INPUT_QUANT = Quant.per_tensor(1 / 64, 0)
"""The device's input covers [-2, 2)."""


class FloatNet:
    """Builds a float graph op by op; `self.x` is the last activation."""

    def __init__(self, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8, 3)) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {"x": Tensor("x", shape, "float32")}
        self.ops: list[Op] = []
        self.x = "x"

    def shape(self) -> tuple[int, ...]:
        return self.tensors[self.x].shape

    def emit(self, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attrs) -> str:
        self.x = f"{kind}{len(self.ops)}"
        self.tensors[self.x] = Tensor(self.x, shape, "float32")
        self.ops.append(Op(kind, inputs, (self.x,), attrs, f"source of {self.x}"))
        return self.x

    def weights(self, shape: tuple[int, ...], channels: int, fan_in: int) -> tuple[str, str]:
        names = f"w{len(self.ops)}", f"b{len(self.ops)}"
        values = self.rng.normal(0, fan_in**-0.5, shape), self.rng.normal(0, 0.3, channels)
        for name, value in zip(names, values, strict=True):
            self.tensors[name] = Tensor(name, value.shape, "float32", None, value.astype(np.float32))
        return names

    def _window(self, kernel: int, stride: int) -> tuple[tuple[int, ...], tuple[int, int]]:
        _, height, width, _ = self.shape()
        pads = [same_padding(size, kernel, stride) for size in (height, width)]
        size = [conv_output_size(n, kernel, stride, pad) for n, pad in zip((height, width), pads, strict=True)]
        return (*pads[0], *pads[1]), (size[0], size[1])

    def conv(self, out: int, kernel: int = 3, stride: int = 1, activation: str = "relu") -> str:
        padding, size = self._window(kernel, stride)
        channels = self.shape()[3]
        names = self.weights((out, kernel, kernel, channels), out, kernel * kernel * channels)
        attrs = {"stride": (stride, stride), "dilation": (1, 1), "padding": padding, "activation": activation}
        return self.emit("conv_2d", (self.x, *names), (1, *size, out), **attrs)

    def depthwise(self, kernel: int = 3, stride: int = 1, activation: str = "relu") -> str:
        padding, size = self._window(kernel, stride)
        channels = self.shape()[3]
        names = self.weights((1, kernel, kernel, channels), channels, kernel * kernel)
        attrs = {"stride": (stride, stride), "dilation": (1, 1), "padding": padding, "activation": activation}
        return self.emit("depthwise_conv_2d", (self.x, *names), (1, *size, channels), **attrs)

    def pad(self, padding: tuple[int, int, int, int]) -> str:
        _, height, width, channels = self.shape()
        shape = (1, height + padding[0] + padding[1], width + padding[2] + padding[3], channels)
        return self.emit("pad", (self.x,), shape, paddings=spatial_paddings(padding), value=None)

    def max_pool(self) -> str:
        _, height, width, channels = self.shape()
        attrs = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0), "activation": "none"}
        return self.emit("max_pool_2d", (self.x,), (1, height // 2, width // 2, channels), **attrs)

    def add(self, other: str, activation: str = "none") -> str:
        return self.emit("add", (self.x, other), self.shape(), activation=activation)

    def mean(self) -> str:
        return self.emit("mean", (self.x,), (1, self.shape()[3]), axes=(1, 2), keep_dims=False)

    def dense(self, out: int) -> str:
        count = self.tensors[self.x].num_elements
        names = self.weights((out, count), out, count)
        return self.emit("fully_connected", (self.x, *names), (1, out), activation="none")

    def graph(self) -> Graph:
        return verify(Graph("float", self.tensors, tuple(self.ops), ("x",), (self.x,)))

    def images(self, count: int = 48, seed: int = 1) -> np.ndarray:
        """Inputs float32 (count, ...) within the input's range."""
        shape = self.tensors["x"].shape[1:]
        return np.random.default_rng(seed).uniform(-1.9, 1.9, (count, *shape)).astype(np.float32)


def chain(activation: str = "relu", seed: int = 0) -> FloatNet:
    """conv - depthwise - conv - pooling - dense, the chain of mobile networks."""
    net = FloatNet(seed)
    net.conv(8, activation=activation)
    net.depthwise(activation=activation)
    net.conv(6, kernel=1, activation=activation)
    net.mean()
    net.dense(5)
    return net


def scaled_channels(graph: Graph, first: int, second: int, factors: np.ndarray) -> Graph:
    """Return a graph that computes the same, with channel i of op `first` multiplied by factors[i], and divided again.

    Exact for homogeneous activations; ops are given by index, `second` reads the output of `first`.
    """
    tensors = dict(graph.tensors)

    def scale(name: str, by: np.ndarray) -> None:
        data = tensors[name].data
        assert data is not None
        tensors[name] = replace(tensors[name], data=(data * by).astype(np.float32))

    depthwise = graph.ops[first].kind == "depthwise_conv_2d"
    weights, bias = graph.ops[first].inputs[1:3]
    scale(weights, factors if depthwise else factors.reshape(-1, *[1] * (len(tensors[weights].shape) - 1)))
    scale(bias, factors)
    scale(graph.ops[second].inputs[1], 1 / factors)
    return replace(graph, tensors=tensors)
