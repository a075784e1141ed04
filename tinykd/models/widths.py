"""Which widths of a student may grow, and which channels may change places: what network augmentation needs to know.

The rules are those of Cai et al. 2022 (arXiv:2110.08890) and the code released with it: stem, head and blocks without a
shortcut have a width of their own; blocks with a shortcut follow their input; the expansion of an inverted residual
block is a factor of its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone
from tinykd.models.layers import ConvBn, InvertedResidual
from tinykd.models.mobilenetv2 import InvertedResidualNet
from tinykd.models.mobilenetv3 import HiddenClassifier, MobileNetV3
from tinykd.models.resnet8 import ResNet8
from tinykd.models.squeeze import SqueezedResidual, SqueezeExcite

Kind = Literal["width", "expand"]
KINDS: tuple[Kind, ...] = ("width", "expand")


@dataclass(frozen=True)
class Slot:
    """One convolution or linear layer, and how many output channels it has.

    Attributes:
        path: the layer's.
        base: its outputs in the plain student.
        reads: the slot whose outputs it reads; None for the image.
        kind: which list of factors applies; None where there is no choice.
        source: the slot to whose width this one is proportional; None where it is not.
        norm: path of its batch norm, "" without one.
    """

    path: str
    base: int
    reads: str | None
    kind: Kind | None = None
    source: str | None = None
    norm: str = ""


@dataclass(frozen=True)
class Sortable:
    """Inner channels that can be permuted without a change of the function.

    Attributes:
        parts: paths of the modules between which they flow; the first one makes them.
        carriers: paths of the layers whose first dimension they are: convolutions that write them, depthwise ones that
            keep them, batch norms.
        readers: paths of the convolutions whose second dimension they are; the first one's weights tell which channels
            matter.
    """

    parts: tuple[str, ...]
    carriers: tuple[str, ...]
    readers: tuple[str, ...]


def list_slots(model: nn.Module) -> tuple[Slot, ...]:
    """Return the slots of a student: all of its convolutions and linear layers, each one after its source.

    Raises:
        ConfigError: a model that these rules do not know.
    """
    if isinstance(model, InvertedResidualNet | MobileNetV3):
        return tuple(_inverted_slots(model))
    if isinstance(model, ResNet8):
        return tuple(_resnet_slots(model))
    raise ConfigError(
        f"netaug: {type(model).__name__} is no student whose widths can be augmented",
        "It knows the families resnet8, mobilenetv2, mobilenetv3, mcunet and proxyless.",
    )


def list_sortables(model: nn.Module) -> tuple[Sortable, ...]:
    """Return the inner channels of a student's blocks; empty for models that `list_slots` refuses."""
    if isinstance(model, InvertedResidualNet | MobileNetV3):
        return tuple(_inverted_sortables(model))
    if isinstance(model, ResNet8):
        blocks = ("block1", "block2", "block3")
        return tuple(
            Sortable((f"{b}.conv1", f"{b}.conv2"), (f"{b}.conv1.conv", f"{b}.conv1.bn"), (f"{b}.conv2.conv",))
            for b in blocks
        )
    return ()


def is_sorted_inside(sortables: Sequence[Sortable], tap: str) -> bool:
    """Return whether channels at a resolved tap change places when these are sorted."""
    path, _, end = tap.partition(":")
    for sortable in sortables:
        first, *between, last = sortable.parts
        if any(path == part or path.startswith(f"{part}.") for part in between):
            return True
        if path == first or path.startswith(f"{first}."):
            return end == "output" or path.rpartition(".")[2] in ("bn", "act")
        if path in (last, f"{last}.pad", f"{last}.conv") and end == "input":
            return True
    return False


def resolve_widths(slots: Sequence[Slot], factors: Mapping[str, float]) -> dict[str, int]:
    """Return path -> channels: base times factor (1 where none is given) times how much the source has grown.

    Rounded half up. Without factors these are the plain student's widths.
    """
    base = {slot.path: slot.base for slot in slots}
    widths: dict[str, int] = {}
    for slot in slots:
        grown = 1.0 if slot.source is None else widths[slot.source] / base[slot.source]
        widths[slot.path] = max(1, math.floor(slot.base * factors.get(slot.path, 1.0) * grown + 0.5))
    return widths


