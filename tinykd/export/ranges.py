"""How the values of an activation become its range: a histogram of bounded size, and one function for each method.

Zero is exact in every int8 grid, so zeros are counted apart: they cost no method an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tinykd.ir.affine import affine_parameters
from tinykd.ir.requant import QMAX, QMIN

Range = tuple[float, float]

MAX_BINS = 4096
TAIL = 1e-4
"""What `percentile` leaves out at either end, as a share of all values."""
# A bin is never narrower than this share (a power of two) of the largest magnitude: indices stay small integers.
_FINEST = 20
_COARSE_FRACTIONS = np.linspace(0.05, 1.0, 20)
_FINE_STEPS = np.linspace(-0.045, 0.045, 19)
_KL_CANDIDATES = 96
# What stands for "never seen" in the quantised distribution: TensorRT's slides leave log(p / 0) open.
_KL_SMOOTHING = 1e-4
# A divergence between histograms of a handful of values says nothing.
_KL_COUNTS = 8


class Histogram:
    """Counts of a stream of values in at most `MAX_BINS` bins; memory does not grow with their number.

    The bin width is the smallest power of two that fits all values so far, and bins begin at multiples of it. Growing
    joins neighbours exactly, so that the result depends neither on the order nor on the batches of the stream.

    Attributes:
        low, high: the smallest and largest value that `widen` or `add` has seen; inf and -inf before any.
        zeros: how many of the values that were added are exactly 0; they are in no bin.
        exponent: the bin width is 2**exponent.
        first: the first bin covers [first * width, (first + 1) * width).
        counts: int64, one for each bin.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.zeros = 0
        self.exponent = -1074
        self.first = 0
        self.counts = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.zeros + int(self.counts.sum())

    def widen(self, low: float, high: float) -> None:
        """Take note of the smallest and largest of values that are not all counted."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, values: np.ndarray) -> None:
        """Count values, a finite float array of any shape."""
        if values.size == 0:
            return
        self.widen(float(values.min()), float(values.max()))
        counted = values[values != 0].astype(np.float64)
        self.zeros += values.size - counted.size
        if counted.size == 0:
            return
        low, high = float(counted.min()), float(counted.max())
        if self.counts.size:
            low, high = min(low, self.first * self.width), max(high, (self.first + self.counts.size - 1) * self.width)
        exponent = max(self.exponent, _fitting_exponent(low, high))
        first, last = (math.floor(math.ldexp(value, -exponent)) for value in (low, high))
        counts = np.zeros(last - first + 1, np.int64)
        if self.counts.size:
            old = (self.first + np.arange(self.counts.size)) >> min(exponent - self.exponent, 62)
            np.add.at(counts, old - first, self.counts)
        indices = np.floor(np.ldexp(counted, -exponent)).astype(np.int64) - first
        counts += np.bincount(indices, minlength=counts.size)
        self.exponent, self.first, self.counts = exponent, first, counts

    def centres(self) -> np.ndarray:
        """Return the middle of each bin, float64."""
        return (self.first + np.arange(self.counts.size) + 0.5) * self.width

    def magnitudes(self) -> np.ndarray:
        """Return the counts of absolute values, int64: bin k covers [k, k + 1) * width."""
        indices = self.first + np.arange(self.counts.size)
        # Bin -1 holds [-width, 0), whose magnitudes belong into bin 0.
        return np.bincount(np.where(indices < 0, -1 - indices, indices), weights=self.counts).astype(np.int64)


def _fitting_exponent(low: float, high: float) -> int:
    """Return the smallest exponent at which [low, high] takes at most `MAX_BINS` bins; it never falls as they widen."""
    exponent = math.frexp(max(abs(low), abs(high)))[1] - _FINEST
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= MAX_BINS:
        exponent += 1
    return exponent


def minmax(histogram: Histogram) -> Range:
    """Return the smallest and largest value: nothing is clipped."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> Range:
    """Return the values below and above which the share `TAIL` lies, interpolated within bins."""
    edges = (histogram.first + np.arange(histogram.counts.size + 1)) * histogram.width
    before = np.concatenate([[0], np.cumsum(histogram.counts)])
    # The zeros stand between the negative bins and the others, as a jump at 0.
    at = int(np.clip(-histogram.first, 0, histogram.counts.size))
    left, right = slice(0, at + 1 if at else 0), slice(at, None if at < histogram.counts.size else at)
    edges = np.concatenate([edges[left], [0.0, 0.0], edges[right]])
    after = before + histogram.zeros
    before = np.concatenate([before[left], [before[at], after[at]], after[right]])
    low, high = np.interp([TAIL * histogram.total, (1 - TAIL) * histogram.total], before, edges)
    low, high = np.clip([low, high], histogram.low, histogram.high)
    return float(low), float(high)


