"""Fully connected layers over one row: streams of four channels, weights widened to int16 or packed as int8.

`firmware/lib/tk_armv7em/include/tk_armv7em_dense.h` says what the streams hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization
from tinykd.ir.requant import Requantization
from tinykd.kernels import dense
from tinykd.kernels.armv7em import packed
from tinykd.kernels.call import SCRATCH, Call, Cost, Field, Kernel, arguments, edges, folded_bias, u16, weights
from tinykd.kernels.requantize import Rounding, accumulator_range, rounding

_GROUP = 4
_MAX_DEPTH = 0xFFFC
_STEPS_PER_TURN = 8


@dataclass(frozen=True)
class _Layer:
    """A dense layer over one row.

    Attributes:
        taps: int8 (out_c, in_c).
        folded: int32 (out_c,), biases with the input's zero point folded in.
        constants: of the op.
        low, high: int64 (out_c,), the reach of each sum.
        factors: int32 (out_c, 3), multiplier, addend and shift; one row, if all channels share them.
    """

    taps: np.ndarray
    folded: np.ndarray
    constants: Requantization
    low: np.ndarray
    high: np.ndarray
    factors: np.ndarray

    @property
    def is_shared(self) -> bool:
        """All channels have the same factors."""
        return len(self.factors) == 1

    @property
    def quads(self) -> int:
        """Of a column."""
        return -(-self.taps.shape[1] // packed.QUAD)

    @property
    def groups(self) -> int:
        """Of four channels."""
        return -(-len(self.taps) // _GROUP)


def _layer(graph: Graph, op: Op) -> _Layer | None:
    """Return a layer, or None where it has several rows or sums that the fast rounding does not take."""
    try:
        taps = weights(graph, op.inputs[1], "")
        constants = requantization(graph, op)
        folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, "")
    except UnsupportedModelError:
        return None
    low, high = accumulator_range(taps, 0, folded)
    found = rounding(constants, low, high)
    if found is None or not dense.has_one_row(graph, op) or taps.shape[1] > _MAX_DEPTH:
        return None
    return _Layer(taps, folded, constants, low, high, _factors(constants, found, np.maximum(np.abs(low), np.abs(high))))


def _factors(constants: Requantization, found: Rounding, reach: np.ndarray) -> np.ndarray:
    """Return int32 (out_c, 3), or (1, 3) where one weight scale stands for all channels."""
    factors = np.stack([found.multiplier, found.addend, found.shift], axis=1)
    live = found.multiplier != 0
    is_shared = len(set(zip(constants.multipliers, constants.shifts, strict=True))) == 1
    # A channel with one output for every input has constants of its own, but gets there by the common ones, too.
    return factors[live][:1] if is_shared and live.any() and (reach[~live] < packed.REACH).all() else factors


def _is_widened(graph: Graph, op: Op) -> bool:
    """One row, and sums that the fast rounding takes."""
    return _layer(graph, op) is not None


def _is_packed(graph: Graph, op: Op) -> bool:
    """One row, sums that the fast rounding takes, and weights of two channels fit into one word."""
    layer = _layer(graph, op)
    return layer is not None and packed.fits(layer.taps, layer.low, layer.high, layer.factors[:, 0])


def _widened_groups(taps: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Return int32 (groups, words) of int8 weights (out_c, depth) and biases (out_c,), all doubled."""
    words = np.ascontiguousarray(packed.quad_order(2 * taps.astype("<i2"))).view("<i4")
    groups = len(taps) // _GROUP
    starts = (2 * folded.astype(np.int64)).astype(np.uint32).view(np.int32).reshape(groups, _GROUP)
    return np.hstack([starts, words.reshape(groups, _GROUP, -1).swapaxes(1, 2).reshape(groups, -1)])


def _packed_groups(taps: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Return int32 (groups, words) of int8 weights (out_c, depth) and biases (out_c,)."""
    groups = len(taps) // _GROUP
    starts = packed.packed_starts(folded).reshape(groups, _GROUP)
    words = packed.packed_words(taps).reshape(groups, _GROUP // 2, -1).swapaxes(1, 2).reshape(groups, -1)
    return np.hstack([starts, words])


def _calls(function: str, packing: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., tuple[Call, ...]]:
    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        edges(graph, op, where)
        layer = _layer(graph, op)
        assert layer is not None, f"{where}: {function} does not apply"
        out_c, in_c = layer.taps.shape
        taps = packed.padded(np.pad(layer.taps, ((0, 0), (0, -in_c % packed.QUAD))), _GROUP)
        stream = packing(taps, packed.padded(layer.folded, _GROUP))
        if not layer.is_shared:
            stream = np.hstack([stream, packed.padded(layer.factors, _GROUP).reshape(layer.groups, -1)])
        fields: dict[str, Field] = {
            "stream": "stream",
            **u16({"in_c": in_c, "out_c": out_c}, where),
            "has_shared_factors": int(layer.is_shared),
            "out_min": layer.constants.out_min,
            "out_max": layer.constants.out_max,
            "factors": tuple(int(value) for value in layer.factors[0]) if layer.is_shared else (0, 0, 0),
        }
        operands = (*arguments(op.inputs[0], op.outputs[0]), SCRATCH)
        scratch_bytes = 2 * taps.shape[1]
        return (Call(function, "tk_fully_connected_dsp_t", fields, operands, {"stream": stream}, False, scratch_bytes),)

    return calls


def _cost(step: int, half: int, finish: int, bytes_per_weight: int) -> Callable[[Graph, Op], Cost]:
    """Return the estimate for a loop of `step` instructions for eight inputs, `half` for four, `finish` for a group."""

    def cost(graph: Graph, op: Op) -> Cost:
        layer = _layer(graph, op)
        assert layer is not None
        steps, halves = divmod(layer.quads, 2)
        turns = max(1, -(-steps // _STEPS_PER_TURN))
        group = finish - layer.is_shared + step * steps + (half + 1) * halves + 3 * turns
        rest = 45 * (len(layer.taps) % _GROUP > 0)
        words = _GROUP * (1 + bytes_per_weight * layer.quads + 3 * (not layer.is_shared))
        # Four words of inputs beside those of the weights, for each step.
        loaded = (4 + 8 * bytes_per_weight) * layer.quads / 2 * layer.groups
        return Cost(110 + 7 * layer.quads + group * layer.groups + rest, 4 * words * layer.groups, loaded)

    return cost


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "fully_connected": (
            Kernel(
                "tk_fully_connected_widened",
                _is_widened,
                _calls("tk_fully_connected_widened", _widened_groups),
                "widened",
                _cost(step=21, half=11, finish=31, bytes_per_weight=2),
            ),
            Kernel(
                "tk_fully_connected_packed",
                _is_packed,
                _calls("tk_fully_connected_packed", _packed_groups),
                "packed",
                _cost(step=27, half=14, finish=37, bytes_per_weight=1),
            ),
        )
    }
)
