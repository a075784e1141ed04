"""What each layer's rounding costs: signal-to-noise of weights and activations, and the outputs' error it alone causes.

Everything is simulated on calibration images (`simulate.Simulation`): no test image is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinykd.export.equalize import channel_peaks
from tinykd.export.ranges import Histogram, minmax, percentile
from tinykd.export.simulate import Simulation, dequantised, mean_squared_error, sqnr_db, take_images
from tinykd.ir import Graph, Op
from tinykd.ir.affine import OUTPUT_CHANNEL_AXIS, range_owners

# A layer hurts when it alone causes so many times the average of the errors that layers cause alone.
HURTS = 3.0
_LARGE_RATIO = 8.0
_LONG_TAIL = 2.0
_CLIPPED = 1e-3


@dataclass(frozen=True)
class LayerReport:
    """What rounding does to one op.

    Attributes:
        op, kind, source: which one; `op` is its index.
        sqnr_weights_db: of its rounded weights; None without weights.
        sqnr_activation_db: of its output when everything before it is rounded, too.
        sqnr_alone_db: of the network's outputs when only this op's weights and output are rounded.
        changed_alone: share of images whose answer changes then; None for outputs that are no classes.
        share: its part of the sum of the outputs' squared errors that single ops cause.
        clipped: share of its output's values beyond the range.
        channel_ratio: largest magnitude over the median one, over the output's channels.
        hurts: whether `share` is at least `HURTS` times the average.
        hint: what may help; "" when it does not hurt, or nothing stands out.
    """

    op: int
    kind: str
    source: str
    sqnr_weights_db: float | None
    sqnr_activation_db: float
    sqnr_alone_db: float
    changed_alone: float | None
    share: float
    clipped: float
    channel_ratio: float
    hurts: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """The layers of a network and what all of their rounding comes to.

    Attributes:
        images: how many were looked at.
        sqnr_db: of the outputs with everything rounded.
        changed: share of images whose answer changes then; None for outputs that are no classes.
        layers: ops with int8 outputs of their own, in order.
    """

    images: int
    sqnr_db: float
    changed: float | None
    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what `sensitivity.json` holds."""
        return asdict(self)


def measure(
    float_graph: Graph,
    graph: Graph,
    x: np.ndarray,
    histograms: Mapping[str, Histogram],
    *,
    tick: Callable[[], None] | None = None,
) -> Sensitivity:
    """Return what each op's rounding costs.

    Ops that only move values (their output has their input's quantisation) are left out.

    Args:
        float_graph: what was quantised.
        graph: its int8 graph.
        x: calibration images as the float graph takes them, float32 (N, ...); some of them are taken.
        histograms: of the activations, with counts, as `calibrate.observe` finds them.
        tick: called after each op, for a progress bar.
    """
    taken = take_images(float_graph, x)
    simulation = Simulation(float_graph, graph)
    wanted = simulation.run(taken, rounded=False)
    everything = simulation.run(taken, rounded=True)
    peaks = channel_peaks(float_graph, taken)
    owners = set(range_owners(float_graph))
    exact, rounded = simulation.start(taken, rounded=False), simulation.start(taken, rounded=True)
    reports, errors = [], []
    for index, op in enumerate(float_graph.ops):
        name = op.outputs[0]
        alone = simulation.step(exact, index, rounded=True)
        exact = simulation.step(exact, index, rounded=False)
        rounded = simulation.step(rounded, index, rounded=True)
        if name in owners and name in simulation.quants and name in exact:
            outputs = simulation.finish(alone, index + 1, rounded=False)
            errors.append(mean_squared_error(wanted, outputs))
            reports.append(
                LayerReport(
                    index,
                    op.kind,
                    op.source,
                    _sqnr_weights(float_graph, graph, op),
                    sqnr_db(exact[name], rounded[name]),
                    sqnr_db(wanted, outputs),
                    _changed(wanted, outputs),
                    0.0,
                    _clipped(simulation, name, exact[name]),
                    _ratio(peaks[name]),
                )
            )
        if tick is not None:
            tick()
    total = sum(errors) or 1.0
    layers = []
    for report, error in zip(reports, errors, strict=True):
        share = error / total
        hurts = share * len(reports) >= HURTS
        hint = _hint(report, float_graph, histograms) if hurts else ""
        layers.append(replace(report, share=share, hurts=hurts, hint=hint))
    return Sensitivity(len(taken), sqnr_db(wanted, everything), _changed(wanted, everything), tuple(layers))


def load(raw: Mapping[str, Any]) -> Sensitivity:
    """Return what `Sensitivity.to_dict` became in JSON."""
    layers = tuple(LayerReport(**layer) for layer in raw["layers"])
    return Sensitivity(raw["images"], raw["sqnr_db"], raw["changed"], layers)


def _changed(wanted: np.ndarray, got: np.ndarray) -> float | None:
    if wanted.shape[1] < 2:
        return None
    return float(np.mean(wanted.argmax(axis=1) != got.argmax(axis=1)))


def _sqnr_weights(float_graph: Graph, graph: Graph, op: Op) -> float | None:
    if op.kind not in OUTPUT_CHANNEL_AXIS:
        return None
    data = float_graph.tensor(op.inputs[1]).data
    return None if data is None else sqnr_db(data, dequantised(graph.tensor(op.inputs[1])))


def _clipped(simulation: Simulation, name: str, exact: np.ndarray) -> float:
    """Return the share of an output's values that lie more than half a step beyond its range."""
    quant = simulation.quants[name]
    low, high = ((end - quant.zero_point) * quant.scale for end in (-128.5, 127.5))
    return float(np.mean((exact < low) | (exact > high)))


def _ratio(magnitudes: np.ndarray) -> float:
    """Return the largest magnitude over the median of those that are not 0; 1 without any."""
    alive = magnitudes[magnitudes > 0]
    return float(alive.max() / np.median(alive)) if len(alive) else 1.0


def _hint(report: LayerReport, float_graph: Graph, histograms: Mapping[str, Histogram]) -> str:
    """Return what stands out about a layer that hurts, and what to try."""
    op = float_graph.ops[report.op]
    weights = float_graph.tensor(op.inputs[1]).data if report.sqnr_weights_db is not None else None
    if weights is not None and op.kind == "fully_connected":
        ratio = _ratio(np.abs(weights).max(axis=1))
        if ratio > _LARGE_RATIO:
            return f"rows of weights differ {ratio:.0f} times under one scale: train with weight decay, or QAT"
    if report.channel_ratio > _LARGE_RATIO:
        return f"channels differ {report.channel_ratio:.0f} times in range: --equalize"
    if report.clipped > _CLIPPED:
        return f"{report.clipped:.1%} of the values are clipped: --calibration minmax, or --search"
    histogram = histograms.get(op.outputs[0])
    if histogram is not None and histogram.total:
        low, high = minmax(histogram)
        inner_low, inner_high = percentile(histogram)
        tail = (high - low) / max(inner_high - inner_low, 1e-12)
        if tail > _LONG_TAIL:
            return f"rare values make the range {tail:.1f} times as wide: --calibration mse or percentile"
    if report.sqnr_weights_db is not None and report.sqnr_weights_db < report.sqnr_activation_db:
        return "its weights lose more than its output: QAT"
    return ""
