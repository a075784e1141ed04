"""The fast forms of requantisation against TFLite Micro's double rounding."""

import numpy as np
import pytest
from graphs import needs_public_models, public_models
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.commands.target import resolve_target
from tinykd.ir import requantization
from tinykd.ir.fixedpoint import wrap_int32
from tinykd.ir.requant import Requantization
from tinykd.kernels.call import folded_bias
from tinykd.kernels.requantize import (
    MAX_SCALE_BITS,
    MAX_SHIFT,
    SATURATING_SHIFT,
    accumulator_range,
    plain,
    rounding,
    saturating,
)


def _proven_equal(exact, fast, low, high):
    """Whether two functions of sums (..., channels) are equal on low .. high, both of which never fall.

    Each output that `exact` takes begins at some sum, found by bisection; there and one below, `fast` must agree.
    """
    outputs = np.arange(-127, 128)[:, None]
    below, reached = np.broadcast_arrays(low - 1, high + 1, outputs)[:2]
    while np.any(reached - below > 1):
        middle = (below + reached) >> 1
        has = (middle >= low) & ((middle > high) | (exact(np.clip(middle, low, high)) >= outputs))
        below, reached = np.where(has, below, middle), np.where(has, middle, reached)
    edges = np.clip(np.stack([below, reached]), low, high)
    return np.array_equal(exact(edges), fast(edges))


def _fast(found, constants):
    """Return the instructions of the general form as a function of sums, in 32 bits."""

    def run(acc):
        doubled = wrap_int32(2 * acc)
        total = wrap_int32(((doubled * found.multiplier + (1 << 31)) >> 32) + found.addend)
        negative = 0 if found.one_sided else doubled < 0
        return np.clip(wrap_int32(total - negative) >> found.shift, constants.out_min, constants.out_max)

    return run


def _saturated(found, bias):
    """Return the instructions of the saturating form as a function of sums that contain `bias`, in 32 bits."""

    def run(acc):
        scaled = wrap_int32(((acc - bias) << found.scale_bits) + found.bias)
        total = wrap_int32(((scaled * found.multiplier) >> 32) + found.addend)
        return np.clip(total >> SATURATING_SHIFT, -128, 127)

    return run


def _constants(multipliers, shift, zero, low=-128, high=127):
    shifts = np.broadcast_to(shift, len(multipliers))
    return Requantization(tuple(map(int, multipliers)), tuple(map(int, shifts)), 0, zero, low, high)


def _span(multipliers, exponent):
    """Return a range of sums somewhat wider than all outputs."""
    reach = (400.0 * 2.0 ** (31 + exponent) / np.asarray(multipliers)).astype(np.int64)
    return -reach, reach


multipliers = st.lists(st.one_of(st.integers(1 << 30, (1 << 31) - 1), st.just(1 << 30)), min_size=1, max_size=6)


def test_bisection_notices_one_wrong_sum():
    """A function that is off at a single sum, at a threshold, is told apart."""
    constants = _constants([1 << 30], -3, 5)
    low, high = np.array([-3000]), np.array([3000])

    def exact(acc):
        return plain(constants, acc)

    first = next(acc for acc in range(3000) if exact(np.array([acc]))[0] == 40)
    assert _proven_equal(exact, exact, low, high)
    assert not _proven_equal(exact, lambda acc: exact(acc) - (acc == first), low, high)


