"""Fully connected layers over one row: streams of four channels, weights widened to int16 or packed as int8.

`firmware/lib/tk_armv7em/include/tk_armv7em_dense.h` says what the streams hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization
from tinykd.kernels import dense
from tinykd.kernels.armv7em import packed
from tinykd.kernels.call import SCRATCH, Call, Cost, Field, Kernel, arguments, edges, folded_bias, u16, weights
from tinykd.kernels.requantize import Rounding, accumulator_range, rounding

_GROUP = 4
_MAX_DEPTH = 0xFFFC
_STEPS_PER_TURN = 8


def _rounding(graph: Graph, op: Op) -> Rounding | None:
    """Return the fast rounding of a layer over one row, or None where there is none."""
    try:
        taps = weights(graph, op.inputs[1], "")
        constants = requantization(graph, op)
        folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, "")
    except UnsupportedModelError:
        return None
    if not dense.has_one_row(graph, op) or taps.shape[1] > _MAX_DEPTH:
        return None
    return rounding(constants, *accumulator_range(taps, 0, folded))


def _is_widened(graph: Graph, op: Op) -> bool:
    """One row, and sums that the fast rounding takes."""
    return _rounding(graph, op) is not None


def _is_packed(graph: Graph, op: Op) -> bool:
    """One row, sums that the fast rounding takes, and weights of two channels fit into one word."""
    factors = _rounding(graph, op)
    if factors is None:
        return False
    taps = weights(graph, op.inputs[1], "")
    folded = folded_bias(graph, op, taps, 0, requantization(graph, op).input_zero_point, "")
    return packed.fits(taps, *accumulator_range(taps, 0, folded), factors.multiplier)


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
        taps = weights(graph, op.inputs[1], where)
        constants = requantization(graph, op)
        folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
        factors = rounding(constants, *accumulator_range(taps, 0, folded))
        assert factors is not None, f"{where}: {function} does not apply"
        out_c, in_c = taps.shape
        grid = packed.padded(np.pad(taps, ((0, 0), (0, -in_c % packed.QUAD))), _GROUP)
        stream = packing(grid, packed.padded(folded, _GROUP))
        columns = np.stack([factors.multiplier, factors.addend, factors.shift], axis=1)
        is_shared = _has_shared_factors(columns)
        if not is_shared:
            stream = np.hstack([stream, packed.padded(columns, _GROUP).reshape(len(stream), -1)])
        fields: dict[str, Field] = {
            "stream": "stream",
            **u16({"in_c": in_c, "out_c": out_c}, where),
            "has_shared_factors": int(is_shared),
            "out_min": constants.out_min,
            "out_max": constants.out_max,
            "factors": tuple(int(value) for value in columns[0]) if is_shared else (0, 0, 0),
        }
        return (
            Call(
                function,
                "tk_fully_connected_dsp_t",
                fields,
                (*arguments(op.inputs[0], op.outputs[0]), SCRATCH),
                {"stream": stream},
                scratch_bytes=2 * grid.shape[1],
            ),
        )

    return calls


def _has_shared_factors(columns: np.ndarray) -> bool:
    return bool((columns == columns[0]).all())


def _cost(step: int, half: int, finish: int, bytes_per_weight: int) -> Callable[[Graph, Op], Cost]:
    """Return the estimate for a loop of `step` instructions for eight inputs, `half` for four, `finish` for a group."""

    def cost(graph: Graph, op: Op) -> Cost:
        factors = _rounding(graph, op)
        assert factors is not None
        out_c, in_c = graph.tensor(op.inputs[1]).shape
        quads, groups = -(-in_c // packed.QUAD), -(-out_c // _GROUP)
        is_shared = _has_shared_factors(np.stack([factors.multiplier, factors.addend, factors.shift], axis=1))
        steps, halves = divmod(quads, 2)
        turns = max(1, -(-steps // _STEPS_PER_TURN))
        group = finish - is_shared + step * steps + (half + 1) * halves + 3 * turns
        words = _GROUP + bytes_per_weight * quads * _GROUP + 3 * _GROUP * (not is_shared)
        return Cost(110 + 7 * quads + group * groups + 45 * (out_c % _GROUP > 0), 4 * words * groups)

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
