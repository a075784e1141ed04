"""What training minimises: cross-entropy with the labels plus the recipe's distillation losses, weighted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tinykd.config import DistillConfig, TrainConfig
from tinykd.distill import METHODS, build_method
from tinykd.distill.base import Context, DistillMethod, DistillStep, LabelLoss
from tinykd.errors import ConfigError
from tinykd.models.taps import record
from tinykd.models.teacher import Teacher
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.frozen import FrozenTeacher
from tinykd.train.stages import loss_names


@dataclass(frozen=True)
class Taught:
    """What the teacher made of a batch; empty without a teacher."""

    logits: torch.Tensor | None
    features: Mapping[str, torch.Tensor]


def make_methods(
    losses: Sequence[DistillConfig], context: Context, known: Collection[str] = ()
) -> dict[str, DistillMethod]:
    """Return the methods of a stage by the names of its losses, built and set up for these models.

    Losses whose names are `known` are left out: an earlier stage has made their methods.

    Raises:
        ConfigError: what any of them refuses, all of it in one error.
    """
    methods: dict[str, DistillMethod] = {}
    faults: list[str] = []
    for name, loss in zip(loss_names(losses), losses, strict=True):
        if name in known:
            continue
        try:
            method = build_method(loss.method, loss.args)
            method.setup(context)
            methods[name] = method
        except ConfigError as error:
            faults.append(f"{name}: {error}" if name not in str(error) else str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return methods


class Objective(nn.Module):
    """`label_weight * CE(student, labels) + sum_i weight_i * method_i`.

    A method of weight 0 is left out altogether, so that training is then plain training bit for bit. The teacher sees
    exactly the images that the student sees, without gradient and in eval mode; it is no submodule, so its weights are
    neither trained nor saved here.

    Args:
        config: of the stage.
        losses: the stage's distillation losses.
        methods: their methods by name, as `make_methods` returns them.
        teacher: for the methods that need one.
        init: use the methods' init losses.
        cluster: the processes that share each batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        losses: Sequence[DistillConfig] = (),
        methods: Mapping[str, DistillMethod] | None = None,
        teacher: Teacher | None = None,
        init: bool = False,
        cluster: Cluster = SOLO,
    ) -> None:
        super().__init__()
        self.label_weight = config.label_weight
        self.label_loss = LabelLoss(config.label_smoothing, config.temperature)
        self.epochs = config.epochs
        self.init = init
        self.cluster = cluster
        self.losses = [loss for loss in losses if loss.weight > 0]
        names = loss_names(self.losses)
        self.methods = nn.ModuleDict({name: (methods or {})[name] for name in names})
        needed = any(METHODS[loss.method].needs_teacher or METHODS[loss.method].generations for loss in self.losses)
        self._teacher = [teacher] if teacher is not None and needed else []
        self._frozen: FrozenTeacher | None = None
        self.student_taps = _all_taps(self.methods, "student_taps")
        self.teacher_taps = _all_taps(self.methods, "teacher_taps")
        self.needs_input_grad = any(method.needs_input_grad for method in self._each())
        self.turns = max([1, *(method.turns for method in self._each())])
        self.part_names = (["labels"] if self.label_weight > 0 else []) + names
        """Names of the parts that `forward` returns, in order."""

    def networks(self) -> nn.ModuleList:
        """Return the methods whose weights are averaged like the student's: those with networks of their own."""
        return nn.ModuleList(method for method in self._each() if method.averaged)

    def _each(self) -> list[DistillMethod]:
        return list(self.methods.values())  # type: ignore[arg-type]

    def _apply(self, fn: Any, recurse: bool = True) -> Objective:
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, when a method needs it."""
        return self._teacher[0] if self._teacher else None

    def teach(self, images: torch.Tensor) -> Taught:
        """Return what the teacher makes of the images; part of the graph only for methods that differentiate it."""
        if self.teacher is None:
            return Taught(None, {})
        if not self.needs_input_grad:
            if self._frozen is None:
                self._frozen = FrozenTeacher(self.teacher, self.teacher_taps)
            return Taught(*self._frozen(images))
        with record(self.teacher.model, self.teacher_taps) as features:
            logits = self.teacher(images)
        return Taught(logits, features)

    def forward(self, step: DistillStep) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the loss, a 0-d float32 tensor, and its parts (detached, before their weights) as in `part_names`.

        The step holds this process's own images; losses that need the whole batch gather it from all processes.
        """
        terms: list[torch.Tensor] = []
        parts: list[torch.Tensor] = []
        if self.label_weight > 0 and step.turn == 0:
            labels_loss = step.cross_entropy(step.student_logits)
            parts.append(labels_loss.detach())
            terms.append(labels_loss if self.label_weight == 1 else self.label_weight * labels_loss)
        whole = None
        for method, config in zip(self._each(), self.losses, strict=True):
            if step.turn >= method.turns:
                continue
            seen = step
            if not method.local:
                whole = whole or self._gather(step)
                seen = whole
            loss = method.init_loss(seen) if self.init else method(seen)
            parts.append(loss.detach())
            terms.append(self._weight(config, step.epoch) * loss)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, parts

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return what the methods have to tell beside their losses: "<name>_<figure>" -> 0-d tensor."""
        with torch.no_grad():
            return {
                f"{name}_{key}": value
                for name, method in zip(self.methods, self._each(), strict=True)
                for key, value in method.figures(step).items()
            }

    def _weight(self, config: DistillConfig, epoch: float) -> float:
        weight = config.weight
        if config.weight_end is not None:
            weight += (config.weight_end - config.weight) * min(epoch / self.epochs, 1.0)
        if config.warmup_epochs > 0:
            weight *= min(epoch / config.warmup_epochs, 1.0)
        return weight

    def _gather(self, step: DistillStep) -> DistillStep:
        """Return the step of all processes together."""
        gather = self.cluster.gather
        if self.cluster.size == 1:
            return step
        return replace(
            step,
            images=gather(step.images),
            labels=gather(step.labels),
            student_logits=gather(step.student_logits),
            teacher_logits=None if step.teacher_logits is None else gather(step.teacher_logits),
            student_features={tap: gather(value) for tap, value in step.student_features.items()},
            teacher_features={tap: gather(value) for tap, value in step.teacher_features.items()},
            index=None if step.index is None else gather(step.index),
            other_labels=None if step.other_labels is None else gather(step.other_labels),
        )


def _all_taps(methods: nn.ModuleDict, side: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for method in methods.values() for tap in getattr(method, side)))
