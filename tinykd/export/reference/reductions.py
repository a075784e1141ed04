"""Ops that draw values together: pooling, MEAN and ARG_MAX."""

from __future__ import annotations

import numpy as np

from tinykd.export.reference.values import Values, feature_map, requantized
from tinykd.export.windows import padded, window_counts, windows
from tinykd.ir import Graph, Op, mean_params
from tinykd.ir.requant import QMIN, pool_range


def average_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, C): the mean of what a window covers, rounded to nearest, halves away from zero."""
    shape = graph.tensor(op.outputs[0]).shape
    x = feature_map(op, values).astype(np.int32)
    taken = windows(padded(x, op.attrs["padding"], 0), op.attrs["kernel"], op, shape)
    acc, count = taken.sum(axis=(3, 4)), window_counts(x.shape[1:3], op, shape)
    half = count // 2
    # C's division truncates towards zero.
    mean = np.where(acc > 0, (acc + half) // count, -((half - acc) // count))
    return np.clip(mean, *pool_range(graph, op)).astype(np.int8)[:, None]


def max_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, C): the largest value that a window covers."""
    x = padded(feature_map(op, values), op.attrs["padding"], QMIN)
    largest = windows(x, op.attrs["kernel"], op, graph.tensor(op.outputs[0]).shape).max(axis=(3, 4))
    return np.clip(largest, *pool_range(graph, op)).astype(np.int8)[:, None]


def mean(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the mean over the op's axes."""
    constants = mean_params(graph, op)
    axes = tuple(axis + 1 for axis in op.attrs["axes"])
    acc = values[op.inputs[0]].sum(axis=axes, dtype=np.int64) - constants.zero_sum
    y = requantized(acc, constants.multiplier, constants.shift, constants.output_zero_point)
    return y.reshape(-1, *graph.tensor(op.outputs[0]).shape)


def arg_max(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the int32 index of the largest value along an axis, the first of equals."""
    return values[op.inputs[0]].argmax(axis=op.attrs["axis"] + 1).astype(np.int32)
