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
    from tinykd.train.qat import Lower

QAT_WEIGHTS = "qat/qat.safetensors"
"""What training with rounding in the loop leaves in RUN/train, for export."""


def train(
    recipe: Recipe,
    run_dir: Path,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    lower: Lower | None = None,
) -> Manifest:
    """Train what the recipe says into `run_dir/train` and return its manifest; see `tinykd.train.stage.train`."""
    limit_spinning()
    from tinykd.train import stage

    return stage.train(recipe, run_dir, resume=resume, progress=progress, device=device, lower=lower)


def limit_spinning() -> None:
    """Bound how long torch's threads spin before they sleep, unless the user has. Call it before importing torch.

    With OpenMP's default they spin for milliseconds at each of the many small operations, which makes training ten
    times slower when another program wants the same cores. Sleeping at once (OMP_WAIT_POLICY=PASSIVE) would halve the
    speed on free cores; this bound costs nothing there. GNU's OpenMP reads it once, when torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def load_student(run_dir: Path) -> tuple[nn.Module, Recipe]:
    """Return a run's trained student in eval mode and its recipe; see `tinykd.models.load.load_student`."""
    from tinykd.models import load

    return load.load_student(run_dir)


__all__ = ["QAT_WEIGHTS", "StopRequested", "load_student", "train", "limit_spinning"]
