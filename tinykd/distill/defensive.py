"""Defensive distillation (Papernot et al., IEEE S&P 2016, arXiv:1511.04508): history, and no defence.

The student learns the softened answers of a teacher of its own kind, and is used at temperature 1. Its softmax is then
so sure that the gradient of the loss with respect to the image vanishes, and attacks that follow it fail. This is
gradient masking: Carlini and Wagner (arXiv:1607.04311, arXiv:1608.04644) break it by attacking the logits, for instance
divided by the temperature, as often as an undefended network. Do not use it for security.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import DistillMethod, DistillStep, in_float32, require_number, require_teacher_logits


def defensive_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return `-mean_n sum_k softmax(teacher_n / T)_k log softmax(student_n / T)_k`, a 0-d tensor.

    A cross-entropy, and without the factor T^2, as in the paper: its least value is the entropy of the
    teacher's answers, not 0.

    Args:
        student_logits: (N, K), any float type; lower precisions are raised to float32.
        teacher_logits: (N, K); no gradient flows into them.
        temperature: T, above 0.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = in_float32(student_logits, teacher_logits.detach())
        soft = F.softmax(teacher / temperature, dim=1)
        return -(soft * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


class Defensive(DistillMethod):
    """`defensive_loss` as a method: weight 1, label weight 0, and a teacher that is the same model as the student.

    The teacher learns the labels at the same temperature: `teacher.train.temperature`. A recipe in which the two
    temperatures differ, the models differ or labels have a weight is refused. The gradient is T times smaller than
    that of cross-entropy, for the student as for the teacher, so learning rates must be higher.

    Warning: this is no defence. See the module.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    local = True

    def __init__(self, temperature: float = 20.0) -> None:
        super().__init__()
        require_number("defensive", "temperature", temperature, above=0)
        self.temperature = float(temperature)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return defensive_loss(step.student_logits, require_teacher_logits(step), self.temperature)