def weight_of(model: nn.Module, path: str) -> torch.Tensor:
    """Return the weights of the convolution or linear layer at `path`."""
    weight = model.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _inverted_slots(model: InvertedResidualNet | MobileNetV3) -> Iterator[Slot]:
    trunk = "stem.conv"
    yield _slot(model, trunk, None, "width")
    for name, block in _blocks(model):
        inner = trunk
        if isinstance(block.expand, ConvBn):
            inner = f"{name}.expand.conv"
            yield _slot(model, inner, trunk, "expand", trunk)
        yield _slot(model, f"{name}.depthwise.conv", inner, None, inner)
        if _squeezes(block):
            reduce = f"{name}.squeeze.reduce"
            yield _slot(model, reduce, inner, None, inner)
            yield _slot(model, f"{name}.squeeze.expand", reduce, None, inner)
        end = f"{name}.project.conv"
        yield _slot(model, end, inner, None, trunk) if block.has_shortcut else _slot(model, end, inner, "width")
        trunk = end
    if isinstance(model.head, ConvBn):
        yield _slot(model, "head.conv", trunk, "width")
        trunk = "head.conv"
    if isinstance(model.classifier, HiddenClassifier):
        yield _slot(model, "classifier.hidden", trunk, "width")
        trunk = "classifier.hidden"
    yield _slot(model, "classifier.linear", trunk)


def _inverted_sortables(model: InvertedResidualNet | MobileNetV3) -> Iterator[Sortable]:
    for name, block in _blocks(model):
        gate = f"{name}.squeeze"
        if isinstance(block.expand, ConvBn):
            carriers = [f"{name}.{part}" for part in ("expand.conv", "expand.bn", "depthwise.conv", "depthwise.bn")]
            readers = [f"{name}.project.conv"]
            if _squeezes(block):
                carriers.append(f"{gate}.expand")
                readers.append(f"{gate}.reduce")
            parts = tuple(f"{name}.{part}" for part in ("expand", "depthwise", "squeeze", "project"))
            yield Sortable(parts, tuple(carriers), tuple(readers))
        if _squeezes(block):
            yield Sortable(
                (f"{gate}.reduce", f"{gate}.act", f"{gate}.expand"), (f"{gate}.reduce",), (f"{gate}.expand",)
            )


def _resnet_slots(model: ResNet8) -> Iterator[Slot]:
    trunk = "stem.conv"
    yield _slot(model, trunk, None, "width")
    for name in ("block1", "block2", "block3"):
        inner, end = f"{name}.conv1.conv", f"{name}.conv2.conv"
        projects = isinstance(model.get_submodule(f"{name}.shortcut"), ConvBn)
        yield _slot(model, end, inner, "width") if projects else _slot(model, end, inner, None, trunk)
        if projects:
            yield _slot(model, f"{name}.shortcut.conv", trunk, None, end)
        yield _slot(model, inner, trunk, "expand", end)
        trunk = end
    yield _slot(model, "head.linear", trunk)


def _slot(model: nn.Module, path: str, reads: str | None, kind: Kind | None = None, source: str | None = None) -> Slot:
    base = len(weight_of(model, path))
    owner = path.removesuffix(".conv")
    norm = f"{owner}.bn" if isinstance(model.get_submodule(owner), ConvBn) else ""
    return Slot(path, base, reads, kind, source, norm)


def _blocks(model: Backbone) -> Iterator[tuple[str, InvertedResidual | SqueezedResidual]]:
    for path in model.chain():
        block = model.get_submodule(path)
        if isinstance(block, InvertedResidual | SqueezedResidual):
            yield path, block


def _squeezes(block: InvertedResidual | SqueezedResidual) -> bool:
    return isinstance(block, SqueezedResidual) and isinstance(block.squeeze, SqueezeExcite)
