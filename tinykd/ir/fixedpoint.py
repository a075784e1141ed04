"""TFLite Micro's fixed-point arithmetic on NumPy arrays: int64 in, int64 out, values within int32.

Source: the definitions in gemmlowp's fixed-point paper notes and TFLite's quantisation specification; restated in
`docs/spec-int8.md`. Everything here rounds twice, as TFLite Micro's reference kernels do.
"""

from __future__ import annotations

import numpy as np

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


def doubling_high_mul(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Return a * b / 2**31 as SaturatingRoundingDoublingHighMul rounds it: to nearest, halves up."""
    # The definition's nudge and truncating division come to this arithmetic shift for either sign.
    return np.minimum((a.astype(np.int64) * b + (1 << 30)) >> 31, INT32_MAX)


def rounding_shift_right(x: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """Return x / 2**exponent rounded to nearest, halves away from zero (RoundingDivideByPOT)."""
    exponent = np.asarray(exponent, dtype=np.int64)
    half = (np.int64(1) << exponent) >> 1
    # Negative halves go down: they miss the half by one. Without a shift nothing rounds.
    return (x + half - ((x < 0) & (exponent > 0))) >> exponent


def saturating_shift_left(x: np.ndarray, exponent: int) -> np.ndarray:
    """Return x * 2**exponent clamped to int32."""
    return np.clip(x.astype(np.int64) << exponent, INT32_MIN, INT32_MAX)


def multiply_by_quantized_multiplier(
    x: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int
) -> np.ndarray:
    """Return x * multiplier * 2**(shift - 31), rounded twice; `multiplier` and `shift` broadcast over the last axis."""
    shift = np.asarray(shift, dtype=np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    result = x.astype(np.int64)
    if left.any():
        # The C code shifts an int32, which wraps.
        result = wrap_int32(result << left)
    # doubling_high_mul and rounding_shift_right in place: multipliers are never -2**31, so nothing saturates.
    result *= np.asarray(multiplier, dtype=np.int64)
    result += 1 << 30
    result >>= 31
    result -= (result < 0) & (right > 0)
    result += (np.int64(1) << right) >> 1
    result >>= right
    return result


def wrap_int32(x: np.ndarray) -> np.ndarray:
    """Return int64 values as C's int32 would hold them."""
    return x.astype(np.int32).astype(np.int64)


# exp(-2**k) for k = -2 .. 4 as Q0.31 constants, applied where the matching bit of the argument is set.
_EXP_FACTORS = (
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)


def exp_on_negative_values(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """Return exp(a) as Q0.31 for a <= 0 given with `integer_bits` integer bits (raw int32 values).

    The argument is split into a part in (-1/4, 0], for which a fourth-order Taylor polynomial around -1/8 is used,
    and a multiple of 1/4, for which tabulated powers are multiplied.
    """
    fractional_bits = 31 - integer_bits
    quarter = 1 << (fractional_bits - 2)
    part = (a & (quarter - 1)) - quarter
    x = saturating_shift_left(part, integer_bits) + (1 << 28)
    x2 = doubling_high_mul(x, x)
    x3 = doubling_high_mul(x2, x)
    x4_over_4 = rounding_shift_right(doubling_high_mul(x2, x2), 2)
    one_third = 715827883
    polynomial = rounding_shift_right(doubling_high_mul(x4_over_4 + x3, one_third) + x2, 1)
    exp_eighth = 1895147668
    result = exp_eighth + doubling_high_mul(x + polynomial, exp_eighth)
    remainder = part - a
    for exponent, factor in _EXP_FACTORS:
        if integer_bits > exponent:
            bit = 1 << (fractional_bits + exponent)
            result = np.where(remainder & bit, doubling_high_mul(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


def reciprocal(x: np.ndarray, integer_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `(r, n)` with 1 / x ~= r * 2**-31 * 2**-n, for x > 0 given with `integer_bits` integer bits."""
    headroom = 32 - np.floor(np.log2(x.astype(np.float64))).astype(np.int64) - 1
    shifted = (x.astype(np.int64) << headroom) - (1 << 31)
    return saturating_shift_left(_quotient_estimate(shifted), 1), integer_bits - headroom


def logistic(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """Return 1 / (1 + exp(-a)) as Q0.31 for a with `integer_bits` integer bits (raw int32 values)."""
    positive = saturating_shift_left(_quotient_estimate(exp_on_negative_values(-np.abs(a), integer_bits)), 1)
    return np.where(a == 0, 1 << 30, np.where(a > 0, positive, INT32_MAX - positive))


def tanh(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """Return tanh(a) as Q0.31 for a with `integer_bits` integer bits (raw int32 values)."""
    # The same raw number with one more integer bit is 2a: tanh(a) = (1 - exp(-2a)) / (1 + exp(-2a)).
    estimate = _quotient_estimate(exp_on_negative_values(-np.abs(a), integer_bits + 1))
    positive = saturating_shift_left(estimate - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a > 0, positive, -positive))


def _quotient_estimate(x: np.ndarray) -> np.ndarray:
    """Return 2 / (1 + x) as Q2.29 for x in [0, 1) as Q0.31.

    Three Newton-Raphson steps from the linear estimate 48/17 - 32/17 d, where d = (1 + x) / 2.
    """
    # RoundingHalfSum of x and one; the sum is never negative here.
    half_denominator = (x + INT32_MAX + 1) >> 1
    estimate = 1515870810 + doubling_high_mul(half_denominator, -1010580540)
    one = 1 << 29
    for _ in range(3):
        error = one - doubling_high_mul(half_denominator, estimate)
        estimate = estimate + saturating_shift_left(doubling_high_mul(estimate, error), 2)
    return estimate
