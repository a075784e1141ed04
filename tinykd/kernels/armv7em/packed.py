"""int8 weights of two channels in one word, which one SXTB16 takes apart again, for any number of columns.

Each half of a word holds 256 * b + a, with the weights a and b that two channels have for the same input. The sum of
such halves times inputs is 256 * B + A; SXTB16 leaves a, whose sum is A. B = (256 * B + A - A) / 256 holds modulo 2^32
as long as B stays within 24 bits. `firmware/lib/tk_armv7em/include/tk_armv7em_dense.h` describes the streams.
"""

from __future__ import annotations

import numpy as np

from tinykd.ir.requant import Requantization
from tinykd.kernels.requantize import MAX_SCALE_BITS, Rounding, SaturatingRounding, rounding, saturating

QUAD = 4
"""Inputs of which SXTB16 makes two words."""
PAIR = 2
"""Channels that share words."""
REACH = 1 << 23
"""What the sum of an odd channel must stay below."""

_LAST = np.int32(-(1 << 31))


def padded(array: np.ndarray, channels: int) -> np.ndarray:
    """Return the array with zeros behind its last channel, up to a multiple of `channels` of them."""
    return np.pad(array, ((0, -len(array) % channels), *((0, 0),) * (array.ndim - 1)))


def quad_order(values: np.ndarray) -> np.ndarray:
    """Return (channels, depth), quads of `QUAD` inputs, in the order in which SXTB16 unpacks them: 0, 2, 1, 3."""
    channels, depth = values.shape
    return values.reshape(channels, depth // QUAD, 2, 2).swapaxes(2, 3).reshape(channels, depth)


def fits(taps: np.ndarray, low: np.ndarray, high: np.ndarray, multiplier: np.ndarray) -> bool:
    """Return whether channels 0 and 1, 2 and 3, .. can share words.

    Args:
        taps: int8 weights, output channels first.
        low, high: int64 (channels,), the reach of each sum.
        multiplier: (channels,), 0 where the sum does not matter.
    """
    flat = taps.reshape(len(taps), -1)
    odd = flat[1::PAIR]
    if ((odd == -128) & (flat[: PAIR * len(odd) : PAIR] < 0)).any():
        return False
    reach = np.where(multiplier == 0, 0, np.maximum(np.abs(low), np.abs(high)))
    return bool((reach[1::PAIR] < REACH).all())


def packed_words(taps: np.ndarray) -> np.ndarray:
    """Return int32 (channels / 2, depth / 2): the words of each two channels.

    Args:
        taps: int8 (channels, depth), an even number of channels, depth a multiple of `QUAD`.
    """
    wide = taps.astype("<i2")
    return np.ascontiguousarray(quad_order(256 * wide[1::PAIR] + wide[::PAIR])).view("<i4")


def packed_starts(sums: np.ndarray) -> np.ndarray:
    """Return int32 (channels / 2, 2): where 256 * B + A and A of each two channels start, modulo 2^32.

    Args:
        sums: int32 (channels,), what A, B, A, B, .. start at; an even number of channels.
    """
    wide = sums.astype(np.int64)
    return _wrapped(np.stack([256 * wide[1::PAIR] + wide[::PAIR], wide[::PAIR]], axis=1))


def packed_factors(
    constants: Requantization, taps: np.ndarray, low: np.ndarray, high: np.ndarray, folded: np.ndarray
) -> Rounding | SaturatingRounding | None:
    """Return the fastest rounding that is proven for each sum of a packed stream, or None where there is none.

    Args:
        constants: of the op.
        taps: int8 weights, output channels first.
        low, high: int64 (channels,), from `accumulator_range`.
        folded: int32 (channels,), biases with the input's zero point folded in.
    """
    # A sum times 2^8 is what the odd channels have anyway.
    fast = saturating(constants, low, high, folded, shared_scale=True, least_bits=MAX_SCALE_BITS)
    factors = fast or rounding(constants, low, high)
    return factors if factors is not None and fits(taps, low, high, factors.multiplier) else None


def packed_stream(taps: np.ndarray, folded: np.ndarray, factors: Rounding | SaturatingRounding) -> np.ndarray:
    """Return the packed stream of `tk_rows_t`: int32 (blocks, words), a block for each two channels.

    Args:
        taps: int8 (channels, depth), depth a multiple of `QUAD`.
        folded: int32 (channels,), biases with the input's zero point folded in.
        factors: from `packed_factors`.
    """
    even = slice(0, None, PAIR)
    columns = padded(np.stack([factors.multiplier, factors.addend], axis=1), PAIR)
    ends = np.zeros((len(columns) // PAIR, PAIR, 3), np.int32)
    ends[..., :2] = columns.reshape(-1, PAIR, 2)
    if isinstance(factors, SaturatingRounding):
        bias = padded(factors.bias, PAIR)
        ends[:, 0, 2] = bias[even]
        starts = np.stack([bias[1::PAIR], np.zeros_like(bias[even])], axis=1)
    else:
        ends[..., 2] = padded(factors.shift, PAIR).reshape(-1, PAIR)
        starts = packed_starts(padded(folded, PAIR))
    whole = len(taps) // PAIR
    ends[[block for block in (whole - 1, len(ends) - 1) if block >= 0], 1, 2] |= _LAST
    return np.hstack([starts, packed_words(padded(taps, PAIR)), ends.reshape(len(ends), -1)])


def _wrapped(values: np.ndarray) -> np.ndarray:
    return (values & 0xFFFF_FFFF).astype(np.uint32).view(np.int32)
