"""What PyTorch's two ONNX exporters and onnxruntime's quantiser write is read, and computes what they meant."""

import importlib.util
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinykd.export import float_reference, parity, reference
from tinykd.export.oracle import is_available
from tinykd.export.passes import lower_padding, run_passes
from tinykd.ir import Quant, verify
from tinykd.models import build_model

pytest.importorskip("onnx", reason="onnx is not installed")

from tinykd.formats.onnx import reader as onnx_reader
from tinykd.formats.onnx import torch as onnx_torch
from tinykd.formats.tflite import writer as tflite_writer

EXPORTERS = [
    "torchscript",
    pytest.param(
        "dynamo",
        marks=pytest.mark.skipif(
            not importlib.util.find_spec("onnxscript"), reason="onnxscript, which this exporter needs, is not installed"
        ),
    ),
]


def export(model: nn.Module, x: torch.Tensor, exporter: str) -> bytes:
    """Return the ONNX file that one of the exporters writes with its own settings."""
    buffer = io.BytesIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if exporter == "dynamo":
                program = torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False)
                assert program is not None
                return program.model_proto.SerializeToString()
            torch.onnx.export(model.eval(), (x,), buffer, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    finally:
        logging.disable(logging.NOTSET)
    return buffer.getvalue()


class Everything(nn.Module):
    """Layers and functions that small models are made of, in one network with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.up, self.prelu = nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), nn.PReLU(4)
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (1, 3, H, W) to probabilities and a map."""
        x = self.norm(F.hardswish(self.conv(x)))
        shuffled = F.pixel_shuffle(x, 2)
        x = self.grouped(x) * F.hardsigmoid(x.mean((2, 3), keepdim=True))
        x = F.interpolate(F.max_pool2d(self.prelu(self.up(x)), 3, 2, 1, ceil_mode=True), scale_factor=2)
        left, right = x.chunk(2, dim=1)
        x = F.silu(torch.cat([left * right, right.clamp(-1, 1)], dim=1))
        x = F.leaky_relu(self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1)), 0.1)
        return torch.softmax(x, dim=1), shuffled


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_both_exporters_are_read(exporter: str) -> None:
    """The graph, as read and after all passes, gives torch's numbers."""
    torch.manual_seed(0)
    model, x = Everything(), torch.randn(1, 3, 8, 6)
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    graph = onnx_reader.read(export(model, x, exporter))
    with torch.no_grad():
        probabilities, shuffled = model(x)
    for candidate in (graph, run_passes(graph)):
        found = list(float_reference.run_outputs(candidate, x.permute(0, 2, 3, 1).numpy()).values())
        np.testing.assert_allclose(found[0], probabilities.numpy(), atol=1e-5)
        np.testing.assert_allclose(found[1], shuffled.permute(0, 2, 3, 1).numpy(), atol=1e-5)


class FakeQuantised(nn.Module):
    """A network with torch's own fake quantisation: per channel, per tensor, a residual sum, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(8, 5)
        for name in ("conv", "depthwise"):
            self.register_buffer(f"{name}_scales", torch.rand(8) * 0.01 + 0.002)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int32))

    def weights(self, name: str) -> torch.Tensor:
        """Return the rounded weights of a layer."""
        scales = self.get_buffer(f"{name}_scales")
        weight = self.get_parameter(f"{name}.weight")
        return torch.fake_quantize_per_channel_affine(weight, scales, self.get_buffer("zeros"), 0, -128, 127)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to (N, 5)."""
        x = _fake(x, 0.03, -3)
        x = _fake(F.relu(F.conv2d(x, self.weights("conv"), self.conv.bias, padding=1)), 0.02, -128)
        y = _fake(F.conv2d(x, self.weights("depthwise"), self.depthwise.bias, padding=1, groups=8), 0.015, 5)
        x = _fake(x + y, 0.03, -40)
        x = _fake(x.mean((2, 3)).flatten(1), 0.02, -90)
        return _fake(F.linear(x, _fake(self.linear.weight, 0.004, 0), self.linear.bias), 0.01, 0)


def _fake(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)


def on_device(values: np.ndarray, quant: Quant) -> np.ndarray:
    """Return the int8 images (N, H, W, C) of float ones (N, C, H, W)."""
    integers = np.rint(values.transpose(0, 2, 3, 1) / np.float32(quant.scale)) + quant.zero_point
    return np.clip(integers, -128, 127).astype(np.int8)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_fake_quantisation_is_read_with_its_very_scales(exporter: str) -> None:
    """Every scale and zero point is torch's, and the integers follow what torch computes."""
    torch.manual_seed(0)
    model = FakeQuantised()
    graph = onnx_reader.read_quantised(export(model, torch.randn(1, 3, 6, 5), exporter))
    assert [op.kind for op in graph.ops] == ["conv_2d", "depthwise_conv_2d", "add", "mean", "fully_connected"]
    names = (graph.inputs[0], *(op.outputs[0] for op in graph.ops))
    steps = ((0.03, -3), (0.02, -128), (0.015, 5), (0.03, -40), (0.02, -90), (0.01, 0))
    assert [graph.tensor(name).quant for name in names] == [Quant.per_tensor(*step) for step in steps]
    weights = graph.tensor(graph.ops[0].inputs[1])
    assert weights.quant is not None
    assert weights.quant.scales == tuple(model.get_buffer("conv_scales").tolist())
    x = torch.randn(32, 3, 6, 5)
    input_quant = graph.tensor(graph.inputs[0]).quant
    assert input_quant is not None
    found = reference.run_output(graph, on_device(x.numpy(), input_quant)).reshape(32, 5)
    with torch.no_grad():
        expected = model(x).numpy() / np.float32(0.01)
    assert np.abs(found - expected).max() <= 3.01
    assert np.abs(found - expected).mean() < 0.4


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize(
    ("name", "args"), [("resnet8", {"width": 0.5}), ("mobilenetv3-small", {"width": 0.25, "hidden_channels": 16})]
)
def test_onnxruntimes_quantiser_is_read(name: str, args: dict, unsigned: bool, tmp_path: Path) -> None:
    """Its QDQ models, uint8 or int8, become graphs that follow its own session and equal TFLite Micro."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    torch.manual_seed(0)
    images = np.random.default_rng(0).normal(0, 1, (16, 3, 16, 16)).astype(np.float32)
    rows = iter([{"image": image[None]} for image in images])

    class Images(CalibrationDataReader):
        """Calibration images, one at a time."""

        def get_next(self) -> dict | None:
            """Return the next one, or None."""
            return next(rows, None)

    plain, prepared, quantised = (tmp_path / f"{stem}.onnx" for stem in ("plain", "prepared", "quantised"))
    plain.write_bytes(onnx_torch.export_torch(build_model(name, 5, 16, 3, **args), (3, 16, 16)))
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    kind = QuantType.QUInt8 if unsigned else QuantType.QInt8
    quantize_static(
        prepared, quantised, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=kind, weight_type=QuantType.QInt8,
    )  # fmt: skip
    graph = onnx_reader.read_quantised(quantised)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(quantised), options)
    expected = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    input_quant, quant = (graph.tensor(edge[0]).quant for edge in (graph.inputs, graph.outputs))
    assert input_quant is not None
    assert quant is not None
    device = on_device(images, input_quant)
    found = (reference.run_output(graph, device).astype(float).reshape(expected.shape) - quant.zero_point) * quant.scale
    assert np.abs(found - expected).max() <= 8.01 * quant.scale
    if is_available():
        spelt = verify(lower_padding(graph))
        assert parity.compare(spelt, tflite_writer.write(spelt), device[:1]).first_mismatch is None
