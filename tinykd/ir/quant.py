"""Affine quantisation: how an integer stands for a real number, and TFLite's fixed-point multipliers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quant:
    """Affine quantisation parameters: real = scale * (q - zero_point).

    Attributes:
        scales: float32 values, one for a per-tensor quantisation, else one per slice along `axis`.
        zero_points: as many integers as `scales`.
        axis: the quantised dimension of a per-channel quantisation; None when per tensor, and when there is only one
            channel, which is the same thing.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if len(self.scales) == 1:
            object.__setattr__(self, "axis", None)

    @staticmethod
    def per_tensor(scale: float, zero_point: int) -> Quant:
        """Return per-tensor parameters; `scale` is rounded to float32, as a `.tflite` stores it."""
        return Quant((float(np.float32(scale)),), (int(zero_point),))

    @property
    def scale(self) -> float:
        """The single scale of a per-tensor quantisation (the first one otherwise)."""
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """The single zero point of a per-tensor quantisation (the first one otherwise)."""
        return self.zero_points[0]


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return `(multiplier, shift)` with real ~= multiplier * 2**(shift - 31), as TFLite's QuantizeMultiplier does.

    `multiplier` is 0 or in [2**30, 2**31); `shift` is positive for a left shift. Reals too small for 31 bits of right
    shift become (0, 0). `real` must be finite and not negative.
    """
    if real == 0.0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    fixed = _round_half_away(mantissa * (1 << 31))
    if fixed == 1 << 31:
        fixed //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return (1 << 31) - 1, 30
    return fixed, shift


def _round_half_away(value: float) -> int:
    """Round to the nearest integer, halves away from zero, as C's round() does."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)
