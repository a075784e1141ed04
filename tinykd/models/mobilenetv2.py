"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) at any width, for any input size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, StageTaps
from tinykd.models.layers import ConvBn, InvertedResidual, PoolClassifier, init_weights, round_channels

# Table 2 of the paper: expansion, channels, repeats, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidualNet(Backbone):
    """Stem, inverted residual blocks, an optional 1x1 head, pooling and one linear layer.

    Args:
        stem_channels: outputs of the 3x3 stem.
        blocks: (expansion, kernel, stride, channels, shortcut allowed) of each block.
        head_channels: outputs of the 1x1 convolution before pooling; 0 leaves it out.
        num_classes, resolution, in_channels: classes, input side in pixels, input channels.
        stem_stride: 2 as published; 1 keeps small images large.
        dropout: probability before the classifier, training only.
    """

    def __init__(
        self,
        stem_channels: int,
        blocks: Sequence[tuple[int, int, int, int, bool]],
        head_channels: int,
        *,
        num_classes: int,
        resolution: int,
        in_channels: int,
        stem_stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2):
            raise ConfigError(f"stem_stride must be 1 or 2, not {stem_stride}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout {dropout} is outside 0..1")
        self.stem = ConvBn(in_channels, stem_channels, resolution, stride=stem_stride, act=nn.ReLU6)
        channels, size = stem_channels, self.stem.out_size
        self.blocks = nn.Sequential()
        for expansion, kernel, stride, out_channels, shortcut in blocks:
            block = InvertedResidual(
                channels, out_channels, size, expansion=expansion, kernel=kernel, stride=stride, shortcut=shortcut
            )
            self.blocks.append(block)
            channels, size = out_channels, block.out_size
        self.head = ConvBn(channels, head_channels, size, kernel=1, act=nn.ReLU6) if head_channels else nn.Identity()
        self.classifier = PoolClassifier(head_channels or channels, num_classes, dropout)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order, block by block."""
        return ("stem", *(f"blocks.{index}" for index in range(len(self.blocks))), "head", "classifier")

    def stage_taps(self) -> StageTaps:
        """Return the last block at each resolution, the head for the last one; blocks end without activation."""
        sizes = [block.out_size for block in self.blocks]
        ends = [f"blocks.{i}" for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] != size]
        preacts = list(ends)
        if isinstance(self.head, ConvBn):
            ends[-1], preacts[-1] = "head", "head.act:input"
        return StageTaps("stem", tuple(ends), tuple(preacts), "classifier.flatten")


def build(
    num_classes: int,
    resolution: int,
    in_channels: int,
    width: float,
    head_channels: int | None,
    stem_stride: int,
    dropout: float,
) -> nn.Module:
    """Return MobileNetV2 with every channel count times `width`, rounded to multiples of 8.

    `head_channels` None is 1280 times max(width, 1), as published. `width` lies in 0.05..4.

    Raises:
        ConfigError: an argument outside its range.
    """
    if not 0.05 <= width <= 4:
        raise ConfigError(f"mobilenetv2: width {width} is outside 0.05..4")
    if head_channels is None:
        head_channels = round_channels(1280 * max(width, 1.0))
    if not 8 <= head_channels <= 8192:
        raise ConfigError(f"mobilenetv2: head_channels {head_channels} is outside 8..8192")
    blocks = [
        (expansion, 3, stride if index == 0 else 1, round_channels(channels * width), True)
        for expansion, channels, repeats, stride in STAGES
        for index in range(repeats)
    ]
    return InvertedResidualNet(
        round_channels(32 * width),
        blocks,
        head_channels,
        num_classes=num_classes,
        resolution=resolution,
        in_channels=in_channels,
        stem_stride=stem_stride,
        dropout=dropout,
    )


def build_tiny(num_classes: int, resolution: int, in_channels: int, stem_stride: int, dropout: float) -> nn.Module:
    """Return MobileNetV2-Tiny: width 0.35, and the head scaled with it to 448 (Cai et al. 2022, arXiv:2110.08890)."""
    return build(num_classes, resolution, in_channels, 0.35, 448, stem_stride, dropout)
