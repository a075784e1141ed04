"""MobileNetV3 (Howard et al., ICCV 2019, arXiv:1905.02244), large and small, at any width and for any input size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone, StageTaps
from tinykd.models.layers import ConvBn, init_weights, round_channels
from tinykd.models.squeeze import SqueezedResidual

Block = tuple[int, int, int, bool, type[nn.Module], int]

# Tables 1 and 2 of the paper: kernel, inner channels, output channels, squeeze-and-excitation, activation, stride.
LARGE: tuple[Block, ...] = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
SMALL: tuple[Block, ...] = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)
LARGE_HEAD, SMALL_HEAD = (960, 1280), (576, 1024)
"""Channels of the last convolution and of the hidden layer of the classifier."""

LARGE_SQUEEZED, SMALL_SQUEEZED = 16, 8
"""Least channels inside of squeeze-and-excitation: NetAug's for the large network (it shows below width 0.75 only)."""


class HiddenClassifier(nn.Module):
    """Global average pooling, a hidden linear layer with hard-swish, and the linear layer of the classes."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.hidden = nn.Linear(in_channels, hidden_channels)
        self.act = nn.Hardswish()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(hidden_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, num_classes) logits."""
        return self.linear(self.dropout(self.act(self.hidden(self.flatten(self.pool(x))))))


class MobileNetV3(Backbone):
    """Stem, blocks with squeeze-and-excitation, a 1x1 head, and a classifier with one hidden layer.

    Args:
        blocks: rows of LARGE or SMALL.
        head: channels of the last convolution, times `width` like all others, and of the hidden layer.
        least_squeezed: least channels inside of squeeze-and-excitation, which has a quarter of the block's.
        width: factor of every channel count, which is then rounded to a multiple of 8; the hidden layer only grows.
        hidden_channels: of the classifier; None takes it from `head`.
        num_classes, resolution, in_channels: classes, input side in pixels, input channels.
        stem_stride: 2 as published; 1 keeps small images large.
        dropout: probability before the last linear layer, training only.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        head: tuple[int, int],
        least_squeezed: int,
        *,
        width: float,
        hidden_channels: int | None,
        num_classes: int,
        resolution: int,
        in_channels: int,
        stem_stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if not 0.05 <= width <= 4:
            raise ConfigError(f"mobilenetv3: width {width} is outside 0.05..4")
        if hidden_channels is None:
            hidden_channels = round_channels(head[1] * max(width, 1.0))
        if not 8 <= hidden_channels <= 8192:
            raise ConfigError(f"mobilenetv3: hidden_channels {hidden_channels} is outside 8..8192")
        if stem_stride not in (1, 2):
            raise ConfigError(f"mobilenetv3: stem_stride must be 1 or 2, not {stem_stride}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"mobilenetv3: dropout {dropout} is outside 0..1")
        channels = round_channels(16 * width)
        self.stem = ConvBn(in_channels, channels, resolution, stride=stem_stride, act=nn.Hardswish)
        size = self.stem.out_size
        self.blocks = nn.Sequential()
        for number, (kernel, inner, out, squeezes, act, stride) in enumerate(blocks):
            # The first block does not expand, whatever rounding makes of its channels.
            inner_channels = round_channels(round(inner * width)) if number else channels
            out_channels = round_channels(out * width)
            block = SqueezedResidual(
                channels,
                inner_channels,
                out_channels,
                size,
                kernel=kernel,
                stride=stride,
                act=act,
                squeezed=max(round_channels(inner_channels / 4), least_squeezed) if squeezes else 0,
            )
            self.blocks.append(block)
            channels, size = out_channels, block.out_size
        head_channels = round_channels(head[0] * width)
        self.head = ConvBn(channels, head_channels, size, kernel=1, act=nn.Hardswish)
        self.classifier = HiddenClassifier(head_channels, hidden_channels, num_classes, dropout)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order, block by block."""
        return ("stem", *(f"blocks.{index}" for index in range(len(self.blocks))), "head", "classifier")

    def stage_taps(self) -> StageTaps:
        """Return the last block at each resolution, the head for the last one; blocks end without activation."""
        sizes = [block.out_size for block in self.blocks]
        ends = [f"blocks.{i}" for i, size in enumerate(sizes[:-1]) if sizes[i + 1] != size]
        return StageTaps("stem", (*ends, "head"), (*ends, "head.act:input"), "classifier.act")


VARIANTS = {
    "mobilenetv3-large": (LARGE, LARGE_HEAD, LARGE_SQUEEZED),
    "mobilenetv3-small": (SMALL, SMALL_HEAD, SMALL_SQUEEZED),
}


def build(
    name: str,
    num_classes: int,
    resolution: int,
    in_channels: int,
    width: float,
    hidden_channels: int | None,
    stem_stride: int,
    dropout: float,
) -> nn.Module:
    """Return the network `name` of VARIANTS.

    Large at width 0.35 is MobileNetV3-w0.35 of NetAug (Cai et al. 2022, arXiv:2110.08890).

    Raises:
        ConfigError: an argument outside its range.
    """
    return MobileNetV3(
        *VARIANTS[name],
        width=width,
        hidden_channels=hidden_channels,
        num_classes=num_classes,
        resolution=resolution,
        in_channels=in_channels,
        stem_stride=stem_stride,
        dropout=dropout,
    )
