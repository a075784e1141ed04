"""The training stage: RUN/train from a recipe, resumable, and never done twice for the same recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import tinykd
from tinykd.artifact import MANIFEST, Manifest, read_manifest, sha256_file, write_bytes, write_json
from tinykd.config import Recipe, TeacherConfig
from tinykd.data import load_dataset
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset
from tinykd.errors import ArtifactError, ConfigError, DataError
from tinykd.models.count import count_macs, count_params
from tinykd.models.load import STUDENT, ModelSpec, load_model, save_model
from tinykd.models.teacher import Teacher, load_weights
from tinykd.train.loop import CHECKPOINT, METRICS, DeviceSplit, FitResult, evaluate, fit
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress

RECIPE = "recipe.yaml"
TEACHER = "teacher.safetensors"


def train(
    recipe: Recipe,
    run_dir: Path,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Manifest:
    """Train the teacher where needed, then the student, into `run_dir/train`.

    A finished training of the same recipe is returned at once; an unfinished one is continued. The folder gets
    `student.safetensors`, `recipe.yaml`, `metrics.jsonl`, `tensorboard/`, `teacher/` when one was trained, and
    `manifest.json` last.

    Args:
        recipe: the experiment.
        run_dir: the run's folder, made when missing.
        resume: False deletes `run_dir/train` and starts anew.
        progress: the display; None shows nothing.
        device: "cpu" or "cuda"; None takes the GPU when there is one.

    Returns:
        The manifest; `results` has top1_float and top1_val (0..1; top1_val None without validation images),
        teacher_top1, params, macs, epochs, seconds, steps_per_s, dataset and the image counts.

    Raises:
        ArtifactError: the folder holds the training of another recipe, is broken, or cannot be written.
        ConfigError, DataError: the recipe, the data or the teacher's weights do not work together.
        StopRequested: SIGINT or SIGTERM; the next call continues.
    """
    progress = progress or Progress()
    folder = Path(run_dir) / "train"
    if not resume and folder.exists():
        shutil.rmtree(folder)
    _check_same_recipe(folder, recipe)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, "train")
        progress.note(f"{folder} is already trained; --restart trains it again")
        return manifest
    place = _pick_device(device)
    dataset = load_dataset(recipe.data)
    for note in dataset.notes:
        progress.note(f"{dataset.name}: {note}")
    augment = Augment(recipe.data.augment, dataset.mean_level, dataset.std_level)
    student_spec = _spec(recipe.student.model, recipe.student.args, dataset)
    test = DeviceSplit(dataset.test, place)
    write_bytes(folder / RECIPE, recipe.to_yaml().encode())
    with _own_random_state(place):
        teacher = _get_teacher(recipe, dataset, augment, folder / "teacher", progress, place)
        teacher_top1 = evaluate(teacher.module.to(place), test, augment) if teacher else None
        torch.manual_seed(recipe.train.seed)
        objective = Objective(recipe.train, recipe.distill, teacher.module if teacher else None)
        fitted = fit(
            student_spec.build(),
            objective,
            dataset,
            augment,
            recipe.train,
            folder=folder,
            title=f"student {recipe.student.model}",
            progress=progress,
            device=place,
        )
    top1_float = evaluate(fitted.model, test, augment)
    save_model(folder / STUDENT, fitted.model, student_spec)
    shape = (student_spec.in_channels, student_spec.resolution, student_spec.resolution)
    results: dict[str, Any] = {
        "top1_float": top1_float,
        "top1_val": fitted.top1_val,
        "teacher_top1": teacher_top1,
        "teacher_model": recipe.teacher.model if recipe.teacher else None,
        "teacher_source": teacher.source if teacher else None,
        "teacher_params": count_params(teacher.module) if teacher else None,
        "teacher_macs": count_macs(teacher.module, shape) if teacher else None,
        "student_model": recipe.student.model,
        "params": count_params(fitted.model),
        "macs": count_macs(fitted.model, shape),
        "epochs": recipe.train.epochs,
        "seconds": round(fitted.seconds, 3),
        "steps_per_s": round(fitted.steps_per_s, 2),
        "dataset": dataset.name,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "num_test": len(dataset.test),
        "classes": list(dataset.classes),
        "resolution": student_spec.resolution,
        "in_channels": student_spec.in_channels,
        "mean_level": dataset.mean_level,
        "std_level": dataset.std_level,
        "notes": list(dataset.notes),
        "data_provenance": dataset.provenance,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
    }
    manifest = _finish(folder, recipe, results, teacher, dataset)
    reference = f", teacher {teacher_top1:.2%}" if teacher_top1 is not None else ""
    progress.finish(f"{recipe.name}: test accuracy {top1_float:.2%} on {len(dataset.test)} images{reference}")
    return manifest


def _finish(
    folder: Path, recipe: Recipe, results: dict[str, Any], teacher: _Taught | None, dataset: Dataset
) -> Manifest:
    (folder / CHECKPOINT).unlink(missing_ok=True)
    names = [STUDENT, RECIPE, METRICS, f"teacher/{TEACHER}", f"teacher/{METRICS}"]
    inputs = {"dataset": dataset.provenance.get("sha256", "")}
    if teacher is not None and teacher.sha256:
        inputs["teacher_weights"] = teacher.sha256
    manifest = Manifest(
        stage="train",
        inputs=inputs,
        outputs={name: sha256_file(folder / name) for name in names if (folder / name).is_file()},
        config=recipe.to_dict(),
        seed=recipe.train.seed,
        tools={"tinykd": tinykd.__version__, "torch": torch.__version__, "numpy": np.__version__},
        results=results,
    )
    write_json(folder / MANIFEST, manifest.to_dict())
    return manifest


@dataclass(frozen=True)
class _Taught:
    """A teacher ready for use, where its weights came from, and their SHA-256 when they were read from a file."""

    module: Teacher
    source: str
    sha256: str = ""


def _get_teacher(
    recipe: Recipe, dataset: Dataset, augment: Augment, folder: Path, progress: Progress, device: torch.device
) -> _Taught | None:
    config = recipe.teacher
    if config is None or not any(loss.weight > 0 for loss in recipe.distill):
        return None
    spec = _spec(config.model, config.args, dataset)
    levels = dataset.mean_level, dataset.std_level
    finished = folder / TEACHER
    if finished.is_file():
        model, saved = load_model(finished)
        if saved == spec:
            return _Taught(Teacher(model), "trained")
    weights = find_weights(config, recipe.data.root)
    if weights is not None:
        torch.manual_seed(0)
        model = spec.build()
        load_weights(model, weights)
        progress.note(f"teacher {config.model}: weights from {weights}")
        return _Taught(Teacher(model, *levels, config.mean, config.std), weights.name, sha256_file(weights))
    if config.train is None:
        if config.model.startswith("timm:"):
            return _Taught(Teacher(spec.build(), *levels, config.mean, config.std), config.model)
        raise DataError(
            f"teacher {config.model}: the weights file '{config.weights}' was not found",
            f"Put it into the folder that the environment variable TINYKD_DATA names "
            f"(now {os.environ.get('TINYKD_DATA') or 'not set'}), or add `teacher.train` to the recipe.",
        )
    torch.manual_seed(config.train.seed)
    fitted: FitResult = fit(
        spec.build(),
        Objective(config.train),
        dataset,
        augment,
        config.train,
        folder=folder,
        title=f"teacher {config.model}",
        progress=progress,
        device=device,
    )
    save_model(finished, fitted.model, spec)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return _Taught(Teacher(fitted.model), "trained")


def find_weights(config: TeacherConfig, root: str | None) -> Path | None:
    """Return the teacher's weights file: as given, below `root`, or below TINYKD_DATA; None when it is nowhere."""
    if config.weights is None:
        return None
    name = Path(config.weights).expanduser()
    folders = [Path(), *(Path(place).expanduser() for place in (root, os.environ.get("TINYKD_DATA")) if place)]
    return next((path for folder in folders if (path := folder / name).is_file()), None)


def _spec(model: str, args: dict[str, Any], dataset: Dataset) -> ModelSpec:
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


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that another recipe began, and say what differs."""
    path = folder / RECIPE
    if not path.is_file():
        return
    try:
        found = Recipe.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "Train again with --restart.") from error
    if found.digest() == recipe.digest():
        return
    old, new = _flatten(found.to_dict()), _flatten(recipe.to_dict())
    differing = [
        f"  {key}: there {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(("name", "description", "export"))
    ]
    state = "was trained" if (folder / MANIFEST).is_file() else "is being trained"
    raise ArtifactError(
        "\n".join([f"{folder} {state} with another recipe:", *differing]),
        "Choose another folder with --out, or replace what is there with --restart.",
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in _flatten(item, f"{prefix}{name}.").items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {k: v for index, item in enumerate(value) for k, v in _flatten(item, f"{prefix}{index}.").items()}
    return {prefix[:-1]: value}


def _pick_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train: device 'cuda' is asked for, but PyTorch sees no GPU", "Use --device cpu.")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"train: unknown device '{name}'", "Known: cpu, cuda.")
    return torch.device(name)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as the caller had them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
