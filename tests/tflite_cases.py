"""One small graph for each op kind in each form that a `.tflite` has for it."""

import numpy as np

from tinykd.ir import Graph, Op, Quant, Tensor, verify

Q = Quant.per_tensor(0.05, -3)
R = Quant.per_tensor(0.031, 17)
PROBABILITY = Quant.per_tensor(1 / 256, -128)
RNG = np.random.default_rng(7)


def activation(name, shape, quant=Q, dtype="int8"):
    """A tensor that is computed or fed."""
    return Tensor(name, shape, dtype, quant)


def constant(name, shape, quant=Q, dtype="int8"):
    """A constant of random values."""
    data = RNG.integers(-100, 100, shape).astype(dtype)
    return Tensor(name, shape, dtype, quant, data)


def weights(name, shape, axis=None, dtype="int8"):
    """Weights with one scale, or with one per slice of `axis`."""
    count = 1 if axis is None else shape[axis]
    scales = tuple(float(np.float32(scale)) for scale in RNG.uniform(0.001, 0.01, count))
    return constant(name, shape, Quant(scales, (0,) * count, axis), dtype)


def bias(x, w, count):
    """The bias that goes with an input and weights."""
    scales = tuple(float(np.float32(x.quant.scale * scale)) for scale in w.quant.scales)
    quant = Quant(scales, (0,) * len(scales), None if len(scales) == 1 else 0)
    return constant("b", (count,), quant, "int32")


def graph(kind, inputs, outputs, **attrs):
    """A graph of one op; its activations are the graph's inputs."""
    tensors = {tensor.name: tensor for tensor in (*inputs, *outputs) if tensor is not None}
    op = Op(kind, tuple("" if t is None else t.name for t in inputs), tuple(t.name for t in outputs), attrs, kind)
    fed = [t.name for t in inputs if t is not None and not t.is_constant and not t.variable]
    return verify(Graph(kind, tensors, (op,), tuple(dict.fromkeys(fed)), op.outputs))


X = activation("x", (1, 6, 5, 4))
ROW = activation("x", (1, 12))


def conv(stride=(1, 1), dilation=(1, 1), padding=(1, 1, 1, 1), size=(6, 5), kernel=(3, 3), axis=0, act="none", b=True):
    """A convolution to three channels; `b`: True, False (two inputs) or None (an omitted third)."""
    w = weights("w", (3, *kernel, 4), axis)
    rest = [bias(X, w, 3)] if b else [None] if b is None else []
    y = activation("y", (1, *size, 3), R)
    attrs = {"stride": stride, "dilation": dilation, "padding": padding, "activation": act}
    return graph("conv_2d", [X, w, *rest], [y], **attrs)


def depthwise(multiplier=1, stride=(1, 1), padding=(1, 1, 1, 1), size=(6, 5), axis=3, act="none", b=True):
    """A depthwise convolution with 3 x 3 kernels."""
    w = weights("w", (1, 3, 3, 4 * multiplier), axis)
    y = activation("y", (1, *size, 4 * multiplier), R)
    attrs = {"stride": stride, "dilation": (1, 1), "padding": padding, "activation": act}
    rest = [bias(X, w, 4 * multiplier)] if b else []
    return graph("depthwise_conv_2d", [X, w, *rest], [y], **attrs)


def transpose_conv(stride, padding, size, kernel=(3, 3), with_bias=True, act="none"):
    """A transposed convolution to three channels."""
    w = weights("w", (3, *kernel, 4), 0)
    rest = [bias(X, w, 3)] if with_bias else [None] if with_bias is None else []
    attrs = {"stride": stride, "padding": padding, "activation": act}
    return graph("transpose_conv", [X, w, *rest], [activation("y", (1, *size, 3), R)], **attrs)


def dense(x, shape, axis=None, b=True, act="none"):
    """A matrix product with rows of 4 or 12."""
    w = weights("w", (5, x.shape[-1]), axis)
    rest = [bias(x, w, 5)] if b else [None] if b is None else []
    return graph("fully_connected", [x, w, *rest], [activation("y", shape, R)], activation=act)


