"""Post-training quantisation from end to end: equalise, find ranges, quantise, correct biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tinykd.export.bias_correction import Correction, correct_biases
from tinykd.export.calibrate import DEFAULT_METHOD, choose, method_named, observe
from tinykd.export.equalize import Equalized, channel_peaks, equalize
from tinykd.export.quantize import quantize
from tinykd.export.ranges import Histogram
from tinykd.export.search import EVALUATIONS, Found, search
from tinykd.export.simulate import Simulation, mean_squared_error, take_images
from tinykd.ir import Graph, Quant
from tinykd.ir.requant import QMAX, QMIN

Tick = Callable[[str, int], Callable[[], None]]
"""Begins a progress bar, given its title and length; what it returns is called after each step."""


@dataclass(frozen=True)
class PtqOptions:
    """How a float graph is quantised without training.

    Attributes:
        method: how ranges are found, a key of `ranges.METHODS`; with `search`, ignored.
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
        found: what `search` found; None without.
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
    equalized = Equalized(graph, ())
    if options.equalize or options.search:
        equalized = _equalized(graph, x, input_quant)
    if options.equalize and not options.search:
        graph = equalized.graph
    histograms: Mapping[str, Histogram] = observe(graph, x, counts=counts)
    found = None
    if options.search:
        if equalized.pairs:
            graph, histograms, equalized = _better(graph, histograms, equalized, x, input_quant)
        step = tick("Searching ranges", len(graph.ops)) if tick else None
        found = search(graph, x, histograms, input_quant, evaluations=options.evaluations, tick=step)
    int8, correction = quantize(graph, found.ranges if found else choose(histograms, options.method), input_quant), None
    if options.bias_correction:
        correction = _corrected(graph, int8, x, tick)
        if found and found.improves:
            # Corrected biases may make good for more than the ranges did: the better of both.
            uniform = quantize(graph, choose(histograms, found.start), input_quant)
            other = _corrected(graph, uniform, x, tick)
            if other.sqnr_db > correction.sqnr_db:
                correction, found = other, found.withdrawn()
        int8 = correction.graph
    return Quantised(graph, int8, equalized.pairs, correction, found)


def _corrected(graph: Graph, int8: Graph, x: np.ndarray, tick: Tick | None) -> Correction:
    return correct_biases(graph, int8, x, tick=tick("Correcting biases", len(graph.ops)) if tick else None)


def _equalized(graph: Graph, x: np.ndarray, input_quant: Quant) -> Equalized:
    low, high = ((end - input_quant.zero_point) * input_quant.scale for end in (QMIN, QMAX))
    return equalize(graph, channel_peaks(graph, take_images(graph, x)), (low, high))


def _better(
    graph: Graph, histograms: Mapping[str, Histogram], equalized: Equalized, x: np.ndarray, input_quant: Quant
) -> tuple[Graph, Mapping[str, Histogram], Equalized]:
    """Return the graph as it was or as equalised, whichever has the smaller error with min-max ranges."""
    taken = take_images(graph, x)
    wanted = Simulation(graph, graph).run(taken, rounded=False)
    candidates = [(graph, histograms, Equalized(graph, ())), (equalized.graph, observe(equalized.graph, x), equalized)]

    def error(candidate: tuple[Graph, Mapping[str, Histogram], Equalized]) -> float:
        the_graph, counted, _ = candidate
        int8 = quantize(the_graph, choose(counted, "minmax"), input_quant)
        return mean_squared_error(wanted, Simulation(the_graph, int8).run(taken, rounded=True))

    return min(candidates, key=error)
