"""Removes channels that carry nothing: those with one value for every input, and those that nobody reads.

A channel of a convolution is constant when the bounds of its accumulator requantise to one value. Its producer need
not compute it: what it adds to the sums of its readers goes into their biases. Channels of elementwise ops, depthwise
convolutions, pools, pads, concatenations and reshapes hang together, so they leave as one group or not at all.

The pass is exact because a group leaves only if, for every weight that reads one of its channels, one of these holds:
the weight is zero; the output it feeds is removed, or constant itself; or the channel is constant and adds the same
number at every position. At padded borders a tap adds nothing, so there the channel must equal the zero point, or the
taps that borders cut off must sum to zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinykd.export.passes.channel_groups import ChannelGroups
from tinykd.export.passes.value_ranges import (
    Bounds,
    accumulator_bounds,
    bias_of,
    requantize,
    value_ranges,
    weights_of,
)
from tinykd.ir import Graph, Op, Quant, Tensor, tensor_quant
from tinykd.ir.fixedpoint import INT32_MAX, INT32_MIN
from tinykd.ir.ops import BINARY

_READERS = ("conv_2d", "transpose_conv", "fully_connected")
"""Ops whose input channels may leave without their output channels."""


def remove_channels(graph: Graph) -> Graph:
    """Return the graph without constant and unread channels. The graph's inputs and outputs keep their shape."""
    groups = ChannelGroups(graph)
    reads = _reads(graph, groups)
    live = _live_channels(graph, groups, reads)
    return graph if all(mask.all() for mask in live.values()) else _rewrite(graph, reads, live)


def kept_channels(graph: Graph) -> dict[str, np.ndarray]:
    """Return which channels of each activation `remove_channels` keeps: bool (C,) by name."""
    groups = ChannelGroups(graph)
    return _live_channels(graph, groups, _reads(graph, groups))


@dataclass(frozen=True)
class _Read:
    """How an op with weights reads the channels of its input.

    Attributes:
        needs: bool (Cout, Cin): the output needs the input channel's values.
        adds: int64 (Cout, Cin): what the channel adds to each accumulator when it is removed; 0 unless it is constant.
        biases: int64 (Cout,): for outputs that are constant, a bias that gives their value without any input.
        constant: bool (Cout,): those outputs.
    """

    needs: np.ndarray
    adds: np.ndarray
    biases: np.ndarray
    constant: np.ndarray


def _reads(graph: Graph, groups: ChannelGroups) -> dict[int, _Read]:
    bounds = value_ranges(graph)
    return {
        index: _read(graph, op, bounds)
        for index, op in enumerate(graph.ops)
        if op.kind in _READERS and groups.reads_channels(op)
    }


def _read(graph: Graph, op: Op, bounds: dict[str, Bounds]) -> _Read:
    x, weights = bounds[op.inputs[0]], weights_of(graph, op)
    channels = x.low.shape[-1]
    # (Cout, taps, Cin): a dense layer that reads a whole map has one tap per position of the map.
    taps = weights.reshape(len(weights), -1, channels)
    fixed = x.fixed_channels()
    value = x.low.reshape(-1, channels)[0].astype(np.int64) - tensor_quant(graph.tensor(op.inputs[0])).zero_point
    value = np.where(fixed, value, 0)
    everywhere, adds = _contributions(op, graph, taps, value)
    foldable = fixed & everywhere
    bias = bias_of(graph, op)
    # Sums are int32: a bias that has to hold a constant's share must, too.
    most = np.abs(bias) + np.abs(np.where(foldable, adds, 0)).sum(axis=1)
    foldable &= (most <= INT32_MAX)[:, None]
    needs = (taps != 0).any(axis=1) & ~foldable
    constant, biases = _constant_outputs(graph, op, bounds)
    needs[constant] = False
    return _Read(needs, np.where(foldable, adds, 0), biases, constant)


