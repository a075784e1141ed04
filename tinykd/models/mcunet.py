"""The networks of the MCUNet model zoo, built from the tables in `zoo.py` at any resolution and class count."""

from __future__ import annotations

from torch import nn

from tinykd.models.mobilenetv2 import InvertedResidualNet
from tinykd.models.zoo import ZOO


def parse_blocks(text: str) -> list[tuple[int, int, int, int, bool]]:
    """Return (expansion, kernel, stride, channels, shortcut allowed) of each block written as in `zoo.py`."""
    blocks = []
    for word in text.split():
        expansion, kernel, stride, channels = (int(number) for number in word.rstrip("!").split("/"))
        blocks.append((expansion, kernel, stride, channels, not word.endswith("!")))
    return blocks


def build(
    name: str, num_classes: int, resolution: int, in_channels: int, stem_stride: int, dropout: float
) -> nn.Module:
    """Return the network `name` of the zoo.

    Raises:
        ConfigError: an argument outside its range.
    """
    row = ZOO[name]
    return InvertedResidualNet(
        row.stem,
        parse_blocks(row.blocks),
        row.head,
        num_classes=num_classes,
        resolution=resolution,
        in_channels=in_channels,
        stem_stride=stem_stride,
        dropout=dropout,
    )
