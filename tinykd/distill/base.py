"""What every distillation method receives, builds and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.taps import resolve_taps, tap_shapes

if TYPE_CHECKING:
    from tinykd.models.load import ModelSpec

Taps = str | Sequence[str]
Batch = tuple[torch.Tensor, torch.Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LabelLoss:
    """The cross-entropy with the labels, as the recipe wants it.

    Attributes:
        smoothing: share of the target that is spread evenly over the classes.
        temperature: the logits are divided by it (defensive distillation); 1 elsewhere.
    """

    smoothing: float = 0.0
    temperature: float = 1.0

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        other_labels: torch.Tensor | None = None,
        share: torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Return the mean loss, or (N,) losses for reduction "none"; with mixup, `share` of it is for `labels`."""
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1:
            scaled = scaled / self.temperature
        loss = F.cross_entropy(scaled, labels, label_smoothing=self.smoothing, reduction=reduction)
        if other_labels is None or share is None:
            return loss
        other = F.cross_entropy(scaled, other_labels, label_smoothing=self.smoothing, reduction=reduction)
        return share * loss + (1 - share) * other


@dataclass(frozen=True)
class DistillStep:
    """What is known of one training step, all on one device.

    Attributes:
        images: (N, C, H, W) float32, augmented and normalised; student and teacher saw the same ones.
        labels: (N,) int64; with mixup those of the first image of each pair.
        student_logits: (N, K), with gradient.
        teacher_logits: (N, K), without gradient; None when the recipe has no teacher.
        student_features: tap -> tensor with gradient, for the taps that the method asked for.
        teacher_features: the same for the teacher, without gradient unless the method asks for one.
        index: (N,) int64, which images of the training split these are.
        other_labels: (N,) int64 labels of the second image of each mixed pair; None without mixup.
        share: 0-d, the first image's part of each mixed pair; None without mixup.
        epoch: epochs done since the stage began, with fraction.
        epochs: epochs of the stage.
        turn: which of the method's `turns` this is.
        generator: for random draws; its state is part of the checkpoint.
        label_loss: the recipe's cross-entropy.
        run_student, run_teacher: map images (N, C, H, W) to logits, for methods that need another forward pass.
    """

    images: torch.Tensor
    labels: torch.Tensor
    student_logits: torch.Tensor
    teacher_logits: torch.Tensor | None = None
    student_features: Mapping[str, torch.Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, torch.Tensor] = field(default_factory=dict)
    index: torch.Tensor | None = None
    other_labels: torch.Tensor | None = None
    share: torch.Tensor | None = None
    epoch: float = 0.0
    epochs: int = 1
    turn: int = 0
    generator: torch.Generator | None = None
    label_loss: LabelLoss = LabelLoss()
    run_student: Callable[[torch.Tensor], torch.Tensor] | None = None
    run_teacher: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def hard_labels(self) -> torch.Tensor:
        """(N,) int64: with mixup, the label that has the larger share; else the labels."""
        if self.other_labels is None or self.share is None:
            return self.labels
        return torch.where(self.share >= 0.5, self.labels, self.other_labels)

    def cross_entropy(self, logits: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Return the recipe's cross-entropy of any (N, K) logits with this step's labels: 0-d, or (N,) for "none"."""
        return self.label_loss(logits, self.labels, self.other_labels, self.share, reduction)


@dataclass(frozen=True)
class ModelView:
    """A model as a method sees it before training: where its taps are and which shapes come out of them.

    Attributes:
        name: what errors call it, "student resnet8".
        module: the model; paths are relative to it.
        input_shape: (C, H, W).
    """

    name: str
    module: nn.Module
    input_shape: Shape

    def resolve(self, taps: Taps) -> tuple[str, ...]:
        """Return the taps written out as `path:input` or `path:output`.

        Raises:
            ConfigError: a tap that the model does not have.
        """
        return resolve_taps(self.module, taps, self.name)

    def shapes(self, taps: Taps) -> dict[str, Shape]:
        """Return resolved tap -> shape without the batch dimension: (C, H, W) or (D,)."""
        resolved = self.resolve(taps)
        found = tap_shapes(self.module, resolved, self.input_shape)
        return {tap: found[tap] for tap in resolved}


@dataclass(frozen=True)
class Context:
    """What a method may know before training.

    Attributes:
        student: the plain student, with the weights it starts from.
        teacher: the teacher, or None.
        num_classes: K.
        labels: (M,) int64 labels of the training split, in the order of `DistillStep.index`.
        seed: the training's seed.
        build: returns fresh models of the registry by name and arguments, for this data set; for methods with peers.
    """

    student: ModelView
    teacher: ModelView | None
    num_classes: int
    labels: torch.Tensor
    seed: int = 0
    build: Callable[..., nn.Module] | None = None


class DistillMethod(nn.Module):
    """A loss that a recipe can add to the cross-entropy with the labels.

    `setup(context)` is called once, before any training: it builds adapters and raises ConfigError for a pair of models
    that the method cannot match. `forward(step)` returns a 0-d float32 tensor, computed in float32 whatever precision
    the models run in. Its weight is not its own business: the recipe's `weight` is applied outside. Parameters and
    buffers of the module (adapters, memories) are trained, clipped and saved together with the student and are never
    exported.
    """

    student_taps: tuple[str, ...] = ()
    """Resolved taps of the student that `forward` reads; known after `setup`."""
    teacher_taps: tuple[str, ...] = ()
    """The same for the teacher."""
    local: ClassVar[bool] = False
    """With several processes: True computes the loss on each one's own images and averages (right for means over images
    and for methods that run models themselves); False gathers logits and features first (right for relations)."""
    averaged: ClassVar[bool] = False
    """With `train.ema`: average the method's weights like the student's, and end with the averages. For methods with
    networks that run beside the student (peers, branches, exits)."""
    needs_input_grad: bool = False
    """The step's images must require a gradient, and the teacher's forward pass must be part of the graph."""
    turns: int = 1
    """Optimizer steps for each batch; `DistillStep.turn` says which one it is."""

    def setup(self, context: Context) -> None:
        """Build what depends on the models.

        Raises:
            ConfigError: the method cannot match these models.
        """

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d float32 tensor."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def init_loss(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of the method's own init stage, for methods that have one."""
        return self(step)

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return 0-d tensors worth a curve beside the loss (looked at once an epoch, without gradient)."""
        return {}

    def results(self, student: nn.Module, batches: Callable[[], Iterator[Batch]]) -> dict[str, float]:
        """Return test accuracies (0..1) and the like of networks beside the student: peers, branches, exits.

        Args:
            student: trained, in eval mode.
            batches: gives the test split's (images, labels) as the student is fed them.
        """
        return {}

    def save(self, folder: Path, student: nn.Module, spec: ModelSpec) -> list[str]:
        """Write networks beside the student that are worth exporting below `folder`; return their file names."""
        return []


class FeatureMethod(DistillMethod):
    """A method that compares taps of student and teacher pair by pair.

    Args:
        student_taps, teacher_taps: module paths or names (see `tinykd.models.taps`); None takes `default_taps`. With
            several each, they are paired in order; with defaults of unequal number, the last ones are paired.
    """

    default_taps: ClassVar[str | tuple[str, ...]] = "@stages"
    default_teacher_taps: ClassVar[str | tuple[str, ...] | None] = None
    """The teacher's, where they differ."""
    maps_only: ClassVar[bool] = False
    """Whether taps must give (C, H, W) maps."""

    def __init__(self, student_taps: Taps | None = None, teacher_taps: Taps | None = None) -> None:
        super().__init__()
        self.wanted_taps = student_taps, teacher_taps

    def setup(self, context: Context) -> None:
        """Resolve the taps and hand the shapes of each pair to `build`.

        Raises:
            ConfigError: no teacher, a tap that does not exist or gives no map, unequal numbers of taps, or what `build`
                refuses.
        """
        if context.teacher is None:
            raise ConfigError("needs a teacher")
        views = context.student, context.teacher
        defaults = self.default_taps, self.default_teacher_taps or self.default_taps
        resolved = [
            view.resolve(default if wanted is None else wanted)
            for view, wanted, default in zip(views, self.wanted_taps, defaults, strict=True)
        ]
        if len(resolved[0]) != len(resolved[1]):
            if self.wanted_taps != (None, None):
                raise ConfigError(
                    f"{len(resolved[0])} student taps but {len(resolved[1])} teacher taps: they are compared in pairs"
                )
            count = min(len(taps) for taps in resolved)
            resolved = [taps[-count:] for taps in resolved]
        self.student_taps, self.teacher_taps = resolved
        shapes = [view.shapes(taps) for view, taps in zip(views, resolved, strict=True)]
        if self.maps_only:
            for view, found in zip(views, shapes, strict=True):
                require_maps(view.name, found)
        self.build(
            [shapes[0][tap] for tap in self.student_taps], [shapes[1][tap] for tap in self.teacher_taps], context
        )

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make adapters for pairs of these shapes (no batch dimension).

        Raises:
            ConfigError: a pair that the method cannot match.
        """

    def pairs(self, step: DistillStep) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (student, teacher) features in the order of the taps; the teacher's are detached."""
        return [
            (step.student_features[s], step.teacher_features[t].detach())
            for s, t in zip(self.student_taps, self.teacher_taps, strict=True)
        ]


