"""ResNet-50 for small images: bottleneck blocks (He et al. 2016, arXiv:1512.03385, table 1) behind a 3x3 stem.

Parameter names are those of the common public ImageNet checkpoints (`layer1.0.conv1`, `downsample.0`, `fc`).
"""

from __future__ import annotations

import torch
from torch import nn

from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights

EXPANSION = 4
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Channels of the 3x3 convolutions, blocks, and the first block's stride."""


class _Bottleneck(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        return self.act3(y + self.downsample(x))


class ResNet50(Backbone):
    """Stem of stride 1 without pooling, four stages of bottlenecks, global mean, one linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = STAGES[0][0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        for number, (wide, count, stride) in enumerate(STAGES, start=1):
            out_channels = wide * EXPANSION
            first = _Bottleneck(channels, wide, stride)
            rest = (_Bottleneck(out_channels, wide, 1) for _ in range(count - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            channels = out_channels
        self.pool = GlobalMean()
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return ("conv1", "bn1", "act", "layer1", "layer2", "layer3", "layer4", "pool", "fc")

    def stage_taps(self) -> StageTaps:
        """Return the ends of stem and stages."""
        stages = tuple(f"layer{number}" for number in range(1, len(STAGES) + 1))
        preacts = tuple(f"layer{number}.{row[1] - 1}.act3:input" for number, row in enumerate(STAGES, start=1))
        return StageTaps("act", stages, preacts, "pool")


def build(num_classes: int, resolution: int, in_channels: int) -> nn.Module:
    """Return the network."""
    return ResNet50(num_classes, in_channels)