def squared_error(histogram: Histogram, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the sum of squared errors of int8 rounding for each candidate range, low and high (K,)."""
    centres, counts = histogram.centres(), histogram.counts.astype(np.float64)
    scale, zero_point = affine_parameters(np.asarray(low, np.float64), np.asarray(high, np.float64))
    errors = []
    # One candidate at a time stays in the cache.
    for step, zero in zip(scale, zero_point, strict=True):
        rounded = np.rint(centres * (1 / step))
        np.clip(rounded, QMIN - zero, QMAX - zero, out=rounded)
        rounded *= step
        rounded -= centres
        errors.append(float(np.dot(rounded * rounded, counts)))
    return np.array(errors)


def mse(histogram: Histogram) -> Range:
    """Return the range whose int8 grid has the least mean squared error.

    Both ends first shrink together, then one after the other, each on a grid of shares of the extremes: 5 % apart, and
    0.5 % around the best.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if not histogram.counts.size or low == high:
        return histogram.low, histogram.high
    both = low < 0 < high
    directions = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0)] if both else [(1.0, 1.0)]
    share_low = share_high = 1.0
    for move_low, move_high in directions:
        for fractions in (_COARSE_FRACTIONS, None):
            if fractions is None:
                fractions = (share_low if move_low else share_high) + _FINE_STEPS
            fractions = fractions[(fractions > 0) & (fractions <= 1.0)]
            lows = fractions if move_low else np.full_like(fractions, share_low)
            highs = fractions if move_high else np.full_like(fractions, share_high)
            best = int(np.argmin(squared_error(histogram, low * lows, high * highs)))
            share_low, share_high = float(lows[best]), float(highs[best])
    return low * share_low, high * share_high


def divergence(magnitudes: np.ndarray, bins: int, levels: int) -> float:
    """Return KL(P || Q) for a threshold at `bins`.

    P is the first `bins` counts with everything beyond added to the last; Q is those counts (without what is beyond)
    merged into `levels` groups, each spread evenly over the bins of its group that are not empty. A threshold that cuts
    off half of the values is infinitely bad: with all of P in its last bin, nothing would seem lost.
    """
    inside = magnitudes[:bins].astype(np.float64)
    if inside.sum() * 2 < magnitudes.sum():
        return math.inf
    reference = inside.copy()
    reference[-1] += magnitudes[bins:].sum()
    group = np.arange(bins) * levels // bins
    filled = inside > 0
    sums = np.bincount(group, weights=inside, minlength=levels)
    sizes = np.bincount(group, weights=filled, minlength=levels)
    quantised = np.where(filled, (sums / np.maximum(sizes, 1))[group], 0.0)
    quantised[(reference > 0) & ~filled] = _KL_SMOOTHING
    p, q = reference / reference.sum(), quantised / quantised.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def entropy(histogram: Histogram) -> Range:
    """Return the range that loses the least information: the threshold with the smallest Kullback-Leibler divergence.

    This is the calibrator of TensorRT (S. Migacz, "8-bit inference with TensorRT", GTC 2017): magnitudes, 128 levels,
    one threshold for both signs. Values of one sign have all 256 levels of an asymmetric grid. Zeros do not count.
    Bins are joined until each holds `_KL_COUNTS` values on average; with too few values for that nothing is clipped.
    """
    magnitudes, width = histogram.magnitudes(), histogram.width
    while magnitudes.sum() < _KL_COUNTS * len(magnitudes):
        magnitudes = np.pad(magnitudes, (0, len(magnitudes) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    levels = 128 if histogram.low < 0 < histogram.high else 256
    if len(magnitudes) <= levels:
        return minmax(histogram)
    candidates = np.unique(np.linspace(levels, len(magnitudes), _KL_CANDIDATES).astype(int))
    best = candidates[int(np.argmin([divergence(magnitudes, int(bins), levels) for bins in candidates]))]
    threshold = float(best) * width
    return max(histogram.low, -threshold), min(histogram.high, threshold)


@dataclass(frozen=True)
class Method:
    """A way to find ranges.

    Attributes:
        choose: from the counts of an activation to its range.
        counts: whether it needs them; else the extremes are enough.
        summary: one line for people.
    """

    choose: Callable[[Histogram], Range]
    counts: bool
    summary: str


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "minmax": Method(minmax, False, "the smallest and largest value; nothing is clipped"),
        "percentile": Method(percentile, True, f"all but {TAIL:.2%} of the values at either end"),
        "mse": Method(mse, True, "the least mean squared error of the rounded values"),
        "entropy": Method(entropy, True, "the least Kullback-Leibler divergence, as TensorRT's calibrator"),
    }
)
