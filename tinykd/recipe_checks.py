"""What a recipe's fields cannot tell one by one: names that must exist, arguments, and settings that contradict.

Every check returns faults as text, each with its place in the recipe, so that all of them are told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinykd.data import DATASETS
from tinykd.distill import METHODS, explain_unknown
from tinykd.errors import nearest
from tinykd.models import find_entry, model_names

if TYPE_CHECKING:
    from tinykd.config import DistillConfig, Recipe


def _check_args(where: str, args: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> list[str]:
    return [
        f"{where}.args.{key}: '{owner}' has no such argument.{nearest(key, known)} Known: {', '.join(known) or 'none'}"
        for key in args
        if key not in known
    ]


def _check_model(raw: Any, section: str) -> list[str]:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("model"), str):
        return []
    name = raw["model"]
    entry = find_entry(name)
    if entry is None:
        return [f"{section}.model: there is no model '{name}'.{nearest(name, model_names())} See `tinykd list models`"]
    if section == "student" and entry.role != "student":
        students = ", ".join(model_names("student"))
        return [f"student.model: '{name}' is a teacher and cannot go on a microcontroller. Students: {students}"]
    if section == "student" and entry.derived:
        whole = name.partition("@")[0]
        return [f"student.model: '{name}' is a part of {whole}; train that with method 'byot', which makes its exits"]
    args = raw.get("args")
    return _check_args(section, args, entry.args, name) if isinstance(args, Mapping) and not entry.open_args else []


def complete_student(raw: Any) -> list[str]:
    """Give a student the arguments without which it could not go onto a microcontroller; return those that differ."""
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), str):
        return []
    entry, args = find_entry(raw["model"]), raw.get("args", {})
    if entry is None or not entry.student_args or not isinstance(args, Mapping):
        return []
    raw["args"] = {**entry.student_args, **args}
    return [
        f"student.args.{key}: {args[key]!r} is for teachers; a microcontroller can run '{raw['model']}' with {needed!r}"
        for key, needed in entry.student_args.items()
        if args.get(key, needed) != needed
    ]


def cross_check(raw: Mapping[str, Any], recipe: Recipe | None) -> list[str]:
    """Return the faults that single fields cannot show. Names are checked on the raw values, so that a fault
    elsewhere hides none of them."""
    faults: list[str] = []
    data = raw.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("name"), str) and data["name"] not in DATASETS:
        name = data["name"]
        faults.append(
            f"data.name: there is no data set '{name}'.{nearest(name, DATASETS)} Known: {', '.join(DATASETS)}"
        )
    for section in ("student", "teacher"):
        faults += _check_model(raw.get(section), section)
    faults += _check_losses(raw.get("distill"), "distill", raw)
    stages = raw.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, Mapping):
            faults += _check_losses(stage.get("distill"), f"stages.{index}.distill", raw)
    return faults + (_check_values(recipe) + _check_stages(recipe) if recipe is not None else [])


def _check_losses(losses: Any, section: str, raw: Mapping[str, Any]) -> list[str]:
    faults: list[str] = []
    for index, loss in enumerate(losses if isinstance(losses, list) else []):
        method = loss.get("method") if isinstance(loss, Mapping) else None
        if not isinstance(method, str):
            continue
        where = f"{section}.{index}"
        row = METHODS.get(method)
        if row is None:
            known = ", ".join(METHODS)
            faults.append(f"{where}.method: {explain_unknown(method)} Known: {known}")
            continue
        if isinstance(loss.get("args"), Mapping):
            faults += _check_args(where, loss["args"], row.args, method)
        if row.needs_teacher and raw.get("teacher") is None:
            faults.append(f"{where}.method: '{method}' needs a teacher, but the recipe has no `teacher` section")
    return faults


def _check_stages(recipe: Recipe) -> list[str]:
    """Return what is wrong between the stages: names that come twice, stages without a loss, one loss in two shapes."""
    faults: list[str] = []
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names) or "task" in names:
        faults.append(f"stages: each needs a name of its own other than 'task', not {', '.join(names)}")
    shapes = {loss.name or loss.method: (loss.method, loss.args) for loss in recipe.distill}
    for place, stage in enumerate(recipe.stages):
        for index, loss in enumerate(stage.distill):
            name = loss.name or loss.method
            row = METHODS.get(loss.method)
            if row is not None and row.generations:
                faults.append(
                    f"stages.{place}.distill.{index}: '{loss.method}' trains in generations; it belongs into `distill`"
                )
            if shapes.setdefault(name, (loss.method, loss.args)) != (loss.method, loss.args):
                where = f"stages.{place}.distill.{index}"
                faults.append(f"{where}: '{name}' is another loss elsewhere; give one of them another `name`")
    for index, stage in enumerate(recipe.stages):
        if stage.label_weight == 0 and not any(loss.weight > 0 for loss in stage.distill):
            faults.append(f"stages.{index}: label_weight is 0 and no loss has a weight above 0: nothing to learn from")
    given = [loss.name for loss in recipe.distill if loss.name]
    if len(set(given)) < len(given):
        faults.append("distill: two losses have the same `name`")
    return faults


def _check_label_weight(where: str, label_weight: float, losses: list[DistillConfig]) -> list[str]:
    """Return a fault for each loss that takes the labels' place while they have a weight."""
    if label_weight == 0:
        return []
    return [
        f"{where}.label_weight: must be 0 beside '{loss.method}', which learns from the teacher alone, "
        f"not {label_weight:g}"
        for loss in losses
        if loss.weight > 0 and loss.method in METHODS and not METHODS[loss.method].with_labels
    ]


