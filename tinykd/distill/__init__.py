"""Distillation methods: one file each, and the one registry of them. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinykd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tinykd.distill.base import DistillMethod


AXES = ("logits", "features", "relations", "weights", "gradients", "sparsity", "self", "online")
"""What a method matches, as the survey literature groups them; the last two need no ready teacher."""


@dataclass(frozen=True)
class Method:
    """One row of `tinykd list methods`.

    Attributes:
        key: the name in a recipe.
        title: one line for people.
        axis: one of AXES.
        matches: what of the student is compared with what of the teacher.
        paper: where the method comes from.
        cost: extra work per training step.
        weight: the usual weight in a recipe, and what it goes with.
        implementation: "module:class", imported when the method is used.
        args: the arguments a recipe may give, with their defaults.
        needs_teacher: False for methods in which the student teaches itself.
        init: what an init stage of its own trains: "student" (all that the loss reaches), "method" (its adapters, the
            student stands still), or "" for none. Its length is the argument `init_epochs`; whether the method stays
            in the stages after it is the argument `joint`.
        generations: the student is trained several times, each one teaching the next.
    """

    key: str
    title: str
    axis: str
    matches: str
    paper: str
    cost: str
    weight: str
    implementation: str
    args: Mapping[str, Any] = field(default_factory=dict)
    needs_teacher: bool = True
    init: str = ""
    generations: bool = False

    @property
    def stages(self) -> str:
        """What the training consists of, in words."""
        if self.generations:
            return "generations"
        return {"": "1", "student": "init + task", "method": "adapters + task"}[self.init]


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method(
            key="kd",
            title="Knowledge distillation",
            axis="logits",
            matches="softened class probabilities",
            paper="Hinton, Vinyals, Dean, NeurIPS workshop 2014 (arXiv:1503.02531)",
            cost="teacher forward",
            weight="0.9, labels 0.1",
            implementation="tinykd.distill.kd:Kd",
            args={"temperature": 4.0},
        ),
    )
}


def build_method(key: str, args: Mapping[str, Any] | None = None) -> DistillMethod:
    """Return the loss module of the method `key`.

    Raises:
        ConfigError: unknown method or argument, or a value outside its range.
    """
    if key not in METHODS:
        raise ConfigError(f"there is no distillation method '{key}'.{nearest(key, METHODS)}")
    row = METHODS[key]
    for name in args or {}:
        if name not in row.args:
            raise ConfigError(f"method '{key}' has no argument '{name}'.{nearest(name, row.args)}")
    module, _, name = row.implementation.partition(":")
    return getattr(importlib.import_module(module), name)(**{**row.args, **(args or {})})
