"""Convolutions with a window, and first layers: columns of inputs, multiplied by the dense inner loops.

`firmware/lib/tk_armv7em/include/tk_armv7em_convolution.h` describes the order of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from tinykd.ir import Graph, Op, requantization
from tinykd.kernels.armv7em.rows import quads, rows_cost, rows_factors, rows_fields
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Field, Kernel, edges, folded_bias, u16, weights

_MAX_DEPTH = 0xFFFC
_MAX_BATCH, _BATCH_BYTES = 8, 1024


@dataclass(frozen=True)
class _Columns:
    """How the inputs of a window stand in a column: whole quads of each kernel row, then what is left of all rows."""

    kernel_h: int
    row_quads: int
    rest: int

    @classmethod
    def of(cls, kernel_h: int, row_elements: int) -> _Columns:
        """Return the columns of windows of `kernel_h` rows of `row_elements` each."""
        return cls(kernel_h, row_elements // 4, row_elements % 4)

    @property
    def rest_quads(self) -> int:
        """Quads of what is left of all rows."""
        return quads(self.kernel_h * self.rest)

    @property
    def depth(self) -> int:
        """Inputs of a column."""
        return 4 * (self.kernel_h * self.row_quads + self.rest_quads)

    def ordered(self, taps: np.ndarray) -> np.ndarray:
        """Return weights (out_c, kernel_h, kernel_w, in_c) as (out_c, depth) in the order of a column."""
        rows = taps.reshape(len(taps), self.kernel_h, -1)
        whole, rests = rows[..., : 4 * self.row_quads], rows[:, ::-1, 4 * self.row_quads :]
        joined = np.concatenate([whole.reshape(len(taps), -1), rests.reshape(len(taps), -1)], axis=1)
        return np.pad(joined, ((0, 0), (0, self.depth - joined.shape[1])))


def _columns(graph: Graph, op: Op) -> _Columns:
    _, kernel_h, kernel_w, in_c = graph.tensor(op.inputs[1]).shape
    return _Columns.of(kernel_h, kernel_w * in_c)


def band_columns(graph: Graph, op: Op, out_w: int) -> dict[str, int]:
    """Return the columns of a band for `out_w` output positions in a row: padding, columns of the map, padding."""
    in_w = graph.tensor(op.inputs[0]).shape[2]
    kernel_w = graph.tensor(op.inputs[1]).shape[2]
    width = (out_w - 1) * op.attrs["stride"][1] + (kernel_w - 1) * op.attrs["dilation"][1] + 1
    left = min(op.attrs["padding"][2], width)
    inner = max(0, min(in_w, width - left))
    return {"band_left": left, "band_inner": inner, "band_right": width - left - inner}


def _band(graph: Graph, op: Op) -> dict[str, int]:
    """Return how many output rows a band serves, and its columns."""
    out_w = graph.tensor(op.outputs[0]).shape[2]
    return {"band_rows": 1 + out_w % 2, **band_columns(graph, op, out_w)}


def _lines(op: Op, kernel_h: int, band_rows: int) -> int:
    """Return the input rows of a band."""
    return int((band_rows - 1) * op.attrs["stride"][0] + (kernel_h - 1) * op.attrs["dilation"][0] + 1)


def _batch(order: _Columns) -> int:
    """Return how many pairs of columns are made at a time: more where they are small."""
    return max(1, min(_MAX_BATCH, _BATCH_BYTES // (4 * order.depth)))


def _scratch_bytes(graph: Graph, op: Op) -> int:
    """Return columns, rests, windows without gaps and the band, as the header says."""
    _, kernel_h, kernel_w, in_c = graph.tensor(op.inputs[1]).shape
    order, band = _columns(graph, op), _band(graph, op)
    windows = 0 if op.attrs["dilation"][1] == 1 or kernel_w == 1 else 8 * quads(kernel_h * kernel_w * in_c)
    lines = _lines(op, kernel_h, band["band_rows"])
    width = band["band_left"] + band["band_inner"] + band["band_right"]
    needs_band = any(op.attrs["padding"]) or order.row_quads == 0
    return (
        _batch(order) * 4 * order.depth
        + 8 * (1 + order.rest_quads)
        + windows
        + (4 * quads(lines * width * in_c) if needs_band else 0)
    )


def window_fields(graph: Graph, op: Op, band: dict[str, int], where: str) -> dict[str, Field]:
    """Return the fields of `tk_convolution_t` before its rows, with those of the band."""
    x, y = edges(graph, op, where)
    _, kernel_h, kernel_w, in_c = graph.tensor(op.inputs[1]).shape
    order = _columns(graph, op)
    sizes = {
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "in_c": in_c,
        "out_h": y.shape[1],
        "out_w": y.shape[2],
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride_h": op.attrs["stride"][0],
        "stride_w": op.attrs["stride"][1],
        "dilation_h": op.attrs["dilation"][0],
        "dilation_w": op.attrs["dilation"][1] if kernel_w > 1 else 1,
        "pad_top": op.attrs["padding"][0],
        **band,
        "row_quads": order.row_quads,
        "rest": order.rest,
        "rest_quads": order.rest_quads,
        "batch": _batch(order),
    }
    return {**u16(sizes, where), "in_zero": requantization(graph, op).input_zero_point}


def _applies(graph: Graph, op: Op, *, widened: bool) -> bool:
    """What is not pointwise, with columns of a size that the loops take and sums that the fast rounding takes."""
    taps = graph.tensor(op.inputs[1])
    if taps.data is None or taps.dtype != "int8" or (taps.shape[1:3] == (1, 1) and not any(op.attrs["padding"])):
        return False
    return _columns(graph, op).depth <= _MAX_DEPTH and rows_factors(graph, op, taps.data, widened=widened) is not None


def _calls(graph: Graph, op: Op, where: str, *, widened: bool) -> tuple[Call, ...]:
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
    factors = rows_factors(graph, op, taps, widened=widened)
    assert factors is not None
    order = _columns(graph, op)
    rows, arrays = rows_fields("rows", order.ordered(taps), folded, factors, constants, widened=widened, where=where)
    return (
        Call(
            "tk_convolution_widened" if widened else "tk_convolution_packed",
            "tk_convolution_t",
            {**window_fields(graph, op, _band(graph, op), where), **rows},
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            arrays,
            scratch_bytes=_scratch_bytes(graph, op),
        ),
    )


def _cost(graph: Graph, op: Op, *, widened: bool) -> Cost:
    taps = graph.tensor(op.inputs[1]).data
    assert taps is not None
    factors = rows_factors(graph, op, taps, widened=widened)
    assert factors is not None
    _, out_h, out_w, out_c = graph.tensor(op.outputs[0]).shape
    kernel_h, dilation_w = taps.shape[1], op.attrs["dilation"][1]
    order, band = _columns(graph, op), _band(graph, op)
    pairs = -(-out_h * out_w // 2)
    if order == _Columns(3, 2, 1) and dilation_w == 1:
        per_pair = 55.0
    else:
        per_pair = 20 + kernel_h * (11 + 7 * order.row_quads) + (70 + 17 * kernel_h if order.rest else 0)
    if dilation_w != 1:
        per_pair += 2 * kernel_h * (15 + taps.shape[2] * (15 + 3 * taps.shape[3]))
    lines = out_h / band["band_rows"] * _lines(op, kernel_h, band["band_rows"])
    per_line = 35 + 0.9 * (band["band_left"] + band["band_inner"] + band["band_right"]) * taps.shape[3]
    copied = lines * per_line if any(op.attrs["padding"]) else 0.0
    rows = rows_cost(out_c, order.depth, 2 * pairs, factors, widened=widened, group=_batch(order))
    constants = requantization(graph, op)
    clamp = 0 if (constants.out_min, constants.out_max) == (-128, 127) else 12 * out_h * out_w * out_c
    return Cost(rows.instructions + pairs * (per_pair + 45) + copied + clamp, rows.constant_bytes, rows.loaded_words)


def _kernel(variant: str, *, widened: bool) -> Kernel:
    return Kernel(
        f"tk_convolution_{variant}",
        partial(_applies, widened=widened),
        partial(_calls, widened=widened),
        variant,
        partial(_cost, widened=widened),
    )


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {"conv_2d": (_kernel("widened", widened=True), _kernel("packed", widened=False))}
)
