"""VGG with batch norm for small images (Simonyan, Zisserman 2015, arXiv:1409.1556), as distillation benchmarks use it.

Five blocks, pooled 2x2 behind the first three (behind the first four from 64 pixels on), then a global mean and one
linear layer instead of three. `vgg8` has one convolution in each block.
"""

from __future__ import annotations

from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights, round_channels

CHANNELS = (64, 128, 256, 512, 512)
REPEATS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each block."""
LARGE_RESOLUTION = 64
"""From this side on, in pixels, the fourth block is pooled, too."""


class Vgg(Backbone):
    """Blocks of 3x3 convolutions with batch norm and ReLU, max pooling between them, global mean, one linear layer."""

    def __init__(self, depth: int, num_classes: int, resolution: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = in_channels
        for index, (base, repeats) in enumerate(zip(CHANNELS, REPEATS[depth], strict=True)):
            wide = round_channels(base * width)
            block = nn.Sequential()
            for _ in range(repeats):
                block.extend([nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()])
                channels = wide
            self.add_module(f"block{index}", block)
            pools = index < (4 if resolution >= LARGE_RESOLUTION else 3)
            self.add_module(f"pool{index}", nn.MaxPool2d(2, 2) if pools else nn.Identity())
        self.pool = GlobalMean()
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        blocks = (f"{part}{index}" for index in range(len(CHANNELS)) for part in ("block", "pool"))
        return (*blocks, "pool", "classifier")

    def stage_taps(self) -> StageTaps:
        """Return the blocks before their pooling; the first one counts as the stem."""
        stages = tuple(f"block{index}" for index in range(1, len(CHANNELS)))
        preacts = tuple(f"{stage}.{len(self.get_submodule(stage)) - 1}:input" for stage in stages)  # type: ignore[arg-type]
        return StageTaps("block0", stages, preacts, "pool")


def build(name: str, num_classes: int, resolution: int, in_channels: int, width: float) -> nn.Module:
    """Return `vgg<depth>` with every channel count times `width`, rounded to multiples of 8.

    Raises:
        ConfigError: the width is outside its range.
    """
    if not 0.05 <= width <= 4:
        raise ConfigError(f"{name}: width {width} is outside 0.05..4")
    return Vgg(int(name.removeprefix("vgg")), num_classes, resolution, in_channels, width)
