"""The training stage: RUN/train from a recipe, resumable, and never done twice for the same recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import tinykd
from tinykd.artifact import MANIFEST, Manifest, read_manifest, sha256_file, write_bytes, write_json
from tinykd.config import Recipe
from tinykd.data import load_dataset
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset
from tinykd.errors import ArtifactError, ConfigError
from tinykd.models.count import count_macs, count_params
from tinykd.models.load import STUDENT, save_model
from tinykd.train import cluster
from tinykd.train.cluster import Cluster
from tinykd.train.journal import METRICS
from tinykd.train.loop import CHECKPOINT, evaluate
from tinykd.train.place import Place
from tinykd.train.progress import Progress
from tinykd.train.qat import Lower, check_qat, finish_qat, train_quantised
from tinykd.train.stages import list_stages
from tinykd.train.student import check_recipe, train_student
from tinykd.train.teach import TEACHER, ReadyTeacher, get_teacher

RECIPE = "recipe.yaml"


def train(
    recipe: Recipe,
    run_dir: Path,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    lower: Lower | None = None,
) -> Manifest:
    """Train the teacher where needed, then the student, into `run_dir/train`.

    A finished training of the same recipe is returned at once; an unfinished one is continued. The folder gets
    `student.safetensors`, `recipe.yaml`, `metrics.jsonl`, `tensorboard/`, `teacher/` when one was trained, `qat/` where
    the recipe has it, and `manifest.json` last.

    Args:
        recipe: the experiment.
        run_dir: the run's folder, made when missing.
        resume: False deletes `run_dir/train` and starts anew.
        progress: the display; None shows nothing.
        device: "cpu" or "cuda"; None takes the GPU when there is one.
        lower: turns the trained student into the graph that export quantises; needed where the recipe has `qat`.

    Returns:
        The manifest; `results` has top1_float and top1_val (0..1; top1_val None without validation images),
        teacher_top1, params, macs, epochs, seconds, steps_per_s, dataset and the image counts; with `qat` also
        what `tinykd.train.qat.train_quantised` returns.

    Raises:
        ArtifactError: the folder holds the training of another recipe, is broken, or cannot be written.
        ConfigError, DataError: the recipe, the data or the teacher's weights do not work together.
        StopRequested: SIGINT or SIGTERM; the next call continues.
    """
    chosen = _pick_device(device)
    with cluster.join(chosen) as processes:
        return _train(recipe, Path(run_dir) / "train", resume, progress or Progress(), chosen, processes, lower)


def _train(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    progress: Progress,
    device: torch.device,
    processes: Cluster,
    lower: Lower | None,
) -> Manifest:
    if not processes.leads:
        progress = Progress()
    if not resume and folder.exists() and processes.leads:
        shutil.rmtree(folder)
    processes.wait()
    _check_same_recipe(folder, recipe)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, "train")
        progress.note(f"{folder} is already trained; --restart trains it again")
        return manifest
    dataset = load_dataset(recipe.data)
    for note in dataset.notes:
        progress.note(f"{dataset.name}: {note}")
    augment = Augment(recipe.data.augment, dataset.mean_level, dataset.std_level)
    place = Place(dataset, augment, device, processes, progress)
    check_recipe(recipe, place)
    check_qat(recipe, place, lower)
    if processes.leads:
        write_bytes(folder / RECIPE, recipe.to_yaml().encode())
    processes.wait()
    with _own_random_state(device):
        teacher = get_teacher(recipe, folder / "teacher", place)
        teacher_top1 = evaluate(teacher.module.to(device), place.test, augment) if teacher else None
        trained = train_student(recipe, teacher.module if teacher else None, folder, place)
        fitted, student_spec = trained.fitted, trained.spec
        quantised = {}
        if recipe.qat is not None:
            module = teacher.module if teacher else None
            quantised = train_quantised(recipe, recipe.qat, fitted.model, student_spec, module, folder, place, lower)
    top1_float = evaluate(fitted.model, place.test, augment)
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
        "stages": [{"name": stage.name, "epochs": stage.config.epochs} for stage in list_stages(recipe)],
        "seconds": round(trained.seconds, 3),
        "steps_per_s": round(fitted.steps_per_s, 2),
        "cost": fitted.cost,
        "processes": processes.size,
        "methods": trained.results,
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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **quantised,
    }
    if processes.leads:
        save_model(folder / STUDENT, fitted.model, student_spec)
        _finish(folder, recipe, results, teacher, dataset, [*trained.files, *(finish_qat(folder) if quantised else [])])
    processes.wait()
    reference = f", teacher {teacher_top1:.2%}" if teacher_top1 is not None else ""
    progress.finish(f"{recipe.name}: test accuracy {top1_float:.2%} on {len(dataset.test)} images{reference}")
    return read_manifest(folder, "train")


def _finish(
    folder: Path,
    recipe: Recipe,
    results: dict[str, Any],
    teacher: ReadyTeacher | None,
    dataset: Dataset,
    files: list[str],
) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)
    names = [STUDENT, RECIPE, METRICS, f"teacher/{TEACHER}", f"teacher/{METRICS}", *files]
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
    sections = found.training_facts().keys() | recipe.training_facts().keys()
    old, new = (
        _flatten({key: value for key, value in of.to_dict().items() if key in sections}) for of in (found, recipe)
    )
    differing = [
        f"  {key}: there {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
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
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train: device 'cuda' is asked for, but PyTorch sees no GPU", "Use --device cpu.")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"train: unknown device '{name}'", "Known: cpu, cuda.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as the caller had them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
