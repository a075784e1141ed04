"""Born-again networks: each generation of the same student learns from the one before (Furlanello et al. 2018,
arXiv:1805.04770)."""

from __future__ import annotations

import torch

from tinykd.distill.base import (
    DistillMethod,
    DistillStep,
    in_float32,
    require_choice,
    require_integer,
    require_teacher_logits,
)
from tinykd.distill.kd import kd_loss
from tinykd.distill.networks import divergence

VARIANTS = ("kl", "cwtm", "dkpp")


def confidence_weights(teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the teacher's largest probability of each image, over their sum: (N,) weights that sum to 1.

    Args:
        teacher_logits: (N, K) float32 or float64.
    """
    confidence = teacher_logits.detach().softmax(dim=1).amax(dim=1)
    return confidence / confidence.sum()


def cwtm_loss(label_losses: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the label losses weighted by the teacher's confidence, a 0-d tensor (CWTM, section 3.2 of the paper).

    What remains of the teacher is how sure it is of an image, even where it is wrong: the weighted sum over the batch
    is a mean, because the weights sum to 1.

    Args:
        label_losses: (N,) cross-entropies with the labels, float32 or float64, with gradient.
        teacher_logits: (N, K); no gradient flows into them.
    """
    with torch.autocast(label_losses.device.type, enabled=False):
        losses, teacher = in_float32(label_losses, teacher_logits)
        return (confidence_weights(teacher) * losses).sum()


def permute_others(probabilities: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return (N, K) probabilities in which each row keeps its largest entry in place and has the others shuffled.

    Args:
        probabilities: (N, K).
        generator: draws a permutation for each row, on its own device; None is torch's global one.
    """
    device = probabilities.device if generator is None else generator.device
    keys = torch.rand(probabilities.shape, generator=generator, device=device).to(probabilities.device)
    top = probabilities.argmax(dim=1, keepdim=True)
    places = torch.arange(probabilities.shape[1], device=probabilities.device).expand_as(probabilities)
    # Sorted by a random key the classes are shuffled; the largest one is put in front on both sides of the assignment.
    source = keys.scatter(1, top, -1.0).argsort(dim=1)
    target = torch.where(places == top, -1, places).argsort(dim=1)
    return torch.empty_like(probabilities).scatter(1, target, probabilities.gather(1, source))


def dkpp_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return `mean_n KL(shuffled teacher_n || student_n)`, a 0-d tensor (DKPP, section 3.2 of the paper).

    The teacher's certainty and how it spreads the rest are kept; which of the other classes it finds similar is lost.

    Args:
        student_logits, teacher_logits: (N, K); no gradient flows into the teacher's.
        generator: see `permute_others`.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits)
        return divergence(student, permute_others(teacher.softmax(dim=1), generator))


class Ban(DistillMethod):
    """The loss of one generation; the training loop makes the generations (`tinykd.train.student`).

    The teacher is the student of the generation before, and in the first generation the recipe's teacher or a student
    trained on the labels alone. Weights of the paper: 1 for this loss and 1 for the labels, at temperature 1. `cwtm`
    is a loss with the labels itself: to have what the paper calls CWTM, give `train.label_weight` 0.

    Args:
        generations: how many students are taught, at least 1.
        variant: "kl" (the divergence), "cwtm" or "dkpp", which keep only parts of what the teacher says.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(self, generations: int = 3, variant: str = "kl") -> None:
        super().__init__()
        require_integer("ban", "generations", generations, least=1)
        require_choice("ban", "variant", variant, VARIANTS)
        self.variant = variant

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        teacher_logits = require_teacher_logits(step)
        if self.variant == "cwtm":
            return cwtm_loss(step.cross_entropy(step.student_logits, reduction="none"), teacher_logits)
        if self.variant == "dkpp":
            return dkpp_loss(step.student_logits, teacher_logits, step.generator)
        return kd_loss(step.student_logits, teacher_logits, temperature=1.0)
