"""Each op of the integer reference against TFLite Micro, bit for bit, with awkward parameters."""

import numpy as np
import pytest
from graphs import Builder, needs_oracle

from tinykd.export import parity, reference
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, verify

MAP = (1, 9, 8, 4)
ROW = (1, 24)


def check(builder, count=7, outputs=None, stream=False):
    """Compare every activation with TFLite Micro's for random and extreme inputs."""
    graph = builder.graph(outputs=outputs)
    inputs = parity.sample_inputs(graph, count, seed=int(builder.rng.integers(1 << 30)))
    result = parity.compare(graph, tflite_writer.write(graph), inputs, stream=stream)
    assert result.first_mismatch is None, (result.first_mismatch.describe(), result.first_mismatch.arithmetic)
    assert result.values_checked > 0


def _two_inputs(builder, shape, quant=None):
    return builder.input("other", shape, quant=quant)


def _same_quant(builder):
    return builder.tensors[builder.x].quant


CASES = {
    "conv without bias": (MAP, lambda b: b.conv(5, bias=False)),
    "conv per tensor": (MAP, lambda b: b.conv(5, per_channel=False, activation="relu_n1_to_1")),
    "conv with a deep kernel": ((1, 3, 3, 300), lambda b: b.conv(3)),
    "depthwise without bias": (MAP, lambda b: b.depthwise(2, bias=False)),
    "depthwise relu_n1_to_1": (MAP, lambda b: b.depthwise(activation="relu_n1_to_1")),
    "transpose conv same": (MAP, lambda b: b.transpose_conv(5)),
    "transpose conv valid": (MAP, lambda b: b.transpose_conv(3, (3, 2), (2, 3), same=False)),
    "transpose conv per tensor": (MAP, lambda b: b.transpose_conv(3, (2, 2), per_channel=False)),
    "transpose conv without bias": (MAP, lambda b: b.transpose_conv(3, (4, 4), bias=False)),
    "transpose conv with gaps": (MAP, lambda b: b.transpose_conv(3, (1, 1), (2, 2), same=False)),
    "transpose conv stride 1": (MAP, lambda b: b.transpose_conv(3, (3, 3), (1, 1))),
    "transpose conv beyond its kernels": (MAP, lambda b: b.transpose_conv(3, same=False, grow=1)),
    "transpose conv relu": (MAP, lambda b: b.transpose_conv(4, activation="relu")),
    "transpose conv relu6": (MAP, lambda b: b.transpose_conv(4, activation="relu6")),
    "dense without bias": (MAP, lambda b: b.dense(7, bias=False)),
    "dense rows": ((1, 3, 5, 6), lambda b: b.dense(7, rows=15, activation="relu6")),
    "dense rows per channel": ((1, 5, 6), lambda b: b.dense(4, per_channel=True, rows=5)),
    "dense of a column of rows": (ROW, lambda b: (b.reshape((4, 6)), b.dense(3, rows=4))),
    "svdf": (ROW, lambda b: b.svdf(5)),
    "svdf rank 2": (ROW, lambda b: b.svdf(4, rank=2, memory=5)),
    "svdf memory 1": (ROW, lambda b: b.svdf(4, memory=1)),
    "svdf with sums beyond int32": (ROW, lambda b: b.svdf(4, memory=6, time_limit=32768)),
    "svdf whose activation nobody applies": (ROW, lambda b: b.svdf(6, activation="relu")),
    "two svdf": (ROW, lambda b: (b.svdf(6), b.svdf(3, rank=2))),
    "add constant": (MAP, lambda b: b.add(b.constant(MAP), "relu6")),
    "add row of constants": (MAP, lambda b: b.add(b.constant((4,)))),
    "add one constant": (MAP, lambda b: b.add(b.constant((1, 1, 1, 1)))),
    "add wider": ((1, 1, 1, 4), lambda b: b.add(_two_inputs(b, MAP), "relu_n1_to_1")),
    "add of both broadcast": ((1, 9, 1, 4), lambda b: b.add(_two_inputs(b, (1, 1, 8, 1)))),
    "add to itself": (MAP, lambda b: b.add("input")),
    "sub": (MAP, lambda b: b.sub(_two_inputs(b, MAP))),
    "sub relu": (MAP, lambda b: b.sub(_two_inputs(b, (1, 9, 8, 1)), "relu")),
    "sub row of constants": (MAP, lambda b: b.sub(b.constant((4,)))),
    "sub from wider": ((1, 1, 8, 1), lambda b: b.sub(_two_inputs(b, MAP))),
    "mul": (MAP, lambda b: b.mul(_two_inputs(b, MAP))),
    "mul relu6": (MAP, lambda b: b.mul(_two_inputs(b, (1, 1, 1, 4)), "relu6")),
    "mul row of constants": (MAP, lambda b: b.mul(b.constant((4,)), "relu")),
    "mul of both broadcast": ((1, 9, 1, 4), lambda b: b.mul(_two_inputs(b, (1, 1, 8, 1)))),
    "mul by lower rank": (MAP, lambda b: b.mul(_two_inputs(b, (1, 8, 4)))),
    "maximum": (MAP, lambda b: b.extreme("maximum", _two_inputs(b, MAP, _same_quant(b)))),
    "maximum of constants": (MAP, lambda b: b.extreme("maximum", b.constant((4,), _same_quant(b)))),
    "minimum broadcast": ((1, 9, 1, 4), lambda b: b.extreme("minimum", _two_inputs(b, (1, 8, 1), _same_quant(b)))),
    "minimum": (MAP, lambda b: b.extreme("minimum", _two_inputs(b, (1, 1, 1, 1), _same_quant(b)))),
    "prelu": (MAP, lambda b: b.prelu()),
    "prelu of every element": (MAP, lambda b: b.prelu((1, 9, 8, 4))),
    "prelu shared": (MAP, lambda b: b.prelu((1, 1, 4))),
    "logistic": (MAP, lambda b: b.unary("logistic")),
    "tanh": (MAP, lambda b: b.unary("tanh")),
    "hard swish": (MAP, lambda b: b.unary("hard_swish")),
    "relu": (MAP, lambda b: b.unary("relu")),
    "relu6": (MAP, lambda b: b.unary("relu6")),
    "leaky relu": (MAP, lambda b: b.unary("leaky_relu", alpha=0.1)),
    "leaky relu downwards": (MAP, lambda b: b.unary("leaky_relu", alpha=-0.3)),
    "requantise": (MAP, lambda b: b.quantize()),
    "dequantize": (MAP, lambda b: b.dequantize()),
    "arg max": (MAP, lambda b: b.arg_max()),
    "arg max of rows": (MAP, lambda b: b.arg_max(1)),
    "average pool valid": (MAP, lambda b: b.pool("average_pool_2d", (3, 2), (1, 2), activation="relu6")),
    "max pool relu_n1_to_1": (MAP, lambda b: b.pool("max_pool_2d", (2, 3), (2, 1), activation="relu_n1_to_1")),
    "mean over height": (MAP, lambda b: b.mean(axes=(1,))),
    "mean over channels": (MAP, lambda b: b.mean(axes=(3,), keep_dims=True)),
    "mean over everything": (MAP, lambda b: b.mean(axes=(1, 2, 3))),
    "mean over width and channels": (MAP, lambda b: b.mean(axes=(2, 3), keep_dims=True)),
    "mean of rank 3": ((1, 6, 5), lambda b: b.mean(axes=(1,))),
    "mean without a change of scale": (MAP, lambda b: b.mean(quant=_same_quant(b))),
    "pad channels": (MAP, lambda b: b.pad(((0, 0), (1, 0), (0, 2), (1, 3)))),
    "pad with a value": (MAP, lambda b: b.pad((1, 2, 0, 3), value=-77)),
    "pad rank 2": (ROW, lambda b: b.pad(((0, 0), (2, 3)))),
    "reshape and back": (MAP, lambda b: (b.reshape((72, 4)), b.reshape(MAP))),
    "transpose": (MAP, lambda b: b.transpose((0, 3, 1, 2))),
    "transpose before a table": (MAP, lambda b: (b.transpose((0, 3, 2, 1)), b.unary("tanh"))),
    "transpose before a convolution": (MAP, lambda b: (b.transpose((0, 3, 2, 1)), b.conv(3), b.depthwise())),
    "transpose rank 3": ((1, 6, 5), lambda b: b.transpose((0, 2, 1))),
    "transpose moves the batch": ((1, 6, 5), lambda b: (b.transpose((1, 0, 2)), b.transpose((1, 2, 0)))),
    "concatenation": (MAP, lambda b: b.concatenate([_two_inputs(b, (1, 9, 8, 3), _same_quant(b))])),
    "concatenation of rows": (MAP, lambda b: b.concatenate([_two_inputs(b, (1, 2, 8, 4), _same_quant(b)), b.x], 1)),
    "concatenation with a constant": (MAP, lambda b: b.concatenate([b.constant(MAP, _same_quant(b))], 2)),
    "strided slice": (MAP, lambda b: b.strided_slice((0, 1, 0, 0), (1, 9, 8, 4), (1, 2, 3, 1))),
    "strided slice backwards": (MAP, lambda b: b.strided_slice((0, 8, 7, 0), (1, -1, 0, 4), (1, -1, -2, 1))),
    "strided slice dropping axes": (MAP, lambda b: b.strided_slice((0, 3, 0, 0), (1, 4, 8, 4), (1, 1, 1, 1), (1,))),
    "resize up": (MAP, lambda b: b.resize((18, 16))),
    "resize oddly": (MAP, lambda b: b.resize((13, 5))),
    "resize with aligned corners": (MAP, lambda b: b.resize((17, 3), align_corners=True)),
    "resize with half pixels": (MAP, lambda b: b.resize((5, 21), half_pixel_centers=True)),
    "resize with both": (MAP, lambda b: b.resize((6, 14), align_corners=True, half_pixel_centers=True)),
    "resize to one": (MAP, lambda b: b.resize((1, 1), align_corners=True)),
    "softmax rows": (MAP, lambda b: b.softmax(0.3)),
}


