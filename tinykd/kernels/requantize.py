"""The fast forms of requantisation, each with the proof that it equals TFLite Micro's double rounding.

TFLite Micro computes t = floor(acc * m / 2^31 + 1/2), then y = t / 2^e rounded to nearest, halves away from zero, plus
the output's zero point. With n = 1 where t < 0, else 0, that is

    y = floor((t + 2^(e-1) - n) / 2^e) + zero = floor((t + addend - n) / 2^e),    addend = 2^(e-1) + zero * 2^e

`rounding`: the core's SMMLAR computes (a * b + c * 2^32 + 2^31) / 2^32 rounded down, in one instruction; with
a = 2 * acc, b = m and c = addend it gives t + addend. n may be taken from acc instead of t: where both differ, t is 0,
and y is the zero point either way.

`saturating`: where negative sums end at -128, n does not matter, and both floors are one:

    y = floor((acc * m + 2^30 + 2^(30+e)) / 2^(31+e)) - 128

SMMLA computes (a * b + c * 2^32) / 2^32 rounded down, and SSAT limits to int8 what it has shifted by a constant. So the
sums are scaled by powers of two until all channels need the same shift, and constants are searched until all thresholds
between two outputs agree.

A channel whose output is the same for every input gets a multiplier of 0: what it sums no longer matters, not even
whether the sum leaves int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinykd.ir.fixedpoint import multiply_by_quantized_multiplier
from tinykd.ir.requant import Requantization

MAX_SHIFT = 22
"""The largest e for which t + addend stays within int32 whatever t and the zero point are."""
SATURATING_SHIFT = 10
"""What the SSAT of the saturating form shifts by."""
MAX_SCALE_BITS = 8
"""int8 times 2^8 is still int16."""

_FIRST_OFFSETS = 32
_OFFSETS = 1 << 17


@dataclass(frozen=True)
class Rounding:
    """Constants of y = clamp((SMMLAR(2 * acc, multiplier, addend) - n) >> shift), one of each per channel, int32.

    n is 1 where acc is negative, else 0.

    `one_sided`: negative sums end at out_min = the zero point whatever n is, so n need not be subtracted.
    `saturates`: the clamp is that of int8.
    """

    multiplier: np.ndarray
    addend: np.ndarray
    shift: np.ndarray
    one_sided: bool
    saturates: bool


@dataclass(frozen=True)
class SaturatingRounding:
    """Constants of y = SSAT(8, SMMLA(acc', multiplier, addend) ASR #SATURATING_SHIFT), one of each per channel.

    acc' is the sum of products, scaled by 2^scale_bits, plus `bias`. All arrays are int32 (channels,).

    Attributes:
        bias: of acc', the scale included.
        scale_bits: 0 .. MAX_SCALE_BITS: what the weights of a channel, or all inputs, are shifted left by.
    """

    multiplier: np.ndarray
    addend: np.ndarray
    bias: np.ndarray
    scale_bits: np.ndarray


def accumulator_range(taps: np.ndarray, axis: int, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest sum that int8 inputs give, int64 (channels,) each.

    Args:
        taps: int8 weights.
        axis: theirs of output channels.
        bias: (channels,), the input's zero point folded in.
    """
    others = tuple(index for index in range(taps.ndim) if index != axis)
    wide = taps.astype(np.int64)
    least = np.minimum(wide * -128, wide * 127).sum(axis=others)
    largest = np.maximum(wide * -128, wide * 127).sum(axis=others)
    return bias + least, bias + largest


def plain(constants: Requantization, acc: np.ndarray) -> np.ndarray:
    """Return what TFLite Micro makes of sums (..., channels): int64 within out_min .. out_max."""
    y = multiply_by_quantized_multiplier(acc, np.array(constants.multipliers), np.array(constants.shifts))
    return np.clip(y + constants.output_zero_point, constants.out_min, constants.out_max)


def rounding(constants: Requantization, low: np.ndarray, high: np.ndarray) -> Rounding | None:
    """Return the constants of four instructions, three where `one_sided`; None where they are not proven to be right.

    Args:
        constants: of the op.
        low, high: int64 (channels,), from `accumulator_range`.
    """
    fixed, value = _constant_channels(constants, low, high)
    shifts = np.where(fixed, 1, -np.array(constants.shifts, np.int64))
    reach = np.where(fixed, 0, np.maximum(np.abs(low), np.abs(high)))
    if shifts.min() < 1 or shifts.max() > MAX_SHIFT or 2 * reach.max() >= 1 << 31:
        return None
    zero = constants.output_zero_point
    addend = (np.int64(1) << (shifts - 1)) + np.where(fixed, value, zero) * (np.int64(1) << shifts)
    return Rounding(
        np.where(fixed, 0, np.array(constants.multipliers, np.int64)).astype(np.int32),
        addend.astype(np.int32),
        shifts.astype(np.int32),
        one_sided=constants.out_min == zero,
        saturates=(constants.out_min, constants.out_max) == (-128, 127),
    )


def saturating(
    constants: Requantization,
    low: np.ndarray,
    high: np.ndarray,
    bias: np.ndarray,
    *,
    shared_scale: bool,
    least_bits: int = 0,
) -> SaturatingRounding | None:
    """Return the constants of two instructions, or None where there are none.

    Args:
        constants: of the op.
        low, high: int64 (channels,), from `accumulator_range`.
        bias: (channels,), the one that `low` and `high` contain.
        shared_scale: all channels have the same `scale_bits`, so that the inputs may be shifted instead of the weights.
        least_bits: the smallest `scale_bits` of a channel whose output changes.
    """
    if (constants.out_min, constants.output_zero_point, constants.out_max) != (-128, -128, 127):
        return None
    fixed, value = _constant_channels(constants, low, high)
    live = np.flatnonzero(~fixed)
    shifts = -np.array(constants.shifts, np.int64)
    bits = np.zeros(len(shifts), np.int64)
    # So many make the fast multiplier as large as TFLite Micro's, fewer make it too large.
    wanted = 1 + SATURATING_SHIFT - shifts[live]
    if live.size:
        bits[live] = np.maximum(wanted, least_bits)
        if shared_scale:
            bits[:] = bits[live].max()
        reach = np.maximum(np.abs(low), np.abs(high))[live] << bits[live]
        if shifts[live].min() < 1 or shifts[live].max() > MAX_SHIFT or bits.max() > MAX_SCALE_BITS:
            return None
        if reach.max() + _OFFSETS >= 1 << 31:
            return None
    multiplier, offset = np.zeros_like(bits), np.zeros_like(bits)
    addend = value << SATURATING_SHIFT
    plain_multiplier = np.array(constants.multipliers, np.int64)
    dropped = bits[live] - wanted
    for nudge in (0, 1, -1, 2, -2):
        factor = ((plain_multiplier[live] + ((1 << dropped) >> 1)) >> dropped) + nudge
        first, last = _offsets(plain_multiplier[live], shifts[live], low[live], high[live], factor << bits[live])
        found, extra, words = _split(first, last, factor)
        done = live[found & (factor < 1 << 31)]
        kept = np.isin(live, done)
        multiplier[done], offset[done], addend[done] = factor[kept], extra[kept], words[kept]
        live, dropped = live[~kept], dropped[~kept]
        if not live.size:
            scaled = np.where(fixed, 0, (bias.astype(np.int64) << bits) + offset)
            return SaturatingRounding(*(array.astype(np.int32) for array in (multiplier, addend, scaled, bits)))
    return None


def _constant_channels(constants: Requantization, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which channels have one output whatever comes in, bool, and the output for the least sum, int64."""
    # Equal ends mean equal everywhere, as no output falls when the sum rises; only shifts to the left may wrap around.
    least, largest = plain(constants, np.stack([low, high]))
    return (least == largest) & (np.array(constants.shifts) <= 0), least


def _offsets(
    multiplier: np.ndarray, shift: np.ndarray, low: np.ndarray, high: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (first, last), int64 (channels,): offset makes the saturating form exact where first <= offset < last.

    The form is floor((slope * acc + offset) / 2^(32 + SATURATING_SHIFT)), limited to int8. TFLite Micro's output
    reaches k - 128 at the sum T_k = ceil((k * 2^(31+e) - 2^(30+e) - 2^30) / m). As neither ever falls, they agree on
    low .. high if and only if, for each k in 1 .. 255, the form has reached k - 128 at T_k and has not at T_k - 1.
    """
    k = np.arange(1, 256, dtype=np.int64)[:, None]
    begins = -((((1 << 30) + (1 << (30 + shift))) - (k << (31 + shift))) // multiplier)
    bounds = (k - 128) << (32 + SATURATING_SHIFT)
    limit = np.int64(1) << 62
    first = np.where(begins <= high, bounds - slope * np.clip(begins, low, high), -limit)
    last = np.where(begins > low, bounds - slope * np.clip(begins - 1, low, high), limit)
    return first.max(axis=0), last.min(axis=0)


def _split(first: np.ndarray, last: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (found, extra, word) with first <= extra * factor + word * 2^32 < last where found.

    The multiples of the factor differ modulo 2^32: some extra in the bias comes as near to any number as is needed.
    """
    extra, word = np.zeros_like(first), np.zeros_like(first)
    found = np.zeros(len(first), bool)
    start, count = 0, _FIRST_OFFSETS
    while start < _OFFSETS:
        rest = np.flatnonzero(~found & (first < last))
        tried = np.arange(start, start + count)[:, None] * factor[rest]
        words = -((tried - first[rest]) >> 32)
        fits = tried + (words << 32) < last[rest]
        at = fits.argmax(axis=0)
        hit = np.flatnonzero(fits.any(axis=0))
        extra[rest[hit]], word[rest[hit]] = start + at[hit], words[at[hit], hit]
        found[rest[hit]] = True
        start, count = start + count, start + count
    return found, extra, word
