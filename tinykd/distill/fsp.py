"""Flow of the solution procedure: how one layer's maps lead to the next one's (Yim et al., CVPR 2017)."""

from __future__ import annotations

import torch

from tinykd.distill.adapters import check_init
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


def flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the (N, C1, C2) mean over pixels of the products of two layers' maps (equation 1).

    Args:
        first, second: (N, C1, H, W) and (N, C2, H', W') float32 or float64; the larger map is pooled to the smaller.
    """
    first, second = match_size(first, second)
    pixels = first.shape[2] * first.shape[3]
    return torch.bmm(first.flatten(2), second.flatten(2).transpose(1, 2)) / pixels


def fsp_loss(student: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the squared distance of two flows, mean over images and their C1 C2 elements: a 0-d tensor (equation 2).

    Args:
        student: two layers' maps, (N, C1, H, W) and (N, C2, H', W'), any float type; lower ones are raised to float32.
        teacher: the same of the teacher, of any size but as many channels; no gradient flows into them.
    """
    with torch.autocast(student[0].device.type, enabled=False):
        own = flow(*in_float32(*student))  # type: ignore[arg-type]
        wanted = flow(*in_float32(*(x.detach() for x in teacher)))  # type: ignore[arg-type]
        return (own - wanted).square().mean()


class Fsp(FeatureMethod):
    """`fsp_loss` as a method, summed over neighbouring taps, all of one weight; stem and stages by default.

    The networks must have the same channels at every tap: they may differ in depth, not in width. Usual weight: 50
    beside labels 1, after an init stage of 30 epochs with this loss alone at weight 1.

    Args:
        student_taps, teacher_taps: at least two each.
        init_epochs, init_lr, joint: see `tinykd.distill.adapters.check_init`.
        init_weight: the weight in the init stage.

    Raises:
        ConfigError: an argument outside its range.
    """

    maps_only = True
    default_taps = ("@stem", "@stages")
    local = True

    def __init__(
        self,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
        init_epochs: int = 30,
        init_lr: float | None = None,
        init_weight: float = 1.0,
        joint: bool = True,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        check_init("fsp", init_epochs, init_lr, joint)
        require_number("fsp", "init_weight", init_weight, above=0)

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Check the channels.

        Raises:
            ConfigError: fewer than two taps, or a pair of unequal channels.
        """
        if len(student_shapes) < 2:
            raise ConfigError(f"fsp: needs at least 2 taps, whose products it compares, not {len(student_shapes)}")
        unequal = [
            f"student tap '{tap}' has {s[0]} and teacher tap '{other}' {t[0]}"
            for s, t, tap, other in zip(
                student_shapes, teacher_shapes, self.student_taps, self.teacher_taps, strict=True
            )
            if s[0] != t[0]
        ]
        if unequal:
            raise ConfigError(
                f"fsp: needs equal channels, but {'; '.join(unequal)}: choose models of the same width that differ in "
                "depth, other taps, or a method with adapters"
            )

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        pairs = self.pairs(step)
        return torch.stack(
            [
                fsp_loss((first[0], second[0]), (first[1], second[1]))
                for first, second in zip(pairs[:-1], pairs[1:], strict=True)
            ]
        ).sum()