@needs_oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_each_op_equals_tflite_micro(case, seed):
    """Every op gives TFLite Micro's integers for random scales, zero points and extreme inputs."""
    shape, build = CASES[case]
    builder = Builder(np.random.default_rng(seed), shape)
    build(builder)
    check(builder)


@needs_oracle
@pytest.mark.parametrize("axis", range(1, 4))
def test_split_equals_tflite_micro(axis):
    """Every part of a split is an output of its own, even or not."""
    for sizes in {1: ((3, 3, 3), (2, 7)), 2: ((4, 4), (1, 2, 5)), 3: ((2, 2), (3, 1))}[axis]:
        builder = Builder(np.random.default_rng(axis), MAP)
        check(builder, outputs=builder.split(sizes, axis))


@needs_oracle
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16", "int32", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_quantize_of_every_type_equals_tflite_micro(dtype, seed):
    """QUANTIZE from floats and from other integers rounds and saturates as TFLite Micro does."""
    builder = Builder(np.random.default_rng(seed), ROW, dtype)
    builder.quantize()
    builder.dequantize()
    check(builder, count=40)


@needs_oracle
@pytest.mark.parametrize(("source", "target"), [("int8", "uint8"), ("int8", "int16"), ("int8", "int32")])
def test_quantize_to_every_type_equals_tflite_micro(source, target):
    """QUANTIZE from int8 clamps to the range of its output's type."""
    builder = Builder(np.random.default_rng(1), ROW, source)
    for scale in (0.001, 0.05, 3.0):
        builder.x = "input"
        builder.quantize(Quant.per_tensor(scale, 7 if target == "uint8" else 0), target)
    check(builder, count=40, outputs=[op.outputs[0] for op in builder.ops])


