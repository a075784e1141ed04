"""Relational knowledge distillation: distances and angles between images (Park et al., CVPR 2019, arXiv:1904.05068)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinykd.distill.base import (
    DistillStep,
    FeatureMethod,
    Taps,
    in_float32,
    require_choice,
    require_number,
    unit_vectors,
)
from tinykd.errors import ConfigError

MODES = ("paper", "seed_sq")
LEAST_DISTANCE = 1e-6
"""Images closer than this count as one: distance 0, no angle, and no gradient, for a root's at 0 is infinite."""


def _differences(embeddings: torch.Tensor) -> torch.Tensor:
    """Return e_j - e_i of (N, D) embeddings: (N, N, D)."""
    return embeddings.unsqueeze(0) - embeddings.unsqueeze(1)


def distances(embeddings: torch.Tensor, squared: bool = False, normalize: bool = True) -> torch.Tensor:
    """Return the Euclidean distances of (N, D) embeddings, or their squares: (N, N), 0 on the diagonal.

    Args:
        embeddings: (N, D) float32 or float64.
        squared: leave the root out.
        normalize: divide by the mean of those that are not 0.
    """
    squares = _differences(embeddings).square().sum(dim=2)
    apart = squares > LEAST_DISTANCE**2
    found = torch.where(apart, squares, 1.0)
    found = torch.where(apart, found if squared else found.sqrt(), 0.0)
    if not normalize:
        return found
    count = apart.sum()
    return found / torch.where(count > 0, found.sum() / count.clamp(min=1), 1.0)


def angles(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the cosines of the angles at i between j and k of (N, D) embeddings: (N, N, N), 0 where there is none."""
    units = unit_vectors(_differences(embeddings), dim=2, least=LEAST_DISTANCE)
    return units @ units.transpose(1, 2)


def rkd_distance_loss(
    student: torch.Tensor, teacher: torch.Tensor, mode: str = "paper", normalize: bool | None = None
) -> torch.Tensor:
    """Return the Huber distance of the two sides' distances, a 0-d tensor.

    In mode "paper" (section 3.2.1) the distances are divided by their mean over the batch, on each side by its own,
    and the mean is over all N^2 pairs, an image with itself included. In mode "seed_sq", the form of the MIT lecture
    6.5940, they are squared distances as they are, and the mean is over the N (N - 1) / 2 pairs.

    Args:
        student: (N, ...), any float type; lower precisions are raised to float32.
        teacher: (N, ...), its size may differ; no gradient flows into it.
        mode: "paper" or "seed_sq".
        normalize: divide by the mean distance; None as the mode has it.
    """
    squared = mode == "seed_sq"
    normalize = not squared if normalize is None else normalize
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student.flatten(1), teacher.detach().flatten(1))
        own, wanted = distances(student, squared, normalize), distances(teacher, squared, normalize)
        apart = F.smooth_l1_loss(own, wanted, reduction="none")
        if not squared:
            return apart.mean()
        count = len(student)
        return apart.triu(1).sum() / max(count * (count - 1) // 2, 1)


def rkd_angle_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the Huber distance of the two sides' cosines, a 0-d tensor: mean over all N^3 triples (section 3.2.2).

    Triples in which two images are the same have no angle and count as equal. Memory grows with N^3: a batch of 64
    takes 1 MiB for each side, one of 256 takes 64 MiB. Arguments as of `rkd_distance_loss`.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student.flatten(1), teacher.detach().flatten(1))
        return F.smooth_l1_loss(angles(student), angles(teacher))


class Rkd(FeatureMethod):
    """`distance_weight * rkd_distance_loss + angle_weight * rkd_angle_loss`, summed over the pairs of taps.

    The embeddings by default, as they are, not divided by their length. Usual weight: 1, with 25 and 50 inside for
    classification, 1 and 2 for metric learning.

    Raises:
        ConfigError: an unknown mode, a negative weight, or both 0.
    """

    default_taps = "@pooled"

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        mode: str = "paper",
        normalize: bool | None = None,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_number("rkd", "distance_weight", distance_weight, least=0)
        require_number("rkd", "angle_weight", angle_weight, least=0)
        require_choice("rkd", "mode", mode, MODES)
        if normalize is not None and not isinstance(normalize, bool):
            raise ConfigError(f"rkd: normalize must be true, false or null, not {normalize!r}")
        if distance_weight == angle_weight == 0:
            raise ConfigError("rkd: distance_weight and angle_weight are both 0: nothing is left of the loss")
        self.distance_weight, self.angle_weight = float(distance_weight), float(angle_weight)
        self.mode, self.normalize = mode, normalize

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        terms = []
        for student, teacher in self.pairs(step):
            if self.distance_weight > 0:
                terms.append(self.distance_weight * rkd_distance_loss(student, teacher, self.mode, self.normalize))
            if self.angle_weight > 0:
                terms.append(self.angle_weight * rkd_angle_loss(student, teacher))
        return torch.stack(terms).sum()
