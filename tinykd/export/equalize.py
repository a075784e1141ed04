"""Cross-layer equalisation: evens out the channels of an activation, so that one scale suits all of them.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction" (arXiv:1906.04721), section
4.1: where nothing but positively homogeneous ops stands between two layers, channel i of the first may be divided by
s_i and the second's weights for it multiplied by s_i, and the function stays what it was. s_i = sqrt(r1_i / r2_i) makes
both equally wide.

Here convolutions have a scale for each output channel, so the first layer's weights need no balance: r1_i is the
largest magnitude of the *activation's* channel i, which has one scale for all channels. r2_i is that of the second
layer's weights for input channel i; a depthwise convolution has a scale for each of them and no say (s_i = r1_i).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinykd.errors import DataError
from tinykd.export.simulate import Simulation
from tinykd.ir import Graph, Op

_SCALED = ("conv_2d", "depthwise_conv_2d", "fully_connected")
_HOMOGENEOUS = ("pad", "average_pool_2d", "max_pool_2d", "mean")
_FUSED = ("none", "relu", "relu6")
# A channel that calibration hardly saw active may be active later: factors stay within reason.
_LARGEST_FACTOR = 32.0
_ROUNDS = 20
_SETTLED = 1e-3


@dataclass(frozen=True)
class Equalized:
    """A float graph with even channels.

    Attributes:
        graph: computes what the one before did.
        pairs: sources of the layers whose channels moved, (first, second).
    """

    graph: Graph
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Pair:
    first: Op
    second: Op
    between: tuple[str, ...]
    """The activations from the first op's output to the second's input, both included."""


def channel_peaks(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the largest magnitude of each channel (the last axis) of every activation, float64 (C,).

    Args:
        graph: a float graph after all passes.
        x: float32 (N, ...) images.

    Raises:
        DataError: no images.
    """
    if len(x) == 0:
        raise DataError("equalisation needs at least one image; the calibration set is empty")
    simulation = Simulation(graph, graph)
    values = simulation.start(x, rounded=False)
    peaks: dict[str, np.ndarray] = {}
    for index in range(-1, len(graph.ops)):
        if index >= 0:
            values = simulation.step(values, index, rounded=False)
        names = graph.inputs if index < 0 else graph.ops[index].outputs
        for name in names:
            if name in values:
                value = values[name].reshape(-1, values[name].shape[-1])
                peaks[name] = np.abs(value).max(axis=0).astype(np.float64)
    return peaks


def equalize(graph: Graph, peaks: Mapping[str, np.ndarray], input_range: tuple[float, float]) -> Equalized:
    """Return the float graph with the channels of its activations evened out.

    RELU6 stays exact: it is not homogeneous, so a channel is only scaled as far as interval arithmetic proves that it
    never reaches 6, before or after.

    Args:
        graph: a float graph after all passes; batch norm is folded.
        peaks: as `channel_peaks` finds them.
        input_range: what the input's values lie in, (low, high): bounds the channels of RELU6 layers.
    """
    pairs = find_pairs(graph)
    peaks = dict(peaks)
    moved: set[int] = set()
    for _ in range(_ROUNDS):
        bounds = _upper_bounds(graph, input_range)
        largest_move = 0.0
        for number, pair in enumerate(pairs):
            factors = _factors(graph, pair, peaks, bounds)
            move = float(np.abs(np.log(factors)).max())
            if move < _SETTLED:
                continue
            largest_move = max(largest_move, move)
            graph = _scale(graph, pair, factors)
            for name in pair.between:
                peaks[name] = peaks[name] / factors
                bounds[name] = bounds[name] / factors
            moved.add(number)
        if largest_move < _SETTLED:
            break
    return Equalized(graph, tuple((pairs[i].first.source, pairs[i].second.source) for i in sorted(moved)))


def find_pairs(graph: Graph) -> list[_Pair]:
    """Return the layers whose output goes, through homogeneous ops at most, to one other layer alone."""
    consumers = graph.consumers()
    pairs = []
    for first in graph.ops:
        if first.kind not in _SCALED or first.attrs["activation"] not in _FUSED:
            continue
        name, between = first.outputs[0], [first.outputs[0]]
        while name not in graph.outputs and len(consumers.get(name, [])) == 1:
            op = graph.ops[consumers[name][0]]
            if op.kind in _HOMOGENEOUS and _keeps_channels(op, graph):
                name = op.outputs[0]
                between.append(name)
                continue
            if op.kind in _SCALED and op.inputs[0] == name and _input_channels(graph, op) is not None:
                pairs.append(_Pair(first, op, tuple(between)))
            break
    return pairs


def _keeps_channels(op: Op, graph: Graph) -> bool:
    """Whether a homogeneous op maps channel i to channel i and nothing else, with no bound of its own."""
    if op.attrs.get("activation", "none") not in ("none", "relu"):
        return False
    rank = len(graph.tensor(op.inputs[0]).shape)
    if op.kind == "mean":
        return rank - 1 not in op.attrs["axes"]
    if op.kind == "pad":
        return op.attrs["value"] is None and not any(op.attrs["paddings"][-1])
    return True