@needs_oracle
def test_quantize_of_special_floats_equals_tflite_micro():
    """Halves go away from zero; NaN, infinities and what int32 cannot hold become what the wheel makes of them."""
    scale = float(np.float32(0.1))
    halves = (np.arange(-300, 300) / 2 * np.float32(scale)).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, 1e30, -1e30, 2.2e8, -2.2e8, 3e8, 0.0, -0.0]
    x = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9)), special])
    for zero_point in (-128, -1, 0, 127):
        builder = Builder(np.random.default_rng(0), (1, len(x)), "float32")
        builder.quantize(Quant.per_tensor(scale, zero_point))
        graph = builder.graph()
        result = parity.compare(graph, tflite_writer.write(graph), x.astype(np.float32)[None])
        assert result.first_mismatch is None, result.first_mismatch.describe()


@needs_oracle
@pytest.mark.parametrize("stream", [False, True])
def test_svdf_state_equals_tflite_micro(stream):
    """Samples start from the reset state each, or go on from one to the next as consecutive inferences."""
    builder = Builder(np.random.default_rng(4), ROW)
    builder.svdf(6, rank=2, memory=4)
    builder.svdf(3, memory=3)
    check(builder, count=21, stream=stream)


@needs_oracle
def test_svdf_sums_beyond_int32_wrap():
    """A full memory of saturated states times the largest weights leaves int32, and wraps as the wheel's does."""
    step = Quant.per_tensor(1.0, 0)
    limits = np.array([[32767, 32767, 32767], [32767, 32767, -32767]], np.int16)
    constants = {
        "feature": ("int8", np.full((2, 1), 127, np.int8), step),
        "time": ("int16", limits, step),
        "bias": ("int32", np.array([5, -5], np.int32), step),
    }
    tensors = {name: Tensor(name, data.shape, dtype, quant, data) for name, (dtype, data, quant) in constants.items()}
    tensors["x"] = Tensor("x", (1, 1), "int8", Quant.per_tensor(100.0, 0))
    tensors["state"] = Tensor("state", (1, 6), "int16", step, variable=True)
    tensors["y"] = Tensor("y", (1, 2), "int8", Quant.per_tensor(2.0**25, 0))
    op = Op("svdf", ("x", "feature", "time", "bias", "state"), ("y",), {"rank": 1, "activation": "none"}, "svdf")
    graph = verify(Graph("test", tensors, (op,), ("x",), ("y",)))
    x = np.array([[127], [127], [127], [-128], [-128], [-128]], np.int8)
    result = parity.compare(graph, tflite_writer.write(graph), x, stream=True)
    assert result.first_mismatch is None, result.first_mismatch.describe()
    y = reference.run(graph, x, stream=True)["y"]
    assert y[1, 0] > 60
    assert y[2, 0] < 0, "three products of 2**30 no longer fit"


