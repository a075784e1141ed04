"""Wide residual networks for small images (Zagoruyko, Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights


class _Block(nn.Module):
    """Norm and activation before each convolution; a shortcut that changes shape projects the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride != 1 or in_channels != channels
        self.project = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return y + (x if self.project is None else self.project(active))


class WideResNet(Backbone):
    """Stem of 16 channels and three stages of (depth - 4) / 6 blocks with widths (16, 32, 64) times `width`."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        channels = 16
        for stage, wide in enumerate((16 * width, 32 * width, 64 * width)):
            for index in range((depth - 4) // 6):
                self.blocks.append(_Block(channels, wide, 2 if stage and index == 0 else 1, dropout))
                channels = wide
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.pool = GlobalMean()
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order, block by block."""
        blocks = (f"blocks.{index}" for index in range(len(self.blocks)))
        return ("stem", *blocks, "bn", "act", "pool", "linear")

    def stage_taps(self) -> StageTaps:
        """Return the ends of the stages; the first two end without activation, their norm is the next block's."""
        third = len(self.blocks) // 3
        stages = (f"blocks.{third - 1}", f"blocks.{2 * third - 1}", "act")
        return StageTaps("stem", stages, (f"blocks.{third}.bn1", f"blocks.{2 * third}.bn1", "bn"), "pool")


def build(name: str, num_classes: int, resolution: int, in_channels: int, dropout: float) -> nn.Module:
    """Return `wrn-<depth>-<width>`, also spelled `wrn_<depth>_<width>`.

    Raises:
        ConfigError: the depth is not 6n + 4, the width is 0, or the dropout is outside 0..1.
    """
    depth, width = (int(part) for part in name.replace("_", "-").removeprefix("wrn-").split("-"))
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(f"{name}: the depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
    if not 1 <= width <= 20:
        raise ConfigError(f"{name}: the width must be 1..20, not {width}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{name}: dropout {dropout} is outside 0..1")
    return WideResNet(depth, width, num_classes, in_channels, dropout)
