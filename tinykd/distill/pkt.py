"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv:1803.10837)."""

from __future__ import annotations

import torch

from tinykd.distill.base import DistillStep, FeatureMethod, in_float32, unit_vectors

EPSILON = 1e-7
"""Added to the probabilities inside the logarithm, as in the authors' code."""


def neighbour_probabilities(features: torch.Tensor) -> torch.Tensor:
    """Return (N, N): row n is how probable each image is as a neighbour of image n; each row sums to 1.

    The kernel is the cosine similarity moved to 0..1, which has no width to be chosen.
    """
    units = unit_vectors(features.flatten(1))
    kernel = (units @ units.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def pkt_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return `1 / N^2 * sum_nm t_nm log(t_nm / s_nm)` of the neighbour probabilities, a 0-d tensor.

    The divergence of the rows, averaged over all N^2 pairs as in the authors' code, not over the N rows: hence usual
    weights in the ten thousands.

    Args:
        student: (N, ...), any float type; lower precisions are raised to float32.
        teacher: (N, ...), its size may differ; no gradient flows into it.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student, teacher.detach())
        s, t = neighbour_probabilities(student), neighbour_probabilities(teacher)
        return (t * ((t + EPSILON) / (s + EPSILON)).log()).mean()


class Pkt(FeatureMethod):
    """`pkt_loss` as a method, summed over the pairs of taps; the embeddings by default. Usual weight: 30000."""

    default_taps = "@pooled"

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return torch.stack([pkt_loss(student, teacher) for student, teacher in self.pairs(step)]).sum()
