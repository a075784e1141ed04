"""Function matching: the teacher's answers on the student's own view (Beyer et al., CVPR 2022, arXiv:2106.05237)."""

from __future__ import annotations

import torch

from tinykd.distill.base import DistillMethod, DistillStep, require_teacher_logits
from tinykd.distill.kd import kd_loss


class FuncMatch(DistillMethod):
    """The divergence KL(teacher || student) at temperature 1, mean over images, and no labels at all.

    The teacher is asked anew at every step about the student's view: same crop, same mixup. So it can be as far from
    the training images as mixup takes it, and training can be very long: the paper's point is that patience pays.
    A recipe has weight 1, `train.label_weight: 0`, strong augmentation with mixup, and many epochs.
    """

    local = True

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return kd_loss(step.student_logits, require_teacher_logits(step), 1.0)
