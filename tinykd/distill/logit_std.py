"""Distillation of standardised logits (Sun et al., CVPR 2024, arXiv:2403.01427)."""

from __future__ import annotations

import torch

from tinykd.distill.base import DistillMethod, DistillStep, in_float32, require_number, require_teacher_logits
from tinykd.distill.kd import kd_loss

EPSILON = 1e-7
"""Added to the standard deviation, as in the authors' code."""


def standardise(logits: torch.Tensor) -> torch.Tensor:
    """Return each row of (N, K) logits with mean 0 and standard deviation 1 (the unbiased one, over K - 1).

    A constant row becomes zeros, without a gradient: its standard deviation has none.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    varies = variance > EPSILON**2
    deviation = torch.where(varies, variance, 1.0).sqrt()
    return torch.where(varies, centred / (deviation + EPSILON), 0.0)


def logit_std_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return `kd_loss` of the standardised logits, a 0-d tensor: sum over classes, mean over images, times T^2.

    The student need not have the teacher's size of logits, only their relations: the loss does not change when the
    logits of an image, of either side, are shifted or multiplied by a positive number.

    Args:
        student_logits: (N, K), any float type; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        temperature: T, above 0.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits.detach())
        return kd_loss(standardise(student), standardise(teacher), temperature)


class LogitStd(DistillMethod):
    """`logit_std_loss` as a method. Usual weights: 9 beside a label weight of 0.1.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    local = True

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        require_number("logit_std", "temperature", temperature, above=0)
        self.temperature = float(temperature)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return logit_std_loss(step.student_logits, require_teacher_logits(step), self.temperature)
