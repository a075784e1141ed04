"""Trained students on disk: `student.safetensors` carries in its header all that rebuilds the module."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from tinykd.artifact import read_manifest, write_bytes
from tinykd.errors import ArtifactError
from tinykd.models import build_model

if TYPE_CHECKING:
    from tinykd.config import Recipe

STUDENT = "student.safetensors"


@dataclass(frozen=True)
class ModelSpec:
    """How to build a module and how to feed it: `x = (pixel - mean_level) / std_level`, (N, C, H, W) float32."""

    model: str
    args: dict[str, Any]
    num_classes: int
    resolution: int
    in_channels: int
    mean_level: int
    std_level: float
    classes: tuple[str, ...]

    def build(self) -> nn.Module:
        """Return the module with fresh weights."""
        return build_model(self.model, self.num_classes, self.resolution, self.in_channels, **self.args)


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write weights and spec atomically; the same weights give the same bytes.

    Raises:
        ArtifactError: the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata={"tinykd": json.dumps(asdict(spec), sort_keys=True)}))


def load_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """Return the module that `save_model` wrote, in eval mode on the CPU, and its spec.

    Raises:
        ArtifactError: missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["tinykd"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        spec = ModelSpec(**{**facts, "classes": tuple(facts["classes"])})
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"model file {path} cannot be read: {error}", "Train it again.") from error
    with torch.random.fork_rng(devices=[]):
        model = spec.build()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"model file {path} does not fit its own description: {error}") from error
    return model.eval(), spec


def load_student(run_dir: Path) -> tuple[nn.Module, Recipe]:
    """Return the trained student of a run, in eval mode on the CPU, and its recipe.

    The averaged weights are returned where the recipe uses them. `load_spec` gives resolution, classes and input scale.

    Raises:
        ArtifactError: the run has no finished training, or a file differs from its manifest.
    """
    from tinykd.config import load_recipe

    folder = Path(run_dir) / "train"
    read_manifest(folder, "train")
    model, _ = load_model(folder / STUDENT)
    return model, load_recipe(folder / "recipe.yaml")


def load_spec(run_dir: Path) -> ModelSpec:
    """Return how the run's student is built and fed, without its weights.

    Raises:
        ArtifactError: the run has no trained student, or its file is broken.
    """
    path = Path(run_dir) / "train" / STUDENT
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["tinykd"])
        return ModelSpec(**{**facts, "classes": tuple(facts["classes"])})
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"model file {path} cannot be read: {error}", "Run `tinykd train` first.") from error
