"""Attention transfer: where in the image a stage is active (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928)."""

from __future__ import annotations

import torch

from tinykd.distill.base import (
    DistillStep,
    FeatureMethod,
    Taps,
    in_float32,
    match_size,
    require_choice,
    require_number,
    unit_vectors,
)

MODES = ("code", "paper")


def attention(features: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """Return the attention maps of (N, C, H, W): mean over channels of |F|^p, as vectors (N, H W) of L2 norm 1.

    Whether the mean or the sum over channels is taken makes no difference after the norm. An image's values are divided
    by their largest first, so that powers neither overflow nor vanish. A map of zeros stays zeros.
    """
    largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = features / torch.where(largest > 0, largest, 1.0)
    return unit_vectors(scaled.abs().pow(p).mean(dim=1).flatten(1))


def at_loss(student: torch.Tensor, teacher: torch.Tensor, mode: str = "code", p: float = 2.0) -> torch.Tensor:
    """Return the distance of two attention maps, a 0-d tensor.

    Mode "code", as the paper's code has it, is the mean of squares over images and pixels, at most 2 / (H W). Mode
    "paper" (equation 2, without beta / 2) is the L2 norm of each image's difference, its mean over images.

    Args:
        student: (N, C, H, W), any float type; lower precisions are raised to float32.
        teacher: (N, C', H', W'); no gradient flows into it. The larger map is pooled to the smaller.
        mode: one of MODES.
        p: power of the activations, at least 1; a higher one looks at the peaks.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = match_size(*in_float32(student, teacher.detach()))
        difference = attention(student, p) - attention(teacher, p)
        if mode == "code":
            return difference.square().mean()
        return torch.linalg.vector_norm(difference, dim=1).mean()


class At(FeatureMethod):
    """`at_loss` as a method, summed over the pairs of taps; the end of every stage by default.

    Usual weight: 1000 in mode "code" beside labels 1.

    Raises:
        ConfigError: an unknown mode, or p below 1.
    """

    maps_only = True
    local = True

    def __init__(
        self,
        mode: str = "code",
        p: float = 2.0,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("at", "mode", mode, MODES)
        require_number("at", "p", p, least=1)
        self.mode, self.p = mode, float(p)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        terms = [at_loss(student, teacher, self.mode, self.p) for student, teacher in self.pairs(step)]
        return torch.stack(terms).sum()
