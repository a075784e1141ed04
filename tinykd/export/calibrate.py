"""Finds the range of every activation on a calibration set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import ConfigError, DataError, nearest
from tinykd.export import float_reference
from tinykd.ir import Graph

Range = tuple[float, float]

# Which quantiles of an activation's values bound its range.
METHODS: Mapping[str, Range] = MappingProxyType(
    {
        "minmax": (0.0, 1.0),
        "percentile": (0.0001, 0.9999),
    }
)
_SAMPLES_PER_BATCH = 20_000


def calibrate(graph: Graph, x: np.ndarray, method: str = "minmax") -> dict[str, Range]:
    """Return the (low, high) range of every activation of a float graph.

    Args:
        graph: a float graph, activations fused.
        x: float32 (N, H, W, C), training images only.
        method: "minmax", or "percentile": the 0.01 and 99.99 percentiles, means over batches.

    Raises:
        ConfigError: an unknown method.
        DataError: no images, or an activation is not finite.
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown calibration method '{method}'.{nearest(method, METHODS)}", f"Known: {list(METHODS)}."
        )
    if len(x) == 0:
        raise DataError("calibration needs at least one image; the calibration set is empty")
    low, high = METHODS[method]
    ranges: dict[str, list[Range]] = {}

    def observe(name: str, value: np.ndarray) -> None:
        if method == "minmax":
            found = float(value.min()), float(value.max())
        else:
            step = max(1, value.size // _SAMPLES_PER_BATCH)
            bounds = np.quantile(value.reshape(-1)[::step], (low, high))
            found = float(bounds[0]), float(bounds[1])
        if not np.isfinite(found).all():
            raise DataError(f"calibration: the activation '{name}' is not finite; the model's weights are broken")
        ranges.setdefault(name, []).append(found)

    float_reference.run(graph, x, observe=observe)
    if method == "minmax":
        return {name: (min(low for low, _ in found), max(high for _, high in found)) for name, found in ranges.items()}
    return {
        name: (float(np.mean([low for low, _ in found])), float(np.mean([high for _, high in found])))
        for name, found in ranges.items()
    }
