"""Convolutions, dense layers and SVDF: sums of products with weights."""

from __future__ import annotations

import numpy as np

from tinykd.export.reference.values import Values, feature_map, requantized
from tinykd.export.windows import padded, windows
from tinykd.ir import Graph, Op, requantization, tensor_quant
from tinykd.ir.fixedpoint import multiply_by_quantized_multiplier, wrap_int32
from tinykd.ir.requant import Requantization, svdf_params

INT16_MIN, INT16_MAX = -(1 << 15), (1 << 15) - 1


def conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, Cout) int8."""
    constants = requantization(graph, op)
    weights = _weights(graph, op)
    flat = weights.reshape(len(weights), -1)
    shape = graph.tensor(op.outputs[0]).shape
    x = _centred(feature_map(op, values), constants, _exact_dtype(flat))
    columns = windows(padded(x, op.attrs["padding"], 0), weights.shape[1:3], op, shape).reshape(-1, flat.shape[1])
    return _finish(graph, op, columns @ flat.T.astype(columns.dtype), constants)


def depthwise_conv_2d(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, C * multiplier) int8."""
    constants = requantization(graph, op)
    weights = _weights(graph, op)[0]
    shape = graph.tensor(op.outputs[0]).shape
    x = padded(_centred(feature_map(op, values), constants, np.int32), op.attrs["padding"], 0)
    taken = windows(x, weights.shape[:2], op, shape)
    acc = np.zeros((len(x), *shape[1:3], x.shape[3], shape[3] // x.shape[3]), np.int32)
    for row, column in np.ndindex(*weights.shape[:2]):
        acc += taken[:, :, :, row, column, :, None] * weights[row, column].reshape(acc.shape[3:]).astype(np.int32)
    return _finish(graph, op, acc, constants)


def transpose_conv(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, outH, outW, Cout) int8: each input position adds its kernel to the output."""
    constants = requantization(graph, op)
    weights = _weights(graph, op)
    channels, kernel_h, kernel_w, depth = weights.shape
    x = feature_map(op, values)
    _, height, width, _ = x.shape
    stride_h, stride_w = op.attrs["stride"]
    # (kH * kW * Cout, Cin): one matrix product gives what each position adds.
    flat = weights.transpose(1, 2, 0, 3).reshape(-1, depth)
    added = _centred(x, constants, _exact_dtype(flat)).reshape(-1, depth) @ flat.T.astype(_exact_dtype(flat))
    added = added.reshape(*x.shape[:3], kernel_h, kernel_w, channels)
    full = np.zeros((len(x), (height - 1) * stride_h + kernel_h, (width - 1) * stride_w + kernel_w, channels), np.int64)
    for row, column in np.ndindex(kernel_h, kernel_w):
        rows = slice(row, row + (height - 1) * stride_h + 1, stride_h)
        columns = slice(column, column + (width - 1) * stride_w + 1, stride_w)
        full[:, rows, columns] += added[:, :, :, row, column].astype(np.int64)
    padding = op.attrs["padding"]
    full = padded(full, tuple(max(-cut, 0) for cut in padding), 0)
    top, bottom, left, right = (max(cut, 0) for cut in padding)
    return _finish(graph, op, full[:, top : full.shape[1] - bottom, left : full.shape[2] - right], constants)


def fully_connected(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return the output's rows of Cout, int8."""
    constants = requantization(graph, op)
    weights = _weights(graph, op)
    x = _centred(values[op.inputs[0]].reshape(-1, weights.shape[1]), constants, _exact_dtype(weights))
    return _finish(graph, op, x @ weights.T.astype(x.dtype), constants)


def svdf(graph: Graph, op: Op, values: Values) -> np.ndarray:
    """Return (N, 1, units) int8, and put each sample's state after it into `values` (N, 1, F * T), int16.

    A state (1, 1, F * T) in `values` is the one that the first sample goes on from, and each sample goes on from the
    one before. Without it, each sample starts from the reset state.
    """
    constants = svdf_params(graph, op)
    feature, time = (_constant(graph, op.inputs[index]).astype(np.int64) for index in (1, 2))
    filters, memory = time.shape
    x = values[op.inputs[0]][:, 0].astype(np.int64) - constants.input_zero_point
    newest = multiply_by_quantized_multiplier(
        wrap_int32(x @ feature.T), constants.feature_multiplier, constants.feature_shift
    )
    newest = np.clip(newest, INT16_MIN, INT16_MAX)
    before = values.get(op.inputs[4])
    states = np.zeros((len(x), filters, memory), np.int64)
    states[:, :, -1] = newest
    if before is not None:
        line = np.concatenate([before.reshape(filters, memory).T, newest])
        for age in range(memory):
            states[:, :, age] = line[age + 1 : age + 1 + len(x)]
    sums = (states * time).sum(axis=2).reshape(len(x), -1, op.attrs["rank"]).sum(axis=2)
    acc = wrap_int32(sums + _bias(graph, op.inputs[3]))
    values[op.inputs[4]] = states.astype(np.int16).reshape(len(x), 1, -1)
    y = requantized(acc, constants.time_multiplier, constants.time_shift, constants.output_zero_point)
    return y.reshape(-1, *graph.tensor(op.outputs[0]).shape)


def _constant(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _weights(graph: Graph, op: Op) -> np.ndarray:
    """Return the weights less their zero point (0 for everything that converters write today)."""
    return _constant(graph, op.inputs[1]).astype(np.int32) - tensor_quant(graph.tensor(op.inputs[1])).zero_point


def _bias(graph: Graph, name: str) -> np.ndarray | int:
    return _constant(graph, name).astype(np.int64) if name else 0


def _exact_dtype(weights: np.ndarray) -> type[np.floating]:
    """Return the floating type whose products x @ weights.T are exact, so that BLAS can do the work.

    They are while no partial sum leaves the mantissa: |x| is at most 255.
    """
    largest = 255 * int(np.abs(weights.astype(np.int64)).sum(axis=1).max())
    return np.float32 if largest < 1 << 24 else np.float64


def _centred(x: np.ndarray, constants: Requantization, dtype: type[np.number]) -> np.ndarray:
    centred = x.astype(dtype)
    centred -= dtype(constants.input_zero_point)
    return centred


def _finish(graph: Graph, op: Op, sums: np.ndarray, constants: Requantization) -> np.ndarray:
    shape = graph.tensor(op.outputs[0]).shape
    acc = sums.reshape(-1, shape[-1]).astype(np.int64)
    acc += _bias(graph, op.inputs[2] if len(op.inputs) > 2 else "")
    factors = np.array(constants.multipliers), np.array(constants.shifts)
    limits = constants.out_min, constants.out_max
    return requantized(wrap_int32(acc), *factors, constants.output_zero_point, limits).reshape(-1, *shape)
