"""What every distillation method receives and returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class DistillStep:
    """What is known of one training step, all on one device.

    Attributes:
        images: (N, C, H, W) float32, augmented and normalised; student and teacher saw the same ones.
        labels: (N,) int64.
        student_logits: (N, K), with gradient.
        teacher_logits: (N, K), without gradient; None when the recipe has no teacher.
    """

    images: torch.Tensor
    labels: torch.Tensor
    student_logits: torch.Tensor
    teacher_logits: torch.Tensor | None


class DistillMethod(nn.Module):
    """A loss that a recipe can add to the cross-entropy with the labels.

    `forward(step)` returns a 0-d float32 tensor, computed in float32 whatever precision the models run in. Its weight
    is not its own business: the recipe's `weight` is applied outside. Parameters of the module (adapters) are
    trained together with the student and are never exported.
    """

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d float32 tensor."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")


def require_teacher_logits(step: DistillStep) -> torch.Tensor:
    """Return the teacher's logits, detached, in float32.

    Raises:
        ValueError: the step has none, or their shape differs from the student's.
    """
    if step.teacher_logits is None:
        raise ValueError("this method needs teacher logits, and the step has none")
    if step.teacher_logits.shape != step.student_logits.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(step.teacher_logits.shape)}, "
            f"student logits {tuple(step.student_logits.shape)}: both need the same classes"
        )
    return step.teacher_logits.detach()
