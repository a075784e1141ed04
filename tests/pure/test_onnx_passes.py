"""Float passes where only a graph of their own shows a mistake."""

import numpy as np
import pytest

from tinykd.export import calibrate, float_reference, quantize
from tinykd.export.passes import run_passes
from tinykd.ir import Quant
from tinykd.ir.affine import activation_quant

pytest.importorskip("onnx", reason="onnx is not installed")
from onnxnet import OnnxNet

from tinykd.formats.onnx import reader as onnx_reader


def lowered(net):
    """The graph after all passes, compared with the one before them."""
    before = onnx_reader.read(net.bytes())
    graph = run_passes(before)
    x = np.random.default_rng(0).normal(0, 1, (3, *before.tensor("input0").shape[1:])).astype(np.float32)
    np.testing.assert_allclose(float_reference.run(graph, x), float_reference.run(before, x), atol=1e-5)
    return graph


@pytest.mark.parametrize("spelling", ["x + c", "x - c", "c - x", "c * x", "x / c"])
def test_arithmetic_behind_a_convolution_is_folded(spelling):
    """A constant for each channel becomes part of the weights and the bias, whichever side it stands on."""
    net = OnnxNet((1, 3, 5, 4))
    x = net.node("Conv", net.x, net.weights(4, 3, 2, 2), net.weights(4))
    left, sign, right = spelling.split()
    kinds = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div"}
    constant = net.constant(net.rng.uniform(0.5, 2, (4, 1, 1)))
    net.node(kinds[sign], x if left == "x" else constant, x if right == "x" else constant)
    assert [op.kind for op in lowered(net).ops] == ["conv_2d"]


def test_arithmetic_stays_where_it_cannot_be_folded():
    """Constants that vary along the map, shared weights, activations in between and other readers keep it an op."""
    for case in ("map", "relu", "reader", "shared"):
        net = OnnxNet((1, 4, 5, 4))
        weights = net.weights(4, 4, 1, 1)
        x = net.node("Conv", net.x, weights)
        if case == "relu":
            x = net.node("Relu", x)
        y = net.node("Mul", x, net.weights(5, 4) if case == "map" else net.constant(1.5))
        if case == "reader":
            net.node("Sub", x, y)
        kinds = [op.kind for op in lowered(net).ops]
        assert ("mul" in kinds) == (case != "shared")


def test_concatenations_join_the_ranges_of_all_operands():
    """The widest operand decides, whichever it is; what is only moved on the way has the same grid."""
    for widest in (0, 1):
        net = OnnxNet((1, 2, 4, 4))
        factors = [0.5, 0.5]
        factors[widest] = 8.0
        parts = [net.node("LeakyRelu", net.node("Mul", "input0", net.constant(factor))) for factor in factors]
        net.node("MaxPool", parts[0], kernel_shape=[1, 1])
        net.node("Concat", net.x, parts[1], axis=1)
        graph = run_passes(onnx_reader.read(net.bytes()))
        x = np.random.default_rng(0).normal(0, 1, (8, 4, 4, 2)).astype(np.float32)
        ranges = calibrate.calibrate(graph, x)
        int8 = quantize.quantize(graph, ranges, Quant.per_tensor(0.05, 0))
        concatenation = next(op for op in int8.ops if op.kind == "concatenation")
        names = (*parts, *concatenation.inputs, *concatenation.outputs)
        assert {int8.tensor(name).quant for name in names} == {activation_quant(*ranges[parts[widest]])}


def test_poolings_never_see_their_padding():
    """A maximum of negative numbers is negative at the border; the pad holds the smallest integer."""
    net = OnnxNet((1, 2, 6, 6))
    net.node("Add", net.node("Tanh"), net.constant(-3.0))
    net.node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph = lowered(net)
    x = np.random.default_rng(0).normal(0, 1, (4, 6, 6, 2)).astype(np.float32)
    int8 = quantize.quantize(graph, calibrate.calibrate(graph, x), Quant.per_tensor(0.05, 0))
    pad = next(op for op in int8.ops if op.kind == "pad")
    assert pad.attrs["value"] == -128
    assert int8.tensor(pad.outputs[0]).quant.zero_point != -128


def test_means_lose_only_the_axes_that_they_average():
    """A mean over rows alone keeps its kept dimension in front of a reshape that joins what is left."""
    net = OnnxNet((1, 1, 4, 3))
    net.node("ReduceMean", axes=[2], keepdims=1)
    net.node("Flatten")
    assert [op.attrs.get("keep_dims") for op in lowered(net).ops][0] is True
