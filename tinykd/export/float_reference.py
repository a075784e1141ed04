"""Runs a float graph with NumPy: calibration reads every activation from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export.windows import map_batches, padded, window_counts, windows
from tinykd.ir import Graph, Op
from tinykd.ir.resize import nearest_positions

Values = dict[str, np.ndarray]
Observer = Callable[[str, np.ndarray], None]
Kernel = Callable[[Graph, Op, Values], "np.ndarray | tuple[np.ndarray, ...]"]
Inputs = np.ndarray | Mapping[str, np.ndarray]
"""The only input of a graph, or several by name: float32 (N, *input shape without the batch dimension)."""


def run(graph: Graph, x: Inputs, *, observe: Observer | None = None, batch: int = 64) -> np.ndarray:
    """Run a float graph of one output on many inputs.

    Args:
        graph: float activations; fused activations allowed.
        x: see `Inputs`.
        observe: called with (name, values) for every activation of every batch; the array must not be kept.
        batch: inputs worked on at once; bounds the memory used.

    Returns:
        the only output, float32 (N, elements).
    """
    y = run_outputs(graph, x, observe=observe, batch=batch)[graph.outputs[0]]
    return y.reshape(len(y), -1)


def run_outputs(graph: Graph, x: Inputs, *, observe: Observer | None = None, batch: int = 64) -> Values:
    """Run a float graph on many inputs and return its outputs by name, (N, *shape without the batch dimension).

    For the arguments see `run`.
    """
    inputs = x if isinstance(x, Mapping) else {graph.inputs[0]: x}
    count = len(inputs[graph.inputs[0]])

    def call(rows: np.ndarray) -> Values:
        part = {name: value[rows[0] : rows[-1] + 1].astype(np.float32, copy=False) for name, value in inputs.items()}
        return _run_batch(graph, part, observe)

    rows = np.arange(count)
    # An observer collects in order: its batches do not run side by side.
    parts = (
        map_batches(call, rows, batch)
        if observe is None
        else [call(rows[i : i + batch]) for i in range(0, count, batch)]
    )
    return {name: np.concatenate([part[name] for part in parts]) for name in dict.fromkeys(graph.outputs)}


def _run_batch(graph: Graph, inputs: Values, observe: Observer | None) -> Values:
    values: Values = {name: inputs[name] for name in graph.inputs}
    last_use = {name: readers[-1] for name, readers in graph.consumers().items()}
    if observe is not None:
        for name, value in values.items():
            observe(name, value)
    for index, op in enumerate(graph.ops):
        for name, y in zip(op.outputs, run_op(graph, op, values), strict=True):
            values[name] = y
            if observe is not None:
                observe(name, y)
        for name in op.inputs:
            if last_use.get(name) == index and name not in graph.outputs:
                values.pop(name, None)
    return {name: values[name] for name in graph.outputs}


_BOUNDS = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0)}


def run_op(graph: Graph, op: Op, values: Values) -> tuple[np.ndarray, ...]:
    """Return an op's outputs, its fused activation included, given at least its input activations by name.

    Raises:
        UnsupportedModelError: the op has no float reference.
    """
    kernel = KERNELS.get(op.kind)
    if kernel is None:
        raise UnsupportedModelError(f"op '{op.source}' ({op.kind}) has no float reference")
    y = kernel(graph, op, values)
    if isinstance(y, tuple):
        return y
    return (activate(op, y),)


def activate(op: Op, y: np.ndarray) -> np.ndarray:
    """Apply an op's fused activation to its output, in place; return it."""
    activation = op.attrs.get("activation", "none")
    return y if activation == "none" else np.clip(y, *_BOUNDS[activation], out=y)


