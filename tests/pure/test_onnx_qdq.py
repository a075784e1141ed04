"""QDQ ONNX: what is written is read back to the integer, and what others quantised is read as they meant it."""

import numpy as np
import pytest
from graphs import Builder, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.errors import UnsupportedModelError
from tinykd.export import reference
from tinykd.ir import Quant, difference
from tinykd.ir.affine import QUANT_KEEPERS

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnxnet import OnnxNet  # noqa: E402

from tinykd.formats.onnx import reader as onnx_reader  # noqa: E402
from tinykd.formats.onnx import writer as onnx_writer  # noqa: E402

_MOVES = ("reshape", "transpose")
_MAY_DO_NOTHING = ("pad", "strided_slice", "quantize")


def reading(graph):
    """The graph after writing and reading it."""
    return onnx_reader.read_quantised(onnx_writer.write_qdq(graph), graph.name)


def constants(graph):
    """Each computing op with its constants' integers, scales and zero points, and the grids of its outputs.

    Where a transpose is left to the op behind it, the order of a dense layer's columns, or of an operand, is another. A
    depthwise convolution of one channel is a convolution, and ONNX cannot tell them apart.
    """
    rows = []
    for op in graph.ops:
        x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
        if op.kind in _MOVES or (op.kind in _MAY_DO_NOTHING and (x.shape, x.quant) == (y.shape, y.quant)):
            continue
        known = []
        for tensor in (graph.tensor(name) for name in op.inputs):
            if not tensor.is_constant:
                continue
            data = tensor.data
            if op.kind == "depthwise_conv_2d" and data.ndim == 4:
                data = data.transpose(3, 1, 2, 0)
            if op.kind == "fully_connected":
                data = np.sort(data)
            elif "conv" not in op.kind:
                data = np.sort(data, axis=None)
            known.append((data.tobytes(), tensor.quant.scales, tensor.quant.zero_points))
        outputs = [graph.tensor(name).quant for name in op.outputs]
        rows.append((op.kind.removeprefix("depthwise_"), known, outputs, op.attrs.get("activation")))
    return rows


def same_results(graph, other, samples):
    """Compare all outputs for the same inputs."""
    assert [graph.tensor(a).quant for a in graph.inputs] == [other.tensor(b).quant for b in other.inputs]
    first = reference.run_output(graph, samples)
    assert np.array_equal(first, reference.run_output(other, samples))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_random_networks_come_back(seed):
    """Integers, scales, zero points and attributes survive, and so does every output of the integer reference."""
    builder = random_network(seed)
    graph = builder.graph()
    copies = [op for op in graph.ops if op.kind in QUANT_KEEPERS]
    if any(graph.tensor(op.inputs[0]).quant != graph.tensor(op.outputs[0]).quant for op in copies):
        with pytest.raises(UnsupportedModelError, match="other scales than they came with"):
            onnx_writer.write_qdq(graph)
        return
    other = reading(graph)
    assert constants(other) == constants(graph)
    same_results(graph, other, builder.inputs(3))


def test_a_plain_network_comes_back_under_its_names():
    """Without reshapes even names, shapes and the order of everything are the same."""
    builder = Builder(np.random.default_rng(0), (1, 7, 6, 3))
    builder.conv(8, activation="relu_n1_to_1")
    builder.depthwise(activation="relu6")
    builder.pool("average_pool_2d")
    builder.mean()
    builder.dense(4)
    builder.softmax()
    graph = builder.graph()
    assert difference(graph, reading(graph)) is None


def test_several_ways_to_the_same_integers():
    """A file that is read, written and read again is the same graph."""
    graph = reading(random_network(3).graph())
    assert constants(reading(graph)) == constants(graph)


