"""Picks the best way to find each activation's range, by what it does to the outputs on calibration images.

Greedy and deterministic: it starts from the method that is best for all activations at once, walks the network from the
front, and lets each activation take the range, of all that the methods found, with the smallest error of the outputs.
Half of the images decide, the other half judges: what does not help there is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinykd.export.calibrate import choose
from tinykd.export.quantize import quantize
from tinykd.export.ranges import METHODS, Histogram, Range
from tinykd.export.simulate import Simulation, halves, mean_squared_error
from tinykd.ir import Graph, Quant
from tinykd.ir.affine import activation_quant, constant_ranges, fixed_quants, quant_sources, shared_ranges

EVALUATIONS = 400
"""Most runs of (the rest of) the network that a search makes by default."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        ranges: (low, high) of each activation that decides a quantisation.
        methods: which method each of them is from.
        start: the method that was best for all of them at once.
        evaluations: runs of the network, or of its rest, that were made.
        error_start, error_found: mean squared error of the outputs on the judging images, with `start` and as found.
    """

    ranges: Mapping[str, Range]
    methods: Mapping[str, str]
    start: str
    evaluations: int
    error_start: float
    error_found: float

    @property
    def improves(self) -> bool:
        """Whether some activation has another method than `start`."""
        return any(method != self.start for method in self.methods.values())

    def withdrawn(self) -> Found:
        """Return the record of a search whose ranges were not taken in the end."""
        return replace(self, methods=dict.fromkeys(self.methods, self.start), error_found=self.error_start)


def search(
    graph: Graph,
    x: np.ndarray,
    histograms: Mapping[str, Histogram],
    input_quant: Quant,
    *,
    evaluations: int = EVALUATIONS,
    tick: Callable[[], None] | None = None,
) -> Found:
    """Return the ranges with the smallest error of the outputs that a greedy search finds.

    Args:
        graph: a float graph after all passes.
        x: calibration images as it takes them, float32 (N, ...).
        histograms: of its activations, as `calibrate.observe` counts them.
        input_quant: parameters of the input.
        evaluations: where the search stops.
        tick: called after each op, for a progress bar.
    """
    learn, judge = halves(graph, x)
    by_method = {method: choose(histograms, method) for method in METHODS}
    wanted = Simulation(graph, graph).run(learn, rounded=False)
    errors = {
        method: mean_squared_error(wanted, _rounded(graph, ranges, input_quant).run(learn, rounded=True))
        for method, ranges in by_method.items()
    }
    start = min(errors, key=lambda method: errors[method])
    greedy = _Greedy(graph, by_method, start, input_quant, wanted, evaluations - len(METHODS))
    methods = greedy.walk(learn, errors[start], tick)
    ranges = {name: by_method[method][name] for name, method in methods.items()}
    wanted = Simulation(graph, graph).run(judge, rounded=False)
    error_start, error_found = (
        mean_squared_error(wanted, _rounded(graph, chosen, input_quant).run(judge, rounded=True))
        for chosen in (by_method[start], ranges)
    )
    if error_found >= error_start:
        ranges, methods, error_found = by_method[start], dict.fromkeys(methods, start), error_start
    return Found(ranges, methods, start, len(METHODS) + greedy.evaluations, error_start, error_found)


def _rounded(graph: Graph, ranges: Mapping[str, Range], input_quant: Quant) -> Simulation:
    return Simulation(graph, quantize(graph, ranges, input_quant))


class _Greedy:
    """One walk through the network: what is before an op has its final ranges, what comes after those so far."""

    def __init__(
        self,
        graph: Graph,
        by_method: Mapping[str, Mapping[str, Range]],
        start: str,
        input_quant: Quant,
        wanted: np.ndarray,
        budget: int,
    ) -> None:
        self.graph, self.by_method, self.wanted, self.budget = graph, by_method, wanted, budget
        self.simulation = _rounded(graph, by_method[start], input_quant)
        sources = quant_sources(graph)
        _, ranged = shared_ranges(graph, sources, fixed_quants(graph, input_quant))
        constants = constant_ranges(graph, sources)
        # What decides its quantisation together with others keeps the first method.
        self.followers = {
            owners[0]: [name for name, source in sources.items() if source == group]
            for group, owners in ranged.items()
            if len(owners) == 1 and group not in constants
        }
        self.methods = dict.fromkeys(by_method[start], start)
        self.evaluations = 0

    def walk(self, x: np.ndarray, error: float, tick: Callable[[], None] | None) -> dict[str, str]:
        """Return the method of each activation; `error` is that of the start."""
        simulation = self.simulation
        values = simulation.start(x, rounded=True)
        for index, op in enumerate(self.graph.ops):
            outputs = simulation.compute(values, index, rounded=True)
            for name in op.outputs:
                if name in self.followers:
                    error = self._choose(name, values, index, outputs, error)
            rounded = [simulation.round(name, y) for name, y in zip(op.outputs, outputs, strict=True)]
            values = simulation.after(values, index, rounded)
            if tick is not None:
                tick()
        return self.methods

    def _choose(
        self, name: str, values: dict[str, np.ndarray], index: int, outputs: tuple[np.ndarray, ...], error: float
    ) -> float:
        """Give an activation the method with the smallest error of the outputs; return that error."""
        simulation, op = self.simulation, self.graph.ops[index]
        tried = {self.by_method[self.methods[name]][name]}
        for method, ranges in self.by_method.items():
            if ranges[name] in tried or self.evaluations >= self.budget:
                continue
            tried.add(ranges[name])
            before = {follower: simulation.quants[follower] for follower in self.followers[name]}
            simulation.quants.update(dict.fromkeys(before, activation_quant(*ranges[name])))
            rounded = [simulation.round(n, y) for n, y in zip(op.outputs, outputs, strict=True)]
            found = simulation.finish(simulation.after(values, index, rounded), index + 1, rounded=True)
            self.evaluations += 1
            attempt = mean_squared_error(self.wanted, found)
            if attempt < error:
                error, self.methods[name] = attempt, method
            else:
                simulation.quants.update(before)
        return error
