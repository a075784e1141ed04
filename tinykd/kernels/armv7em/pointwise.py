"""1x1 convolutions, and dense layers over several rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.ir import Graph, Op, requantization
from tinykd.kernels import dense
from tinykd.kernels.armv7em.rows import Factors, quads, rows_cost, rows_factors, rows_fields
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Kernel, edges, folded_bias, u16, weights

_MAX_DEPTH = 0xFFFC


def _sizes(graph: Graph, op: Op) -> dict[str, int]:
    """Return sizes and strides; the rows of a dense layer are pixels of a map one pixel wide."""
    if op.kind == "fully_connected":
        in_c = graph.tensor(op.inputs[1]).shape[1]
        count = graph.tensor(op.inputs[0]).num_elements // in_c
        return {"in_w": 1, "in_c": in_c, "out_h": count, "out_w": 1, "stride_h": 1, "stride_w": 1}
    _, _, in_w, in_c = graph.tensor(op.inputs[0]).shape
    _, out_h, out_w, _ = graph.tensor(op.outputs[0]).shape
    stride_h, stride_w = op.attrs["stride"]
    return {"in_w": in_w, "in_c": in_c, "out_h": out_h, "out_w": out_w, "stride_h": stride_h, "stride_w": stride_w}


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


def _applies(graph: Graph, op: Op) -> bool:
    """Kernel 1x1 without padding, or several rows, and sums that a fast rounding takes."""
    return _factors(graph, op, widened=True) is not None


def _widened(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
    flat = taps.reshape(len(taps), -1)
    padded = np.pad(flat, ((0, 0), (0, 4 * quads(flat.shape[1]) - flat.shape[1])))
    factors = _factors(graph, op, widened=True)
    assert factors is not None
    rows, arrays = rows_fields("rows", padded, folded, factors, constants, widened=True, where=where)
    return (
        Call(
            "tk_pointwise_widened",
            "tk_pointwise_t",
            {**u16(_sizes(graph, op), where), **rows},
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            arrays,
            scratch_bytes=4 * padded.shape[1],
        ),
    )


def _cost_widened(graph: Graph, op: Op) -> Cost:
    factors = _factors(graph, op, widened=True)
    assert factors is not None
    sizes = _sizes(graph, op)
    pairs = -(-sizes["out_h"] * sizes["out_w"] // 2)
    columns = pairs * (60 + 9 * quads(sizes["in_c"]))
    rows = rows_cost(graph.tensor(op.outputs[0]).shape[-1], 4 * quads(sizes["in_c"]), pairs, factors)
    return Cost(columns + rows.instructions, rows.constant_bytes)


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        kind: (Kernel("tk_pointwise_widened", _applies, _widened, "widened", _cost_widened),)
        for kind in ("conv_2d", "fully_connected")
    }
)