@needs_oracle
@pytest.mark.parametrize("kind", ["dense", "conv", "transpose_conv"])
def test_sums_beyond_float32_are_exact(kind):
    """A sum of 2**26 less a bias of the same size leaves the last bit right."""
    builder = Builder(np.random.default_rng(0), (1, 1, 1, 2001))
    builder.tensors["input"] = Tensor("input", (1, 1, 1, 2001), "int8", Quant.per_tensor(0.1, 127))
    options = {"per_channel": False}
    {
        "dense": lambda: builder.dense(3, **options),
        "conv": lambda: builder.conv(3, (1, 1), **options),
        "transpose_conv": lambda: builder.transpose_conv(3, (1, 1), (1, 1), **options),
    }[kind]()
    weights = np.full(builder.shape("w0"), 127, np.int8)
    weights.reshape(3, -1)[:, 0] = (126, 125, 124)
    bias = -(np.full(2001, -255) @ weights.reshape(3, -1).T.astype(np.int64))
    # A factor just below 1: each unit of the sum shows.
    step = Quant.per_tensor(float(np.float32(0.1) * np.float32(0.02)), 0)
    for name, tensor in (
        ("w0", Tensor("w0", weights.shape, "int8", Quant.per_tensor(0.02, 0), weights)),
        ("b0", Tensor("b0", (3,), "int32", step, (bias + [1, -2, 3]).astype(np.int32))),
        (builder.x, Tensor(builder.x, builder.shape(builder.x), "int8", Quant.per_tensor(0.00201, 0))),
    ):
        builder.tensors[name] = tensor
    graph = builder.graph()
    x = np.full((1, 1, 1, 2001), -128, np.int8)
    assert reference.run_output(graph, x).tolist() == [[1, -2, 3]]
    assert parity.compare(graph, tflite_writer.write(graph), x).mismatches == 0


@needs_oracle
def test_several_inputs_and_outputs_equal_tflite_micro():
    """A graph of three inputs and three outputs, one of them an input of another op, is run as TFLite Micro runs it."""
    builder = Builder(np.random.default_rng(6), MAP)
    first = builder.conv(4)
    _two_inputs(builder, (1, 1, 1, 4))
    builder.input("third", (1, 9, 8, 4))
    second = builder.mul("other")
    builder.sub("third")
    check(builder, outputs=(builder.x, first, second))
