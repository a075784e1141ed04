"""Runs a float graph with NumPy: calibration reads every activation from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export.windows import map_batches, padded, window_counts, windows
from tinykd.ir import Graph, Op

Values = dict[str, np.ndarray]
Observer = Callable[[str, np.ndarray], None]


def run(graph: Graph, x: np.ndarray, *, observe: Observer | None = None, batch: int = 64) -> np.ndarray:
    """Run a float graph on many inputs.

    Args:
        graph: float activations; fused activations allowed.
        x: float32 (N, *input shape without the batch dimension).
        observe: called with (name, values) for every activation of every batch; the array must not be kept.
        batch: inputs worked on at once; bounds the memory used.

    Returns:
        the only output, float32 (N, elements).
    """

    def call(part: np.ndarray) -> np.ndarray:
        return _run_batch(graph, part.astype(np.float32, copy=False), observe).reshape(len(part), -1)

    # An observer collects in order: its batches do not run side by side.
    parts = (
        map_batches(call, x, batch) if observe is None else [call(x[i : i + batch]) for i in range(0, len(x), batch)]
    )
    return np.concatenate(parts)


def _run_batch(graph: Graph, x: np.ndarray, observe: Observer | None) -> np.ndarray:
    values: Values = {graph.inputs[0]: x}
    last_use = {name: readers[-1] for name, readers in graph.consumers().items()}
    if observe is not None:
        observe(graph.inputs[0], x)
    for index, op in enumerate(graph.ops):
        for name, y in zip(op.outputs, run_op(graph, op, values), strict=True):
            values[name] = y
            if observe is not None:
                observe(name, y)
        for name in op.inputs:
            if last_use.get(name) == index and name not in graph.outputs:
                values.pop(name, None)
    return values[graph.outputs[0]]


def run_op(graph: Graph, op: Op, values: Values) -> tuple[np.ndarray, ...]:
    """Return an op's outputs, its fused activation included, given at least its input activations by name.

    Raises:
        UnsupportedModelError: the op has no float reference.
    """
    kernel = KERNELS.get(op.kind)
    if kernel is None:
        raise UnsupportedModelError(f"op '{op.source}' ({op.kind}) has no float reference")
    y = kernel(graph, op, values)
    activation = op.attrs.get("activation", "none")
    if activation != "none":
        np.clip(y, 0.0, 6.0 if activation == "relu6" else np.inf, out=y)
    return (y,)


def _constant(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    weights = _constant(graph, op.inputs[1])
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(values[op.inputs[0]], op.attrs["padding"], 0.0)
    columns = windows(x, weights.shape[1:3], op, shape).reshape(-1, weights[0].size)
    y = columns @ weights.reshape(len(weights), -1).T + _constant(graph, op.inputs[2])
    return y.reshape(-1, *shape[1:])


def _depthwise_conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    weights = _constant(graph, op.inputs[1])[0]
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(values[op.inputs[0]], op.attrs["padding"], 0.0)
    multiplier = shape[3] // x.shape[3]
    taken = windows(x, weights.shape[:2], op, shape)
    y = np.zeros((len(x), *shape[1:3], x.shape[3], multiplier), np.float32)
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            y += taken[:, :, :, row, column, :, None] * weights[row, column].reshape(x.shape[3], multiplier)
    return y.reshape(-1, *shape[1:]) + _constant(graph, op.inputs[2])


def _fully_connected(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = values[op.inputs[0]]
    return x.reshape(len(x), -1) @ _constant(graph, op.inputs[1]).T + _constant(graph, op.inputs[2])


def _add(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]] + values[op.inputs[1]]


def _average_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    shape = graph.tensor(op.outputs[0]).shape
    x = values[op.inputs[0]]
    taken = windows(padded(x, op.attrs["padding"], 0.0), op.attrs["kernel"], op, shape)
    return (taken.sum(axis=(3, 4)) / window_counts(x.shape[1:3], op, shape)).astype(np.float32)


def _max_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = padded(values[op.inputs[0]], op.attrs["padding"], -np.inf)
    return windows(x, op.attrs["kernel"], op, graph.tensor(op.outputs[0]).shape).max(axis=(3, 4))


def _mean(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].mean(axis=(1, 2)).reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _pad(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return np.pad(values[op.inputs[0]], op.attrs["paddings"], constant_values=op.attrs["value"] or 0.0)


def _reshape(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _softmax(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = values[op.inputs[0]] * op.attrs["beta"]
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


KERNELS: Mapping[str, Callable[[Graph, Op, Values], np.ndarray]] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "fully_connected": _fully_connected,
        "add": _add,
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "softmax": _softmax,
    }
)
