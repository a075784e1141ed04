"""Knowledge distillation on softened probabilities (Hinton, Vinyals, Dean 2014, arXiv:1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import DistillMethod, DistillStep, in_float32, require_number, require_teacher_logits


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return `T^2 * mean_n KL(softmax(teacher_n / T) || softmax(student_n / T))`, a 0-d tensor.

    The factor T^2 keeps the gradient's size independent of T (section 2 of the paper); the gradient with respect to
    the student's logits is `T / N * (softmax(student / T) - softmax(teacher / T))`.

    Args:
        student_logits: (N, K), any float type; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        temperature: T, above 0.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits.detach())
        log_student = F.log_softmax(student / temperature, dim=1)
        log_teacher = F.log_softmax(teacher / temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * temperature**2


class Kd(DistillMethod):
    """`kd_loss` as a method. Usual weights: 0.9 beside a label weight of 0.1.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    local = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        require_number("kd", "temperature", temperature, above=0)
        self.temperature = float(temperature)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return kd_loss(step.student_logits, require_teacher_logits(step), self.temperature)
