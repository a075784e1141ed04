"""Students and teachers: one family per file, and the one registry of them. Importing it does not import torch.

A student's model must be exportable: made of layers that the compiler knows (`docs/ops.md`), with sizes known at
construction; padding as TensorFlow's SAME costs least. A teacher may be anything that maps (N, C, H, W) float32 to
(N, K) logits.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tinykd.errors import ConfigError, nearest
from tinykd.models.zoo import ZOO

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelEntry:
    """One row of `tinykd list models`.

    Attributes:
        name: the name in a recipe; with `<...>` parts when it stands for a family.
        role: "student" (goes onto a microcontroller) or "teacher".
        summary: one line for people.
        source: where the architecture comes from.
        implementation: "module:function", imported when the model is built. The function takes `num_classes`,
            `resolution`, `in_channels` and the arguments, and for a family the `name` as well.
        args: arguments that a recipe may give, with their defaults.
        pattern: regular expression of the names of a family; "" for a single name.
        open_args: accept any argument (checked by the library or the family behind it).
        derived: a part of another model that a training makes; never the student of a recipe.
        student_args: arguments that have these values in a student, because it could not go onto a microcontroller with
            others; a recipe need not name them.
    """

    name: str
    role: Literal["student", "teacher"]
    summary: str
    source: str
    implementation: str
    args: Mapping[str, Any] = field(default_factory=dict)
    pattern: str = ""
    open_args: bool = False
    derived: bool = False
    student_args: Mapping[str, Any] = field(default_factory=dict)


_HE = "He et al., CVPR 2016 (arXiv:1512.03385)"
_MBV2 = "Sandler et al., CVPR 2018 (arXiv:1801.04381)"
_VGG = "Simonyan, Zisserman, ICLR 2015 (arXiv:1409.1556)"
_MBV3 = "Howard et al., ICCV 2019 (arXiv:1905.02244)"
_MCUNET = "Lin et al., NeurIPS 2020 (arXiv:2007.10319)"

_ENTRIES = (
    ModelEntry(
        name="resnet8",
        role="student",
        summary="three residual blocks; the image classification model of MLPerf Tiny (12.5 M MACs at 32x32)",
        source="Banbury et al., NeurIPS 2021 (arXiv:2106.07597)",
        implementation="tinykd.models.resnet8:build",
        args={"width": 1.0, "stem_stride": 1},
    ),
    ModelEntry(
        name="mobilenetv2",
        role="student",
        summary="inverted residuals at any width",
        source=_MBV2,
        implementation="tinykd.models.mobilenetv2:build",
        args={"width": 1.0, "head_channels": None, "stem_stride": 2, "dropout": 0.0},
    ),
    ModelEntry(
        name="mobilenetv2-tiny",
        role="student",
        summary="MobileNetV2 at width 0.35 with a head of 448 channels (23.5 M MACs at 144x144)",
        source="Cai et al., ICLR 2022 (arXiv:2110.08890)",
        implementation="tinykd.models.mobilenetv2:build_tiny",
        args={"stem_stride": 2, "dropout": 0.0},
    ),
    *(
        ModelEntry(
            name=f"mobilenetv3-{size}",
            role="student",
            summary="squeeze-and-excitation and hard-swish, at any width",
            source=_MBV3,
            implementation="tinykd.models.mobilenetv3:build",
            args={"width": 1.0, "hidden_channels": None, "stem_stride": 2, "dropout": 0.0},
            pattern=f"mobilenetv3-{size}",
        )
        for size in ("large", "small")
    ),
    *(
        ModelEntry(
            name=name,
            role="student",
            summary=f"published at {row.resolution}x{row.resolution}",
            source=row.source,
            implementation="tinykd.models.mcunet:build",
            args={"stem_stride": 2, "dropout": 0.0},
            pattern=re.escape(name),
        )
        for name, row in ZOO.items()
    ),
    ModelEntry(
        name="<student>@exit<n>",
        role="student",
        summary="a student up to the end of its stage n, as method `byot` leaves it; not for recipes",
        source="Zhang et al., ICCV 2019 (arXiv:1905.08094)",
        implementation="tinykd.models.early_exit:build",
        pattern=r"[^:@]+@exit\d+",
        open_args=True,
        derived=True,
    ),
    ModelEntry(
        name="MobileNetV2",
        role="student",
        summary="MobileNetV2 of the distillation benchmarks: width 0.5, stem of stride 2 on 32x32",
        source=_MBV2,
        implementation="tinykd.models.mobilenetv2_half:build",
        args={"width": 0.5, "stem_stride": 2},
    ),
    ModelEntry(
        name="resnet<depth>",
        role="student",
        summary="CIFAR ResNet: resnet14, 20, 32, 44, 56, 110, 8x4 and 32x4; shortcut A pads with zeros, B projects "
        "(always in a student)",
        source=_HE,
        implementation="tinykd.models.resnet_cifar:build",
        args={"width": 1.0, "shortcut": "A"},
        pattern=r"resnet(14|20|32|44|56|110|8x4|32x4)",
        student_args={"shortcut": "B"},
    ),
    ModelEntry(
        name="vgg<depth>",
        role="student",
        summary="VGG with batch norm for small images: vgg8, vgg11, vgg13, vgg16, vgg19",
        source=_VGG,
        implementation="tinykd.models.vgg:build",
        args={"width": 1.0},
        pattern=r"vgg(8|11|13|16|19)",
    ),
    ModelEntry(
        name="wrn-<depth>-<width>",
        role="student",
        summary="wide ResNet, for example wrn-40-2 or wrn_40_2, depth = 6n + 4; its batch norms in front of "
        "convolutions become depthwise 1x1 convolutions",
        source="Zagoruyko, Komodakis, BMVC 2016 (arXiv:1605.07146)",
        implementation="tinykd.models.wrn:build",
        args={"dropout": 0.0},
        pattern=r"wrn[-_]\d+[-_]\d+",
    ),
    ModelEntry(
        name="ResNet50",
        role="teacher",
        summary="ResNet-50 with a 3x3 stem, for small images",
        source=_HE,
        implementation="tinykd.models.resnet50:build",
    ),
    ModelEntry(
        name="ShuffleV<version>",
        role="student",
        summary="ShuffleV1 or ShuffleV2 for 32x32; V1's grouped convolutions become one for each group",
        source="Zhang et al., CVPR 2018 (arXiv:1707.01083); Ma et al., ECCV 2018 (arXiv:1807.11164)",
        implementation="tinykd.models.shufflenet:build",
        pattern=r"ShuffleV[12]",
    ),
    ModelEntry(
        name="resnet18",
        role="teacher",
        summary="ImageNet ResNet-18; stem: 3x3 for small images, 7x7 with pooling for large ones",
        source=_HE,
        implementation="tinykd.models.resnet18:build",
        args={"stem": "auto", "width": 1.0},
    ),
    ModelEntry(
        name="timm:<name>",
        role="teacher",
        summary="any model of the timm library (pip install 'tinykd[timm]')",
        source="timm",
        implementation="tinykd.models.timm_teacher:build",
        args={"pretrained": False},
        pattern=r"timm:.+",
        open_args=True,
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_entry(name: str) -> ModelEntry | None:
    """Return the registry row that the model `name` belongs to, or None."""
    if name in MODELS and "<" not in name:
        return MODELS[name]
    return next((entry for entry in _ENTRIES if entry.pattern and re.fullmatch(entry.pattern, name)), None)


def model_names(role: str | None = None) -> list[str]:
    """Return the names that a recipe may give, families as patterns, of one role or of both."""
    return [entry.name for entry in _ENTRIES if role in (None, entry.role) and not entry.derived]


def build_model(name: str, num_classes: int, resolution: int, in_channels: int = 3, **args: Any) -> nn.Module:
    """Return the model `name` with fresh weights from torch's global generator.

    The module maps (N, in_channels, resolution, resolution) float32 to (N, num_classes) logits.

    Raises:
        ConfigError: unknown model or argument, a value outside its range, or a missing optional library.
    """
    entry = find_entry(name)
    if entry is None:
        raise ConfigError(f"there is no model '{name}'.{nearest(name, model_names())}", "See `tinykd list models`.")
    for key in args:
        if key not in entry.args and not entry.open_args:
            known = ", ".join(entry.args) or "none"
            raise ConfigError(f"model '{name}' has no argument '{key}'.{nearest(key, entry.args)} Known: {known}")
    if num_classes < 2 or resolution < 8 or in_channels < 1:
        raise ConfigError(
            f"model '{name}': num_classes {num_classes} (at least 2), resolution {resolution} (at least 8) and "
            f"in_channels {in_channels} (at least 1) do not make a model"
        )
    module, _, function = entry.implementation.partition(":")
    family = {"name": name} if entry.pattern else {}
    build = getattr(importlib.import_module(module), function)
    return build(
        num_classes=num_classes, resolution=resolution, in_channels=in_channels, **family, **{**entry.args, **args}
    )
