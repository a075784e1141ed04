"""MobileNetV2 as the tables of distillation papers have it: width 0.5, for 32x32 images, with a stem of stride 2.

Unlike `mobilenetv2`, channel counts are cut and not rounded, the second stage keeps its resolution, every block has its
first 1x1 convolution, and activations are ReLU. Padding is TensorFlow's SAME, as a student's must be; the definition of
those papers pads symmetrically.
"""

from __future__ import annotations

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, StageTaps
from tinykd.models.layers import ConvBn, PoolClassifier, init_weights

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels before the width, blocks, stride of the first block."""
ENDS = (1, 2, 4, 6)
"""The stages after which the benchmarks take their feature maps."""
HEAD = 1280


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, size: int, expansion: int, stride: int) -> None:
        super().__init__()
        mid = in_channels * expansion
        self.expand = ConvBn(in_channels, mid, size, kernel=1)
        self.depthwise = ConvBn(mid, mid, size, stride=stride, groups=mid)
        self.out_size = self.depthwise.out_size
        self.project = ConvBn(mid, channels, self.out_size, kernel=1, act=None)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNetV2Half(Backbone):
    """Stem, seven stages of inverted residuals, a 1x1 head, pooling and one linear layer."""

    def __init__(self, num_classes: int, resolution: int, in_channels: int, width: float, stem_stride: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.stem = ConvBn(in_channels, channels, resolution, stride=stem_stride)
        size = self.stem.out_size
        self.blocks = nn.Sequential()
        for expansion, base, count, stride in STAGES:
            stage = nn.Sequential()
            for index in range(count):
                block = _Block(channels, int(base * width), size, expansion, stride if index == 0 else 1)
                stage.append(block)
                channels, size = int(base * width), block.out_size
            self.blocks.append(stage)
        head = int(HEAD * max(width, 1.0))
        self.head = ConvBn(channels, head, size, kernel=1)
        self.classifier = PoolClassifier(head, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order, stage by stage."""
        return ("stem", *(f"blocks.{index}" for index in range(len(STAGES))), "head", "classifier")

    def stage_taps(self) -> StageTaps:
        """Return the ends of the stages, which have no activation."""
        ends = tuple(f"blocks.{index}" for index in ENDS)
        return StageTaps("stem", ends, ends, "classifier.flatten")


def build(num_classes: int, resolution: int, in_channels: int, width: float, stem_stride: int) -> nn.Module:
    """Return the network; `stem_stride` 1 keeps small images large.

    Raises:
        ConfigError: an argument outside its range.
    """
    if not 0.1 <= width <= 4:
        raise ConfigError(f"MobileNetV2: width {width} is outside 0.1..4")
    if stem_stride not in (1, 2):
        raise ConfigError(f"MobileNetV2: stem_stride must be 1 or 2, not {stem_stride}")
    return MobileNetV2Half(num_classes, resolution, in_channels, width, stem_stride)