class Qdq(OnnxNet):
    """A network with QuantizeLinear and DequantizeLinear pairs, per tensor uint8 activations unless said otherwise."""

    def __init__(self, *shapes):
        super().__init__(*shapes, opset=21)

    def pair(self, scale=0.05, zero=120, dtype=np.uint8, x=None):
        """Quantise the newest value."""
        parameters = (self.constant(scale), self.constant(zero, dtype))
        self.node("QuantizeLinear", x or self.x, *parameters)
        return self.node("DequantizeLinear", self.x, *parameters)

    def quantised(self, *shape, axis=0, scales=None, dtype=np.int8, zero=0):
        """Add random integer weights and return their dequantised name; the newest value stays."""
        x = self.x
        info = np.iinfo(dtype)
        values = self.constant(self.rng.integers(max(info.min, -127), min(info.max, 255) + 1, shape), dtype)
        count = shape[axis] if scales is None else np.size(scales)
        scales = self.rng.uniform(0.002, 0.02, count) if scales is None else np.asarray(scales)
        zeros = np.full(scales.shape, zero)
        name = self.node("DequantizeLinear", values, self.constant(scales), self.constant(zeros, dtype), axis=axis)
        self.x = x
        return name

    def fake(self, sample):
        """What the file says in real numbers."""
        return ReferenceEvaluator(self.proto()).run(None, {"input0": sample})[0]


def compare(net, *, steps=1, share=0.15):
    """Compare the integer reference with the file's own arithmetic: equal but for ties, and never off by more."""
    graph = onnx_reader.read_quantised(net.bytes(), "net")
    x_quant, y_quant = (graph.tensor(edge[0]).quant for edge in (graph.inputs, graph.outputs))
    samples = net.rng.integers(-128, 128, (6, *graph.tensor(graph.inputs[0]).shape[1:])).astype(np.int8)
    real = ((samples.astype(np.float64) - x_quant.zero_point) * x_quant.scale).astype(np.float32)
    found = (reference.run_output(graph, samples).astype(np.float64) - y_quant.zero_point) * y_quant.scale
    wanted = []
    for row in real:
        value = net.fake(np.moveaxis(row[None], -1, 1) if row.ndim == 3 else row[None])
        wanted.append(np.moveaxis(value, 1, -1).ravel() if value.ndim == 4 else value.ravel())
    off = np.abs(np.rint((found.reshape(6, -1) - np.array(wanted)) / y_quant.scale))
    assert off.max() <= steps
    assert np.mean(off > 0) <= share
    return graph


def kinds(graph):
    """The kinds of a graph's ops."""
    return [op.kind for op in graph.ops]


def test_uint8_activations_are_recentred():
    """Scales stay to the bit; zero points are 128 lower; weights of uint8 around 128 become int8 around 0."""
    net = Qdq((1, 3, 6, 5))
    net.pair(0.031, 97)
    net.node("Conv", net.x, net.quantised(4, 3, 3, 3), net.quantised(4, scales=0.001, dtype=np.int32), pads=[1] * 4)
    net.node("Relu")
    net.pair(0.043, 0)
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1, scales=[0.01], dtype=np.uint8, zero=128))
    net.pair(0.02, 131)
    graph = compare(net)
    assert kinds(graph) == ["conv_2d", "conv_2d"]
    assert graph.ops[0].attrs["activation"] == "relu"
    assert graph.tensor(graph.inputs[0]).quant == Quant.per_tensor(0.031, 97 - 128)
    assert graph.tensor(graph.outputs[0]).quant == Quant.per_tensor(0.02, 3)
    stored = numpy_helper.to_array(net.constants[2])
    assert np.array_equal(graph.tensor(graph.ops[0].inputs[1]).data, stored.transpose(0, 2, 3, 1))


def test_quantisation_behind_a_flatten_goes_back_through_it():
    """Pooling without a pair of its own takes the parameters of the one behind the reshape."""
    net = Qdq((1, 4, 6, 5))
    net.pair()
    net.node("MaxPool", kernel_shape=[2, 1], strides=[2, 1])
    net.node("Flatten")
    net.pair()
    net.node("Gemm", net.x, net.quantised(3, 60), net.weights(3), transB=1)
    net.pair(0.3, 128)
    assert kinds(compare(net)) == ["max_pool_2d", "reshape", "fully_connected"]
    net = Qdq((1, 4, 6, 5))
    net.pair()
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.pair(0.02, 110)
    graph = compare(net)
    assert kinds(graph) == ["mean", "reshape"]
    assert graph.tensor(graph.ops[0].outputs[0]).quant == Quant.per_tensor(0.02, 110 - 128)