def in_float32(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors in float32, or in float64 where they are float64."""
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)


def match_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average-pool the larger of two (N, C, H, W) maps to the height and width of the smaller."""
    height, width = (min(s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return tuple(  # type: ignore[return-value]
        x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width)) for x in (student, teacher)
    )


def unit_vectors(x: torch.Tensor, dim: int = 1, least: float = 1e-8) -> torch.Tensor:
    """Return `x` divided by its L2 norm along `dim`.

    Vectors not longer than `least` have no direction: they become zeros without a gradient, where a division by a
    clamped norm would have one of up to 1 / least.
    """
    squared = x.square().sum(dim=dim, keepdim=True)
    has_direction = squared > least**2
    return torch.where(has_direction, x * torch.where(has_direction, squared, 1.0).rsqrt(), 0.0)


def require_maps(name: str, shapes: Mapping[str, Shape]) -> None:
    """Raise ConfigError unless every tap (tap -> shape) of the model `name` gives a (C, H, W) map."""
    for tap, shape in shapes.items():
        if len(shape) != 3:
            raise ConfigError(f"{name} tap '{tap}' gives {shape}, but a (C, H, W) map is needed")


def require_number(
    method: str, name: str, value: object, *, above: float | None = None, least: float | None = None
) -> None:
    """Raise ConfigError unless `value` is a number above `above` and at least `least`."""
    limit = f" above {above:g}" if above is not None else f" of at least {least:g}" if least is not None else ""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (above is not None and not value > above)
        or (least is not None and not value >= least)
    ):
        raise ConfigError(f"{method}: {name} must be a number{limit}, not {value!r}")


def require_integer(method: str, name: str, value: object, *, least: int) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{method}: {name} must be a whole number of at least {least}, not {value!r}")


def require_choice(method: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{method}: {name} must be one of {', '.join(choices)}, not {value!r}")


def require_teacher_logits(step: DistillStep) -> torch.Tensor:
    """Return the teacher's logits, detached.

    Raises:
        ValueError: the step has none, or their shape differs from the student's.
    """
    if step.teacher_logits is None:
        raise ValueError("this method needs teacher logits, and the step has none")
    if step.teacher_logits.shape != step.student_logits.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(step.teacher_logits.shape)}, "
            f"student logits {tuple(step.student_logits.shape)}: both need the same classes"
        )
    return step.teacher_logits.detach()
