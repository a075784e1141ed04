"""Training with rounding to int8 in the loop for students of every family, and for ops that share a quantisation."""

import numpy as np
import pytest
import torch
from torch import nn

from tinykd.commands.lowering import lower_student
from tinykd.export import calibrate, convert, float_reference, parity, quantize, reference
from tinykd.export.oracle import is_available
from tinykd.export.passes import run_passes
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Quant
from tinykd.ir.affine import activation_quant
from tinykd.models.load import ModelSpec
from tinykd.models.quant_student import Lowered, QuantStudent

pytest.importorskip("onnx", reason="onnx is not installed")
from onnxnet import OnnxNet

from tinykd.formats.onnx import reader as onnx_reader

INPUT = Quant.per_tensor(0.05, 3)
FAMILIES = {
    "wrn-10-1": {},
    "ShuffleV1": {},
    "ShuffleV2": {},
    "mobilenetv3-small": {"width": 0.25, "hidden_channels": 16},
    "mobilenetv3-large": {"width": 0.1, "hidden_channels": 16},
    "resnet14": {"width": 0.25, "shortcut": "A"},
}


def noisy(model: str, args: dict) -> tuple[nn.Module, ModelSpec]:
    """A student for 5 classes and 16x16 pixels with random batch statistics."""
    torch.manual_seed(1)
    spec = ModelSpec(model, args, 5, 16, 3, 33, 78.0, tuple("abcde"))
    student = spec.build()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return student.eval(), spec