def _input_channels(graph: Graph, op: Op) -> np.ndarray | None:
    """Return the weights of a layer with its input channels last, (rest, C); None when these have no such form."""
    weights, channels = _value(graph, op.inputs[1]), graph.tensor(op.inputs[0]).shape[-1]
    if op.kind == "depthwise_conv_2d" and weights.shape[3] != channels:
        return None
    return weights.reshape(-1, channels) if weights.shape[-1] % channels == 0 else None


def _factors(
    graph: Graph, pair: _Pair, peaks: Mapping[str, np.ndarray], bounds: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return what each channel of a pair is divided by, (C,), 1 for the widest channel."""
    first = peaks[pair.first.outputs[0]]
    weights = _input_channels(graph, pair.second)
    assert weights is not None
    second = np.abs(weights).max(axis=0)
    used = (first > 0) & (second > 0)
    if not used.any():
        return np.ones(len(first))
    ratio = np.where(used, first, 1.0) / np.where(used, second, 1.0)
    factors = np.where(used, first, 1.0) if pair.second.kind == "depthwise_conv_2d" else np.sqrt(ratio)
    factors = np.where(used, factors / factors[int(np.argmax(np.where(used, first, -1.0)))], 1.0)
    factors = np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    if pair.first.attrs["activation"] == "relu6":
        bound = bounds[pair.first.outputs[0]]
        factors = np.where(bound > 6.0, 1.0, np.maximum(factors, bound / 6.0))
    return factors


def _scale(graph: Graph, pair: _Pair, factors: np.ndarray) -> Graph:
    """Return the graph with each channel of the first layer divided by its factor, which the second makes good."""
    first, second = pair.first, pair.second
    weights = _value(graph, first.inputs[1])
    along = factors if first.kind == "depthwise_conv_2d" else factors.reshape(-1, *[1] * (weights.ndim - 1))
    changed = {first.inputs[1]: weights / along, first.inputs[2]: _value(graph, first.inputs[2]) / factors}
    taken = _input_channels(graph, second)
    assert taken is not None
    changed[second.inputs[1]] = (taken * factors).reshape(graph.tensor(second.inputs[1]).shape)
    tensors = dict(graph.tensors)
    for name, value in changed.items():
        tensors[name] = replace(tensors[name], data=value.astype(np.float32))
    return replace(graph, tensors=tensors)


def _upper_bounds(graph: Graph, input_range: tuple[float, float]) -> dict[str, np.ndarray]:
    """Return, for each channel of every activation, the largest value before RELU6 that any input can cause, (C,)."""
    lows: dict[str, np.ndarray] = {}
    highs: dict[str, np.ndarray] = {}
    bounds: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        channels = graph.tensor(name).shape[-1]
        # Padding puts zeros between the values.
        lows[name] = np.full(channels, min(input_range[0], 0.0))
        highs[name] = bounds[name] = np.full(channels, max(input_range[1], 0.0))
    for op in graph.ops:
        x = op.inputs[0]
        if op.kind in _SCALED and _input_channels(graph, op) is not None:
            low, high = _layer_bounds(graph, op, lows[x], highs[x])
        elif op.kind in _HOMOGENEOUS and _keeps_channels(op, graph):
            low, high = lows[x], highs[x]
        else:
            # Not followed: anything may come out.
            low, high = np.array(-np.inf), np.array(np.inf)
        for name in op.outputs:
            channels = graph.tensor(name).shape[-1]
            bounds[name] = np.broadcast_to(high, channels)
            lows[name], highs[name] = np.broadcast_to(low, channels), bounds[name]
            activation = op.attrs.get("activation", "none")
            if activation != "none":
                lows[name], highs[name] = np.maximum(lows[name], 0.0), np.maximum(highs[name], 0.0)
            if activation == "relu6":
                lows[name], highs[name] = np.minimum(lows[name], 6.0), np.minimum(highs[name], 6.0)
    return bounds


def _layer_bounds(graph: Graph, op: Op, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a layer's outputs lie between before its activation, given bounds (C,) of its input channels."""
    weights, bias = _value(graph, op.inputs[1]), _value(graph, op.inputs[2])
    channels = len(low)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return np.full(len(bias), -np.inf), np.full(len(bias), np.inf)
    up, down = np.maximum(weights, 0.0), np.minimum(weights, 0.0)
    if op.kind == "depthwise_conv_2d":
        up, down = up.reshape(-1, channels).sum(axis=0), down.reshape(-1, channels).sum(axis=0)
        return up * low + down * high + bias, up * high + down * low + bias
    up, down = (part.reshape(len(bias), -1, channels).sum(axis=1) for part in (up, down))
    return up @ low + down @ high + bias, up @ high + down @ low + bias


def _value(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data.astype(np.float64)
