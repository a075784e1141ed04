"""ResNets for 32x32 images (He et al. 2016, arXiv:1512.03385, section 4.2), depth = 6n + 2.

`resnet8x4` and `resnet32x4` are the wide ones of distillation benchmarks: stages four times as wide, a stem twice.

Parameter names are those of the common public CIFAR checkpoints (`conv1`, `layer1.0.conv1`, ..., `linear`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra = channels - in_channels
        changes = stride != 1 or self.extra != 0
        self.shortcut = (
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
            if changes and shortcut == "B"
            else nn.Sequential()
        )
        self.pads = changes and shortcut == "A"
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.pads:
            before = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        else:
            x = self.shortcut(x)
        return self.act2(y + x)


class ResNetCifar(Backbone):
    """Stem, three stages of n basic blocks, pooling, one linear layer.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three stages.
        num_classes, in_channels: classes and input channels.
        shortcut: "A" or "B".
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int, shortcut: str
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[1], blocks, 1, shortcut)
        self.layer2 = self._stage(widths[1], widths[2], blocks, 2, shortcut)
        self.layer3 = self._stage(widths[2], widths[3], blocks, 2, shortcut)
        self.pool = GlobalMean()
        self.linear = nn.Linear(widths[3], num_classes)
        init_weights(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = _Block(in_channels, channels, stride, shortcut)
        return nn.Sequential(first, *(_Block(channels, channels, 1, shortcut) for _ in range(blocks - 1)))

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return ("conv1", "bn1", "act", "layer1", "layer2", "layer3", "pool", "linear")

    def stage_taps(self) -> StageTaps:
        """Return the ends of stem and stages."""
        stages = ("layer1", "layer2", "layer3")
        preacts = tuple(f"{stage}.{len(self.get_submodule(stage)) - 1}.act2:input" for stage in stages)  # type: ignore[arg-type]
        return StageTaps("act", stages, preacts, "pool")


def build(name: str, num_classes: int, resolution: int, in_channels: int, width: float, shortcut: str) -> nn.Module:
    """Return `resnet<depth>` or `resnet<depth>x4`, every channel count times `width`.

    Shortcut "A" pads with zero channels and has no parameters (the original's, and that of public checkpoints); "B"
    projects where shapes change (that of distillation benchmarks, and the one that a microcontroller can run).

    Raises:
        ConfigError: an argument outside its range.
    """
    if shortcut not in ("A", "B"):
        raise ConfigError(f"{name}: shortcut must be 'A' (zero padding) or 'B' (projection), not {shortcut!r}")
    if not 0.1 <= width <= 8:
        raise ConfigError(f"{name}: width {width} is outside 0.1..8")
    depth, _, factor = name.removeprefix("resnet").partition("x")
    stem, narrow, middle, wide = (
        round(channels * width) for channels in ((32, 64, 128, 256) if factor else (16, 16, 32, 64))
    )
    return ResNetCifar(int(depth), (stem, narrow, middle, wide), num_classes, in_channels, shortcut)
