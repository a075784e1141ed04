"""Readers that do what no reader may: the watch must notice each of them."""

from __future__ import annotations

import os
import time

import numpy as np


def hang(data: bytes) -> None:
    """Never return."""
    while True:
        time.sleep(0.01)


def crash(data: bytes) -> None:
    """End the interpreter."""
    os.abort()


def hoard(data: bytes) -> None:
    """Take 2 GB."""
    np.ones(1 << 28, np.float64)


def swell(data: bytes) -> None:
    """Take 300 MB, and give them back."""
    np.ones(300 << 17, np.float64)


def stumble(data: bytes) -> None:
    """Raise an error that is none of ours."""
    raise KeyError("tensor")


def accept(data: bytes) -> None:
    """Read anything."""
