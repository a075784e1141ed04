"""Students and teachers: published sizes, TensorFlow's padding, and registries that hide no surprise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinykd.config import list_recipes, load_recipe
from tinykd.errors import ConfigError
from tinykd.ir import same_padding
from tinykd.models import MODELS, build_model, find_entry
from tinykd.models.count import count_macs, count_params
from tinykd.models.layers import ConvBn, round_channels
from tinykd.models.zoo import ZOO

CIFAR_STUDENTS = ["resnet8", "mobilenetv2", "mobilenetv2-tiny", "mcunet-5fps", "mbv2-w0.3", "proxyless-w0.25"]


@pytest.mark.parametrize(
    ("name", "args", "resolution", "params", "macs"),
    [
        # MLPerf Tiny's Keras model has 78,666 parameters, 960 of them batch norm that folds away.
        ("resnet8", {}, 32, 77_706, 12_501_632),
        ("mobilenetv2", {"width": 0.35}, 160, 1_670_088, 30_874_800),
        ("mobilenetv2-tiny", {}, 144, 744_072, 23_499_152),
    ],
)
def test_students_have_the_published_size(name: str, args: dict, resolution: int, params: int, macs: int) -> None:
    """Folded parameters and MACs equal the published accounting, to the unit."""
    classes = 10 if name == "resnet8" else 1000
    model = build_model(name, classes, resolution, **args)
    assert count_params(model) == params
    assert count_macs(model, (3, resolution, resolution)) == macs


@pytest.mark.parametrize(
    ("name", "mega_macs", "mega_params"),
    [
        ("mbv2-w0.35", "23.5", "0.75"),
        ("proxyless-w0.3", "38.3", "0.75"),
        ("mcunet-10fps", "6.4", "0.75"),
        ("mcunet-5fps", "12.8", "0.64"),
        ("mcunet-256kb-1mb", "67.3", "0.73"),
        ("mcunet-320kb-1mb", "81.8", "0.74"),
        ("mcunet-512kb-2mb", "125.9", "1.73"),
    ],
)
def test_zoo_matches_its_published_table(name: str, mega_macs: str, mega_params: str) -> None:
    """MACs and parameters round to every digit that the zoo's table prints (it counts batch norm's two vectors)."""
    resolution = ZOO[name].resolution
    model = build_model(name, 1000, resolution)
    assert f"{count_macs(model, (3, resolution, resolution)) / 1e6:.1f}" == mega_macs
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == mega_params


def test_mbv2_of_the_zoo_is_mobilenetv2_tiny() -> None:
    """The same network, written once as a width and once as a table, has the same size."""
    table, rule = build_model("mbv2-w0.35", 1000, 144), build_model("mobilenetv2-tiny", 1000, 144)
    assert [tuple(p.shape) for p in table.parameters()] == [tuple(p.shape) for p in rule.parameters()]


@pytest.mark.parametrize(
    ("name", "params"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_cifar_resnets_have_the_size_of_the_paper(name: str, params: float) -> None:
    """Table 6 of He et al.: parameters in millions, to the digits printed."""
    model = build_model(name, 10, 32)
    digits = 1 if name == "resnet110" else 2
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == params


def test_wide_and_imagenet_resnets_have_the_size_of_their_papers() -> None:
    """WRN-40-2 has 2.2 M parameters, WRN-16-1 0.17 M; ResNet-18 has 11.69 M at 1,000 classes and 1.81 G MACs."""
    assert round(count_params(build_model("wrn-40-2", 10, 32)) / 1e6, 1) == 2.2
    assert round(count_params(build_model("wrn-16-1", 10, 32)) / 1e6, 2) == 0.17
    model = build_model("resnet18", 1000, 224)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 2) == 1.81


@pytest.mark.parametrize("size", [7, 8, 14, 28, 33])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_pad_as_tensorflow_does(size: int, kernel: int, stride: int) -> None:
    """Each output is the convolution of the window that TensorFlow's SAME rule places, by explicit index arithmetic."""
    torch.manual_seed(0)
    layer = ConvBn(2, 3, size, kernel=kernel, stride=stride, act=None).eval()
    x = torch.randn(1, 2, size, size)
    out = -(-size // stride)
    pad = max((out - 1) * stride + kernel - size, 0)
    padded = torch.zeros(1, 2, size + pad, size + pad)
    padded[:, :, pad // 2 : pad // 2 + size, pad // 2 : pad // 2 + size] = x
    expected = torch.empty(1, 3, out, out)
    for row in range(out):
        for column in range(out):
            top, left = row * stride, column * stride
            window = padded[:, :, top : top + kernel, left : left + kernel]
            expected[:, :, row, column] = (window[:, None] * layer.conv.weight[None]).sum((2, 3, 4))
    y = layer(x)
    assert layer.out_size == out
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected / (1 + layer.bn.eps) ** 0.5, rtol=1e-4, atol=1e-5)


def test_same_padding_puts_the_odd_element_after() -> None:
    """Stride 2 on an even size pads (0, 1), on an odd size (1, 1)."""

    def padding_and_size(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
        return (*same_padding(size, kernel, stride), ConvBn(1, 1, size, kernel=kernel, stride=stride).out_size)

    assert padding_and_size(32, 3, 2) == (0, 1, 16)
    assert padding_and_size(33, 3, 2) == (1, 1, 17)
    assert padding_and_size(32, 1, 2) == (0, 0, 16)
    assert padding_and_size(10, 5, 1) == (2, 2, 10)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(11.2, 16), (5.6, 8), (8.4, 8), (22.4, 24), (33.6, 32), (112.0, 112), (1.0, 8)]
)
def test_channels_round_to_eight_and_never_ten_percent_down(channels: float, rounded: int) -> None:
    """MobileNet's rounding rule, with 11.2 as the case in which plain rounding would lose too much."""
    assert round_channels(channels) == rounded


