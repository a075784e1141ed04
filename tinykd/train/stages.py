"""Which stages a recipe's training consists of, in order: pure data, decided before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tinykd.config import DistillConfig, Recipe, TrainConfig
from tinykd.distill import METHODS

TASK = "task"
"""Name of the last stage, which `train` and `distill` describe."""


@dataclass(frozen=True)
class Stage:
    """One call of the training loop.

    Attributes:
        name: its folder below RUN/train/stages; TASK for the last one, which writes into RUN/train itself.
        config: how the loop trains.
        losses: the distillation losses beside the labels; those of weight 0 are left out.
        init: use the methods' init losses.
        trains: "student" (and adapters), "methods" (adapters alone), or paths of the student's modules.
    """

    name: str
    config: TrainConfig
    losses: tuple[DistillConfig, ...]
    init: bool = False
    trains: Literal["student", "methods"] | tuple[str, ...] = "student"


def list_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe: its own, or else the init stages of its methods, and then the task."""
    stages = [_own_stage(recipe, index) for index in range(len(recipe.stages))]
    if not stages:
        stages = [stage for loss in recipe.distill if (stage := _init_stage(recipe, loss)) is not None]
    task_losses = tuple(loss for loss in recipe.distill if loss.weight > 0 and _is_joint(loss))
    return (*stages, Stage(TASK, recipe.train, task_losses))


def loss_names(losses: Sequence[DistillConfig]) -> list[str]:
    """Return what each loss is called: its own name, or its method's, with its place where that is there twice."""
    names = [loss.name or loss.method for loss in losses]
    return [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _own_stage(recipe: Recipe, index: int) -> Stage:
    own = recipe.stages[index]
    changes = {
        "epochs": own.epochs,
        "lr": recipe.train.lr if own.lr is None else own.lr,
        "weight_decay": recipe.train.weight_decay if own.weight_decay is None else own.weight_decay,
        "label_weight": own.label_weight,
    }
    losses = tuple(loss for loss in own.distill if loss.weight > 0)
    trains = tuple(own.trains) if isinstance(own.trains, list) else own.trains
    return Stage(own.name, _shorten(recipe.train, changes), losses, own.init, trains)


def _init_stage(recipe: Recipe, loss: DistillConfig) -> Stage | None:
    row = METHODS[loss.method]
    args = {**row.args, **loss.args}
    if loss.weight == 0 or not row.init or not args["init_epochs"]:
        return None
    changes = {"epochs": args["init_epochs"], "label_weight": 0.0}
    if args.get("init_lr"):
        changes["lr"] = args["init_lr"]
    weight = args.get("init_weight") or loss.weight
    plain = loss.model_copy(update={"weight": weight, "weight_end": None, "warmup_epochs": 0.0})
    trains: Literal["student", "methods"] = "student" if row.init == "student" else "methods"
    return Stage(f"init-{loss.name or loss.method}", _shorten(recipe.train, changes), (plain,), True, trains)


def _is_joint(loss: DistillConfig) -> bool:
    return bool({**METHODS[loss.method].args, **loss.args}.get("joint", True))


def _shorten(config: TrainConfig, changes: Mapping[str, object]) -> TrainConfig:
    """Return the configuration for another number of epochs; milestones belong to the task alone."""
    rest = {"schedule": "cosine", "milestones": [], "warmup_epochs": 0.0, "ema": 0.0, "eval_every": config.eval_every}
    return config.model_copy(update={**rest, **changes})
