"""Factor transfer: the teacher's features in its own words, and the student's translation (Kim et al., NeurIPS 2018).

arXiv:1802.04977. A paraphraser, a convolutional autoencoder on the teacher's last maps, is trained alone in an init
stage and then stands still; its code is the teacher's factor. A translator turns the student's maps into another
factor, and the two are compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.adapters import check_init
from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    match_size,
    require_choice,
    require_number,
    unit_vectors,
)

VARIANTS = ("paper", "repdistiller")
_SLOPE = 0.1


def ft_loss(student: torch.Tensor, teacher: torch.Tensor, variant: str = "paper") -> torch.Tensor:
    """Return the mean absolute difference of two factors, each divided by its L2 norm per image: a 0-d tensor.

    Variant "paper" (section 3.2, p = 1) compares whole factors: the mean is over images, channels and pixels. Variant
    "repdistiller", another loss of the same name in that library, first takes the mean of squares over the channels;
    its mean is over images and pixels. Neither depends on the scale of a factor.

    Args:
        student: (N, C, H, W), any float type; lower precisions are raised to float32.
        teacher: (N, C, H', W'); no gradient flows into it. The larger factor is pooled to the smaller.
        variant: one of VARIANTS.
    """
    with torch.autocast(student.device.type, enabled=False):
        factors = match_size(*in_float32(student, teacher.detach()))
        if variant == "repdistiller":
            factors = tuple(x.square().mean(dim=1) for x in factors)  # type: ignore[assignment]
        s, t = (unit_vectors(x.flatten(1)) for x in factors)
        return (s - t).abs().mean()


def _layers(kind: type[nn.Module], channels: tuple[int, int, int, int], norm: bool) -> nn.Sequential:
    """Return three 3x3 layers between these numbers of channels, each with leaky ReLU, and batch norm where wanted."""
    layers: list[nn.Module] = []
    for before, after in zip(channels[:-1], channels[1:], strict=True):
        layers += [kind(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def encoder(in_channels: int, factor_channels: int, norm: bool) -> nn.Sequential:
    """Return the network from (N, Cin, H, W) maps to (N, Cfactor, H, W) factors: translator, or paraphraser's half."""
    return _layers(nn.Conv2d, (in_channels, in_channels, factor_channels, factor_channels), norm)


class Paraphraser(nn.Module):
    """A convolutional autoencoder of (N, C, H, W) maps whose code has `rate` times as many channels."""

    def __init__(self, channels: int, factor_channels: int, norm: bool) -> None:
        super().__init__()
        self.encoder = encoder(channels, factor_channels, norm)
        self.decoder = _layers(nn.ConvTranspose2d, (factor_channels, factor_channels, channels, channels), norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction of `x`."""
        return self.decoder(self.encoder(x))


class Ft(FeatureMethod):
    """`ft_loss` of translated and paraphrased maps, summed over the pairs of taps; the last stage by default.

    Usual weights beside labels 1: 500 for variant "paper", 200 for "repdistiller". In the init stage the loss is the
    mean squared error of the paraphraser's reconstruction, with weight 1; afterwards nothing changes it.

    Args:
        variant: see `ft_loss`; the paraphraser has batch norm in "paper" only.
        rate: channels of a factor for each channel of the teacher's map.
        student_taps, teacher_taps: see `FeatureMethod`.
        init_epochs: of the init stage; with 0, and no stage of the recipe's own, the paraphraser stays random.
        init_lr: its learning rate; None is the recipe's.
        init_weight: the weight of the reconstruction.

    Raises:
        ConfigError: an argument outside its range.
    """

    maps_only = True
    default_taps = "@last"
    local = True

    def __init__(
        self,
        variant: str = "paper",
        rate: float = 0.5,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
        init_epochs: int = 30,
        init_lr: float | None = 0.01,
        init_weight: float = 1.0,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("ft", "variant", variant, VARIANTS)
        require_number("ft", "rate", rate, above=0)
        check_init("ft", init_epochs, init_lr)
        require_number("ft", "init_weight", init_weight, above=0)
        self.variant, self.rate = variant, float(rate)

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make a paraphraser and a translator for each pair."""
        sizes = [max(1, int(shape[0] * self.rate)) for shape in teacher_shapes]
        norm = self.variant == "paper"
        self.paraphrasers = nn.ModuleList(
            Paraphraser(shape[0], size, norm) for shape, size in zip(teacher_shapes, sizes, strict=True)
        )
        self.translators = nn.ModuleList(
            encoder(shape[0], size, norm=True) for shape, size in zip(student_shapes, sizes, strict=True)
        )

    def init_loss(self, step: DistillStep) -> torch.Tensor:
        """Return the paraphrasers' mean squared reconstruction error, a 0-d tensor."""
        self.paraphrasers.train(self.training)
        return self._reconstruction(step)

    def _reconstruction(self, step: DistillStep) -> torch.Tensor:
        terms = []
        with torch.autocast(step.images.device.type, enabled=False):
            for tap, paraphraser in zip(self.teacher_taps, self.paraphrasers, strict=True):
                (teacher,) = in_float32(step.teacher_features[tap].detach())
                terms.append(F.mse_loss(paraphraser(teacher), teacher))
        return torch.stack(terms).sum()

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        # Frozen: without gradient, and in eval mode so that running statistics stay, too.
        self.paraphrasers.eval()
        terms = []
        with torch.autocast(step.images.device.type, enabled=False):
            for pair, paraphraser, translator in zip(
                self.pairs(step), self.paraphrasers, self.translators, strict=True
            ):
                student, teacher = in_float32(*pair)
                assert isinstance(paraphraser, Paraphraser)
                with torch.no_grad():
                    factor = paraphraser.encoder(teacher)
                terms.append(ft_loss(translator(student), factor, self.variant))
        return torch.stack(terms).sum()

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return "reconstruction", the paraphrasers' error: far from 0 means that they were not trained long enough."""
        self.paraphrasers.eval()
        return {"reconstruction": self._reconstruction(step)}