@pytest.mark.parametrize("name", [*CIFAR_STUDENTS])
@pytest.mark.parametrize(("resolution", "channels", "classes"), [(28, 1, 10), (33, 3, 2)])
def test_students_take_any_input_and_class_count(name: str, resolution: int, channels: int, classes: int) -> None:
    """Odd sizes, grey images and two classes work, gradients reach every parameter, and eval does not change them."""
    torch.manual_seed(0)
    model = build_model(name, classes, resolution, channels, stem_stride=1 if name != "resnet8" else 2)
    logits = model(torch.randn(4, channels, resolution, resolution))
    assert logits.shape == (4, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", CIFAR_STUDENTS)
def test_students_use_only_layers_that_the_exporter_knows(name: str) -> None:
    """Convolution, batch norm, ReLU or ReLU6, constant zero padding, pooling, flatten, linear: nothing else."""
    allowed = (
        nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | nn.ZeroPad2d | nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear
    )
    leaves = [m for m in build_model(name, 10, 32).modules() if not list(m.children())]
    assert all(isinstance(m, allowed | nn.Identity | nn.Sequential) for m in leaves)
    assert sum(isinstance(m, nn.Linear) for m in leaves) == 1


def test_stem_stride_keeps_small_images_large() -> None:
    """A stem of stride 1 on 32x32 sees four times the positions, so about four times the MACs."""
    coarse = count_macs(build_model("mobilenetv2", 10, 32, width=0.35), (3, 32, 32))
    fine = count_macs(build_model("mobilenetv2", 10, 32, width=0.35, stem_stride=1), (3, 32, 32))
    assert 3 < fine / coarse < 4.5


def test_counting_leaves_the_model_alone() -> None:
    """Counting runs in eval mode without touching running statistics, and puts the mode back."""
    model = build_model("resnet8", 10, 32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, (3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_counting_folds_batch_norm_only_behind_a_convolution() -> None:
    """A batch norm that cannot fold counts its scale and shift; one that can counts the bias that it leaves."""
    alone = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    assert count_params(alone) == 8 + 8
    behind = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))
    assert count_params(behind) == 8 + 2
    assert count_params(nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))) == 8 + 2


