"""Hints: an intermediate map of the teacher guides one of the student's (FitNets, Romero et al., ICLR 2015).

arXiv:1412.6550. The paper trains in two stages: first the student up to its guided layer with the regressor, then the
whole student with knowledge distillation. That is `init_epochs` above 0 with `joint` false, beside a `kd` loss. Later
work adds the hint to the loss of one stage, which is the default here.
"""

from __future__ import annotations

import torch
from torch import nn

from tinykd.distill.adapters import check_init, conv_regressor, has_negatives
from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    match_size,
    require_choice,
)
from tinykd.errors import ConfigError

REDUCTIONS = ("mean", "half_sum")


def hint_loss(student: torch.Tensor, teacher: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the squared distance of two maps, a 0-d tensor.

    Reduction "mean" is over images, channels and pixels; "half_sum" is equation 3 of the paper, half the sum over
    channels and pixels, and the mean over images.

    Args:
        student: (N, C, H, W), any float type; lower precisions are raised to float32.
        teacher: (N, C, H', W'); no gradient flows into it. The larger map is pooled to the smaller.
        reduction: one of REDUCTIONS.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = match_size(*in_float32(student, teacher.detach()))
        squares = (student - teacher).square()
        return squares.mean() if reduction == "mean" else 0.5 * squares.flatten(1).sum(dim=1).mean()


class Hint(FeatureMethod):
    """`hint_loss` behind a convolutional regressor, summed over the pairs of taps; the end of stage 2 by default.

    Usual weight: 100 with reduction "mean" beside labels 1. In an init stage only what the gradient reaches is trained:
    the student up to its guided layer, and the regressor.

    Args:
        reduction: "mean" or "half_sum".
        relu: end the regressor with a ReLU; None does so where the teacher's map has no negative values, which a ReLU
            could not reach.
        student_taps, teacher_taps: see `FeatureMethod`.
        init_epochs, init_lr, joint: see `tinykd.distill.adapters.check_init`.

    Raises:
        ConfigError: an argument outside its range.
    """

    maps_only = True
    default_taps = "@stage2"
    local = True

    def __init__(
        self,
        reduction: str = "mean",
        relu: bool | None = None,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
        init_epochs: int = 0,
        init_lr: float | None = None,
        joint: bool = True,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("hint", "reduction", reduction, REDUCTIONS)
        if relu is not None and not isinstance(relu, bool):
            raise ConfigError(f"hint: relu must be true, false or null, not {relu!r}")
        check_init("hint", init_epochs, init_lr, joint)
        self.reduction, self.relu = reduction, relu

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make a regressor for each pair."""
        assert context.teacher is not None
        relus = [
            not has_negatives(context.teacher, tap) if self.relu is None else self.relu for tap in self.teacher_taps
        ]
        self.regressors = nn.ModuleList(
            conv_regressor(*shapes) for shapes in zip(student_shapes, teacher_shapes, relus, strict=True)
        )

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        terms = []
        with torch.autocast(step.images.device.type, enabled=False):
            for (student, teacher), regressor in zip(self.pairs(step), self.regressors, strict=True):
                terms.append(hint_loss(regressor(*in_float32(student)), teacher, self.reduction))
        return torch.stack(terms).sum()
