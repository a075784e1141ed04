"""Variational information distillation: the teacher's maps under a Gaussian that the student's maps predict.

Ahn et al., CVPR 2019 (arXiv:1904.05835). Minimising the loss maximises a lower bound of the mutual information.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    match_size,
    require_number,
)

LEAST_VARIANCE = 1e-5


def vid_loss(mean: torch.Tensor, raw_variance: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood without its constant log(2 pi) / 2, a 0-d tensor.

    `1/2 ((t - mean)^2 / v + log v)` with v = softplus(raw_variance) + LEAST_VARIANCE: the mean over images,
    channels and pixels. It can be negative.

    Args:
        mean: (N, C, H, W), what the student predicts; lower precisions are raised to float32.
        raw_variance: (C,), one for each channel.
        teacher: (N, C, H', W'); no gradient flows into it. The larger map is pooled to the smaller.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, teacher = match_size(*in_float32(mean, teacher.detach()))
        variance = (F.softplus(raw_variance.to(mean.dtype)) + LEAST_VARIANCE).view(1, -1, 1, 1)
        return 0.5 * ((teacher - mean).square() / variance + variance.log()).mean()


class Prediction(nn.Module):
    """The mean of the Gaussian from three 1x1 convolutions without bias, ReLU between, and its variance per channel.

    Args:
        in_channels: of the student's map.
        out_channels: of the teacher's map, and of the layers between.
        initial_variance: of every channel.
    """

    def __init__(self, in_channels: int, out_channels: int, initial_variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )
        start = initial_variance - LEAST_VARIANCE
        # The inverse of softplus, in a form that does not overflow.
        self.raw_variance = nn.Parameter(torch.full((out_channels,), start + math.log(-math.expm1(-start))))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return `vid_loss` for the student's (N, Cin, H, W) and the teacher's (N, Cout, H', W')."""
        student, teacher = match_size(student, teacher)
        return vid_loss(self.mean(student), self.raw_variance, teacher)


class Vid(FeatureMethod):
    """`vid_loss` as a method, summed over the pairs of taps; the end of every stage by default. Usual weight: 1.

    Args:
        initial_variance: of every channel, learnt from there on; above LEAST_VARIANCE.
        student_taps, teacher_taps: see `FeatureMethod`.

    Raises:
        ConfigError: an argument outside its range.
    """

    maps_only = True
    local = True

    def __init__(
        self, initial_variance: float = 5.0, student_taps: Taps | None = None, teacher_taps: Taps | None = None
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_number("vid", "initial_variance", initial_variance, above=LEAST_VARIANCE)
        self.initial_variance = float(initial_variance)

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make a prediction for each pair."""
        self.predictions = nn.ModuleList(
            Prediction(student[0], teacher[0], self.initial_variance)
            for student, teacher in zip(student_shapes, teacher_shapes, strict=True)
        )

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        with torch.autocast(step.images.device.type, enabled=False):
            terms = [
                predict(*in_float32(*pair)) for pair, predict in zip(self.pairs(step), self.predictions, strict=True)
            ]
            return torch.stack(terms).sum()
