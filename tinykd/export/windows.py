"""What the integer and the float reference share: sliding windows over feature maps, and batches on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from tinykd.ir import Op

T = TypeVar("T")
Samples = TypeVar("Samples", np.ndarray, range)


def map_batches(call: Callable[[Samples], T], x: Samples, batch: int) -> list[T]:
    """Return `call` of each batch of x, samples or their numbers, in order.

    NumPy lets go of the interpreter lock, so all cores work.
    """
    parts = [x[start : start + batch] for start in range(0, len(x), batch)]
    if len(parts) < 2:
        return [call(part) for part in parts]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, parts))


def padded(x: np.ndarray, padding: tuple[int, int, int, int], value: float) -> np.ndarray:
    """Return x (N, H, W, C) padded by (top, bottom, left, right) with `value`, C-contiguous."""
    top, bottom, left, right = padding
    if not any(padding):
        return np.ascontiguousarray(x)
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def windows(x: np.ndarray, kernel: tuple[int, int], op: Op, shape: tuple[int, ...]) -> np.ndarray:
    """Return a read-only view (N, outH, outW, kH, kW, C) of an already padded, contiguous x (N, H, W, C)."""
    stride_h, stride_w = op.attrs["stride"]
    dilation_h, dilation_w = op.attrs.get("dilation", (1, 1))
    n, h, w, c = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (x.shape[0], shape[1], shape[2], kernel[0], kernel[1], x.shape[3]),
        (n, h * stride_h, w * stride_w, h * dilation_h, w * dilation_w, c),
        writeable=False,
    )


def window_counts(size: tuple[int, int], op: Op, shape: tuple[int, ...]) -> np.ndarray:
    """Return how many real (not padded) positions each pooling window covers: (1, outH, outW, 1)."""
    ones = padded(np.ones((1, *size, 1), np.int32), op.attrs["padding"], 0)
    return windows(ones, op.attrs["kernel"], op, shape).sum(axis=(3, 4))
