"""Blocks shared by the students: convolutions that pad as TensorFlow's SAME, by constants fixed at construction."""

from __future__ import annotations

import torch
from torch import nn

from tinykd.ir import same_padding


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, never more than 10 % down (the rule of MobileNetV2)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvBn(nn.Module):
    """Convolution with SAME padding, batch norm and, unless `act` is None, an activation, for one input size.

    Symmetric padding is the convolution's own; asymmetric padding (stride 2 on an even size) is a constant pad in
    front, which the exporter folds back into the convolution. `out_size` is the side of the output, pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        before, after = same_padding(size, kernel, stride)
        self.out_size = -(-size // stride)
        symmetric = before == after
        self.pad = nn.Identity() if symmetric else nn.ZeroPad2d((before, after, before, after))
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=before if symmetric else 0,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.Identity() if act is None else act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, Cin, size, size) to (N, Cout, out_size, out_size)."""
        return self.act(self.bn(self.conv(self.pad(x))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1 (linear); with a shortcut where shapes allow, unless `shortcut` is False."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        expansion: int,
        kernel: int = 3,
        stride: int = 1,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        mid = in_channels * expansion
        self.expand = ConvBn(in_channels, mid, size, kernel=1, act=nn.ReLU6) if expansion != 1 else nn.Identity()
        self.depthwise = ConvBn(mid, mid, size, kernel=kernel, stride=stride, groups=mid, act=nn.ReLU6)
        self.out_size = self.depthwise.out_size
        self.project = ConvBn(mid, out_channels, self.out_size, kernel=1, act=None)
        self.has_shortcut = shortcut and stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, Cin, size, size) to (N, Cout, out_size, out_size)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class PoolClassifier(nn.Module):
    """Global average pooling, flatten and one linear layer: the end of every student."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, num_classes) logits."""
        return self.linear(self.dropout(self.flatten(self.pool(x))))


def init_weights(model: nn.Module) -> None:
    """Draw convolutions He-normal over the fan-out, the classifier with deviation 0.01, and reset batch norm."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