def test_float_biases_are_rounded_to_nearest():
    """A bias that the file leaves in float becomes the nearest multiple of input scale times weight scale."""
    net = Qdq((1, 4))
    net.pair(0.05, 128)
    net.node("Gemm", net.x, net.quantised(3, 4, scales=[0.5]), net.constant([0.0376, -0.0374, 1.0]), transB=1)
    net.pair(0.3, 128)
    graph = onnx_reader.read_quantised(net.bytes())
    assert graph.tensor(graph.ops[0].inputs[2]).data.tolist() == [2, -1, 40]


def test_transposed_convolutions_come_back_with_their_padding():
    """Rows and columns behind the full output, which only the bias reaches, are written as output_padding."""
    net = Qdq((1, 4, 3, 5))
    net.pair()
    weights = net.quantised(4, 3, 2, 3, axis=1)
    net.node("ConvTranspose", net.x, weights, strides=[3, 2], pads=[0, 1, 0, 1], output_padding=[1, 0])
    net.pair(0.2, 120)
    graph = compare(net)
    assert graph.ops[0].attrs["padding"] == (0, -1, 1, 1)
    again = reading(graph)
    assert again.ops[0].attrs == graph.ops[0].attrs
    assert constants(again) == constants(graph)


def test_dense_layers_of_any_spelling():
    """A transposed matrix with scales along its columns, a product with the bias behind it, rows of a sequence."""
    net = Qdq((1, 5, 7))
    net.pair()
    weights = net.quantised(6, 7)
    x = net.x
    matrix = net.node("Transpose", weights, perm=[1, 0])
    net.node("MatMul", x, matrix)
    net.node("Add", net.x, net.weights(6))
    net.node("Relu")
    net.pair(0.1, 0)
    net.node("MatMul", net.x, net.quantised(6, 4, axis=1))
    net.pair(0.2, 100)
    graph = compare(net)
    assert kinds(graph) == ["fully_connected", "fully_connected"]
    assert graph.ops[0].attrs["activation"] == "relu"


def test_elementwise_ops_and_constants():
    """Sums, products with quantised and single constants, gates and smooth activations keep their grids."""
    net = Qdq((1, 4, 3, 5))
    x = net.pair(0.02, 128)
    net.node("Mul", x, net.quantised(4, 1, 1, scales=0.01))
    y = net.pair(0.03, 128)
    net.node("Add", x, y)
    net.node("Clip", net.x, net.constant(0), net.constant(6))
    net.pair(0.02, 0)
    net.node("Add", net.x, net.constant(-1.5))
    net.pair(0.03, 60)
    net.node("HardSwish")
    net.pair(0.03, 20)
    graph = compare(net, steps=2, share=1)
    assert kinds(graph) == ["mul", "add", "add", "hard_swish"]
    assert graph.tensor(graph.ops[0].inputs[1]).quant == Quant.per_tensor(0.01, 0)


def test_fixed_outputs_are_requantised_where_they_must_be():
    """A sigmoid has 1/256 and -128 by itself; another grid behind it is a quantize op; softmax may end the model."""
    net = Qdq((1, 6))
    net.pair()
    net.node("Sigmoid")
    net.pair(1 / 200, 0)
    net.node("Softmax")
    graph = onnx_reader.read_quantised(net.bytes())
    assert kinds(graph) == ["logistic", "quantize", "softmax"]
    fixed = Quant.per_tensor(1 / 256, -128)
    assert [graph.tensor(graph.ops[index].outputs[0]).quant for index in (0, 2)] == [fixed, fixed]


def test_operands_of_a_concatenation_are_brought_to_one_grid():
    """What differs from the output's parameters is requantised; what does not is left."""
    net = Qdq((1, 4, 3, 5))
    x = net.pair(0.02, 128)
    net.node("LeakyRelu", x, alpha=0.5)
    y = net.pair(0.03, 100)
    net.node("Concat", x, y, axis=1)
    net.pair(0.03, 100)
    assert kinds(compare(net)) == ["leaky_relu", "quantize", "concatenation"]


