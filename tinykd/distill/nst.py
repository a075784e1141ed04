"""Neuron selectivity transfer: the distribution of channels' maps (Huang and Wang 2017, arXiv:1707.01219)."""

from __future__ import annotations

import torch

from tinykd.distill.base import (
    DistillStep,
    FeatureMethod,
    Taps,
    in_float32,
    match_size,
    require_choice,
    require_integer,
    require_number,
    unit_vectors,
)

KERNELS = ("linear", "poly", "gaussian")


def _mean_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean over i and j of x_i . y_j for (N, C, D) and (N, C', D): (N,)."""
    return (x.mean(dim=1) * y.mean(dim=1)).sum(dim=1)


def _mean_power(x: torch.Tensor, y: torch.Tensor, degree: int, offset: float) -> torch.Tensor:
    """Return the mean over i and j of (x_i . y_j + offset)^degree: (N,)."""
    count = x.shape[1] * y.shape[1]
    if degree == 2 and offset == 0 and x.shape[2] ** 2 < count:
        # The same number from the smaller matrices: sum_ij (x_i . y_j)^2 = <X^T X, Y^T Y>.
        return (torch.bmm(x.transpose(1, 2), x) * torch.bmm(y.transpose(1, 2), y)).sum(dim=(1, 2)) / count
    return (torch.bmm(x, y.transpose(1, 2)) + offset).pow(degree).mean(dim=(1, 2))


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return |x_i - y_j|^2: (N, C, C')."""
    lengths = x.square().sum(dim=2).unsqueeze(2) + y.square().sum(dim=2).unsqueeze(1)
    return (lengths - 2 * torch.bmm(x, y.transpose(1, 2))).clamp(min=0)


def nst_loss(
    student: torch.Tensor, teacher: torch.Tensor, kernel: str = "poly", degree: int = 2, offset: float = 0.0
) -> torch.Tensor:
    """Return the squared maximum mean discrepancy of the channels' maps, a 0-d tensor: mean over images (section 4).

    Each channel's map is a vector of L2 norm 1 over its pixels; a map of zeros stays zeros. Means are over all pairs of
    channels, a channel with itself included, so the loss is 0 where the channels are the same in any order.

    Args:
        student: (N, C, H, W), any float type; lower precisions are raised to float32.
        teacher: (N, C', H', W'); no gradient flows into it. The larger map is pooled to the smaller.
        kernel: "linear" x.y, "poly" (x.y + offset)^degree, or "gaussian" exp(-|x - y|^2 / 2 sigma^2), where sigma^2 is
            each image's mean squared distance between student and teacher channels, without gradient.
        degree, offset: of "poly".

    The largest tensors are (N, C, C), (N, C, C') and (N, C', C'), or (N, H W, H W) where that is smaller.
    """
    with torch.autocast(student.device.type, enabled=False):
        maps = match_size(*in_float32(student, teacher.detach()))
        s, t = (unit_vectors(x.flatten(2), dim=2) for x in maps)
        if kernel == "linear":
            means = [_mean_product(x, y) for x, y in ((t, t), (s, s), (t, s))]
        elif kernel == "poly":
            means = [_mean_power(x, y, degree, offset) for x, y in ((t, t), (s, s), (t, s))]
        else:
            between = _squared_distances(t, s)
            spread = between.detach().mean(dim=(1, 2), keepdim=True).clamp(min=1e-8)
            distances = (_squared_distances(t, t), _squared_distances(s, s), between)
            means = [torch.exp(-x / (2 * spread)).mean(dim=(1, 2)) for x in distances]
        return (means[0] + means[1] - 2 * means[2]).mean()


class Nst(FeatureMethod):
    """`nst_loss` as a method, summed over the pairs of taps; the end of every stage by default. Usual weight: 50.

    Raises:
        ConfigError: an unknown kernel, a degree below 1, or an offset below 0.
    """

    maps_only = True
    local = True

    def __init__(
        self,
        kernel: str = "poly",
        degree: int = 2,
        offset: float = 0.0,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("nst", "kernel", kernel, KERNELS)
        require_integer("nst", "degree", degree, least=1)
        require_number("nst", "offset", offset, least=0)
        self.kernel, self.degree, self.offset = kernel, degree, float(offset)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        return torch.stack(
            [nst_loss(student, teacher, self.kernel, self.degree, self.offset) for student, teacher in self.pairs(step)]
        ).sum()