def svdf(rank=2, act="relu"):
    """An SVDF with six filters over five steps."""
    feature, time = weights("w", (6, 12)), weights("t", (6, 5), dtype="int16")
    state = Tensor("s", (1, 30), "int16", Quant.per_tensor(0.002, 0), None, True)
    b = Tensor("b", (6 // rank,), "int32", Quant.per_tensor(1e-5, 0), np.arange(6 // rank, dtype=np.int32))
    y = activation("y", (1, 6 // rank), Quant.per_tensor(0.05, -128))
    return graph("svdf", [ROW, feature, time, b, state], [y], rank=rank, activation=act)


def binary(kind, first, second, shape, y=R, **attrs):
    """An elementwise op of two operands."""
    return graph(kind, [first, second], [activation("y", shape, y)], **attrs)


def pool(kind, kernel, stride, padding, size, act="none"):
    """A pooling op."""
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, "activation": act}
    return graph(kind, [X], [activation("y", (1, *size, 4))], **attrs)


def unary(kind, y=R, x=X, **attrs):
    """An op of one input, whose output has its shape."""
    return graph(kind, [x], [activation("y", x.shape, y)], **attrs)


def move(kind, shape, x=X, **attrs):
    """An op that moves integers."""
    return graph(kind, [x], [activation("y", shape, x.quant)], **attrs)


def sliced(begin, end, strides, shape, shrink=()):
    """A slice of X."""
    return move("strided_slice", shape, begin=begin, end=end, strides=strides, shrink_axes=shrink)


def change_type(kind, source, target, y_quant=R, x_quant=Q):
    """QUANTIZE and DEQUANTIZE between two types."""
    x = activation("x", (1, 7), None if source == "float32" else x_quant, source)
    return graph(kind, [x], [activation("y", (1, 7), None if target == "float32" else y_quant, target)])


SECOND = activation("z", (1, 6, 5, 4))
CHANNELS = activation("z", (1, 1, 1, 4))
FLAT8 = activation("x", (1, 8))

CASES = {
    "conv SAME": conv(),
    "conv VALID, strided": conv((2, 1), padding=(0, 0, 0, 0), size=(2, 3)),
    "conv SAME, strided, even": conv((2, 2), padding=(0, 1, 1, 1), size=(3, 3)),
    "conv dilated": conv(dilation=(2, 2), padding=(2, 2, 2, 2)),
    "conv per tensor, relu6": conv(axis=None, act="relu6"),
    "conv relu_n1_to_1": conv(act="relu_n1_to_1"),
    "conv of two inputs": conv(b=False),
    "conv with omitted bias": conv(b=None),
    "depthwise": depthwise(act="relu"),
    "depthwise, multiplier 3": depthwise(3, (2, 2), (0, 1, 1, 1), (3, 3)),
    "depthwise per tensor": depthwise(axis=None),
    "depthwise of two inputs": depthwise(b=False),
    "transpose_conv VALID": transpose_conv((2, 2), (0, 0, 0, 0), (13, 11)),
    "transpose_conv SAME": transpose_conv((2, 2), (0, 1, 0, 1), (12, 10)),
    "transpose_conv SAME, stride 1": transpose_conv((1, 1), (1, 1, 1, 1), (6, 5)),
    "transpose_conv SAME, even kernel": transpose_conv((1, 1), (1, 2, 1, 2), (6, 5), (4, 4)),
    "transpose_conv larger than its reach": transpose_conv((2, 3), (0, -1, 0, -1), (14, 16)),
    "transpose_conv without bias": transpose_conv((2, 2), (0, 1, 0, 1), (12, 10), with_bias=False),
    "transpose_conv with omitted bias": transpose_conv((2, 2), (0, 1, 0, 1), (12, 10), with_bias=None),
    "transpose_conv relu": transpose_conv((2, 2), (0, 1, 0, 1), (12, 10), act="relu"),
    "dense": dense(ROW, (1, 5)),
    "dense per channel": dense(ROW, (1, 5), 0, act="relu"),
    "dense of a map": dense(X, (30, 5)),
    "dense of rows that keep their shape": dense(X, (1, 6, 5, 5)),
    "dense of two inputs": dense(ROW, (1, 5), b=False),
    "dense with omitted bias": dense(ROW, (1, 5), b=None),
    "svdf": svdf(),
    "svdf rank 1": svdf(1),
    "add": binary("add", X, SECOND, X.shape, activation="none"),
    "add to itself": binary("add", X, X, X.shape, activation="relu"),
    "add channels": binary("add", X, CHANNELS, X.shape, activation="relu6"),
    "add a constant": binary("add", X, constant("c", (4,)), X.shape, activation="none"),
    "add to a constant": binary("add", constant("c", (1, 6, 5, 4)), X, X.shape, activation="none"),
    "add a scalar": binary("add", X, constant("c", ()), X.shape, activation="none"),
    "sub": binary("sub", X, SECOND, X.shape, activation="none"),
    "sub from a constant": binary("sub", constant("c", (4,)), X, X.shape, activation="relu"),
    "mul": binary("mul", X, SECOND, X.shape, activation="none"),
    "mul by channels": binary("mul", X, CHANNELS, X.shape, activation="none"),
    "mul above one": binary(
        "mul", X, constant("c", (), Quant.per_tensor(30.0, 0)), X.shape, Quant.per_tensor(1.0, 0), activation="none"
    ),
    "maximum": binary("maximum", X, SECOND, X.shape, Q),
    "maximum with a constant": binary("maximum", X, constant("c", (4,)), X.shape, Q),
    "minimum": binary("minimum", X, CHANNELS, X.shape, Q),
    "prelu": binary("prelu", X, constant("c", (1, 1, 4)), X.shape),
    "average_pool VALID": pool("average_pool_2d", (2, 2), (2, 2), (0, 0, 0, 0), (3, 2)),
    "average_pool SAME": pool("average_pool_2d", (3, 3), (2, 2), (0, 1, 1, 1), (3, 3), "relu"),
    "max_pool": pool("max_pool_2d", (3, 2), (1, 1), (0, 0, 0, 0), (4, 4)),
    "mean": graph("mean", [X], [activation("y", (1, 4), R)], axes=(1, 2), keep_dims=False),
    "mean keep": graph("mean", [X], [activation("y", (1, 1, 1, 4), R)], axes=(1, 2), keep_dims=True),
    "mean of channels": graph("mean", [X], [activation("y", (1, 6, 5), R)], axes=(3,), keep_dims=False),
    "mean of all": graph("mean", [X], [activation("y", (1,), R)], axes=(1, 2, 3), keep_dims=False),
    "pad": move("pad", (1, 9, 5, 4), paddings=((0, 0), (1, 2), (0, 0), (0, 0)), value=None),
    "pad channels with a value": move("pad", (1, 6, 6, 7), paddings=((0, 0), (0, 0), (1, 0), (2, 1)), value=-128),
    "pad a row": move("pad", (1, 15), ROW, paddings=((0, 0), (1, 2)), value=5),
    "reshape": move("reshape", (1, 120)),
    "reshape to five dimensions": move("reshape", (1, 2, 3, 5, 4)),
    "reshape to a scalar": move("reshape", (), activation("x", (1, 1))),
    "transpose": move("transpose", (1, 4, 6, 5), perm=(0, 3, 1, 2)),
    "transpose of three": move("transpose", (3, 1, 2), activation("x", (1, 2, 3)), perm=(2, 0, 1)),
    "concatenation": graph(
        "concatenation", [X, activation("z", (1, 6, 5, 3))], [activation("y", (1, 6, 5, 7))], axis=3
    ),
    "concatenation with a constant": graph(
        "concatenation", [X, constant("c", (1, 2, 5, 4))], [activation("y", (1, 8, 5, 4))], axis=1
    ),
    "split": graph("split", [X], [activation("y", (1, 6, 5, 2)), activation("y2", (1, 6, 5, 2))], axis=3),
    "split unevenly": graph("split", [X], [activation("y", (1, 5, 5, 4)), activation("y2", (1, 1, 5, 4))], axis=1),
    "slice": sliced((0, 1, 0, 1), (1, 5, 5, 3), (1, 1, 1, 1), (1, 4, 5, 2)),
    "slice with strides": sliced((0, 1, 0, 0), (1, 6, 5, 4), (1, 2, 3, 1), (1, 3, 2, 4)),
    "slice backwards": sliced((0, 5, 3, 0), (1, -1, 0, 4), (1, -1, -2, 1), (1, 6, 2, 4)),
    "slice that drops axes": sliced((0, 5, 0, 2), (1, 6, 5, 3), (1, 1, 1, 1), (1, 5), shrink=(1, 3)),
    "resize": move("resize_nearest_neighbor", (1, 12, 10, 4), align_corners=False, half_pixel_centers=False),
    "resize align": move("resize_nearest_neighbor", (1, 11, 9, 4), align_corners=True, half_pixel_centers=False),
    "resize half": move("resize_nearest_neighbor", (1, 3, 7, 4), align_corners=False, half_pixel_centers=True),
    "softmax": unary("softmax", PROBABILITY, ROW, beta=1.0),
    "softmax of a map": unary("softmax", PROBABILITY, beta=0.5),
    "logistic": unary("logistic", PROBABILITY),
    "tanh": unary("tanh", Quant.per_tensor(1 / 128, 0)),
    "hard_swish": unary("hard_swish"),
    "relu": unary("relu"),
    "relu6": unary("relu6"),
    "leaky_relu": unary("leaky_relu", alpha=float(np.float32(0.1))),
    "quantize float": change_type("quantize", "float32", "int8"),
    "quantize int8": change_type("quantize", "int8", "int8"),
    "quantize uint8": change_type("quantize", "uint8", "int8", x_quant=R),
    "quantize int16": change_type("quantize", "int16", "int8", x_quant=Quant.per_tensor(0.002, 0)),
    "quantize int32": change_type("quantize", "int32", "int8", x_quant=Quant.per_tensor(0.002, 0)),
    "quantize to uint8": change_type("quantize", "int8", "uint8"),
    "quantize to int16": change_type("quantize", "int8", "int16", Quant.per_tensor(0.002, 0)),
    "quantize to int32": change_type("quantize", "int8", "int32", Quant.per_tensor(0.002, 0)),
    "dequantize": change_type("dequantize", "int8", "float32"),
    "dequantize uint8": change_type("dequantize", "uint8", "float32", x_quant=R),
    "dequantize int16": change_type("dequantize", "int16", "float32"),
    "arg_max": graph("arg_max", [ROW], [activation("y", (1,), None, "int32")], axis=1),
    "arg_max of a map": graph("arg_max", [X], [activation("y", (1, 5, 4), None, "int32")], axis=1),
}


def values(tensor):
    """Random values of a tensor's type."""
    if tensor.dtype == "float32":
        return RNG.normal(0, 2, tensor.shape).astype(np.float32)
    limits = np.iinfo(tensor.dtype)
    return RNG.integers(limits.min, limits.max, tensor.shape, endpoint=True).astype(tensor.dtype)
