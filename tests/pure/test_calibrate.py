"""Ranges: the streaming histogram, and each method against an oracle that looks at all values."""

import math
from typing import get_args

import numpy as np
import pytest
from floatnets import FloatNet, chain
from hypothesis import given
from hypothesis import strategies as st

from tinykd.commands.export import METHODS as OFFERED
from tinykd.config import ExportConfig, load_recipe
from tinykd.errors import ConfigError, DataError
from tinykd.export import calibrate, float_reference, ranges
from tinykd.export.ranges import MAX_BINS, METHODS, Histogram
from tinykd.ir.affine import activation_quant
from tinykd.ir.requant import QMAX, QMIN

RNG = np.random.default_rng(7)
DISTRIBUTIONS = {
    "normal": RNG.normal(0.4, 1.0, 60_000),
    "heavy tail": RNG.standard_t(3, 60_000),
    "relu": np.maximum(RNG.normal(0, 1, 60_000), 0),
    "relu, heavy tail": np.maximum(RNG.standard_t(2.5, 60_000), 0),
    "negative": -np.abs(RNG.laplace(0, 2, 60_000)),
    "far from zero": RNG.normal(3, 0.1, 60_000),
}
every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def counted(values):
    """A histogram of values that came in pieces."""
    histogram = Histogram()
    for part in np.array_split(values, 17):
        histogram.add(part)
    return histogram


def rounding_error(values, low, high):
    """Sum of squared errors of int8 rounding, from the definition of the grid, value by value."""
    quant = activation_quant(low, high)
    integers = np.clip(np.rint(values / quant.scale) + quant.zero_point, QMIN, QMAX)
    return float((((integers - quant.zero_point) * quant.scale - values) ** 2).sum())


finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(finite, min_size=1, max_size=60), st.integers(1, 7), st.randoms(use_true_random=False))
def test_the_histogram_depends_neither_on_order_nor_on_batches(values, pieces, random):
    """The same values in any order and any pieces give the same bins; all are counted, the extremes are exact."""
    whole, parts = Histogram(), Histogram()
    whole.add(np.array(values, np.float32))
    shuffled = random.sample(values, len(values))
    for part in np.array_split(np.array(shuffled, np.float32), pieces):
        parts.add(part)
    assert (whole.low, whole.high) == (parts.low, parts.high) == (min(values), max(values))
    assert whole.total == parts.total == len(values)
    if whole.counts.size:
        assert (whole.exponent, whole.first) == (parts.exponent, parts.first)
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.size <= MAX_BINS


@every_distribution
def test_bins_hold_the_values_that_lie_in_them(name):
    """Counts equal NumPy's own histogram over the same edges, and use at least half of the bins."""
    values = DISTRIBUTIONS[name]
    histogram = counted(values)
    edges = (histogram.first + np.arange(histogram.counts.size + 1)) * histogram.width
    edges[-1] = np.inf
    expected, _ = np.histogram(values[values != 0], edges)
    assert np.array_equal(histogram.counts, expected)
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.counts.size > MAX_BINS // 4
    magnitudes = histogram.magnitudes()
    folded, _ = np.histogram(np.abs(values[values != 0]), np.arange(magnitudes.size + 1) * histogram.width)
    # A value on an edge falls to either side when its sign is turned.
    assert np.abs(np.cumsum(magnitudes) - np.cumsum(folded)).max() <= 1


def test_memory_does_not_grow_with_the_values():
    """Ever larger values widen the bins instead of adding some."""
    histogram = Histogram()
    for power in range(0, 40, 4):
        histogram.add(np.array([1.0, -(2.0**power), 2.0**power]))
    assert histogram.counts.size <= MAX_BINS
    assert histogram.total == 30
    assert histogram.high == 2.0**36


@every_distribution
def test_percentile_is_numpys(name):
    """The percentile range is that of all values, to the width of a bin."""
    values = DISTRIBUTIONS[name]
    histogram = counted(values)
    low, high = ranges.percentile(histogram)
    expected = np.quantile(values, [ranges.TAIL, 1 - ranges.TAIL])
    # Between two rare values anything goes: the neighbours bound it.
    ordered = np.sort(values)
    rank = int(ranges.TAIL * len(values))
    assert ordered[rank - 1] - histogram.width <= low <= ordered[rank + 1] + histogram.width, expected
    assert ordered[-rank - 2] - histogram.width <= high <= ordered[-rank] + histogram.width, expected


def test_percentile_counts_zeros():
    """Nine zeros in ten push the percentile out of the tail of the tenth."""
    values = np.concatenate([np.zeros(90_000), np.linspace(0.001, 1.0, 10_000)])
    _, high = ranges.percentile(counted(values))
    assert high == pytest.approx(0.999, abs=2e-4)
    low, _ = ranges.percentile(counted(-values))
    assert low == pytest.approx(-0.999, abs=2e-4)


