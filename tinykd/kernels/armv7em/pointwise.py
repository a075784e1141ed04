"""1x1 convolutions, and dense layers over several rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from tinykd.ir import Graph, Op, requantization
from tinykd.kernels import dense
from tinykd.kernels.armv7em.rows import Factors, quads, rows_cost, rows_factors, rows_fields
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Kernel, edges, folded_bias, u16, weights

_MAX_DEPTH = 0xFFFC
_MAX_LINE = 0xFFFF
_MAX_PAIRS, _SCRATCH_BYTES = 8, 512
_PAIR, _QUAD = 25, 8


def _sizes(graph: Graph, op: Op) -> dict[str, int]:
    """Return sizes and strides; rows of a dense layer, and pixels in one piece, are a single line."""
    in_c = graph.tensor(op.inputs[1]).shape[-1]
    count = graph.tensor(op.inputs[0]).num_elements // in_c
    if op.kind == "fully_connected" or (tuple(op.attrs["stride"]) == (1, 1) and count <= _MAX_LINE):
        return {"in_w": 0, "in_c": in_c, "out_h": 1, "out_w": count, "stride_h": 0, "stride_w": 1}
    _, out_h, out_w, _ = graph.tensor(op.outputs[0]).shape
    stride_h, stride_w = op.attrs["stride"]
    in_w = graph.tensor(op.inputs[0]).shape[2]
    return {"in_w": in_w, "in_c": in_c, "out_h": out_h, "out_w": out_w, "stride_h": stride_h, "stride_w": stride_w}


def _pairs(depth: int) -> int:
    """Return how many pairs of columns are made at once: what a call costs counts where columns are short."""
    return min(_MAX_PAIRS, max(1, _SCRATCH_BYTES // (4 * depth)))


def _factors(graph: Graph, op: Op, *, widened: bool) -> Factors | None:
    """Return the rounding of a layer with kernel 1x1 and no padding, or over several rows; None where it has none."""
    taps = graph.tensor(op.inputs[1])
    if taps.data is None or taps.dtype != "int8" or taps.shape[-1] > _MAX_DEPTH:
        return None
    if op.kind == "fully_connected":
        fits = not dense.has_one_row(graph, op)
    else:
        fits = taps.shape[1:3] == (1, 1) and not any(op.attrs["padding"])
    return rows_factors(graph, op, taps.data, widened=widened) if fits else None


def _applies(graph: Graph, op: Op, *, widened: bool) -> bool:
    """Kernel 1x1 without padding, or several rows, and sums that a fast rounding takes."""
    return _factors(graph, op, widened=widened) is not None


def _calls(graph: Graph, op: Op, where: str, *, widened: bool) -> tuple[Call, ...]:
    edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
    flat = taps.reshape(len(taps), -1)
    padded = np.pad(flat, ((0, 0), (0, 4 * quads(flat.shape[1]) - flat.shape[1])))
    factors = _factors(graph, op, widened=widened)
    assert factors is not None
    rows, arrays = rows_fields("rows", padded, folded, factors, constants, widened=widened, where=where)
    pairs = _pairs(padded.shape[1])
    return (
        Call(
            "tk_pointwise_widened" if widened else "tk_pointwise_packed",
            "tk_pointwise_t",
            {**u16({**_sizes(graph, op), "pairs": pairs}, where), **rows},
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            arrays,
            scratch_bytes=4 * padded.shape[1] * pairs,
        ),
    )


def _cost(graph: Graph, op: Op, *, widened: bool) -> Cost:
    factors = _factors(graph, op, widened=widened)
    assert factors is not None
    in_c, out_c = graph.tensor(op.inputs[1]).shape[-1], graph.tensor(op.outputs[0]).shape[-1]
    columns = graph.tensor(op.outputs[0]).num_elements // out_c
    depth = 4 * quads(in_c)
    rows = rows_cost(out_c, depth, columns, factors, widened=widened, group=_pairs(depth))
    return Cost(columns / 2 * (_PAIR + _QUAD * quads(in_c)) + rows.instructions, rows.constant_bytes, rows.loaded_words)


def _kernel(variant: str, *, widened: bool) -> Kernel:
    return Kernel(
        f"tk_pointwise_{variant}",
        partial(_applies, widened=widened),
        partial(_calls, widened=widened),
        variant,
        partial(_cost, widened=widened),
    )


_ROWS = (_kernel("widened", widened=True), _kernel("packed", widened=False))

KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType({"conv_2d": _ROWS, "fully_connected": _ROWS})
