"""Distillation methods: one file each, and the one registry of them. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinykd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tinykd.distill.base import DistillMethod


@dataclass(frozen=True)
class Method:
    """One row of `tinykd list methods`.

    Attributes:
        key: the name in a recipe.
        title: one line for people.
        matches: what of the student is compared with what of the teacher.
        paper: where the method comes from.
        stages: training stages it needs (1: joint with the labels).
        cost: extra work per training step.
        implementation: "module:class", imported when the method is used.
        args: the arguments a recipe may give, with their defaults.
        needs_teacher: False for methods in which the student teaches itself.
    """

    key: str
    title: str
    matches: str
    paper: str
    stages: int
    cost: str
    implementation: str
    args: Mapping[str, Any] = field(default_factory=dict)
    needs_teacher: bool = True


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method(
            key="kd",
            title="Knowledge distillation",
            matches="softened class probabilities (logits)",
            paper="Hinton, Vinyals, Dean, NeurIPS workshop 2014 (arXiv:1503.02531)",
            stages=1,
            cost="one teacher forward pass",
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