@every_distribution
def test_mse_is_as_good_as_brute_force(name):
    """No pair of ends on a fine grid has a smaller error, value by value, than 2 % below the method's."""
    values = DISTRIBUTIONS[name]
    low, high = ranges.mse(counted(values))
    found = rounding_error(values, low, high)
    ends = np.linspace(0.04, 1.0, 49)
    lows = ends * min(values.min(), 0) if values.min() < 0 else [0.0]
    highs = ends * max(values.max(), 0) if values.max() > 0 else [0.0]
    sample = values[::10]
    scored = [(rounding_error(sample, a, b), a, b) for a in lows for b in highs]
    best = min(rounding_error(values, a, b) for _, a, b in sorted(scored)[:5])
    assert found <= 1.02 * best
    assert found <= rounding_error(values, values.min(), values.max()) * 1.001


def test_mse_clips_one_end_alone():
    """One outlier on one side: its end moves to where the analytic optimum is, the other end stays.

    With n values spread over [0, 20] and one at -44, the squared error of an end at -e is
    (44 - e)² + n / 12 · ((20 + e) / 255)².
    """
    count = 200_000
    low, high = ranges.mse(counted(np.concatenate([[-44.0], RNG.uniform(0, 20, count)])))
    pull = count / 12 / 255**2
    assert low == pytest.approx(-(44 - 20 * pull) / (1 + pull), abs=2.0)
    assert high == pytest.approx(20.0, abs=0.3)


