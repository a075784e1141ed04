"""Which input position each output position of a RESIZE_NEAREST_NEIGHBOR takes, along one axis."""

from __future__ import annotations

import numpy as np


def nearest_positions(size: int, out_size: int, *, align_corners: bool, half_pixel_centers: bool) -> np.ndarray:
    """Return the input positions int64 (out_size,) of an axis with `size` positions.

    Computed in float32 and rounded as TFLite Micro's GetNearestNeighbor does: down, or to nearest (halves away from
    zero) where the corners are aligned.
    """
    scale = np.float32(size) / np.float32(out_size)
    if align_corners and out_size > 1:
        scale = np.float32(size - 1) / np.float32(out_size - 1)
    offset = np.float32(0.5 if half_pixel_centers else 0.0)
    real = (np.arange(out_size, dtype=np.float32) + offset) * scale
    # C's round in double precision of a float32: the sum is exact there, so a value just below a half stays below.
    positions = np.floor(real.astype(np.float64) + 0.5) if align_corners else np.floor(real)
    return np.minimum(positions, size - 1).astype(np.int64)
