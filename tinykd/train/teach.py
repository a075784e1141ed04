"""The teacher of a run: found, read or trained, before the student starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinykd.artifact import sha256_file
from tinykd.config import Recipe, TeacherConfig
from tinykd.data.base import Dataset
from tinykd.distill import METHODS
from tinykd.errors import DataError
from tinykd.models.load import ModelSpec, load_model, save_model
from tinykd.models.teacher import Teacher, load_weights
from tinykd.train.loop import CHECKPOINT, fit
from tinykd.train.objective import Objective
from tinykd.train.place import Place
from tinykd.train.stages import list_stages

TEACHER = "teacher.safetensors"


@dataclass(frozen=True)
class ReadyTeacher:
    """A teacher ready for use, where its weights came from, and their SHA-256 when they were read from a file."""

    module: Teacher
    source: str
    sha256: str = ""


def get_teacher(recipe: Recipe, folder: Path, place: Place) -> ReadyTeacher | None:
    """Return the recipe's teacher: as trained before in `folder`, read from its weights, or trained now.

    None when the recipe has none or nothing needs it.

    Raises:
        DataError: its weights are missing or do not fit.
        StopRequested: see `tinykd.train.loop.fit`.
    """
    dataset, progress = place.dataset, place.progress
    config = recipe.teacher
    losses = [loss for stage in list_stages(recipe) for loss in stage.losses]
    in_qat = recipe.qat is not None and recipe.qat.teacher == "teacher" and recipe.qat.weight > 0
    if config is None or not (
        in_qat or any(METHODS[loss.method].needs_teacher or METHODS[loss.method].generations for loss in losses)
    ):
        return None
    spec = data_spec(config.model, config.args, dataset)
    levels = dataset.mean_level, dataset.std_level
    finished = folder / TEACHER
    if finished.is_file():
        model, saved = load_model(finished)
        if saved == spec:
            return ReadyTeacher(Teacher(model), "trained")
    weights = find_weights(config, recipe.data.root)
    if weights is not None:
        torch.manual_seed(0)
        model = spec.build()
        load_weights(model, weights)
        progress.note(f"teacher {config.model}: weights from {weights}")
        return ReadyTeacher(Teacher(model, *levels, config.mean, config.std), weights.name, sha256_file(weights))
    if config.train is None:
        if config.model.startswith("timm:"):
            return ReadyTeacher(Teacher(spec.build(), *levels, config.mean, config.std), config.model)
        raise DataError(
            f"teacher {config.model}: the weights file '{config.weights}' was not found",
            f"Put it into the folder that the environment variable TINYKD_DATA names "
            f"(now {os.environ.get('TINYKD_DATA') or 'not set'}), or add `teacher.train` to the recipe.",
        )
    torch.manual_seed(config.train.seed)
    fitted = fit(
        spec.build(),
        Objective(config.train, cluster=place.cluster),
        dataset,
        place.augment,
        config.train,
        folder=folder,
        title=f"teacher {config.model}",
        progress=progress,
        device=place.device,
        cluster=place.cluster,
    )
    if place.cluster.leads:
        save_model(finished, fitted.model, spec)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    place.cluster.wait()
    return ReadyTeacher(Teacher(fitted.model), "trained")


def find_weights(config: TeacherConfig, root: str | None) -> Path | None:
    """Return the teacher's weights file: as given, below `root`, or below TINYKD_DATA; None when it is nowhere."""
    if config.weights is None:
        return None
    name = Path(config.weights).expanduser()
    folders = [Path(), *(Path(place).expanduser() for place in (root, os.environ.get("TINYKD_DATA")) if place)]
    return next((path for folder in folders if (path := folder / name).is_file()), None)


def data_spec(model: str, args: dict[str, Any], dataset: Dataset) -> ModelSpec:
    """Return how the model is built and fed for a data set."""
    return ModelSpec(
        model=model,
        args=dict(args),
        num_classes=len(dataset.classes),
        resolution=dataset.resolution,
        in_channels=dataset.channels,
        mean_level=dataset.mean_level,
        std_level=dataset.std_level,
        classes=dataset.classes,
    )
