"""ResNet-18 (He et al. 2016, arXiv:1512.03385, table 1) for large and small images.

Parameter names are those of the common public ImageNet checkpoints (`conv1`, `layer1.0.conv1`, `downsample.0`, `fc`).
"""

from __future__ import annotations

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights

SMALL_RESOLUTION = 64
"""Up to this side, in pixels, stem "auto" is the 3x3 convolution without pooling."""


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or in_channels != channels
            else None
        )
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(Backbone):
    """Stem, four stages of two blocks with widths (64, 128, 256, 512) times `width`, pooling, one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, small: bool, width: float) -> None:
        super().__init__()
        widths = [max(1, round(channels * width)) for channels in (64, 128, 256, 512)]
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(widths[0], widths[0], 1)
        self.layer2 = self._stage(widths[0], widths[1], 2)
        self.layer3 = self._stage(widths[1], widths[2], 2)
        self.layer4 = self._stage(widths[2], widths[3], 2)
        self.pool = GlobalMean()
        self.fc = nn.Linear(widths[3], num_classes)
        init_weights(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(_Block(in_channels, channels, stride), _Block(channels, channels, 1))

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4", "pool", "fc")

    def stage_taps(self) -> StageTaps:
        """Return the ends of stem and stages."""
        stages = ("layer1", "layer2", "layer3", "layer4")
        return StageTaps("act", stages, tuple(f"{stage}.1.act2:input" for stage in stages), "pool")


def build(num_classes: int, resolution: int, in_channels: int, stem: str, width: float) -> nn.Module:
    """Return ResNet-18; `stem` is "3x3" (stride 1, no pooling), "7x7" (as published), or "auto" by resolution.

    Raises:
        ConfigError: an argument outside its range.
    """
    if stem not in ("auto", "3x3", "7x7"):
        raise ConfigError(f"resnet18: stem must be 'auto', '3x3' or '7x7', not {stem!r}")
    if not 0.05 <= width <= 4:
        raise ConfigError(f"resnet18: width {width} is outside 0.05..4")
    small = stem == "3x3" or (stem == "auto" and resolution <= SMALL_RESOLUTION)
    return ResNet18(num_classes, in_channels, small, width)