@given(multipliers, st.integers(1, 12), st.sampled_from([-128, -127, 0, 5, 127]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_general_form_equals_both_roundings(factors, exponent, zero, clamps):
    """Whatever multiplier, shift, zero point and clamp: the general form gives TFLite Micro's output for every sum."""
    constants = _constants(factors, -exponent, zero, zero if clamps else -128, 127)
    low, high = _span(factors, exponent)
    found = rounding(constants, low, high)
    assert found is not None
    assert found.one_sided == (clamps or zero == -128)
    assert _proven_equal(lambda acc: plain(constants, acc), _fast(found, constants), low, high)


@given(multipliers, st.integers(3, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_saturating_form_equals_both_roundings(factors, exponent, shared):
    """For factors as real layers have them the saturating form exists and gives TFLite Micro's output for every sum."""
    constants = _constants(factors, -exponent, -128)
    low, high = _span(factors, exponent)
    bias = high // 7
    found = saturating(constants, low, high, bias, shared_scale=shared)
    assert found is not None
    assert found.scale_bits.max() <= MAX_SCALE_BITS
    assert _proven_equal(lambda acc: plain(constants, acc), _saturated(found, bias), low, high)


def test_every_sum_of_a_small_range():
    """Both forms are right for all sums near 0 and at the ends, halves and ties included, not at thresholds alone."""
    rng = np.random.default_rng(1)
    factors = np.concatenate([rng.integers(1 << 30, 1 << 31, 60), [1 << 30, (1 << 31) - 1, 3 << 29]])
    for exponent in (3, 5):
        low, high = _span(factors, exponent)
        acc = np.arange(low.min(), high.max() + 1)[:, None]
        acc = np.clip(acc, low, high)
        for zero in (-128, 3):
            constants = _constants(factors, -exponent, zero)
            found = rounding(constants, low, high)
            assert np.array_equal(_fast(found, constants)(acc), plain(constants, acc))
        constants = _constants(factors, -exponent, -128)
        found = saturating(constants, low, high, np.zeros_like(low), shared_scale=False)
        assert np.array_equal(_saturated(found, 0)(acc), plain(constants, acc))


def test_mixed_shifts_share_a_scale_or_have_their_own():
    """Channels of different shifts get scales of their own, or the largest one; both are right."""
    rng = np.random.default_rng(2)
    factors, exponents = rng.integers(1 << 30, 1 << 31, 400), rng.integers(5, 9, 400)
    constants = _constants(factors, -exponents, -128)
    low, high = _span(factors, exponents)
    for shared in (False, True):
        found = saturating(constants, low, high, np.zeros_like(low), shared_scale=shared)
        assert len(np.unique(found.scale_bits)) == (1 if shared else 4)
        assert _proven_equal(lambda acc: plain(constants, acc), _saturated(found, 0), low, high)


def test_constant_channels_need_no_conditions():
    """A channel with one output for all inputs may have any shift and even sums that leave int32."""
    constants = _constants([1 << 30] * 4, [-8, 0, -31, -2], -128)
    low = np.array([-900, -(1 << 29) - 40, 1 << 30, -(1 << 33)])
    high = np.array([99000, -(1 << 29) + 40, (1 << 30) + 500, -(1 << 32)])
    acc = np.stack([low, high, high - 1])
    found = rounding(constants, low, high)
    assert np.array_equal(_fast(found, constants)(acc), plain(constants, acc))
    for shared in (False, True):
        found = saturating(constants, low, high, low, shared_scale=shared)
        assert np.array_equal(_saturated(found, low)(acc), plain(constants, acc))
        assert list(found.multiplier != 0) == [True, False, False, False]


@pytest.mark.parametrize(("shift", "reach"), [(0, 1 << 12), (1, 1 << 12), (-MAX_SHIFT - 1, 1 << 29), (-8, 1 << 30)])
def test_what_is_not_proven_is_refused(shift, reach):
    """Shifts to the left, none, and too far ones, and sums that double beyond int32, give None in both forms."""
    constants = _constants([1 << 30], shift, -128)
    low, high = np.array([-reach]), np.array([reach])
    assert rounding(constants, low, high) is None
    assert saturating(constants, low, high, np.zeros(1), shared_scale=False) is None


@pytest.mark.parametrize(("zero", "low", "high"), [(-128, -128, 126), (0, 0, 127), (0, -128, 127)])
def test_only_layers_that_end_at_both_ends_of_int8_saturate(zero, low, high):
    """Another clamp, or negative outputs, have no saturating form."""
    constants = _constants([1 << 30], -8, zero, low, high)
    span = _span([1 << 30], 8)
    assert saturating(constants, *span, np.zeros(1), shared_scale=False) is None
    assert rounding(constants, *span).saturates == ((low, high) == (-128, 127))


def test_range_of_sums_is_reached():
    """The least and the largest sum are those of the inputs that make them."""
    rng = np.random.default_rng(3)
    taps = rng.integers(-128, 128, (2, 3, 1, 5)).astype(np.int8)
    bias = np.array([7, -9, 11, 0, 5])
    low, high = accumulator_range(taps, 3, bias)
    flat = taps.astype(np.int64).reshape(6, 5)
    assert np.array_equal(low, bias + (flat * np.where(flat > 0, -128, 127)).sum(axis=0))
    assert np.array_equal(high, bias + (flat * np.where(flat > 0, 127, -128)).sum(axis=0))


def _one_sided_layers(path):
    graph = resolve_target(str(path), None).engine_graph()
    for op in graph.ops:
        if op.kind in ("conv_2d", "depthwise_conv_2d", "fully_connected"):
            constants = requantization(graph, op)
            if constants.out_min == constants.output_zero_point:
                taps, axis = graph.tensor(op.inputs[1]).data, 3 if op.kind == "depthwise_conv_2d" else 0
                bias = folded_bias(graph, op, taps, axis, constants.input_zero_point, op.source)
                yield constants, bias, accumulator_range(taps, axis, bias)


@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem[:24])
def test_public_models_are_covered(path):
    """Every layer with an activation in the public models has the general form, all but one the saturating one."""
    refused = 0
    for constants, bias, (low, high) in _one_sided_layers(path):
        general = rounding(constants, low, high)
        saturated = saturating(constants, low, high, bias, shared_scale=False)
        assert _proven_equal(lambda acc, c=constants: plain(c, acc), _fast(general, constants), low, high)
        if saturated is None:
            refused += 1
        else:
            assert _proven_equal(lambda acc, c=constants: plain(c, acc), _saturated(saturated, bias), low, high)
    assert refused <= 1
