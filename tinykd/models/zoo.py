"""Architecture tables of the MCUNet model zoo: MCUNet, ProxylessNAS and MobileNetV2 as published (MIT licence).

One word per inverted residual block: `expansion/kernel/stride/channels`, with a trailing `!` where the block has no
shortcut although its shapes would allow one. Tables are data: importing this module imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooRow:
    """One network of the zoo.

    Attributes:
        resolution: side of the square input it was published for, pixels.
        stem: output channels of the first 3x3 convolution (stride 2).
        blocks: the inverted residual blocks in the notation of this module.
        head: output channels of the 1x1 convolution before pooling; 0 means there is none.
        source: the paper.
    """

    resolution: int
    stem: int
    blocks: str
    head: int
    source: str


_MCUNET = "Lin et al., NeurIPS 2020 (arXiv:2007.10319)"
_PROXYLESS = "Cai et al., ICLR 2019 (arXiv:1812.00332)"
_MBV2 = "Sandler et al., CVPR 2018 (arXiv:1801.04381)"

ZOO: dict[str, ZooRow] = {
    "mbv2-w0.3": ZooRow(
        80,
        16,
        "1/3/1/8 6/3/2/8 6/3/1/8 6/3/2/16 6/3/1/16 6/3/1/16 6/3/2/24 6/3/1/24 6/3/1/24 6/3/1/24 6/3/1/32 6/3/1/32 "
        "6/3/1/32 6/3/2/48 6/3/1/48 6/3/1/48 6/3/1/96",
        384,
        _MBV2,
    ),
    "mbv2-w0.35": ZooRow(
        144,
        16,
        "1/3/1/8 6/3/2/8 6/3/1/8 6/3/2/16 6/3/1/16 6/3/1/16 6/3/2/24 6/3/1/24 6/3/1/24 6/3/1/24 6/3/1/32 6/3/1/32 "
        "6/3/1/32 6/3/2/56 6/3/1/56 6/3/1/56 6/3/1/112",
        448,
        _MBV2,
    ),
    "mcunet-10fps": ZooRow(
        48,
        24,
        "1/3/1/16 4/5/2/16 3/3/1/16 4/3/1/16 5/7/2/24 4/5/1/24 5/5/1/24 5/7/2/48 4/5/1/48 5/3/1/56 4/5/1/56 5/3/1/56 "
        "6/3/2/112 4/5/1/112 6/3/1/192",
        0,
        _MCUNET,
    ),
    "mcunet-5fps": ZooRow(
        96,
        16,
        "1/3/1/8 4/3/2/16 3/3/1/16 3/7/2/24 5/3/1/24 5/3/2/40 4/7/1/40 4/5/1/48 3/3/1/48 4/3/1/48 5/7/2/96 4/5/1/96 "
        "4/5/1/96 6/3/1/160",
        0,
        _MCUNET,
    ),
    "mcunet-256kb-1mb": ZooRow(
        160,
        16,
        "1/3/1/8 3/5/2/16 6/7/1/16 5/3/1/16 5/5/1/16 5/3/2/24 6/7/1/24 6/5/1/24 4/7/2/40 5/5/1/40 5/3/1/48 5/5/1/48 "
        "4/3/1/48 6/5/2/96 4/5/1/96 3/5/1/96 4/3/1/96 5/5/1/160",
        0,
        _MCUNET,
    ),
    "mcunet-320kb-1mb": ZooRow(
        176,
        16,
        "1/3/1/8 3/7/2/16 5/3/1/16 5/7/1/16 4/5/1/16 5/5/2/24 5/5/1/24 5/5/1/24 5/3/2/40 6/7/1/40 4/5/1/40 5/5/1/48 "
        "5/7/1/48 5/3/1/48 6/3/2/96 5/7/1/96 4/3/1/96 5/7/1/160",
        0,
        _MCUNET,
    ),
    "mcunet-512kb-2mb": ZooRow(
        160,
        32,
        "1/3/1/16 3/7/2/24 5/3/1/24 4/5/1/24 5/7/2/40 4/3/1/40 4/7/1/40 3/7/2/80 3/3/1/80 3/7/1/80 4/3/1/96 3/5/1/96 "
        "3/5/1/96 4/7/2/192 3/7/1/192 3/5/1/192 4/5/1/320",
        0,
        _MCUNET,
    ),
    "mcunet-256kb-1mb-int4": ZooRow(
        160,
        32,
        "1/3/1/16 3/7/2/24 6/3/1/24 5/5/1/24 3/7/1/24 5/7/2/40 3/5/1/40 4/7/1/40 5/3/2/72 4/7/1/72 6/5/1/88 4/5/1/88 "
        "3/7/1/88 5/3/2/176 4/5/1/176 4/5/1/288",
        0,
        _MCUNET,
    ),
    "mcunet-320kb-1mb-int4": ZooRow(
        176,
        32,
        "1/3/1/16 3/7/2/24 6/5/1/24 6/5/1/24 4/7/2/40 4/3/1/40 4/7/1/40 4/5/1/40 4/7/2/72 6/7/1/72 4/5/1/72 3/5/1/88 "
        "3/5/1/88 4/7/1/88 5/3/2/176 3/3/1/176 4/7/1/288",
        0,
        _MCUNET,
    ),
    "mcunet-512kb-2mb-int4": ZooRow(
        192,
        48,
        "1/3/1/24 3/7/2/40 5/3/1/40 5/3/1/40 5/3/1/40 6/5/2/64 4/7/1/64 5/5/1/64 5/7/2/120 4/7/1/120 4/3/1/120 "
        "4/5/1/144 4/3/1/144 3/7/1/144 5/3/2/288 3/7/1/288 4/5/1/480",
        0,
        _MCUNET,
    ),
    "proxyless-w0.25": ZooRow(
        112,
        8,
        "1/3/1/8! 3/5/2/8 3/3/1/8 3/7/2/16 3/3/1/16 3/5/1/16 3/5/1/16 6/7/2/24 3/5/1/24 3/5/1/24 3/5/1/24 6/5/1/24! "
        "3/5/1/24 3/5/1/24 3/5/1/24 6/7/2/48 6/7/1/48 3/7/1/48 3/7/1/48 6/7/1/80",
        320,
        _PROXYLESS,
    ),
    "proxyless-w0.3": ZooRow(
        176,
        16,
        "1/3/1/8 3/5/2/16 3/3/1/16 3/7/2/16 3/3/1/16 3/5/1/16 3/5/1/16 6/7/2/24 3/5/1/24 3/5/1/24 3/5/1/24 6/5/1/32 "
        "3/5/1/32 3/5/1/32 3/5/1/32 6/7/2/64 6/7/1/64 3/7/1/64 3/7/1/64 6/7/1/96",
        384,
        _PROXYLESS,
    ),
    "proxyless-mobile": ZooRow(
        224,
        32,
        "1/3/1/16 3/5/2/32 3/3/1/32 3/7/2/40 3/3/1/40 3/5/1/40 3/5/1/40 6/7/2/80 3/5/1/80 3/5/1/80 3/5/1/80 6/5/1/96 "
        "3/5/1/96 3/5/1/96 3/5/1/96 6/7/2/192 6/7/1/192 3/7/1/192 3/7/1/192 6/7/1/320",
        1280,
        _PROXYLESS,
    ),
}
