"""DIST: distillation by correlation, for teachers much stronger than the student (Huang et al., arXiv:2205.10536)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import DistillMethod, DistillStep, in_float32, require_number, require_teacher_logits
from tinykd.errors import ConfigError

EPSILON = 1e-8
"""Added to the product of two norms, as in the authors' code; below it a correlation counts as 0."""


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of the rows of two (R, C) tensors: (R,), in -1..1.

    The correlation with a constant row is 0, without a gradient: it has no direction, and the formula's gradient there
    would be up to 1e8.
    """
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    varies = norms > EPSILON
    return torch.where(varies, (a * b).sum(dim=1), 0.0) / torch.where(varies, norms + EPSILON, 1.0)


def dist_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float, gamma: float, temperature: float
) -> torch.Tensor:
    """Return `T^2 (beta (1 - mean_n r_n) + gamma (1 - mean_k r_k))`, a 0-d tensor in 0..2 T^2 (beta + gamma).

    With p = softmax(logits / T), r_n is the correlation of student and teacher over the classes of image n, and r_k
    over the images of class k, for which the batch must be seen as a whole (section 4; T^2 as in the authors' code).
    Correlations do not ask the student to be as sure as the teacher.

    Args:
        student_logits: (N, K), any float type; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        beta: weight of the relations between classes.
        gamma: weight of the relations between images.
        temperature: T, above 0.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits.detach())
        student, teacher = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
        between_classes = 1 - pearson(student, teacher).mean()
        between_images = 1 - pearson(student.T, teacher.T).mean()
        return (beta * between_classes + gamma * between_images) * temperature**2


class Dist(DistillMethod):
    """`dist_loss` as a method. Usual weight: 1 beside a label weight of 1; for CIFAR beta and gamma 2, temperature 4.

    Raises:
        ConfigError: a negative weight, both 0, or a temperature not above 0.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        require_number("dist", "beta", beta, least=0)
        require_number("dist", "gamma", gamma, least=0)
        require_number("dist", "temperature", temperature, above=0)
        if beta == gamma == 0:
            raise ConfigError("dist: beta and gamma are both 0: nothing is left of the loss")
        self.beta, self.gamma, self.temperature = float(beta), float(gamma), float(temperature)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        teacher_logits = require_teacher_logits(step)
        return dist_loss(step.student_logits, teacher_logits, self.beta, self.gamma, self.temperature)
