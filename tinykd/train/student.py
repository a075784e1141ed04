"""The student's training: its stages one after another, and its generations where a method asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinykd.artifact import write_json
from tinykd.config import DistillConfig, Recipe
from tinykd.distill import METHODS
from tinykd.distill.base import Context, DistillMethod, ModelView
from tinykd.distill.networks import mean_probabilities
from tinykd.errors import ArtifactError, ConfigError
from tinykd.models import build_model
from tinykd.models.load import STUDENT, ModelSpec, load_model, save_model
from tinykd.models.teacher import Teacher
from tinykd.train.checkpoint import load_checkpoint, save_checkpoint
from tinykd.train.journal import METRICS
from tinykd.train.loop import CHECKPOINT, FitResult, evaluate, fit
from tinykd.train.netaug import NetAug, check_netaug
from tinykd.train.netaug_plan import with_widths
from tinykd.train.objective import Objective, make_methods
from tinykd.train.place import Place
from tinykd.train.regularized import check_regularizer, regularize
from tinykd.train.stages import TASK, Stage, list_stages, loss_names
from tinykd.train.teach import data_spec

STATE = "state.safetensors"
GENERATION = "generation.json"


@dataclass(frozen=True)
class TrainedStudent:
    """A student, how its last stage went, and what its methods tell beside.

    `results` are test accuracies of networks beside the student; `files` are written below the training's folder.
    """

    fitted: FitResult
    spec: ModelSpec
    seconds: float
    results: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def check_recipe(recipe: Recipe, place: Place) -> None:
    """Set up every stage with fresh models, so that what cannot work is known before anything is trained.

    Raises:
        ConfigError: all that is wrong with taps, adapters and pairs of models, in one error.
    """
    with torch.random.fork_rng(devices=[]):
        student_spec = data_spec(recipe.student.model, recipe.student.args, place.dataset)
        student = student_spec.build()
        teacher = None
        if recipe.teacher is not None:
            spec = data_spec(recipe.teacher.model, recipe.teacher.args, place.dataset)
            teacher = Teacher(spec.build())
        faults = [
            fault for stage in list_stages(recipe) for fault in _stage_faults(stage, recipe, student, teacher, place)
        ]
    if faults:
        faults = list(dict.fromkeys(faults))
        title = f"recipe '{recipe.name}' has {len(faults)} fault{'s' if len(faults) != 1 else ''}:"
        raise ConfigError("\n".join([title, *(f"  {fault}" for fault in faults)]), "Nothing was started.")


def _stage_faults(
    stage: Stage, recipe: Recipe, student: nn.Module, teacher: Teacher | None, place: Place
) -> Iterator[str]:
    context = make_context(recipe, student, teacher, place)
    methods: dict[str, DistillMethod] = {}
    for check in (
        lambda: methods.update(make_methods(stage.losses, context)),
        lambda: check_regularizer(recipe.regularize, context.student),
        lambda: check_netaug(recipe, student, methods) if stage.name == TASK else None,
    ):
        try:
            check()
        except ConfigError as error:
            yield from str(error).splitlines()
    if isinstance(stage.trains, tuple):
        known = {name for name, _ in student.named_modules()}
        yield from (
            f"stage {stage.name}: student {recipe.student.model} has no module '{path}'"
            for path in stage.trains
            if path not in known
        )


def make_context(recipe: Recipe, student: nn.Module, teacher: Teacher | None, place: Place, seed: int = 0) -> Context:
    """Return what the methods may know of these models."""
    dataset = place.dataset
    shape = (dataset.channels, dataset.resolution, dataset.resolution)

    def build(model: str, **args: Any) -> nn.Module:
        return build_model(model, len(dataset.classes), dataset.resolution, dataset.channels, **args)

    teacher_name = recipe.teacher.model if recipe.teacher else recipe.student.model
    return Context(
        student=ModelView(f"student {recipe.student.model}", student, shape),
        teacher=None if teacher is None else ModelView(f"teacher {teacher_name}", teacher.model, shape),
        num_classes=len(dataset.classes),
        labels=torch.from_numpy(dataset.train.labels).long(),
        seed=seed,
        build=build,
    )


def train_student(recipe: Recipe, teacher: Teacher | None, folder: Path, place: Place) -> TrainedStudent:
    """Train the student of a recipe into `folder`, in generations where a method asks for them.

    Raises:
        ConfigError, ArtifactError, StopRequested: see `tinykd.train.loop.fit`.
    """
    generations = max((_generations(loss) for loss in recipe.distill if loss.weight > 0), default=0)
    if not generations:
        return _train_once(recipe, teacher, folder, place, recipe.train.seed, f"student {recipe.student.model}")
    return _train_generations(recipe, teacher, folder, place, generations)


def _generations(loss: DistillConfig) -> int:
    row = METHODS[loss.method]
    return {**row.args, **loss.args}["generations"] if row.generations else 0


def _train_generations(
    recipe: Recipe, teacher: Teacher | None, folder: Path, place: Place, generations: int
) -> TrainedStudent:
    """Train a first student on the labels, unless a teacher is given, and then each generation from the one before.

    Every generation starts from fresh weights and a seed of its own. All but the last are kept in `generation-<n>/`, so
    that a training that was stopped goes on in the generation it was in.
    """
    accuracies: list[float | None] = []
    members: list[nn.Module] = []
    seconds, files = 0.0, []
    for generation in range(0 if teacher is None else 1, generations + 1):
        own = recipe if generation else _plain(recipe)
        seed = recipe.train.seed + _GENERATION_STRIDE * generation
        title = f"student {recipe.student.model}, generation {generation} of {generations}"
        if generation == generations:
            trained = _train_once(own, teacher, folder, place, seed, title)
            model, spent = trained.fitted.model, trained.seconds
        else:
            name = f"generation-{generation}"
            model, spent = _keep_generation(own, teacher, folder / name, place, seed, title)
            files += [f"{name}/{file}" for file in (STUDENT, METRICS)]
        seconds += spent
        accuracies.append(evaluate(model, place.test, place.augment))
        if generation:
            members.append(model)
        teacher = Teacher(model)
    results = {
        **trained.results,
        "generations_top1": accuracies,
        "ensemble_top1": evaluate(_Ensemble(members), place.test, place.augment),
    }
    return TrainedStudent(trained.fitted, trained.spec, seconds, results, [*files, *trained.files])


_GENERATION_STRIDE = 1_000_003
"""Between the seeds of generations, far from the neighbouring numbers that recipes use."""


def _plain(recipe: Recipe) -> Recipe:
    """Return the recipe of a student that learns from the labels alone."""
    train = recipe.train.model_copy(update={"label_weight": 1.0})
    return recipe.model_copy(update={"distill": [], "stages": [], "train": train})


def _keep_generation(
    recipe: Recipe, teacher: Teacher | None, folder: Path, place: Place, seed: int, title: str
) -> tuple[nn.Module, float]:
    """Return the model of a generation that is not the last, and its training time; a finished one is loaded.

    Raises:
        ArtifactError: a finished one that is broken, and what `tinykd.train.loop.fit` raises.
    """
    done, facts = folder / STUDENT, folder / GENERATION
    if done.is_file():
        model, _ = load_model(done)
        try:
            seconds = float(json.loads(facts.read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{facts} cannot be read: {error}", f"Delete {folder} to train it again.") from error
        return model.to(place.device), seconds
    trained = _train_once(recipe, teacher, folder, place, seed, title)
    if place.cluster.leads:
        write_json(facts, {"seed": seed, "seconds": trained.seconds})
        save_model(done, trained.fitted.model, trained.spec)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    place.cluster.wait()
    return trained.fitted.model, trained.seconds


class _Ensemble(nn.Module):
    """The mean of its members' probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_probabilities([member(x) for member in self.members])


