"""Post-training quantisation from end to end: equalise, find ranges, quantise, correct biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tinykd.export.bias_correction import Correction, correct_biases
from tinykd.export.calibrate import DEFAULT_METHOD, choose, method_named, observe
from tinykd.export.equalize import channel_peaks, equalize
from tinykd.export.quantize import quantize
from tinykd.export.ranges import Histogram, Range
from tinykd.export.search import EVALUATIONS, Found, search
from tinykd.export.simulate import Simulation, halves, mean_squared_error, take_images
from tinykd.ir import Graph, Quant
from tinykd.ir.requant import QMAX, QMIN

Tick = Callable[[str, int], Callable[[], None]]
"""Begins a progress bar, given its title and length; what it returns is called after each step."""


@dataclass(frozen=True)
class PtqOptions:
    """How a float graph is quantised without training.

    Attributes:
        method: how ranges are found, a key of `ranges.METHODS`; with `search`, what it is compared with.
        bias_correction: take mean errors out of the biases, where that helps.
        equalize: even out channels between layers first; with `search`, only where that helps.
        search: let each activation have the method that is best for the outputs.
        evaluations: `search` only: most runs of the network.
    """

    method: str = DEFAULT_METHOD
    bias_correction: bool = True
    equalize: bool = False
    search: bool = False
    evaluations: int = EVALUATIONS


@dataclass(frozen=True)
class Quantised:
    """A network before and after.

    Attributes:
        float_graph: what was quantised: equalised, if so.
        graph: int8.
        equalized: pairs of layers whose channels moved.
        correction: of the biases; None when not wanted.
        found: what the search found, with the methods as they are used; None without.
    """

    float_graph: Graph
    graph: Graph
    equalized: tuple[tuple[str, str], ...] = ()
    correction: Correction | None = None
    found: Found | None = None


def quantise_trained(
    graph: Graph, x: np.ndarray, input_quant: Quant, options: PtqOptions | None = None, *, tick: Tick | None = None
) -> Quantised:
    """Return a float graph's int8 twin.

    Args:
        graph: a float graph after all passes.
        x: calibration images as it takes them, float32 (N, ...), training images only.
        input_quant: parameters of the input.
        options: None takes the defaults.
        tick: shows progress; see `Tick`.

    Raises:
        ConfigError: an unknown method.
        DataError: no images, or an activation that is not finite.
    """
    options = options or PtqOptions()
    counts = options.search or method_named(options.method).counts
    plain = _Candidate(graph, observe(graph, x, counts=counts), ())
    if not options.equalize and not options.search:
        return _attempt(plain, choose(plain.histograms, options.method), x, input_quant, options, tick)
    even = _equalized(graph, x, input_quant, counts)
    if not options.search:
        return _attempt(even, choose(even.histograms, options.method), x, input_quant, options, tick)
    return _searched(plain, even, x, input_quant, options, tick)


@dataclass(frozen=True)
class _Candidate:
    """A float graph to be quantised, what its activations are like, and the pairs of layers that were equalised."""

    graph: Graph
    histograms: Mapping[str, Histogram]
    pairs: tuple[tuple[str, str], ...]


def _attempt(
    candidate: _Candidate,
    ranges: Mapping[str, Range],
    x: np.ndarray,
    input_quant: Quant,
    options: PtqOptions,
    tick: Tick | None,
    found: Found | None = None,
) -> Quantised:
    int8, correction = quantize(candidate.graph, ranges, input_quant), None
    if options.bias_correction:
        step = tick("Correcting biases", len(int8.ops)) if tick else None
        correction = correct_biases(candidate.graph, int8, x, tick=step)
        int8 = correction.graph
    return Quantised(candidate.graph, int8, candidate.pairs, correction, found)


def _searched(
    plain: _Candidate, even: _Candidate, x: np.ndarray, input_quant: Quant, options: PtqOptions, tick: Tick | None
) -> Quantised:
    """Return the best of what a search finds, of its start, and of what there would be without a search.

    Corrected biases may make good for more than ranges do, so that all are compared as they would be used.
    """
    start = min((plain, even), key=lambda candidate: _error(candidate, x, input_quant)) if even.pairs else plain
    step = tick("Searching ranges", len(start.graph.ops)) if tick else None
    found = search(start.graph, x, start.histograms, input_quant, evaluations=options.evaluations, tick=step)
    without = found.withdrawn()
    attempts = [
        _attempt(plain, choose(plain.histograms, options.method), x, input_quant, options, tick, without),
        _attempt(start, found.ranges, x, input_quant, options, tick, found),
        _attempt(start, choose(start.histograms, found.start), x, input_quant, options, tick, without),
    ]
    _, judge = halves(plain.graph, x)
    wanted = Simulation(plain.graph, plain.graph).run(judge, rounded=False)
    return min(
        attempts,
        key=lambda one: mean_squared_error(wanted, Simulation(one.float_graph, one.graph).run(judge, rounded=True)),
    )


def _equalized(graph: Graph, x: np.ndarray, input_quant: Quant, counts: bool) -> _Candidate:
    low, high = ((end - input_quant.zero_point) * input_quant.scale for end in (QMIN, QMAX))
    even = equalize(graph, channel_peaks(graph, take_images(graph, x)), (low, high))
    return _Candidate(even.graph, observe(even.graph, x, counts=counts), even.pairs)


def _error(candidate: _Candidate, x: np.ndarray, input_quant: Quant) -> float:
    """Return the mean squared error of a graph's outputs with the default ranges, on the images that decide."""
    learn, _ = halves(candidate.graph, x)
    int8 = quantize(candidate.graph, choose(candidate.histograms, DEFAULT_METHOD), input_quant)
    simulation = Simulation(candidate.graph, int8)
    return mean_squared_error(simulation.run(learn, rounded=False), simulation.run(learn, rounded=True))