def _constant(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _operand(graph: Graph, name: str, values: Values) -> np.ndarray:
    """Return an activation (N, ...) or a constant without the batch dimension where it has one."""
    return values[name] if name in values else _constant(graph, name)


def _bias(graph: Graph, op: Op) -> np.ndarray | float:
    return _constant(graph, op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else 0.0


def _conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    weights = _constant(graph, op.inputs[1])
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(values[op.inputs[0]], op.attrs["padding"], 0.0)
    columns = windows(x, weights.shape[1:3], op, shape).reshape(-1, weights[0].size)
    y = columns @ weights.reshape(len(weights), -1).T + _bias(graph, op)
    return y.reshape(-1, *shape[1:])


def _depthwise_conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    weights = _constant(graph, op.inputs[1])[0]
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(values[op.inputs[0]], op.attrs["padding"], 0.0)
    multiplier = shape[3] // x.shape[3]
    taken = windows(x, weights.shape[:2], op, shape)
    if multiplier == 1:
        y = np.einsum("nhwrkc,rkc->nhwc", taken, weights)
    else:
        y = np.einsum("nhwrkc,rkcm->nhwcm", taken, weights.reshape(*weights.shape[:2], x.shape[3], multiplier))
    return y.reshape(-1, *shape[1:]) + _bias(graph, op)


def _transpose_conv(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x, weights = values[op.inputs[0]], _constant(graph, op.inputs[1])
    shape = graph.tensor(op.outputs[0]).shape
    count, kernel_h, kernel_w, _ = weights.shape
    (stride_h, stride_w), (top, _, left, _) = op.attrs["stride"], op.attrs["padding"]
    span_h, span_w = (x.shape[1] - 1) * stride_h + 1, (x.shape[2] - 1) * stride_w + 1
    # Large enough for what the kernels write, and for rows and columns that only the bias reaches.
    full = (max(span_h + kernel_h, top + shape[1]), max(span_w + kernel_w, left + shape[2]))
    y = np.zeros((len(x), *full, count), np.float32)
    for row in range(kernel_h):
        for column in range(kernel_w):
            y[:, row : row + span_h : stride_h, column : column + span_w : stride_w] += x @ weights[:, row, column].T
    return y[:, top : top + shape[1], left : left + shape[2]] + _bias(graph, op)


def _fully_connected(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x, weights = values[op.inputs[0]], _constant(graph, op.inputs[1])
    y = x.reshape(len(x), -1, weights.shape[1]) @ weights.T + _bias(graph, op)
    return y.reshape(len(x), *graph.tensor(op.outputs[0]).shape[1:])


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Kernel:
    def kernel(graph: Graph, op: Op, values: Values) -> np.ndarray:
        rank = len(graph.tensor(op.outputs[0]).shape)
        operands = []
        for name in op.inputs:
            value = _operand(graph, name, values)
            if name in values:
                # Axes of length 1 go behind the batch, which is not 1 here.
                value = value.reshape(len(value), *[1] * (rank - value.ndim), *value.shape[1:])
            operands.append(value)
        return function(operands[0], operands[1])

    return kernel


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Kernel:
    return lambda graph, op, values: function(values[op.inputs[0]])


def logistic(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(np.zeros((), x.dtype), -x))


def _leaky_relu(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = values[op.inputs[0]]
    return np.where(x > 0, x, x * np.float32(op.attrs["alpha"]))


def _average_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    shape = graph.tensor(op.outputs[0]).shape
    x = values[op.inputs[0]]
    taken = windows(padded(x, op.attrs["padding"], 0.0), op.attrs["kernel"], op, shape)
    return (taken.sum(axis=(3, 4)) / window_counts(x.shape[1:3], op, shape)).astype(np.float32)


def _max_pool_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = padded(values[op.inputs[0]], op.attrs["padding"], -np.inf)
    return windows(x, op.attrs["kernel"], op, graph.tensor(op.outputs[0]).shape).max(axis=(3, 4))


def _mean(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = values[op.inputs[0]]
    return x.mean(axis=tuple(op.attrs["axes"])).reshape(len(x), *graph.tensor(op.outputs[0]).shape[1:])


def _pad(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return np.pad(values[op.inputs[0]], op.attrs["paddings"], constant_values=op.attrs["value"] or 0.0)


def _reshape(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].reshape(-1, *graph.tensor(op.outputs[0]).shape[1:])


def _transpose(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].transpose(op.attrs["perm"])


def _concatenation(graph: Graph, op: Op, values: Values) -> np.ndarray:
    count = len(next(values[name] for name in op.inputs if name in values))
    parts = (_operand(graph, name, values) for name in op.inputs)
    return np.concatenate([np.broadcast_to(x, (count, *x.shape[1:])) for x in parts], axis=op.attrs["axis"])


def _split(graph: Graph, op: Op, values: Values) -> tuple[np.ndarray, ...]:
    axis = op.attrs["axis"]
    ends = np.cumsum([graph.tensor(name).shape[axis] for name in op.outputs])[:-1]
    return tuple(np.split(values[op.inputs[0]], ends, axis))


def _strided_slice(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x, (begin, end, strides) = values[op.inputs[0]], (op.attrs[key] for key in ("begin", "end", "strides"))
    cuts = tuple(slice(a, None if b < 0 else b, step) for a, b, step in zip(begin, end, strides, strict=True))
    return x[(slice(None),) + cuts[1:]].reshape(len(x), *graph.tensor(op.outputs[0]).shape[1:])


def _resize_nearest_neighbor(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x, shape = values[op.inputs[0]], graph.tensor(op.outputs[0]).shape
    rows, columns = (nearest_positions(x.shape[axis], shape[axis], **op.attrs) for axis in (1, 2))
    return x[:, rows][:, :, columns]


def _softmax(graph: Graph, op: Op, values: Values) -> np.ndarray:
    x = values[op.inputs[0]] * op.attrs["beta"]
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _arg_max(graph: Graph, op: Op, values: Values) -> np.ndarray:
    return values[op.inputs[0]].argmax(axis=op.attrs["axis"]).astype(np.int32)


def _batch_norm(graph: Graph, op: Op, values: Values) -> np.ndarray:
    gamma, beta, mean, variance = (_constant(graph, name) for name in op.inputs[1:])
    return (values[op.inputs[0]] - mean) * (gamma / np.sqrt(variance + np.float32(op.attrs["epsilon"]))) + beta


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "transpose_conv": _transpose_conv,
        "fully_connected": _fully_connected,
        "add": _binary(np.add),
        "sub": _binary(np.subtract),
        "mul": _binary(np.multiply),
        "maximum": _binary(np.maximum),
        "minimum": _binary(np.minimum),
        "prelu": _binary(lambda x, slopes: np.where(x > 0, x, x * slopes)),
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "transpose": _transpose,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "resize_nearest_neighbor": _resize_nearest_neighbor,
        "softmax": _softmax,
        "logistic": _unary(logistic),
        "tanh": _unary(np.tanh),
        "hard_swish": _unary(lambda x: x * np.clip(x + 3, 0, 6) / 6),
        "relu": _unary(lambda x: np.maximum(x, 0)),
        "relu6": _unary(lambda x: np.clip(x, 0, 6)),
        "leaky_relu": _leaky_relu,
        # Between activations only the grid changes: in real numbers it is the same value.
        "quantize": _unary(lambda x: x),
        "arg_max": _arg_max,
        "batch_norm": _batch_norm,
    }
)