@pytest.mark.parametrize("name", list(list_recipes()))
def test_models_of_every_recipe_can_be_built(name: str) -> None:
    """Each recipe's student and teacher exist with the arguments given, and agree on input and classes."""
    recipe = load_recipe(name)
    resolution = recipe.data.resolution or (28 if recipe.data.name == "mnist5k" else 32)
    channels = 1 if recipe.data.name == "mnist5k" else 3
    models = [recipe.student] + ([recipe.teacher] if recipe.teacher else [])
    x = torch.zeros(2, channels, resolution, resolution)
    for config in models:
        model = build_model(config.model, 10, resolution, channels, **config.args).eval()
        with torch.no_grad():
            assert model(x).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet8", {"width": 0}, "outside"),
        ("resnet8", {"stem_stride": 3}, "1 or 2"),
        ("resnet8", {"widht": 1}, "Did you mean 'width'"),
        ("mobilenetv2", {"dropout": 1.5}, "dropout"),
        ("mobilenetv2", {"head_channels": 2}, "head_channels"),
        ("wrn-17-2", {}, "6n"),
        ("wrn-16-0", {}, "width"),
        ("resnet20", {"shortcut": "C"}, "shortcut"),
        ("resnet18", {"stem": "5x5"}, "stem"),
        ("resnet21", {}, "there is no model"),
        ("resnet<depth>", {}, "there is no model"),
    ],
)
def test_impossible_models_are_refused(name: str, args: dict, message: str) -> None:
    """Unknown names and arguments, and values outside their range, are configuration errors."""
    with pytest.raises(ConfigError, match=message):
        build_model(name, 10, 32, **args)


def test_timm_teacher_says_what_to_install() -> None:
    """Without timm the error is one line with the command; with it the model is built."""
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="needs the library timm") as caught:
            build_model("timm:resnet18", 10, 32)
        assert "pip install" in caught.value.next_step
        return
    assert build_model("timm:resnet18", 10, 64)(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_registry_rows_are_complete() -> None:
    """Each row says what it is and where it comes from, and its names lead back to it."""
    for name, entry in MODELS.items():
        assert entry.summary
        assert entry.source
        if not entry.pattern:
            assert find_entry(name) is entry


def test_initial_outputs_are_small_and_differ() -> None:
    """A fresh student neither explodes nor collapses: logits near 0, activations of the last block alive."""
    torch.manual_seed(0)
    for name in CIFAR_STUDENTS:
        model = build_model(name, 10, 32, stem_stride=1)
        logits = model(torch.randn(32, 3, 32, 32))
        assert 1e-4 < logits.std() < 2, name


def test_pretrained_resnet56_is_as_good_as_published() -> None:
    """The public CIFAR-10 checkpoint (93.39 %) loads and is right on at least 92 % of 300 test images."""
    folder = os.environ.get("TINYKD_DATA")
    if folder is None or not (Path(folder) / "resnet56-4bfd9763.th").is_file():
        pytest.skip("TINYKD_DATA names no folder with resnet56-4bfd9763.th")
    from tinykd.config import DataConfig
    from tinykd.data import load_dataset
    from tinykd.errors import DataError
    from tinykd.models.teacher import Teacher, load_weights

    try:
        dataset = load_dataset(DataConfig(name="cifar10", root=folder))
    except DataError as error:
        pytest.skip(f"TINYKD_DATA holds no CIFAR-10: {error.message}")
    model = build_model("resnet56", 10, 32)
    load_weights(model, Path(folder) / "resnet56-4bfd9763.th")
    teacher_config = load_recipe("cifar10-resnet8-kd").teacher
    assert teacher_config is not None
    teacher = Teacher(model, dataset.mean_level, dataset.std_level, teacher_config.mean, teacher_config.std)
    images = torch.from_numpy(dataset.test.images[:300]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = teacher((images.float() - dataset.mean_level) / dataset.std_level)
        direct = model(
            (images / 255 - torch.tensor(teacher_config.mean).view(3, 1, 1))
            / torch.tensor(teacher_config.std).view(3, 1, 1)
        )
    torch.testing.assert_close(logits, direct, rtol=1e-3, atol=1e-3)
    assert (logits.argmax(1).numpy() == dataset.test.labels[:300]).mean() >= 0.92
    assert F.softmax(logits, 1).max(1).values.mean() > 0.9
