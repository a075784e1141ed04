"""ShuffleNet V1 and V2 for 32x32 images, as distillation benchmarks use them.

V1: Zhang et al., CVPR 2018 (arXiv:1707.01083), 3 groups. V2: Ma et al., ECCV 2018 (arXiv:1807.11164), width 1. The stem
is a 1x1 convolution without pooling, so that three stages of stride 2 end at 4x4.
"""

from __future__ import annotations

import torch
from torch import nn

from tinykd.models.backbone import Backbone, GlobalMean, StageTaps
from tinykd.models.layers import init_weights

STEM = 24
V1_CHANNELS, V1_BLOCKS, V1_GROUPS = (240, 480, 960), (4, 8, 4), 3
V2_CHANNELS, V2_BLOCKS, V2_HEAD = (116, 232, 464), (4, 8, 4), 1024


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm; 3x3 ones are depthwise."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
        )


class Shuffle(nn.Module):
    """Interleaves the channels of the groups: (g, C / g) becomes (C / g, g)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class _V1Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride 2 the pooled input is appended, else added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        own = out_channels - (in_channels if stride == 2 else 0)
        mid = own // 4
        groups = 1 if in_channels == STEM else V1_GROUPS
        self.conv1, self.act1 = ConvNorm(in_channels, mid, groups=groups), nn.ReLU()
        self.shuffle = Shuffle(groups)
        self.conv2, self.act2 = ConvNorm(mid, mid, 3, stride, groups=mid), nn.ReLU()
        self.conv3 = ConvNorm(mid, own, groups=V1_GROUPS)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        self.appends = stride == 2
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shuffle(self.act1(self.conv1(x)))
        y = self.conv3(self.act2(self.conv2(y)))
        rest = self.shortcut(x)
        return self.act(torch.cat((y, rest), dim=1) if self.appends else y + rest)


class _V2Block(nn.Module):
    """Half of the channels pass, the other half is convolved: 1x1, depthwise 3x3, 1x1; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.act1 = ConvNorm(half, half), nn.ReLU()
        self.conv2 = ConvNorm(half, half, 3, groups=half)
        self.conv3 = ConvNorm(half, half)
        self.act = nn.ReLU()
        self.shuffle = Shuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed, y = x.chunk(2, dim=1)
        y = self.conv3(self.conv2(self.act1(self.conv1(y))))
        # What passed is not negative: the activation leaves it as it is, and its input is the whole map's.
        return self.shuffle(self.act(torch.cat((passed, y), dim=1)))


class _V2Down(nn.Module):
    """Two branches of stride 2, each giving half of the channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left1 = ConvNorm(in_channels, in_channels, 3, 2, groups=in_channels)
        self.left2 = ConvNorm(in_channels, half)
        self.right1, self.act1 = ConvNorm(in_channels, half), nn.ReLU()
        self.right2 = ConvNorm(half, half, 3, 2, groups=half)
        self.right3 = ConvNorm(half, half)
        self.act = nn.ReLU()
        self.shuffle = Shuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.left2(self.left1(x))
        right = self.right3(self.right2(self.act1(self.right1(x))))
        return self.shuffle(self.act(torch.cat((left, right), dim=1)))


class ShuffleNet(Backbone):
    """Stem of 24 channels, three stages, an optional 1x1 head, global mean, one linear layer."""

    def __init__(self, version: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, STEM)
        self.stem_act = nn.ReLU()
        channels = STEM
        widths, repeats = (V1_CHANNELS, V1_BLOCKS) if version == 1 else (V2_CHANNELS, V2_BLOCKS)
        for number, (wide, count) in enumerate(zip(widths, repeats, strict=True), start=1):
            first = _V1Block(channels, wide, 2) if version == 1 else _V2Down(channels, wide)
            rest = (_V1Block(wide, wide, 1) if version == 1 else _V2Block(wide) for _ in range(count - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            channels = wide
        head = version == 2
        self.head = ConvNorm(channels, V2_HEAD) if head else nn.Identity()
        self.head_act = nn.ReLU() if head else nn.Identity()
        self.pool = GlobalMean()
        self.linear = nn.Linear(V2_HEAD if head else channels, num_classes)
        init_weights(self)

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return ("stem", "stem_act", "layer1", "layer2", "layer3", "head", "head_act", "pool", "linear")

    def stage_taps(self) -> StageTaps:
        """Return the ends of stem and stages; before their activation, the channels of V2 are not shuffled yet."""
        stages = ("layer1", "layer2", "layer3")
        preacts = tuple(f"{stage}.{len(self.get_submodule(stage)) - 1}.act:input" for stage in stages)  # type: ignore[arg-type]
        return StageTaps("stem_act", stages, preacts, "pool")


def build(name: str, num_classes: int, resolution: int, in_channels: int) -> nn.Module:
    """Return `ShuffleV1` or `ShuffleV2`."""
    return ShuffleNet(int(name.removeprefix("ShuffleV")), num_classes, in_channels)