def slow_divergence(values, threshold, levels, width):
    """KL(P || Q) of magnitudes up to a threshold, bin by bin, as the slides of TensorRT's calibrator describe it."""
    bins = round(threshold / width)
    counts = [0] * bins
    beyond = 0
    for value in values:
        if value != 0:
            index = math.floor(value / width) if value > 0 else math.ceil(-value / width) - 1
            if index < bins:
                counts[index] += 1
            else:
                beyond += 1
    reference = list(counts)
    reference[-1] += beyond
    quantised = [0.0] * bins
    for level in range(levels):
        members = [k for k in range(bins) if k * levels // bins == level and counts[k]]
        for k in members:
            quantised[k] = sum(counts[j] for j in members) / len(members)
    quantised = [1e-4 if p and not counts[k] else q for k, (p, q) in enumerate(zip(reference, quantised, strict=True))]
    p_sum, q_sum = sum(reference), sum(quantised)
    return sum(p / p_sum * math.log((p / p_sum) / (q / q_sum)) for p, q in zip(reference, quantised, strict=True) if p)


@pytest.mark.parametrize("name", ["normal", "heavy tail", "relu, heavy tail", "negative"])
def test_entropy_is_the_smallest_divergence(name):
    """The divergence is that of a plain loop over the bins, and no threshold that is tried has a smaller one."""
    values = DISTRIBUTIONS[name]
    histogram = counted(values)
    low, high = ranges.entropy(histogram)
    threshold = max(-low, high)
    levels = 128 if values.min() < 0 < values.max() else 256
    width, magnitudes = histogram.width, histogram.magnitudes()
    while magnitudes.sum() < 8 * len(magnitudes):
        magnitudes = np.pad(magnitudes, (0, len(magnitudes) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    full = len(magnitudes) * width
    threshold = min(math.ceil(threshold / width - 1e-9) * width, full)
    found = slow_divergence(values, threshold, levels, width)
    assert found == pytest.approx(ranges.divergence(magnitudes, round(threshold / width), levels), rel=1e-9)
    for share in (0.3, 0.5, 0.7, 0.9, 1.0):
        other = math.ceil(share * full / width) * width
        if other / width >= levels and np.mean(np.abs(values[values != 0]) < other) > 0.5:
            assert found <= slow_divergence(values, other, levels, width) * 1.1 + 1e-6


def test_entropy_clips_a_long_tail():
    """A few values far out do not cost the others their resolution."""
    values = np.concatenate([np.abs(RNG.normal(0, 1, 200_000)), [80.0]])
    assert ranges.entropy(counted(values))[1] < 10


@pytest.mark.parametrize("count", [6_000, 20_000, 200_000])
def test_entropy_keeps_a_flat_range(count):
    """Where no value is rare there is no tail to cut off, however many bins had to be joined."""
    values = RNG.uniform(0, 1, count)
    assert ranges.entropy(counted(values))[1] > 0.97


def test_entropy_with_few_values_is_minmax():
    """A histogram that is nearly empty says nothing about what may be clipped."""
    values = RNG.normal(0, 1, 300)
    assert ranges.entropy(counted(values)) == (values.min(), values.max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 2.0], [-1.0], [1e-30], [3.0, 3.0]])
def test_degenerate_activations_have_ranges(method, values):
    """Dead, constant and tiny activations give a finite range inside the extremes, joined with 0."""
    low, high = METHODS[method].choose(counted(np.repeat(values, 40)))
    assert min(*values, 0) <= low <= high <= max(*values, 0)


def test_calibration_does_not_depend_on_the_batch(monkeypatch):
    """The same ranges whether images come one by one or all at once."""
    net = chain()
    graph, x = net.graph(), net.images(40)
    whole = {method: calibrate.calibrate(graph, x, method) for method in METHODS}
    monkeypatch.setattr(calibrate, "_BATCH", 7)
    for method, expected in whole.items():
        found = calibrate.calibrate(graph, x, method)
        for name, (low, high) in expected.items():
            assert found[name] == pytest.approx((low, high), rel=1e-3, abs=1e-6)


def test_minmax_is_the_extremes_of_every_activation():
    """Nothing is sampled where the extremes are asked for."""
    net = chain()
    graph, x = net.graph(), net.images(10)
    found = calibrate.calibrate(graph, x, "minmax")
    seen = {}

    def look(name, value):
        seen.setdefault(name, []).append(value.copy())

    float_reference.run(graph, x, observe=look)
    for name, (low, high) in found.items():
        everything = np.concatenate(seen[name])
        assert (low, high) == (everything.min(), everything.max())


@pytest.mark.parametrize("size", [1, 7, 64, 4096, 16 * 32 * 32, 8 * 56 * 56])
def test_samples_see_every_channel(size):
    """The stride shares no divisor with an image's size: in time, each element is counted."""
    stride = calibrate._stride(size, 512)
    assert math.gcd(stride, size) == 1
    assert stride * 512 >= size


def test_sampled_histograms_are_those_of_all_values(monkeypatch):
    """Counting a part of large activations leaves the percentiles where they are."""
    net = FloatNet(shape=(1, 24, 24, 3))
    net.conv(8, activation="none")
    net.mean()
    net.dense(3)
    graph, x = net.graph(), net.images(40)
    sampled = calibrate.observe(graph, x)["conv_2d0"]
    monkeypatch.setattr(calibrate, "_COUNTED_PER_IMAGE", 1 << 20)
    whole = calibrate.observe(graph, x)["conv_2d0"]
    monkeypatch.setattr(calibrate, "_COUNTED_PER_IMAGE", 512)
    monkeypatch.setattr(calibrate, "_COUNTED", 1 << 12)
    sparse = calibrate.observe(graph, x)["conv_2d0"]
    assert whole.total == 40 * 24 * 24 * 8
    assert sparse.total < sampled.total <= whole.total
    width = whole.high - whole.low
    assert np.allclose(ranges.percentile(sparse), ranges.percentile(whole), atol=0.05 * width)
    assert (sparse.low, sparse.high) == (whole.low, whole.high)


def test_nonsense_is_refused():
    """Unknown methods, empty sets and infinite activations are errors before anything is quantised."""
    net = chain()
    graph, x = net.graph(), net.images(3)
    with pytest.raises(ConfigError, match="Did you mean 'minmax'"):
        calibrate.calibrate(graph, x, "min-max")
    with pytest.raises(DataError, match="empty"):
        calibrate.calibrate(graph, x[:0])
    x[1, 2, 2, 0] = np.inf
    with pytest.raises(DataError, match="'x' is not finite"):
        calibrate.calibrate(graph, x)


def test_a_recipe_names_a_method_or_searches(tmp_path):
    """`search` beside a method is a contradiction; alone each is fine."""
    assert load_recipe("smoke", ["export.method=entropy"]).export.method == "entropy"
    searching = load_recipe("smoke", ["export.search=true", "export.equalize=true"])
    assert searching.export.search
    # What a run keeps is complete, and can be read again.
    (tmp_path / "recipe.yaml").write_text(searching.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == searching
    with pytest.raises(ConfigError, match=r"export\.method: `search` finds the method"):
        load_recipe("smoke", ["export.search=true", "export.method=minmax"])
    with pytest.raises(ConfigError, match=r"export\.method"):
        load_recipe("smoke", ["export.method=kl"])


def test_one_list_of_methods():
    """The recipe and the command line offer what the registry has, and their default is its default."""
    assert tuple(METHODS) == OFFERED == get_args(ExportConfig.model_fields["method"].annotation)
    assert ExportConfig().method == calibrate.DEFAULT_METHOD
