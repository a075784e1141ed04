"""Activation boundaries: which neurons fire, rather than how strongly (Heo et al., AAAI 2019, arXiv:1811.03233)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tinykd.distill.adapters import check_init, connector
from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    match_size,
    require_number,
)
from tinykd.errors import ConfigError


def ab_loss(student: torch.Tensor, teacher: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Return how far the student's responses are on the wrong side of the teacher's boundaries, a 0-d tensor.

    Where the teacher's neuron is off (t <= 0), (s + m)^2 for s > -m; where it is on (t > 0), (s - m)^2 for s <= m (the
    paper's alternative loss): the sum over channels and pixels, the mean over images. Only the teacher's signs matter.

    Args:
        student: (N, C, H, W) before the activation, any float type; lower precisions are raised to float32.
        teacher: (N, C, H', W') before the activation; no gradient flows into it. The larger map is pooled.
        margin: m, how far beyond 0 a response has to be.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = match_size(*in_float32(student, teacher.detach()))
        off = torch.where((s > -margin) & (t <= 0), (s + margin).square(), 0.0)
        on = torch.where((s <= margin) & (t > 0), (s - margin).square(), 0.0)
        return (off + on).flatten(1).sum(dim=1).mean()


def sparsity_disagreement(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the share of neurons that fire in one of the two and not in the other, 0..1, a 0-d tensor.

    Args:
        student, teacher: as for `ab_loss`.
    """
    s, t = match_size(*in_float32(student, teacher))
    return ((s > 0) != (t > 0)).to(s.dtype).mean()


class Ab(FeatureMethod):
    """`ab_loss` behind a connector (1x1 convolution, batch norm, no activation), summed over the pairs of taps.

    The deepest pair weighs 1, each one before it half of the next. Usual weight: 3 / 1000, for the sums are large. The
    loss is that of an init stage of 30 epochs; the task that follows goes without it (`joint` false), by the labels, by
    `kd`, or both.

    Args:
        margin: see `ab_loss`.
        student_taps, teacher_taps: before the activation; by default so at the end of every stage.
        init_epochs, init_lr, joint: see `tinykd.distill.adapters.check_init`.

    Raises:
        ConfigError: an argument outside its range.
    """

    maps_only = True
    default_taps = "@preacts"
    local = True

    def __init__(
        self,
        margin: float = 1.0,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
        init_epochs: int = 30,
        init_lr: float | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_number("ab", "margin", margin, above=0)
        check_init("ab", init_epochs, init_lr, joint)
        self.margin = float(margin)
        self.checked = False

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make a connector for each pair."""
        pairs = zip(student_shapes, teacher_shapes, strict=True)
        self.connectors = nn.ModuleList(connector(student[0], teacher[0]) for student, teacher in pairs)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor.

        Raises:
            ConfigError: a teacher's tap has no negative value, so it lies after the activation.
        """
        pairs = self.pairs(step)
        self._check_signs([teacher for _, teacher in pairs])
        terms = []
        with torch.autocast(step.images.device.type, enabled=False):
            for depth, ((student, teacher), connect) in enumerate(zip(pairs, self.connectors, strict=True)):
                share = 0.5 ** (len(pairs) - 1 - depth)
                terms.append(share * ab_loss(connect(*in_float32(student)), teacher, self.margin))
        return torch.stack(terms).sum()

    def _check_signs(self, teachers: list[torch.Tensor]) -> None:
        """Refuse maps behind a ReLU, or before one that works in place; looked at once, because it waits for a GPU."""
        if self.checked:
            return
        self.checked = True
        for tap, teacher in zip(self.teacher_taps, teachers, strict=True):
            if teacher.min() >= 0 and teacher.max() > 0:
                raise ConfigError(
                    f"ab: teacher tap '{tap}' gives no negative value, so it lies after the activation",
                    "Give teacher_taps before the activations. One that works in place overwrites its ':input': take "
                    "the module in front of it.",
                )

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return "sparsity_disagreement_<n>" of each pair of taps, n = 1 for the first."""
        found = {}
        for number, ((student, teacher), connect) in enumerate(zip(self.pairs(step), self.connectors, strict=True), 1):
            # A copy, because in training mode a look would move the running statistics.
            with torch.autocast(student.device.type, enabled=False):
                mapped = copy.deepcopy(connect)(*in_float32(student))
            found[f"sparsity_disagreement_{number}"] = sparsity_disagreement(mapped, teacher)
        return found
