"""Small ONNX models that between them have most of the nodes that are read."""

from __future__ import annotations

from collections.abc import Callable

from onnxnet import OnnxNet

from hostile.mutate import Base, onnx_base


def bases() -> list[Base]:
    """Return the whole files."""
    return [onnx_base(make.__name__.strip("_"), make().bytes()) for make in _NETS]


def _classifier() -> OnnxNet:
    net = OnnxNet((1, 3, 8, 8))
    net.node("Conv", net.x, net.weights(4, 3, 3, 3), net.weights(4), pads=[1, 1, 1, 1], strides=[2, 2])
    norm = [net.constant([1.0, 2.0, 0.5, 1.5]), net.weights(4), net.weights(4), net.constant([1.0, 1.0, 2.0, 3.0])]
    net.node("BatchNormalization", net.x, *norm)
    net.node("Clip", net.x, net.constant(0.0), net.constant(6.0))
    skip = net.x
    net.node("Conv", net.x, net.weights(4, 1, 3, 3), pads=[1, 1, 1, 1], group=4)
    net.node("HardSwish")
    net.node("Add", net.x, skip)
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.node("Gemm", net.x, net.weights(5, 4), net.weights(5), transB=1)
    net.node("Softmax", axis=-1)
    return net


def _decoder() -> OnnxNet:
    net = OnnxNet((1, 4, 6, 6))
    net.node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.node("ConvTranspose", net.x, net.weights(4, 3, 3, 3), net.weights(3), strides=[2, 2], pads=[1, 1, 1, 1])
    net.node("Resize", net.x, "", net.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest")
    net.node("Pad", net.x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    net.node("LeakyRelu", alpha=0.1)
    net.node("AveragePool", kernel_shape=[3, 3], strides=[2, 2])
    net.node("Sigmoid")
    return net


def _shapes() -> OnnxNet:
    net = OnnxNet((1, 8, 4, 4))
    first, second = net.node("Split", net.x, net.ints(3, 5), axis=1, count=2)
    net.node("Concat", second, first, axis=1)
    net.node("Slice", net.x, net.ints(1), net.ints(3), net.ints(2), net.ints(1))
    net.node("Transpose", perm=[0, 2, 3, 1])
    net.node("Reshape", net.x, net.ints(1, -1, 8))
    net.node("Unsqueeze", net.x, net.ints(1))
    net.node("Squeeze", net.x, net.ints(1))
    net.node("ReduceMean", axes=[1], keepdims=0)
    net.node("MatMul", net.x, net.weights(8, 6))
    net.node("Mul", net.x, net.constant(0.5))
    net.node("ArgMax", axis=1)
    return net


_NETS: tuple[Callable[[], OnnxNet], ...] = (_classifier, _decoder, _shapes)
