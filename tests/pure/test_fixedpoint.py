"""Fixed-point arithmetic against exact integers and rationals."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinykd.ir import quantize_multiplier
from tinykd.ir.fixedpoint import (
    doubling_high_mul,
    exp_on_negative_values,
    logistic,
    multiply_by_quantized_multiplier,
    reciprocal,
    rounding_shift_right,
    tanh,
    wrap_int32,
)

int32 = st.integers(-(2**31), 2**31 - 1)


@given(int32, st.one_of(int32, st.sampled_from([2**30, -(2**30), 2**29])))
def test_doubling_high_mul_rounds_to_nearest(a, b):
    """The high product is a*b/2**31 rounded to nearest, halves up; the one product that overflows saturates."""
    got = int(doubling_high_mul(np.array([a]), b)[0])
    assert got == min(math.floor(Fraction(a * b, 2**31) + Fraction(1, 2)), 2**31 - 1)


@given(int32, st.integers(0, 31))
def test_rounding_shift_rounds_halves_away_from_zero(x, exponent):
    """Shifting right rounds to nearest, halves away from zero."""
    got = int(rounding_shift_right(np.array([x], dtype=np.int64), exponent)[0])
    exact = Fraction(x, 2**exponent)
    expected = math.floor(exact + Fraction(1, 2)) if x >= 0 else math.ceil(exact - Fraction(1, 2))
    assert got == expected


@given(st.floats(1e-9, 1e6))
def test_quantize_multiplier_keeps_31_bits(real):
    """Multiplier and shift give back the real factor to 2**-31 relative, in the normal range."""
    multiplier, shift = quantize_multiplier(real)
    if multiplier:
        assert 2**30 <= multiplier < 2**31
        assert math.isclose(multiplier * 2.0 ** (shift - 31), real, rel_tol=2**-30)


def test_quantize_multiplier_edges():
    """Zero stays zero, a mantissa that rounds up to one is renormalised, tiny factors vanish, huge ones saturate."""
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(1.0) == (1 << 30, 1)
    assert quantize_multiplier(math.nextafter(1.0, 0.0)) == (1 << 30, 1)
    assert quantize_multiplier(2.0**-40) == (0, 0)
    assert quantize_multiplier(2.0**40) == (2**31 - 1, 30)


@given(int32, st.floats(1e-6, 0.9))
def test_requantization_is_within_one_step(x, real):
    """Two roundings are never more than one step from the exact product."""
    multiplier, shift = quantize_multiplier(real)
    got = int(multiply_by_quantized_multiplier(np.array([x]), multiplier, shift)[0])
    assert abs(got - x * real) <= 1.0 + abs(x * real) * 2**-29


def test_exp_is_accurate():
    """exp of a negative Q5.26 number is right to 2**-22 of one."""
    raw = -np.linspace(0, 2**31 - 1, 2001).astype(np.int64)
    got = exp_on_negative_values(raw, 5) / 2**31
    assert np.abs(got - np.exp(raw / 2**26)).max() < 2**-22


def test_reciprocal_is_accurate():
    """The reciprocal of a positive Q12.19 number is right to a part in 2**26."""
    x = np.unique(np.logspace(np.log10(2**19), np.log10(2**31 - 1), 500).astype(np.int64))
    scale, bits = reciprocal(x, 12)
    got = scale / 2.0**31 / 2.0**bits
    assert np.allclose(got * (x / 2.0**19), 1.0, rtol=2**-26)


def test_logistic_and_tanh_are_accurate():
    """Both are right to 2**-22 on all Q4.27 numbers, odd about their middle to 2**-30, and exact at zero."""
    raw = np.linspace(-(2**31) + 1, 2**31 - 1, 4001).astype(np.int64)
    real = raw / 2**27
    assert np.abs(logistic(raw, 4) / 2**31 - 1 / (1 + np.exp(-real))).max() < 2**-22
    assert np.abs(tanh(raw, 4) / 2**31 - np.tanh(real)).max() < 2**-22
    assert np.array_equal(logistic(raw, 4) + logistic(-raw, 4), np.where(raw == 0, 2**31, 2**31 - 1))
    assert np.array_equal(tanh(raw, 4), -tanh(-raw, 4))
    assert logistic(np.array([0]), 4)[0] == 2**30
    assert tanh(np.array([0]), 4)[0] == 0


def test_int32_wraps():
    """Beyond int32 the numbers go round, as C's do in practice."""
    assert wrap_int32(np.array([2**31, -(2**31) - 1, 2**32 + 5, -7])).tolist() == [-(2**31), 2**31 - 1, 5, -7]


@given(int32, st.floats(1e-9, 1e6))
def test_requantization_rounds_twice(x, real):
    """In place or step by step, the product is first rounded to an integer and then shifted with a second rounding."""
    multiplier, shift = quantize_multiplier(real)
    shifted = wrap_int32(np.array([x], dtype=np.int64) << max(shift, 0))
    expected = rounding_shift_right(doubling_high_mul(shifted, multiplier), max(-shift, 0))
    assert multiply_by_quantized_multiplier(np.array([x]), multiplier, shift)[0] == expected[0]
