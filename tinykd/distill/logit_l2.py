"""Logit matching: the squared distance of logits or probabilities (Ba and Caruana 2014, arXiv:1312.6184)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import (
    DistillMethod,
    DistillStep,
    in_float32,
    require_choice,
    require_teacher_logits,
)
from tinykd.errors import ConfigError

ON = ("logits", "probs")
REDUCTIONS = ("sum_half", "mean")


def logit_l2_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    on: str = "logits",
    reduction: str = "sum_half",
    center: bool = False,
) -> torch.Tensor:
    """Return the squared distance of student and teacher, a 0-d tensor.

    `sum_half` is the paper's `1 / 2N * sum_n ||s_n - t_n||^2`: half the sum over classes, averaged over images. `mean`
    averages over images and classes, and so is 2 / K times that. Softmax does not see a constant added to all logits
    of an image, but this loss does; `center` takes each image's mean logit off first. The centred `sum_half` is K
    times what `kd` tends to for a temperature that grows without limit.

    Args:
        student_logits: (N, K), any float type; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        on: compare "logits", or "probs": their softmax.
        reduction: "sum_half" or "mean".
        center: subtract each image's mean logit; changes nothing of probabilities.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits.detach())
        if center:
            student = student - student.mean(dim=1, keepdim=True)
            teacher = teacher - teacher.mean(dim=1, keepdim=True)
        if on == "probs":
            student, teacher = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
        squared = (student - teacher).square()
        return squared.mean() if reduction == "mean" else 0.5 * squared.sum(dim=1).mean()


class LogitL2(DistillMethod):
    """`logit_l2_loss` as a method. The paper trains on it alone: weight 1, label weight 0.

    Raises:
        ConfigError: an unknown choice, or `center` on probabilities.
    """

    local = True

    def __init__(self, on: str = "logits", reduction: str = "sum_half", center: bool = False) -> None:
        super().__init__()
        require_choice("logit_l2", "on", on, ON)
        require_choice("logit_l2", "reduction", reduction, REDUCTIONS)
        if not isinstance(center, bool):
            raise ConfigError(f"logit_l2: center must be true or false, not {center!r}")
        if center and on == "probs":
            raise ConfigError("logit_l2: center changes nothing on probs; give center: false, or on: logits")
        self.on, self.reduction, self.center = on, reduction, center

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return logit_l2_loss(step.student_logits, require_teacher_logits(step), self.on, self.reduction, self.center)
