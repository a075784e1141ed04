"""Training: a teacher where the recipe asks for one, then the student. Importing this package does not import torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tinykd.train.stop import StopRequested

if TYPE_CHECKING:
    from torch import nn

    from tinykd.artifact import Manifest
    from tinykd.config import Recipe
    from tinykd.train.progress import Progress


def train(
    recipe: Recipe,
    run_dir: Path,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Manifest:
    """Train what the recipe says into `run_dir/train` and return its manifest; see `tinykd.train.stage.train`."""
    wait_passively()
    from tinykd.train import stage

    return stage.train(recipe, run_dir, resume=resume, progress=progress, device=device)


def wait_passively() -> None:
    """Let torch's threads sleep while they wait, unless the user has chosen; call it before torch is imported.

    Threads that spin make training ten times slower when another program wants the same cores. OpenMP reads the
    setting once, when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_student(run_dir: Path) -> tuple[nn.Module, Recipe]:
    """Return a run's trained student in eval mode and its recipe; see `tinykd.models.load.load_student`."""
    from tinykd.models import load

    return load.load_student(run_dir)


__all__ = ["StopRequested", "load_student", "train", "wait_passively"]
