"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv:2203.08679)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import (
    Context,
    DistillMethod,
    DistillStep,
    in_float32,
    require_number,
    require_teacher_logits,
)
from tinykd.errors import ConfigError


def dkd_parts(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split `KL(softmax(teacher / T) || softmax(student / T))` of each image in two; T^2 is not in it.

    Args:
        student_logits: (N, K), K at least 2; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        labels: (N,) int64, the target classes.
        temperature: T, above 0.

    Returns:
        Three tensors (N,): the divergence of "target class or not" (TCKD), that among the other classes (NCKD), and
        the teacher's probability p of the target class; the whole divergence is TCKD + (1 - p) NCKD (section 3.1).
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = (x / temperature for x in in_float32(student_logits, teacher_logits.detach()))
        is_target = F.one_hot(labels, student.shape[1]).bool()
        binary_student, others_student = _split(student, is_target)
        binary_teacher, others_teacher = _split(teacher, is_target)
        target = _divergence(binary_teacher, binary_student)
        nontarget = _divergence(others_teacher, others_student)
        return target, nontarget, binary_teacher[:, 0].exp()


def _split(logits: torch.Tensor, is_target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (N, 2) of the target class and of all others, and (N, K - 1) among the others."""
    others = logits[~is_target].view(len(logits), -1)
    binary = torch.stack([logits[is_target], torch.logsumexp(others, dim=1)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def _divergence(log_teacher: torch.Tensor, log_student: torch.Tensor) -> torch.Tensor:
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)


def dkd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """Return `T^2 * mean_n (alpha TCKD_n + beta NCKD_n)`, a 0-d tensor: sums over classes, mean over images.

    With alpha 1 and beta `1 - p` of each image it would be `kd`, which thus cares the less for the other classes the
    surer the teacher is; here their weight is the same for every image. Arguments as of `dkd_parts`.
    """
    target, nontarget, _ = dkd_parts(student_logits, teacher_logits, labels, temperature)
    return (alpha * target + beta * nontarget).mean() * temperature**2


class Dkd(DistillMethod):
    """`dkd_loss` as a method; the target class of a mixed image is the one with the larger share.

    Usual weight: 1 beside a label weight of 1, with a warm-up of 20 of 240 epochs; beta between 2 and 8, larger for
    surer teachers.

    Raises:
        ConfigError: a negative weight, both 0, or a temperature not above 0.
    """

    local = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        require_number("dkd", "alpha", alpha, least=0)
        require_number("dkd", "beta", beta, least=0)
        require_number("dkd", "temperature", temperature, above=0)
        if alpha == beta == 0:
            raise ConfigError("dkd: alpha and beta are both 0: nothing is left of the loss")
        self.alpha, self.beta, self.temperature = float(alpha), float(beta), float(temperature)

    def setup(self, context: Context) -> None:
        """Raise ConfigError for a single class, which has no others."""
        if context.num_classes < 2:
            raise ConfigError(f"dkd: needs at least 2 classes, not {context.num_classes}")

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        teacher_logits = require_teacher_logits(step)
        return dkd_loss(step.student_logits, teacher_logits, step.hard_labels, self.alpha, self.beta, self.temperature)
