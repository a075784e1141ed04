"""Where a training's time and memory go, measured as it runs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("data", "teacher", "student", "augmented", "update")
"""data: batch and augmentation; student: forward and backward of the student; augmented: the same of augmented
networks; update: optimizer and averages."""

GPU_SAMPLE = 50
"""On a GPU one step in this many is timed: timing has to wait for the device."""


class Cost:
    """Adds up the seconds of each part of a step. On the CPU every step is timed, on a GPU one in GPU_SAMPLE."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.active = True

    def start_step(self, step: int) -> None:
        """Decide whether this step is timed."""
        self.active = self.device.type != "cuda" or step % GPU_SAMPLE == GPU_SAMPLE - 1

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as part `name`."""
        if not self.active:
            yield
            return
        started = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def figures(self) -> dict[str, Any]:
        """Return shares of the step (0..1), NetAug's overhead (None without it) and peak memory in MiB."""
        total = sum(self.seconds.values())
        plain = total - self.seconds["augmented"]
        return {
            **{f"{name}_share": self.seconds[name] / total if total else 0.0 for name in PARTS},
            "augmented_overhead": total / plain if self.seconds["augmented"] and plain else None,
            "peak_memory_mib": peak_memory_mib(self.device),
        }


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory used so far, MiB: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
