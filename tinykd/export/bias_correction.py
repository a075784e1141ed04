"""Bias correction: takes the mean error that rounding adds to a layer's output back out of its bias.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction" (arXiv:1906.04721),
section 4.2, in its empirical form: means are taken over calibration images, layer by layer from the front, so that
each layer is corrected for what is left of the errors before it. The int32 bias takes the correction: it costs nothing
on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tinykd.export import float_reference
from tinykd.export.simulate import Simulation, halves, mean_squared_error, sqnr_db
from tinykd.ir import Graph, Op
from tinykd.ir.affine import OUTPUT_CHANNEL_AXIS

# A channel is corrected when its mean error is this many standard errors (over images) away from 0.
_SIGNIFICANT = 3.0


@dataclass(frozen=True)
class Correction:
    """What bias correction came to.

    Attributes:
        graph: the int8 graph, corrected if that helps.
        applied: whether it does: the outputs' error on images that the means were not taken from is smaller.
        channels: how many biases changed, had it been applied.
        sqnr_before_db, sqnr_after_db: of the outputs on those other images.
    """

    graph: Graph
    applied: bool
    channels: int
    sqnr_before_db: float
    sqnr_after_db: float

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the outputs of `graph` on the judging images."""
        return self.sqnr_after_db if self.applied else self.sqnr_before_db


def correct_biases(
    float_graph: Graph, graph: Graph, x: np.ndarray, *, tick: Callable[[], None] | None = None
) -> Correction:
    """Return the int8 graph with corrected biases, where that helps.

    Args:
        float_graph: what was quantised.
        graph: its int8 graph.
        x: calibration images as the float graph takes them, float32 (N, ...). Every other one judges.
        tick: called after each op, for a progress bar.
    """
    learn, judge = halves(float_graph, x)
    corrected, channels = _corrected(float_graph, graph, learn, tick)
    wanted = Simulation(float_graph, graph).run(judge, rounded=False)
    before = Simulation(float_graph, graph).run(judge, rounded=True)
    after = Simulation(float_graph, corrected).run(judge, rounded=True)
    applied = mean_squared_error(wanted, after) < mean_squared_error(wanted, before)
    return Correction(
        corrected if applied else graph, applied, channels, sqnr_db(wanted, before), sqnr_db(wanted, after)
    )


def _corrected(float_graph: Graph, graph: Graph, x: np.ndarray, tick: Callable[[], None] | None) -> tuple[Graph, int]:
    simulation = Simulation(float_graph, graph)
    exact, rounded = simulation.start(x, rounded=False), simulation.start(x, rounded=True)
    channels = 0
    for index, op in enumerate(float_graph.ops):
        if _has_bias(op):
            # The activation comes after the bias: both are compared before it.
            wanted = simulation.compute(exact, index, rounded=False, activation=False)[0]
            got = simulation.compute(rounded, index, rounded=True, activation=False)[0]
            before = real_bias(graph, op.inputs[2])
            graph, changed = _shift_bias(graph, op.inputs[2], _significant_mean(wanted - got))
            channels += changed
            got += (real_bias(graph, op.inputs[2]) - before).astype(np.float32)
            exact = simulation.after(exact, index, [float_reference.activate(op, wanted)])
            got = simulation.round(op.outputs[0], float_reference.activate(op, got))
            rounded = simulation.after(rounded, index, [got])
        else:
            exact = simulation.step(exact, index, rounded=False)
            rounded = simulation.step(rounded, index, rounded=True)
        if tick is not None:
            tick()
    return graph, channels


def real_bias(graph: Graph, name: str) -> np.ndarray:
    """Return an int32 bias as real numbers, float64 (C,)."""
    tensor = graph.tensor(name)
    assert tensor.data is not None and tensor.quant is not None
    return tensor.data * np.array(tensor.quant.scales)


def _has_bias(op: Op) -> bool:
    return op.kind in OUTPUT_CHANNEL_AXIS and len(op.inputs) > 2 and bool(op.inputs[2])


def _significant_mean(error: np.ndarray) -> np.ndarray:
    """Return the mean error of each channel of (N, ..., C), float64; 0 where it may as well be chance."""
    per_image = error.reshape(len(error), -1, error.shape[-1]).mean(axis=1, dtype=np.float64)
    mean = per_image.mean(axis=0)
    if len(error) < 2:
        return mean
    deviation = per_image.std(axis=0, ddof=1) / np.sqrt(len(error))
    return np.where(np.abs(mean) > _SIGNIFICANT * deviation, mean, 0.0)


def _shift_bias(graph: Graph, name: str, shift: np.ndarray) -> tuple[Graph, int]:
    """Return the graph with `shift` (C,), real numbers, added to an int32 bias, and how many of its values changed."""
    tensor = graph.tensor(name)
    assert tensor.data is not None and tensor.quant is not None
    steps = np.rint(shift / np.array(tensor.quant.scales)).astype(np.int64)
    limit = np.iinfo(np.int32)
    data = np.clip(tensor.data.astype(np.int64) + steps, limit.min, limit.max).astype(np.int32)
    changed = int(np.count_nonzero(data != tensor.data))
    return replace(graph, tensors={**graph.tensors, name: replace(tensor, data=data)}), changed