def _check_defensive(recipe: Recipe, loss: DistillConfig) -> list[str]:
    """Return where a recipe of defensive distillation does not have two equal models at one temperature."""
    teacher, student = recipe.teacher, recipe.student
    if loss.weight == 0 or teacher is None:
        return []
    faults: list[str] = []
    own, other = (
        {**(entry.args if (entry := find_entry(config.model)) else {}), **config.args} for config in (student, teacher)
    )
    if teacher.model != student.model or own != other:
        faults.append(
            f"teacher.model: 'defensive' needs a teacher that is the same model as the student, {student.model} {own}, "
            f"not {teacher.model} {other}"
        )
    temperature = {**METHODS[loss.method].args, **loss.args}["temperature"]
    if teacher.train is not None and teacher.train.temperature != temperature:
        faults.append(
            f"teacher.train.temperature: 'defensive' needs the teacher to learn at its own temperature, {temperature}, "
            f"not at {teacher.train.temperature:g}"
        )
    return faults


def _check_netaug(recipe: Recipe) -> list[str]:
    """Return what is wrong with the lists of factors and the schedule of network augmentation."""
    config, epochs = recipe.netaug, recipe.train.epochs
    if config is None:
        return []
    faults = [
        f"netaug.{key}: must start with 1 (the student itself) and rise to at most 8, not {factors}"
        for key, factors in (("width", config.width), ("expand", config.expand))
        if factors is not None and (factors[:1] != [1.0] or factors != sorted(set(factors)) or not factors[-1] <= 8)
    ]
    if config.width == config.expand == [1.0]:
        faults.append("netaug: width and expand hold nothing but 1: there is no wider network")
    for key in ("stop_width_epochs", "stop_expand_epochs", "stop_epochs"):
        if (getattr(config, key) or 0) > epochs:
            faults.append(f"netaug.{key}: {getattr(config, key)} is above train.epochs ({epochs})")
    return faults


def _check_values(recipe: Recipe) -> list[str]:
    faults: list[str] = []
    # A complete recipe, as a run keeps it, spells the default out.
    if recipe.export.search and recipe.export.method != type(recipe.export)().method:
        faults.append("export.method: `search` finds the method of each activation; leave one of them out")
    teacher = recipe.teacher
    trainings = [("train", recipe.train)]
    if teacher is not None:
        ready = teacher.model.startswith("timm:") and teacher.args.get("pretrained") is True
        if teacher.weights is None and teacher.train is None and not ready:
            faults.append("teacher: give `weights` (a file), `train` (how to train it first), or both")
        if (teacher.mean is None) != (teacher.std is None):
            faults.append("teacher: `mean` and `std` go together")
        for key, value in (("mean", teacher.mean), ("std", teacher.std)):
            if value is not None and (len(value) not in (1, 3) or (key == "std" and min(value) <= 0)):
                faults.append(
                    f"teacher.{key}: expected 1 or 3 numbers{' above 0' if key == 'std' else ''}, not {value}"
                )
        if teacher.train is not None:
            trainings.append(("teacher.train", teacher.train))
    for where, train in trainings:
        if train.warmup_epochs >= train.epochs and train.warmup_epochs > 0:
            faults.append(f"{where}.warmup_epochs: {train.warmup_epochs:g} is not below epochs ({train.epochs})")
        if train.schedule == "step" and not train.milestones:
            faults.append(f"{where}.milestones: schedule 'step' needs at least one epoch")
        if train.schedule != "step" and train.milestones:
            faults.append(f"{where}.milestones: only schedule 'step' uses them, but schedule is '{train.schedule}'")
        if train.milestones != sorted(set(train.milestones)):
            faults.append(f"{where}.milestones: must rise, not {train.milestones}")
        if train.nesterov and train.optimizer == "sgd" and train.momentum == 0:
            faults.append(f"{where}.nesterov: needs momentum above 0")
    faults += _check_netaug(recipe)
    faults += _check_label_weight("train", recipe.train.label_weight, recipe.distill)
    for index, stage in enumerate(recipe.stages):
        faults += _check_label_weight(f"stages.{index}", stage.label_weight, stage.distill)
    for losses in (recipe.distill, *(stage.distill for stage in recipe.stages)):
        faults += [fault for loss in losses if loss.method == "defensive" for fault in _check_defensive(recipe, loss)]
    if recipe.train.label_weight == 0 and not any(loss.weight > 0 for loss in recipe.distill):
        faults.append("train.label_weight: is 0 and no distillation loss has a weight above 0: nothing to learn from")
    if recipe.qat is not None:
        if recipe.qat.teacher == "teacher" and recipe.qat.weight > 0 and teacher is None:
            faults.append("qat.teacher: is 'teacher', but the recipe has no `teacher` section; 'self' needs none")
        if recipe.qat.weight == 0 and recipe.qat.label_weight == 0:
            faults.append("qat.weight: is 0 and so is qat.label_weight: nothing to learn from")
    entry = DATASETS.get(recipe.data.name)
    if recipe.data.resolution is not None and entry is not None and not entry.resizable:
        faults.append(f"data.resolution: '{recipe.data.name}' has a fixed resolution; only `folder` can change it")
    return faults