def _train_once(
    recipe: Recipe, teacher: Teacher | None, folder: Path, place: Place, seed: int, title: str
) -> TrainedStudent:
    """Go through the stages; finished ones are loaded, the one under way goes on from its checkpoint."""
    torch.manual_seed(seed)
    spec = data_spec(recipe.student.model, recipe.student.args, place.dataset)
    model = spec.build()
    stages = list_stages(recipe)
    methods = _make_all(stages, make_context(recipe, model, teacher, place, seed))
    seconds = 0.0
    for number, stage in enumerate(stages):
        is_task = stage.name == TASK
        here = folder if is_task else folder / "stages" / stage.name
        finished = here / STATE
        if not is_task and (state := load_checkpoint(finished)) is not None:
            model.load_state_dict(state.group("student"))
            for name, method in methods.items():
                method.load_state_dict(state.group(f"method-{name}"))
            seconds += state.facts["seconds"]
            continue
        torch.manual_seed(seed + number)
        config = stage.config.model_copy(update={"seed": seed})
        passes = None
        if is_task and recipe.netaug is not None:
            passes = NetAug(with_widths(recipe.netaug, recipe.student.model), config, place)
        fitted = fit(
            model,
            Objective(config, stage.losses, methods, teacher, stage.init, place.cluster),
            place.dataset,
            place.augment,
            config,
            folder=here,
            title=title if is_task else f"{title}, stage {stage.name}",
            progress=place.progress,
            device=place.device,
            passes=regularize(passes, recipe.regularize, config.epochs, place.cluster),
            trains=stage.trains,
            cluster=place.cluster,
        )
        seconds += fitted.seconds
        model = fitted.model
        if not is_task:
            if place.cluster.leads:
                groups = {"student": model.state_dict()}
                groups.update({f"method-{name}": method.state_dict() for name, method in methods.items()})
                save_checkpoint(finished, groups, {"seconds": fitted.seconds})
                (here / CHECKPOINT).unlink(missing_ok=True)
            place.cluster.wait()
    results, files = _tell(methods, stages[-1], fitted.model, spec, folder, place)
    return TrainedStudent(fitted, spec, seconds, results, files)


def _make_all(stages: tuple[Stage, ...], context: Context) -> dict[str, DistillMethod]:
    """Return the methods of all stages by name; a name that comes again is the same method, with what it learned."""
    methods: dict[str, DistillMethod] = {}
    for stage in stages:
        methods.update(make_methods(stage.losses, context, known=methods))
    return methods


def _tell(
    methods: dict[str, DistillMethod], stage: Stage, student: nn.Module, spec: ModelSpec, folder: Path, place: Place
) -> tuple[dict[str, Any], list[str]]:
    batches = partial(place.test.batches, place.augment)
    results: dict[str, Any] = {}
    files: list[str] = []
    for name in loss_names(stage.losses):
        method = methods[name].eval()
        with torch.no_grad():
            results.update({f"{name}_{key}": value for key, value in method.results(student, batches).items()})
        if place.cluster.leads:
            files += method.save(folder, student, spec)
    return results, files
