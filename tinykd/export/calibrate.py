"""Finds the range of every activation on a calibration set, in one pass and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tinykd.errors import ConfigError, DataError, nearest
from tinykd.export import float_reference
from tinykd.export.ranges import METHODS, Histogram, Method, Range
from tinykd.ir import Graph
from tinykd.ir.affine import range_owners

DEFAULT_METHOD = "mse"
# Values of an activation that are counted, over all images, and at least of each one: the extremes see all of them.
_COUNTED = 1 << 19
_COUNTED_PER_IMAGE = 512
# Images at once: the activations of more of them leave the processor's cache, which costs time.
_BATCH = 16


def calibrate(graph: Graph, x: np.ndarray, method: str = DEFAULT_METHOD) -> dict[str, Range]:
    """Return the (low, high) range of every activation of a float graph that decides a quantisation.

    Args:
        graph: a float graph, activations fused.
        x: float32 (N, H, W, C), training images only.
        method: a key of `METHODS`.

    Raises:
        ConfigError: an unknown method.
        DataError: no images, or an activation is not finite.
    """
    return choose(observe(graph, x, counts=method_named(method).counts), method)


def choose(histograms: Mapping[str, Histogram], method: str) -> dict[str, Range]:
    """Return the range of each activation, from the counts that `observe` found.

    Raises:
        ConfigError: an unknown method.
    """
    return {name: method_named(method).choose(histogram) for name, histogram in histograms.items()}


def observe(graph: Graph, x: np.ndarray, *, counts: bool = True) -> dict[str, Histogram]:
    """Return what the activations that decide a quantisation (`range_owners`) are like on x.

    Of large activations evenly spread elements are counted, other ones in each image; the extremes are exact.

    Args:
        graph: a float graph, activations fused.
        x: float32 (N, H, W, C).
        counts: False finds the extremes alone, which is faster.

    Raises:
        DataError: no images, or an activation is not finite.
    """
    if len(x) == 0:
        raise DataError("calibration needs at least one image; the calibration set is empty")
    histograms = {name: Histogram() for name in range_owners(graph)}
    per_image = max(_COUNTED_PER_IMAGE, _COUNTED // len(x))
    seen = dict.fromkeys(histograms, 0)

    def look(name: str, value: np.ndarray) -> None:
        histogram = histograms.get(name)
        if histogram is None:
            return
        low, high = float(value.min()), float(value.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"calibration: the activation '{name}' is not finite; the model's weights are broken")
        histogram.widen(low, high)
        if counts:
            flat = value.reshape(-1)
            stride = _stride(flat.size // len(value), per_image)
            histogram.add(flat[-seen[name] % stride :: stride])
            seen[name] += flat.size

    float_reference.run(graph, x, observe=look, batch=_BATCH)
    return histograms


def _stride(size: int, wanted: int) -> int:
    """Return the smallest stride that takes at most about `wanted` of `size` elements and shares no divisor with size.

    A stride that divides the number of channels would see some channels only, and the same ones in every image.
    """
    stride = -(-size // wanted)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def method_named(name: str) -> Method:
    """Return a method of `METHODS`; ConfigError when there is none of that name."""
    if name not in METHODS:
        raise ConfigError(f"unknown calibration method '{name}'.{nearest(name, METHODS)}", f"Known: {list(METHODS)}.")
    return METHODS[name]
