"""What training minimises: cross-entropy with the labels plus the recipe's distillation losses, weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.config import DistillConfig, TrainConfig
from tinykd.distill import METHODS, build_method
from tinykd.distill.base import DistillStep


class Objective(nn.Module):
    """`label_weight * CE(student, labels) + sum_i weight_i * method_i`.

    A method of weight 0 is left out altogether, so that training is then plain training bit for bit. The teacher sees
    exactly the images that the student sees, without gradient and in eval mode; it is no submodule, so its weights are
    neither trained nor saved here.
    """

    def __init__(
        self, config: TrainConfig, losses: Sequence[DistillConfig] = (), teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.label_weight = config.label_weight
        self.label_smoothing = config.label_smoothing
        used = [loss for loss in losses if loss.weight > 0]
        self.methods = nn.ModuleList(build_method(loss.method, loss.args) for loss in used)
        self.weights = [loss.weight for loss in used]
        needed = any(METHODS[loss.method].needs_teacher for loss in used)
        self._teacher = [teacher] if teacher is not None and needed else []
        names = [loss.method for loss in used]
        repeated = {name for name in names if names.count(name) > 1}
        distill_names = [f"{name}_{index}" if name in repeated else name for index, name in enumerate(names)]
        self.part_names = (["labels"] if self.label_weight > 0 else []) + distill_names
        """Names of the parts that `forward` returns, in order."""

    def _apply(self, fn: Any, recurse: bool = True) -> Objective:
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the loss, a 0-d float32 tensor, and its parts (detached, before their weights) as in `part_names`."""
        teacher_logits = None
        for teacher in self._teacher:
            with torch.no_grad():
                teacher_logits = teacher(images)
        terms: list[torch.Tensor] = []
        parts: list[torch.Tensor] = []
        if self.label_weight > 0:
            labels_loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
            parts.append(labels_loss.detach())
            terms.append(labels_loss if self.label_weight == 1 else self.label_weight * labels_loss)
        step = DistillStep(images, labels, logits, teacher_logits)
        for method, weight in zip(self.methods, self.weights, strict=True):
            loss = method(step)
            parts.append(loss.detach())
            terms.append(weight * loss)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, parts