def test_integer_edges():
    """A model whose input is uint8 is read as one of int8; pairs in a row are requantised once or not at all."""
    net = Qdq((1, 6))
    net.pair(0.02, 128)
    net.pair(0.02, 128)
    net.pair(0.04, 100)
    net.node("Tanh")
    assert kinds(onnx_reader.read_quantised(net.bytes())) == ["quantize", "tanh"]
    proto = net.proto()
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "input0"
    graph = onnx_reader.read_quantised(proto.SerializeToString())
    assert graph.tensor("input0").dtype == "int8"
    assert graph.tensor("input0").quant == Quant.per_tensor(0.02, 0)


def _float_layer(net):
    net.pair()
    net.node("LeakyRelu")
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1))
    net.pair()


def _float_weights(net):
    net.pair()
    net.node("Conv", net.x, net.weights(2, 4, 1, 1))
    net.pair()


def _float_input(net):
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1))
    net.pair()


def _float_output(net):
    net.pair()
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1))


def _norm(net):
    net.pair()
    net.node("BatchNormalization", net.x, *[net.constant(np.ones(4)) for _ in range(4)])
    net.pair()


def _half_read(net):
    net.pair()
    x = net.node("LeakyRelu")
    net.pair()
    net.node("Add", x, net.x)
    net.pair()


def _read_twice(net):
    net.pair()
    x = net.node("Conv", net.x, net.quantised(2, 4, 1, 1))
    net.node("Relu", x)
    y = net.pair()
    net.node("Add", y, net.pair(x=x))
    net.pair()


def _asymmetric(net):
    net.pair()
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1, zero=3))
    net.pair()


def _wrong_axis(net):
    net.pair()
    net.node("Conv", net.x, net.quantised(2, 4, 1, 1, axis=1))
    net.pair()


def _wide(net):
    net.pair(dtype=np.int16)


def _per_channel(net):
    scales = net.constant(np.full(4, 0.1)), net.constant(np.zeros(4), np.int8)
    net.node("QuantizeLinear", net.x, *scales, axis=1)


def _mismatch(net):
    net.node("QuantizeLinear", net.x, net.constant(0.1), net.constant(0, np.int8))
    net.node("DequantizeLinear", net.x, net.constant(0.2), net.constant(0, np.int8))


REFUSED = {
    "layer": (_float_layer, r"leaky_relu, LeakyRelu/2\) is left in float\nQuantise its output"),
    "weights": (_float_weights, "float weights\nQuantise the weights"),
    "input": (_float_input, "input 'input0' is not quantised"),
    "output": (_float_output, r"conv_2d, Conv/3\) is left in float"),
    "norm": (_norm, "batch_norm.*left in float\nFold"),
    "half": (_half_read, r"leaky_relu, LeakyRelu/2\) is left in float"),
    "twice": (_read_twice, r"conv_2d, Conv/3\) is left in float"),
    "asymmetric": (_asymmetric, "zero points other than 0\nQuantise weights symmetrically"),
    "axis": (_wrong_axis, "4 scales for 2 output channels"),
    "wide": (_wide, "quantises to int16.*\nQuantise to int8"),
    "per-channel": (_per_channel, "activations have one scale"),
    "mismatch": (_mismatch, "other parameters than its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_left_in_float_is_refused(case):
    """The op is named, and so is the way out."""
    make, message = REFUSED[case]
    net = Qdq((1, 4, 3, 5))
    make(net)
    with pytest.raises(UnsupportedModelError, match=message):
        onnx_reader.read_quantised(net.bytes())


def test_a_resize_that_onnx_cannot_say_is_refused():
    """Aligned corners and half-pixel centres at once: no coordinate mode of ONNX computes those positions."""
    builder = Builder(np.random.default_rng(0), (1, 4, 5, 2))
    builder.resize((6, 14), align_corners=True, half_pixel_centers=True)
    with pytest.raises(UnsupportedModelError, match="aligned corners and half-pixel centres"):
        onnx_writer.write_qdq(builder.graph())
