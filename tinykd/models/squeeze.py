"""Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018, arXiv:1709.01507) in the form that MobileNetV3 gives it."""

from __future__ import annotations

import torch
from torch import nn

from tinykd.models.layers import ConvBn


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in [0, 1] that two 1x1 convolutions make of all channels' means.

    Args:
        channels: C, of input and output.
        squeezed: channels between the two convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class SqueezedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-and-excitation, project 1x1 (linear); with a shortcut where shapes allow.

    Args:
        in_channels, inner_channels, out_channels: of the block's input, its depthwise convolution and its output;
            without an expansion (inner equal to input) the first convolution is left out.
        size: side of the input, pixels.
        kernel, stride: of the depthwise convolution.
        act: activation after the first two convolutions.
        squeezed: channels inside of squeeze-and-excitation; 0 leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        size: int,
        *,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        squeezed: int,
    ) -> None:
        super().__init__()
        expands = inner_channels != in_channels
        self.expand = ConvBn(in_channels, inner_channels, size, kernel=1, act=act) if expands else nn.Identity()
        self.depthwise = ConvBn(
            inner_channels, inner_channels, size, kernel=kernel, stride=stride, groups=inner_channels, act=act
        )
        self.out_size = self.depthwise.out_size
        self.squeeze = SqueezeExcite(inner_channels, squeezed) if squeezed else nn.Identity()
        self.project = ConvBn(inner_channels, out_channels, self.out_size, kernel=1, act=None)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, Cin, size, size) to (N, Cout, out_size, out_size)."""
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.has_shortcut else y
