"""Correlation congruence (Peng et al., ICCV 2019, arXiv:1904.01802), in two forms that are different losses.

`pairs` is the form that the common benchmark tables were made with (RepDistiller): the distances of an image's two
embeddings, multiplied with those of the next image of the batch. `kernel` is the paper's: matrices of correlations
between the images of a batch, under a Gaussian kernel.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    require_choice,
    require_integer,
    require_number,
    unit_vectors,
)

FORMS = ("pairs", "kernel")


def cc_pairs_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return `1 / (N - 1) * sum_n sum_d |s_n - t_n|_d |s_n+1 - t_n+1|_d`, a 0-d tensor; 0 for a single image.

    The order of the images matters, since only neighbours in the batch are compared.

    Args:
        student, teacher: (N, D) embeddings, lower precisions are raised to float32. Both get a gradient: each side's
            embedding is trained.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student, teacher)
        apart = (student - teacher).abs()
        return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)


def correlations(features: torch.Tensor, gamma: float, order: int) -> torch.Tensor:
    """Return (N, N): the Gaussian kernel `exp(-gamma ||x - y||^2)` of features of length 1, as a Taylor series.

    For unit vectors it is `exp(-2 gamma) * sum_p (2 gamma)^p / p! * (x . y)^p`, here up to p = `order` (section 3.4).
    """
    units = unit_vectors(features.flatten(1))
    cosines = units @ units.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(dim=0)


def cc_kernel_loss(student: torch.Tensor, teacher: torch.Tensor, gamma: float, order: int) -> torch.Tensor:
    """Return `1 / N^2 * ||C_s - C_t||_F^2` of the correlations, a 0-d tensor (section 3.3).

    Args:
        student: (N, ...), any float type; lower precisions are raised to float32.
        teacher: (N, ...), its size may differ; no gradient flows into it.
        gamma: the kernel's width, above 0.
        order: the last power of the series.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_float32(student, teacher.detach())
        apart = correlations(student, gamma, order) - correlations(teacher, gamma, order)
        return apart.square().mean()


def embed(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's (N, D) of flattened (N, ...) features, in the layer's precision also under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.flatten(1).to(next(layer.parameters()).dtype))


class Cc(FeatureMethod):
    """Correlation congruence as a method, summed over the pairs of taps; the embeddings by default.

    Form `pairs` has a linear layer to `dim` numbers on each side, both trained with the student. Usual weight: 0.02.
    Form `kernel` needs no layers; `gamma` 0.4 and `order` 2 are the paper's.

    Raises:
        ConfigError: an unknown form, or a number outside its range.
    """

    default_taps = "@pooled"

    def __init__(
        self,
        form: str = "pairs",
        dim: int = 128,
        gamma: float = 0.4,
        order: int = 2,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("cc", "form", form, FORMS)
        require_number("cc", "gamma", gamma, above=0)
        require_integer("cc", "dim", dim, least=1)
        require_integer("cc", "order", order, least=1)
        self.form, self.dim, self.gamma, self.order = form, dim, float(gamma), order
        self.embed_student, self.embed_teacher = nn.ModuleList(), nn.ModuleList()

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make the two linear layers of each pair."""
        if self.form == "pairs":
            for embeds, shapes in ((self.embed_student, student_shapes), (self.embed_teacher, teacher_shapes)):
                embeds.extend(nn.Linear(math.prod(shape), self.dim) for shape in shapes)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        terms = []
        for number, (student, teacher) in enumerate(self.pairs(step)):
            if self.form == "kernel":
                terms.append(cc_kernel_loss(student, teacher, self.gamma, self.order))
                continue
            embedded = embed(self.embed_student[number], student), embed(self.embed_teacher[number], teacher)
            terms.append(cc_pairs_loss(*embedded))
        return torch.stack(terms).sum()
