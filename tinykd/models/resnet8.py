"""ResNet-8, the image classification model of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597), at any width."""

from __future__ import annotations

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, StageTaps
from tinykd.models.layers import ConvBn, PoolClassifier, init_weights, round_channels


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(in_channels, out_channels, size, stride=stride)
        self.out_size = self.conv1.out_size
        self.conv2 = ConvBn(out_channels, out_channels, self.out_size, act=None)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else ConvBn(in_channels, out_channels, size, kernel=1, stride=stride, act=None)
        )
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet8(Backbone):
    """Stem and three residual blocks of widths (16, 32, 64) times `width`, rounded to multiples of 4."""

    def __init__(self, num_classes: int, resolution: int, in_channels: int, width: float, stem_stride: int) -> None:
        super().__init__()
        narrow, middle, wide = (round_channels(channels * width, 4) for channels in (16, 32, 64))
        self.stem = ConvBn(in_channels, narrow, resolution, stride=stem_stride)
        self.block1 = _Block(narrow, narrow, self.stem.out_size, 1)
        self.block2 = _Block(narrow, middle, self.block1.out_size, 2)
        self.block3 = _Block(middle, wide, self.block2.out_size, 2)
        self.head = PoolClassifier(wide, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return ("stem", "block1", "block2", "block3", "head")

    def stage_taps(self) -> StageTaps:
        """Return the ends of stem and blocks."""
        blocks = ("block1", "block2", "block3")
        return StageTaps("stem", blocks, tuple(f"{block}.act:input" for block in blocks), "head.flatten")


def build(num_classes: int, resolution: int, in_channels: int, width: float, stem_stride: int) -> nn.Module:
    """Return a ResNet-8. `width` in [0.1, 8]; `stem_stride` 1 or 2 (2 quarters the MACs).

    Raises:
        ConfigError: an argument outside its range.
    """
    if not 0.1 <= width <= 8:
        raise ConfigError(f"resnet8: width {width} is outside 0.1..8")
    if stem_stride not in (1, 2):
        raise ConfigError(f"resnet8: stem_stride must be 1 or 2, not {stem_stride}")
    return ResNet8(num_classes, resolution, in_channels, width, stem_stride)