def pixels(count: int) -> np.ndarray:
    """Random uint8 images."""
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("model", FAMILIES)
def test_families_train_with_rounding(model: str) -> None:
    """Without rounding the lowered student is the float one; with it it learns, and exports exactly for the device."""
    student, spec = noisy(model, FAMILIES[model])
    images = pixels(8)
    lowered = lower_student(student, spec, images)
    rounding = QuantStudent(lowered)
    normalization = convert.Normalization(33, 78.0)
    x = torch.from_numpy(np.ascontiguousarray(normalization.to_float(images).transpose(0, 3, 1, 2)))
    rounding.fake_quant = False
    with torch.no_grad():
        torch.testing.assert_close(rounding(x), student(x), rtol=1e-3, atol=1e-4)
    rounding.fake_quant = True
    optimizer = torch.optim.SGD(rounding.parameters(), lr=1e-3)
    target = torch.arange(8) % 5
    for _ in range(2):
        loss = nn.functional.cross_entropy(rounding(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in rounding.parameters())
        optimizer.step()
    graph = quantize.quantize(rounding.float_graph(), rounding.named_ranges(), lowered.input_quant)
    with torch.no_grad():
        expected = rounding.eval()(x).numpy()
    quant = graph.tensor(graph.outputs[0]).quant
    device = convert.to_device(images)
    found = (reference.run_output(graph, device).astype(float) - quant.zero_point) * quant.scale
    assert np.abs(found - expected).max() <= 12 * quant.scale
    if is_available():
        assert parity.compare(graph, tflite_writer.write(graph), device[:1]).first_mismatch is None


def _net(*build) -> OnnxNet:
    net = OnnxNet((1, 4, 6, 5))
    for step in build:
        step(net)
    return net


OPS = {
    "hard_swish": lambda n: n.node("HardSwish"),
    "logistic": lambda n: n.node("Sigmoid"),
    "tanh": lambda n: n.node("Tanh"),
    "relu": lambda n: n.node("Relu"),
    "relu6": lambda n: n.node("Clip", n.x, n.constant(0), n.constant(6)),
    "leaky_relu": lambda n: n.node("LeakyRelu", alpha=0.3),
    "prelu": lambda n: n.node("PRelu", n.x, n.weights(4, 1, 1)),
    "mul": lambda n: n.node("Mul", n.x, n.weights(4, 1, 1)),
    "mul rows": lambda n: n.node("Mul", n.x, n.weights(1, 1, 6, 1)),
    "sub": lambda n: n.node("Sub", n.weights(5), n.x),
    "bounds": lambda n: n.node("Clip", n.x, n.constant(-1), n.constant(1)),
    "maximum": lambda n: n.node("Max", n.x, n.weights(4, 1, 1)),
    "minimum": lambda n: n.node("Min", n.x, n.constant(0.25)),
    "gate": lambda n: n.node("Mul", n.x, n.node("GlobalAveragePool")),
    "slice": lambda n: n.node("Slice", n.x, n.ints(3, -1), n.ints(-9, 0), n.ints(1, 2), n.ints(-2, -1)),
    "split": lambda n: n.node("Sub", *n.node("Split", n.x, n.ints(2, 2), axis=1, count=2)),
    "split rows": lambda n: n.node("Concat", *n.node("Split", n.x, n.ints(1, 5), axis=2, count=2)[::-1], axis=2),
    "concat": lambda n: n.node("Concat", n.x, n.weights(1, 2, 6, 5), axis=1),
    "resize": lambda n: n.node(
        "Resize", n.x, "", n.constant([1, 1, 2, 3]), nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    ),
    "transpose": lambda n: n.node("Softmax", n.node("Transpose", perm=[0, 2, 1, 3])),
    "mean rows": lambda n: n.node("ReduceMean", axes=[2], keepdims=0),
    "pad channels": lambda n: n.node("Pad", n.x, n.ints(0, 1, 0, 0, 0, 2, 0, 0)),
    "pad value": lambda n: n.node("Pad", n.x, n.ints(0, 0, 1, 0, 0, 0, 2, 1), n.constant(-0.75)),
    "pad lowest": lambda n: n.node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "transpose_conv": lambda n: n.node(
        "ConvTranspose", n.x, n.weights(4, 3, 3, 2), n.weights(3), strides=[2, 3], pads=[1, 0, 0, 1]
    ),
    "rows": lambda n: n.node("MatMul", n.x, n.weights(5, 3)),
}


@pytest.mark.parametrize("name", OPS)
def test_ops_mean_the_same_in_torch(name: str) -> None:
    """In real numbers torch computes what the float reference does; rounded, what the device does to a few steps."""
    net = _net(OPS[name], lambda n: n.node("Reshape", n.x, n.ints(1, -1)))
    graph = run_passes(onnx_reader.read(net.bytes()))
    x = np.random.default_rng(0).normal(0, 1.5, (6, *graph.tensor("input0").shape[1:])).astype(np.float32)
    ranges = calibrate.calibrate(graph, x)
    student = QuantStudent(Lowered(graph, ranges, INPUT))
    x_torch = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    student.fake_quant = False
    with torch.no_grad():
        np.testing.assert_allclose(student(x_torch), float_reference.run(graph, x), rtol=1e-5, atol=1e-5)
        student.fake_quant = True
        rounded = student(x_torch).numpy()
    int8 = quantize.quantize(graph, ranges, INPUT)
    quant = int8.tensor(int8.outputs[0]).quant
    found = (reference.run_output(int8, quantize.to_int8(x, INPUT)).astype(float) - quant.zero_point) * quant.scale
    assert np.abs(found.reshape(rounded.shape) - rounded).max() <= 2.01 * quant.scale


def test_operands_that_share_a_grid_join_their_ranges() -> None:
    """The grid of a concatenation covers each operand and each constant; in torch and in the file it is the same."""
    net = OnnxNet((1, 4, 6, 5))
    x = net.node("Mul", net.x, net.weights(4, 1, 1))
    y = net.node("LeakyRelu", x)
    net.node("Concat", y, net.node("Relu", x), net.constant(np.full((1, 1, 6, 5), -9.0)), axis=1)
    net.node("Max", net.x, net.constant(11.0))
    graph = run_passes(onnx_reader.read(net.bytes()))
    values = np.random.default_rng(0).normal(0, 1, (8, 6, 5, 4)).astype(np.float32)
    ranges = calibrate.calibrate(graph, values)
    int8 = quantize.quantize(graph, ranges, INPUT)
    shared = activation_quant(-9.0, 11.0)
    operands = [
        name for op in int8.ops if op.kind in ("concatenation", "maximum") for name in (*op.inputs, *op.outputs)
    ]
    assert {int8.tensor(name).quant for name in operands} == {shared}
    student = QuantStudent(Lowered(graph, ranges, INPUT))
    scales, zero_points = student.grids()
    found = {(float(scales[student._grid[name]]), int(zero_points[student._grid[name]])) for name in (y, net.x)}
    assert found == {(shared.scale, shared.zero_point)}


def test_fixed_quantisations_are_requantised_before_they_are_shared() -> None:
    """An input and a sigmoid keep their own grids; a quantize op brings them to the one of the concatenation."""
    net = OnnxNet((1, 4, 6, 5))
    gate = net.node("Sigmoid", net.x)
    other = net.node("LeakyRelu", "input0")
    net.node("Concat", gate, other, "input0", axis=1)
    graph = run_passes(onnx_reader.read(net.bytes()))
    assert [op.kind for op in graph.ops].count("quantize") == 2
    x = np.random.default_rng(0).normal(0, 1, (8, 6, 5, 4)).astype(np.float32)
    int8 = quantize.quantize(graph, calibrate.calibrate(graph, x), INPUT)
    assert int8.tensor("input0").quant == INPUT
    assert int8.tensor(gate).quant == Quant.per_tensor(1 / 256, -128)
    if is_available():
        device = quantize.to_int8(x, INPUT)
        assert parity.compare(int8, tflite_writer.write(int8), device[:2]).first_mismatch is None
    alone = OnnxNet((1, 4, 6, 5))
    gate = alone.node("Sigmoid", alone.x)
    alone.node("Concat", gate, gate, axis=1)
    assert "quantize" not in {op.kind for op in run_passes(onnx_reader.read(alone.bytes())).ops}