def _contributions(op: Op, graph: Graph, taps: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where a constant adds the same at every position, bool (Cout, Cin), and what it adds, int64 (Cout, Cin).

    Args:
        taps: weights (Cout, taps, Cin).
        value: (Cin,) the constants less the zero point.
    """
    if op.kind == "fully_connected":
        return np.ones((len(taps), len(value)), bool), taps.sum(axis=1) * value
    if op.kind == "transpose_conv":
        # Each output position gets its own subset of the taps.
        zero = np.broadcast_to(value == 0, (len(taps), len(value)))
        return zero, np.zeros(zero.shape, np.int64)
    covered = _covered_taps(graph, op)
    sums = np.einsum("pt,otc->poc", covered, taps) * value
    return (sums == sums[0]).all(axis=0), sums[0]


def _covered_taps(graph: Graph, op: Op) -> np.ndarray:
    """Return the different sets of taps that lie inside the input, as 0/1 int64 (sets, taps)."""
    height, width = graph.tensor(op.inputs[0]).shape[1:3]
    y, kernel = graph.tensor(op.outputs[0]).shape, graph.tensor(op.inputs[1]).shape[1:3]
    top, _, left, _ = op.attrs["padding"]
    inside = []
    for size, count, length, stride, dilation, before in (
        (height, y[1], kernel[0], op.attrs["stride"][0], op.attrs["dilation"][0], top),
        (width, y[2], kernel[1], op.attrs["stride"][1], op.attrs["dilation"][1], left),
    ):
        at = np.arange(count)[:, None] * stride - before + np.arange(length) * dilation
        inside.append(np.unique((at >= 0) & (at < size), axis=0))
    rows, columns = inside
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(-1, kernel[0] * kernel[1]).astype(np.int64)


def _constant_outputs(graph: Graph, op: Op, bounds: dict[str, Bounds]) -> tuple[np.ndarray, np.ndarray]:
    """Return which outputs are constant, bool (Cout,), and biases (Cout,) that give their values alone."""
    y = bounds[op.outputs[0]]
    value, constant = y.low.reshape(-1, y.low.shape[-1])[0], y.fixed_channels()
    lowest, _ = accumulator_bounds(graph, op, bounds[op.inputs[0]])
    biases = bias_of(graph, op)
    for candidate in (biases, lowest.reshape(-1, len(value))[0]):
        candidate = np.clip(candidate, INT32_MIN, INT32_MAX)
        gives = requantize(graph, op, candidate) == value
        biases = np.where(gives, candidate, biases)
    return constant & (requantize(graph, op, biases) == value), biases


def _live_channels(graph: Graph, groups: ChannelGroups, reads: dict[int, _Read]) -> dict[str, np.ndarray]:
    """Return for each activation which channels stay, bool (C,): the least set that is closed under what needs what."""
    live = groups.pinned.copy()
    names = groups.names
    while True:
        before = -1
        while before < int(live.sum()):
            before = int(live.sum())
            for index in sorted(reads, reverse=True):
                op = graph.ops[index]
                needed = reads[index].needs[live[groups.of(op.outputs[0])]].any(axis=0)
                live[groups.of(op.inputs[0])[needed]] = True
        empty = [name for name in names if not live[groups.of(name)].any()]
        if not empty:
            return {name: live[groups.of(name)] for name in names}
        # A tensor keeps at least one channel, whatever it holds. The last one first: it may need those before it.
        live[groups.of(empty[-1])[0]] = True


def _rewrite(graph: Graph, reads: dict[int, _Read], live: dict[str, np.ndarray]) -> Graph:
    tensors = dict(graph.tensors)
    for name, mask in live.items():
        tensor = graph.tensor(name)
        tensors[name] = replace(tensor, shape=(*tensor.shape[:-1], int(mask.sum())))
    ops = []
    for index, op in enumerate(graph.ops):
        x = live.get(op.inputs[0])
        y = live.get(op.outputs[0])
        new = _Constants(graph, op, tensors)
        if op.kind in _READERS and index in reads and x is not None and y is not None:
            op = _cut_reader(graph, op, reads[index], x, y, new)
        elif op.kind == "depthwise_conv_2d" and y is not None and not y.all():
            inputs = [op.inputs[0], new.slice(op.inputs[1], 3, y)]
            op = replace(op, inputs=(*inputs, *(new.slice(name, 0, y) if name else "" for name in op.inputs[2:])))
        elif op.kind in BINARY and y is not None and not y.all():
            op = replace(op, inputs=tuple(new.slice_last(name, y) for name in op.inputs))
        elif op.kind == "concatenation" and y is not None and not y.all():
            op = replace(op, inputs=_cut_constants(graph, op, y, new))
        elif op.kind == "pad" and y is not None and not y.all():
            before, after = op.attrs["paddings"][-1]
            channels = (int(y[:before].sum()), int(y[len(y) - after :].sum()))
            op = replace(op, attrs={**op.attrs, "paddings": (*op.attrs["paddings"][:-1], channels)})
        elif op.kind == "strided_slice" and x is not None and not x.all():
            op = _cut_slice(op, x)
        ops.append(op)
    return graph.with_ops(ops, tensors)


def _cut_reader(graph: Graph, op: Op, read: _Read, x: np.ndarray, y: np.ndarray, new: _Constants) -> Op:
    if x.all() and y.all():
        return op
    bias = bias_of(graph, op) + read.adds[:, ~x].sum(axis=1)
    weights = graph.tensor(op.inputs[1])
    assert weights.data is not None
    data = weights.data
    taps = (data.astype(np.int64) - tensor_quant(weights).zero_point).reshape(len(data), -1, len(x))
    # A constant output may have lost inputs that no bias can stand for: it keeps its value, and no weights.
    alone = read.constant & ((taps != 0).any(axis=1) & (read.adds == 0))[:, ~x].any(axis=1)
    if alone.any():
        data = data.copy()
        data[alone] = tensor_quant(weights).zero_point
        bias = np.where(alone, read.biases, bias)
    kept = data.reshape(len(data), -1, len(x))[y][:, :, x]
    shape = (*weights.shape[1:-1], -1) if weights.data.ndim == 4 else (-1,)
    inputs = [op.inputs[0], new.add(op.inputs[1], kept.reshape(len(kept), *shape), _cut_quant(weights.quant, 0, y))]
    name = op.inputs[2] if len(op.inputs) > 2 else ""
    if name or bias.any():
        quant = graph.tensor(name).quant if name else _bias_quant(graph, op)
        inputs.append(new.add(name or f"{op.outputs[0]}/bias", bias[y].astype(np.int32), _cut_quant(quant, 0, y)))
    return replace(op, inputs=tuple(inputs))


def _bias_quant(graph: Graph, op: Op) -> Quant:
    x, weights = (tensor_quant(graph.tensor(name)) for name in op.inputs[:2])
    scales = tuple(float(np.float32(x.scale * scale)) for scale in weights.scales)
    return Quant(scales, (0,) * len(scales), None if weights.axis is None else 0)


def _cut_constants(graph: Graph, op: Op, y: np.ndarray, new: _Constants) -> tuple[str, ...]:
    """Return the inputs of a concatenation without the channels of constants, or whole constants, that it lost."""
    names, start = [], 0
    along_channels = op.attrs["axis"] == len(graph.tensor(op.outputs[0]).shape) - 1
    for name in op.inputs:
        count = graph.tensor(name).shape[-1]
        mask = y[start : start + count] if along_channels else y
        if mask.any():
            names.append(new.slice_last(name, mask))
        start += count
    return tuple(names)


def _cut_slice(op: Op, x: np.ndarray) -> Op:
    begin, end = op.attrs["begin"], op.attrs["end"]
    first, last = (int(x[:bound].sum()) for bound in (begin[-1], end[-1]))
    return replace(op, attrs={**op.attrs, "begin": (*begin[:-1], first), "end": (*end[:-1], last)})


def _cut_quant(quant: Quant | None, axis: int, mask: np.ndarray) -> Quant | None:
    if quant is None or quant.axis != axis:
        return quant
    kept = np.flatnonzero(mask)
    return Quant(tuple(quant.scales[i] for i in kept), tuple(quant.zero_points[i] for i in kept), axis)


class _Constants:
    """Adds an op's cut constants to the tensor table, under a name of its own where other ops read the old one."""

    def __init__(self, graph: Graph, op: Op, tensors: dict[str, Tensor]) -> None:
        self.graph, self.op, self.tensors = graph, op, tensors

    def add(self, name: str, data: np.ndarray, quant: Quant | None) -> str:
        readers = [op for op in self.graph.ops if name in op.inputs]
        if len(readers) > 1:
            name = f"{name}/{self.op.outputs[0]}"
        data = np.ascontiguousarray(data)
        data.flags.writeable = False
        self.tensors[name] = Tensor(name, data.shape, str(data.dtype), quant, data)
        return name

    def slice(self, name: str, axis: int, mask: np.ndarray) -> str:
        """Keep the slices of a constant along `axis` that `mask` names."""
        tensor = self.graph.tensor(name)
        if tensor.data is None or mask.all():
            return name
        return self.add(name, np.compress(mask, tensor.data, axis), _cut_quant(tensor.quant, axis, mask))

    def slice_last(self, name: str, mask: np.ndarray) -> str:
        """Keep the channels of a constant operand; one that is the same for all channels stays."""
        shape = self.graph.tensor(name).shape
        if not shape or shape[-1] != len(mask):
            return name
        return self.slice(name, len(shape) - 1, mask)
