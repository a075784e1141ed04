"""The fast forms of requantisation, each with the conditions under which it equals TFLite Micro's double rounding.

TFLite Micro computes t = floor(acc * m / 2^31 + 1/2), then y = t / 2^e rounded to nearest, halves away from zero, plus
the output's zero point. With n = 1 where t < 0, else 0, that is

    y = floor((t + 2^(e-1) - n) / 2^e) + zero = floor((t + addend - n) / 2^e),    addend = 2^(e-1) + zero * 2^e

The core's SMMLAR computes (a * b + c * 2^32 + 2^31) / 2^32 rounded down, in one instruction; with a = 2 * acc, b = m
and c = addend it gives t + addend. n may be taken from acc instead of t: where both differ, t is 0, and y is the zero
point either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinykd.ir.requant import Requantization

MAX_SHIFT = 22
"""The largest e for which t + addend stays within int32 whatever t and the zero point are."""


@dataclass(frozen=True)
class Rounding:
    """Constants of y = clamp((SMMLAR(2 * acc, multiplier, addend) - n) >> shift), one of each per channel, int32.

    `one_sided`: negative sums end at out_min = the zero point whatever n is, so n need not be subtracted.
    `saturates`: the clamp is that of int8.
    """

    multiplier: np.ndarray
    addend: np.ndarray
    shift: np.ndarray
    one_sided: bool
    saturates: bool


def rounding(constants: Requantization, reach: int) -> Rounding | None:
    """Return the fast form's constants, or None where it is not proven to equal the plain one.

    Args:
        constants: of the op.
        reach: no accumulator's magnitude is larger.
    """
    shifts = -np.array(constants.shifts, np.int64)
    if shifts.min() < 1 or shifts.max() > MAX_SHIFT or 2 * reach >= 1 << 31:
        return None
    zero = constants.output_zero_point
    addend = (np.int64(1) << (shifts - 1)) + zero * (np.int64(1) << shifts)
    return Rounding(
        np.array(constants.multipliers, np.int32),
        addend.astype(np.int32),
        shifts.astype(np.int32),
        one_sided=constants.out_min == zero,
        saturates=(constants.out_min, constants.out_max) == (-128, 127),
    )
