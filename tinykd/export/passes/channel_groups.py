"""Which channels of a graph's activations hang together: removing one of a group means removing all of it."""

from __future__ import annotations

import math

import numpy as np

from tinykd.ir import Graph, Op
from tinykd.ir.ops import BINARY, UNARY

_KEEPS_CHANNELS = ("average_pool_2d", "max_pool_2d", "resize_nearest_neighbor", *(set(UNARY) - {"softmax"}))


class ChannelGroups:
    """Groups of channels (slices along the last axis) over all activations.

    Attributes:
        names: the activations, in the order of the ops that write them; scalars have no channels and are left out.
        pinned: bool, by group: the group must stay, because an edge of the graph or an op that mixes its channels
            without weights (softmax, arg_max...) reads or writes one of its channels.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.names: list[str] = []
        self._first: dict[str, int] = {}
        total = 0
        for name in dict.fromkeys((*graph.inputs, *(name for op in graph.ops for name in (*op.inputs, *op.outputs)))):
            if not name or graph.tensor(name).is_constant or not graph.tensor(name).shape:
                continue
            self._first[name] = total
            self.names.append(name)
            total += graph.tensor(name).shape[-1]
        self._parent = np.arange(total)
        self._pins = [self._units(name) for name in (*graph.inputs, *graph.outputs, *graph.variables())]
        for op in graph.ops:
            if not self._link(op):
                self._pins += [self._units(name) for name in (*op.inputs, *op.outputs)]
        self._root = np.array([self._find(unit) for unit in range(total)], np.int64)
        self.pinned = np.zeros(total, bool)
        for units in self._pins:
            self.pinned[self._root[units]] = True

    def of(self, name: str) -> np.ndarray:
        """Return the group of each channel of an activation, int64 (C,)."""
        return self._root[self._units(name)]

    def reads_channels(self, op: Op) -> bool:
        """Whether each weight of an op reads one channel of its input.

        False for a dense layer that reads parts of rows, so that a weight reads several, and for a constant input.
        """
        if op.inputs[0] not in self._first:
            return False
        channels = self._graph.tensor(op.inputs[0]).shape[-1]
        return math.prod(self._graph.tensor(op.inputs[1]).shape[1:]) % channels == 0

    def _units(self, name: str) -> np.ndarray:
        if name not in self._first:
            return np.zeros(0, np.int64)
        return self._first[name] + np.arange(self._graph.tensor(name).shape[-1])

    def _find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = int(self._parent[unit])
        return unit

    def _join(self, first: np.ndarray, second: np.ndarray) -> bool:
        for a, b in zip(first, second, strict=True):
            a, b = self._find(int(a)), self._find(int(b))
            self._parent[max(a, b)] = min(a, b)
        return True

    def _link(self, op: Op) -> bool:
        """Join the channels that op makes hang together; False when it reads all of them at once."""
        x, y = self._graph.tensor(op.inputs[0]).shape, self._graph.tensor(op.outputs[0]).shape
        if not x or not y:
            return False
        units, out = self._units(op.inputs[0]), self._units(op.outputs[0])
        if op.kind in ("conv_2d", "transpose_conv", "fully_connected"):
            return self.reads_channels(op)
        if op.kind == "depthwise_conv_2d":
            return len(units) > 0 and self._join(np.repeat(units, y[-1] // x[-1]), out)
        if op.kind in BINARY:
            for name in op.inputs:
                self._link_operand(name, out)
            return True
        if op.kind == "concatenation":
            return self._link_parts(op, op.inputs, out)
        if op.kind == "split":
            return len(units) > 0 and self._link_parts(op, op.outputs, units)
        if not len(units):
            return False
        if op.kind in _KEEPS_CHANNELS or (op.kind == "mean" and len(x) - 1 not in op.attrs["axes"]):
            return self._join(units, out)
        if op.kind == "transpose" and op.attrs["perm"][-1] == len(x) - 1:
            return self._join(units, out)
        if op.kind == "pad":
            before = op.attrs["paddings"][-1][0]
            return self._join(units, out[before : before + len(units)])
        if op.kind == "reshape":
            return self._link_reshape(units, out)
        if op.kind == "strided_slice" and op.attrs["strides"][-1] == 1 and len(x) - 1 not in op.attrs["shrink_axes"]:
            return self._join(units[op.attrs["begin"][-1] : op.attrs["end"][-1]], out)
        return False

    def _link_operand(self, name: str, out: np.ndarray) -> None:
        units = self._units(name)
        if len(units) == len(out):
            self._join(units, out)
        else:
            # A constant has no units and is cut with the output; an operand of one channel serves all of them.
            self._pins.append(units)

    def _link_parts(self, op: Op, parts: tuple[str, ...], whole: np.ndarray) -> bool:
        shapes = [self._graph.tensor(name).shape for name in parts]
        start = 0
        for name, shape in zip(parts, shapes, strict=True):
            piece = whole
            if op.attrs["axis"] == len(shape) - 1:
                piece = whole[start : start + shape[-1]]
                start += shape[-1]
            if name in self._first:
                self._join(self._units(name), piece)
        return True

    def _link_reshape(self, units: np.ndarray, out: np.ndarray) -> bool:
        # Elements keep their order: channel i of n stands at i, i + n, ... in a longer last axis.
        if len(out) % len(units) == 0:
            return self._join(np.tile(units, len(out) // len(units)), out)
        if len(units) % len(out) == 0:
            return self._join(units, np.tile(out, len(units) // len(out)))
        return False
