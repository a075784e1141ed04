"""Training with rounding to int8 in the loop: the float student is lowered as export lowers it, and learns on.

Its teacher is its own float self (Zhao, Zhao 2024, arXiv:2403.11106) or the recipe's teacher (Mishra, Marr 2018,
arXiv:1711.05852); it learns from the divergence of softened probabilities alone, or from the labels as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tinykd.config import DistillConfig, QatConfig, Recipe, TrainConfig
from tinykd.data.calibration import calibration_images
from tinykd.distill import build_method
from tinykd.errors import ArtifactError, ConfigError
from tinykd.ir import Graph, Quant
from tinykd.models.load import ModelSpec
from tinykd.models.quant_student import Lowered, QuantStudent
from tinykd.models.teacher import Teacher
from tinykd.train import QAT_WEIGHTS
from tinykd.train.checkpoint import load_checkpoint, save_checkpoint
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.journal import METRICS
from tinykd.train.loop import CHECKPOINT, evaluate, fit
from tinykd.train.objective import Objective
from tinykd.train.passes import Passes
from tinykd.train.place import Place
from tinykd.train.teach import data_spec

Lower = Callable[[nn.Module, ModelSpec, np.ndarray], Lowered]
"""Lowers a student as export does, given how it is fed and calibration images uint8 (N, H, W, C)."""

FOLDER = QAT_WEIGHTS.partition("/")[0]
_CHECK_IMAGES = 2


class RangePasses(Passes):
    """One pass a step, after which the ranges of activations follow the batch, until they are frozen.

    Args:
        momentum: what a step keeps of the ranges.
        freeze_after: share of all steps after which the ranges stay.
        epochs: of the training.
        cluster: the processes that share each batch: ranges follow the whole one.
    """

    def __init__(self, momentum: float, freeze_after: float, epochs: int, cluster: Cluster = SOLO) -> None:
        self.momentum, self.freeze_after, self.epochs, self.cluster = momentum, freeze_after, epochs, cluster

    def begin(self, model: nn.Module) -> nn.Module:
        """Remember the student."""
        assert isinstance(model, QuantStudent)
        self.student = model
        return model

    def run(self, step: int, steps_per_epoch: int) -> Iterator[float]:
        """Yield the only pass; the ranges that it rounded with move afterwards."""
        self.student.observe = step < self.freeze_after * self.epochs * steps_per_epoch
        yield 1.0
        if self.student.observe and self.student.observed is not None:
            everywhere = self.cluster.gather(self.student.observed[None])
            observed = torch.stack((everywhere[..., 0].amin(0), everywhere[..., 1].amax(0)), dim=1)
            self.student.follow(observed, self.momentum)
        self.student.observe = False


def check_qat(recipe: Recipe, place: Place, lower: Lower | None) -> None:
    """Lower an untrained student, so that one that cannot become int8 is refused before hours of training.

    Raises:
        ConfigError: the recipe has `qat`, but there is nothing to lower with.
        UnsupportedModelError: the student has a layer that has no int8 form.
    """
    if recipe.qat is None:
        return
    with torch.random.fork_rng(devices=[]):
        spec = data_spec(recipe.student.model, recipe.student.args, place.dataset)
        QuantStudent(_need(lower)(spec.build(), spec, place.dataset.train.images[:_CHECK_IMAGES]))


def train_quantised(
    recipe: Recipe,
    config: QatConfig,
    student: nn.Module,
    spec: ModelSpec,
    teacher: Teacher | None,
    folder: Path,
    place: Place,
    lower: Lower | None,
) -> dict[str, Any]:
    """Train the lowered student into `folder/qat` and write `folder/qat/qat.safetensors`.

    Args:
        recipe: the experiment.
        config: its `qat`.
        student: the trained float student, left as it is.
        spec: how it is fed.
        teacher: the recipe's teacher; needed where `config.teacher` is "teacher".
        folder: RUN/train.
        place: where it happens.
        lower: see `Lower`.

    Returns:
        top1_fake_quant (test) and top1_fake_quant_val, 0..1, and how the training went.

    Raises:
        ConfigError, ArtifactError, StopRequested: see `tinykd.train.loop.fit`.
    """
    dataset, here = place.dataset, folder / FOLDER
    images = calibration_images(dataset, recipe.export.calibration_images, recipe.export.calibration_seed)
    model = QuantStudent(_need(lower)(student, spec, images))
    losses = [DistillConfig(method="kd", weight=config.weight, args={"temperature": config.temperature})]
    methods = {"kd": build_method("kd", losses[0].args)}
    taught_by = Teacher(copy.deepcopy(student)) if config.teacher == "self" else teacher
    train = qat_train_config(recipe.train, config)
    torch.manual_seed(train.seed)
    fitted = fit(
        model,
        Objective(train, losses, methods, taught_by, cluster=place.cluster),
        dataset,
        place.augment,
        train,
        folder=here,
        title=f"student {recipe.student.model}, int8 in the loop",
        progress=place.progress,
        device=place.device,
        passes=RangePasses(config.range_momentum, config.freeze_after, config.epochs, place.cluster),
        cluster=place.cluster,
    )
    assert isinstance(fitted.model, QuantStudent)
    if place.cluster.leads:
        save_quantised(folder / QAT_WEIGHTS, fitted.model)
    return {
        "top1_fake_quant": evaluate(fitted.model, place.test, place.augment),
        "top1_fake_quant_val": fitted.top1_val,
        "qat": {
            "teacher": config.teacher if config.weight > 0 else None,
            "epochs": config.epochs,
            "seconds": round(fitted.seconds, 3),
            "steps_per_s": round(fitted.steps_per_s, 2),
        },
    }


def finish_qat(folder: Path) -> list[str]:
    """Remove the checkpoint and return the files to keep, relative to `folder` (RUN/train)."""
    (folder / FOLDER / CHECKPOINT).unlink(missing_ok=True)
    return [QAT_WEIGHTS, f"{FOLDER}/{METRICS}"]


def qat_train_config(train: TrainConfig, config: QatConfig) -> TrainConfig:
    """Return how the loop trains: `train` with what `qat` says; no averaged weights, and float32 throughout.

    The rounding would be lost in half precision: its steps are as coarse as int8's.
    """
    changes: dict[str, Any] = {
        "epochs": config.epochs,
        "batch_size": config.batch_size or train.batch_size,
        "optimizer": config.optimizer,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "schedule": "cosine",
        "milestones": [],
        "warmup_epochs": 0.0,
        "label_weight": config.label_weight,
        "temperature": 1.0,
        "ema": 0.0,
        "amp": False,
    }
    return train.model_copy(update=changes)


def save_quantised(path: Path, model: QuantStudent) -> None:
    """Write weights (as in the graph, before rounding) and ranges by tensor name; the same ones give the same bytes."""
    weights = {name: torch.from_numpy(value) for name, value in model.named_weights().items()}
    ranges = {name: torch.tensor(value, dtype=torch.float64) for name, value in model.named_ranges().items()}
    save_checkpoint(path, {"weights": weights, "ranges": ranges}, {})


def load_quantised(path: Path, graph: Graph, input_quant: Quant) -> QuantStudent:
    """Return the student of `save_quantised`, in eval mode.

    Args:
        path: the file.
        graph: the float student, lowered as it was for the training.
        input_quant: int8 parameters of the input.

    Raises:
        ArtifactError: the file is missing or broken, or belongs to another student.
    """
    saved = load_checkpoint(path)
    if saved is None:
        raise ArtifactError(f"{path} does not exist: this student was not trained with `qat`")
    # The file's ranges take the place of these.
    model = QuantStudent(Lowered(graph, dict.fromkeys(graph.tensors, (0.0, 0.0)), input_quant))
    ranges = {name: (float(value[0]), float(value[1])) for name, value in saved.group("ranges").items()}
    model.load_named({name: value.numpy() for name, value in saved.group("weights").items()}, ranges)
    return model.eval()


def _need(lower: Lower | None) -> Lower:
    if lower is None:
        raise ConfigError(
            "train: the recipe has `qat`, but no function that lowers the student was given",
            "Use `tinykd train`, or pass lower=tinykd.commands.lowering.lower_student.",
        )
    return lower
