"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv:1907.09682)."""

from __future__ import annotations

import torch

from tinykd.distill.base import DistillStep, FeatureMethod, in_float32, unit_vectors


def similarities(features: torch.Tensor) -> torch.Tensor:
    """Return the (N, N) products of the flattened (N, ...) features, each row divided by its L2 norm."""
    flat = features.flatten(1)
    return unit_vectors(flat @ flat.T)


def sp_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return `1 / N^2 * ||G_s - G_t||_F^2` of the similarities of the images of a batch, a 0-d tensor (section 3).

    Only relations between images are compared, so channels and map sizes of the two may differ; no pooling is needed.

    Args:
        student: (N, ...), any float type; lower precisions are raised to float32.
        teacher: (N, ...); no gradient flows into it.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student, teacher.detach())
        return (similarities(student) - similarities(teacher)).square().mean()


class Sp(FeatureMethod):
    """`sp_loss` as a method, summed over the pairs of taps; the last stage's maps by default. Usual weight: 3000."""

    default_taps = "@last"

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return torch.stack([sp_loss(student, teacher) for student, teacher in self.pairs(step)]).sum()
