"""Knowledge review: shallow maps of the teacher guide what the student makes of its deeper ones.

Chen et al., CVPR 2021 (arXiv:2104.09044). From deep to shallow, each of the student's maps is fused with what came from
below, and the result is compared with the teacher's map of that depth at several scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.adapters import connector
from tinykd.distill.base import Context, DistillStep, FeatureMethod, Shape, Taps, in_float32, require_integer
from tinykd.errors import ConfigError

LEVELS = (4, 2, 1)
"""Sides of the pooled maps, pixels; each level weighs half of the one before, the map itself 1."""


def hcl_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the hierarchical context loss of two maps, a 0-d tensor.

    The mean squared difference (over images, channels and pixels) of the maps and of both pooled to each of LEVELS that
    is smaller, weighted 1, 1/2, 1/4, 1/8 and divided by the sum of the weights in use.

    Args:
        student: (N, C, H, W), any float type; lower precisions are raised to float32.
        teacher: (N, C, H, W); no gradient flows into it.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student, teacher.detach())
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for level in LEVELS:
            if level >= min(student.shape[2:]):
                continue
            weight /= 2
            total += weight
            # Pooling is linear: pooling the difference is pooling both.
            loss = loss + weight * F.adaptive_avg_pool2d(student - teacher, level).square().mean()
        return loss / total


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return (N, C, H, W) at `size`: pixels repeated where it grows, averaged where it shrinks."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    grown = [max(have, want) for have, want in zip(x.shape[2:], size, strict=True)]
    return F.adaptive_avg_pool2d(F.interpolate(x, grown, mode="nearest"), (size[0], size[1]))


class Fusion(nn.Module):
    """Attention-based fusion of a map with the one from below it.

    Args:
        in_channels: of the student's map.
        mid_channels: of the fused map, the same at every depth.
        out_channels: of the teacher's map.
        deepest: there is nothing below, and nothing to fuse.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = connector(in_channels, mid_channels)
        self.attention = None if deepest else nn.Conv2d(2 * mid_channels, 2, 1)
        self.expand = connector(mid_channels, out_channels, kernel=3)

    def forward(
        self, x: torch.Tensor, below: torch.Tensor | None, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (N, Cout, *size) map for the loss and the (N, Cmid, H, W) fused one for the next fusion.

        Args:
            x: (N, Cin, H, W) of the student.
            below: (N, Cmid, H', W') fused map of the depth below; None for the deepest.
            size: height and width of the teacher's map.
        """
        fused = self.reduce(x)
        if self.attention is not None and below is not None:
            below = _resize(below, x.shape[2:])
            shares = torch.sigmoid(self.attention(torch.cat([fused, below], dim=1)))
            fused = fused * shares[:, :1] + below * shares[:, 1:]
        return self.expand(_resize(fused, size)), fused


def _as_map(x: torch.Tensor) -> torch.Tensor:
    """Return (N, D) as (N, D, 1, 1), and a map as it is."""
    return x[:, :, None, None] if x.ndim == 2 else x


class ReviewKd(FeatureMethod):
    """`hcl_loss` of fused maps, summed over depths: stages and embedding by default, the teacher's before activation.

    Usual weight: 0.6 to 5 beside labels 1, with `warmup_epochs` 20 of 240.

    Args:
        mid_channels: most channels of the fused maps; fewer where the student's deepest tap has fewer.
        student_taps, teacher_taps: from shallow to deep; (C, H, W) maps, or embeddings, which count as 1x1 maps.

    Raises:
        ConfigError: an argument outside its range.
    """

    default_taps = ("@stages", "@pooled")
    default_teacher_taps = ("@preacts", "@pooled")
    local = True

    def __init__(
        self, mid_channels: int = 512, student_taps: Taps | None = None, teacher_taps: Taps | None = None
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_integer("reviewkd", "mid_channels", mid_channels, least=1)
        self.mid_channels = mid_channels

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make a fusion for each pair.

        Raises:
            ConfigError: a tap that gives neither a map nor an embedding.
        """
        for side, shapes, taps in (
            ("student", student_shapes, self.student_taps),
            ("teacher", teacher_shapes, self.teacher_taps),
        ):
            for shape, tap in zip(shapes, taps, strict=True):
                if len(shape) not in (1, 3):
                    raise ConfigError(f"reviewkd: {side} tap '{tap}' gives {shape}, neither a map nor an embedding")
        mid = min(self.mid_channels, student_shapes[-1][0])
        deepest = len(student_shapes) - 1
        self.fusions = nn.ModuleList(
            Fusion(student[0], mid, teacher[0], index == deepest)
            for index, (student, teacher) in enumerate(zip(student_shapes, teacher_shapes, strict=True))
        )

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        terms = []
        below: torch.Tensor | None = None
        with torch.autocast(step.images.device.type, enabled=False):
            for pair, fusion in reversed(list(zip(self.pairs(step), self.fusions, strict=True))):
                student, teacher = (_as_map(x) for x in in_float32(*pair))
                own, below = fusion(student, below, teacher.shape[2:])
                terms.append(hcl_loss(own, teacher))
        return torch.stack(terms).sum()
