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
from tinykd.kernels.armv7em.rows import BLOCK, quads, rows_factors, rows_fields
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Field, Kernel, edges, folded_bias, u16, weights

_MAX_DEPTH = 0xFFFC


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

    @property
    def scratch_bytes(self) -> int:
        """Two columns, two lots of rests, two windows."""
        window = 4 * quads(self.kernel_h * (4 * self.row_quads + self.rest))
        return 4 * self.depth + 2 * (4 + 4 * self.rest_quads) + 2 * window

    def ordered(self, taps: np.ndarray) -> np.ndarray:
        """Return weights (out_c, kernel_h, kernel_w, in_c) as (out_c, depth) in the order of a column."""
        rows = taps.reshape(len(taps), self.kernel_h, -1)
        whole, rests = rows[..., : 4 * self.row_quads], rows[:, ::-1, 4 * self.row_quads :]
        joined = np.concatenate([whole.reshape(len(taps), -1), rests.reshape(len(taps), -1)], axis=1)
        return np.pad(joined, ((0, 0), (0, self.depth - joined.shape[1])))


def _columns(graph: Graph, op: Op) -> _Columns:
    _, kernel_h, kernel_w, in_c = graph.tensor(op.inputs[1]).shape
    return _Columns.of(kernel_h, kernel_w * in_c)


def _fields(graph: Graph, op: Op, where: str) -> dict[str, Field]:
    """Return the fields of the member `tk_columns_t columns`."""
    x, y = edges(graph, op, where)
    _, kernel_h, kernel_w, in_c = graph.tensor(op.inputs[1]).shape
    dilation_h, dilation_w = op.attrs["dilation"]
    order = _columns(graph, op)
    inner_w = x.shape[2] - kernel_w + 1 if dilation_w == 1 or kernel_w == 1 else 0
    sizes = {
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "in_c": in_c,
        "out_w": y.shape[2],
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride_h": op.attrs["stride"][0],
        "stride_w": op.attrs["stride"][1],
        "dilation_h": dilation_h,
        "dilation_w": dilation_w,
        "pad_top": op.attrs["padding"][0],
        "pad_left": op.attrs["padding"][2],
        "inner_h": max(0, x.shape[1] - (kernel_h - 1) * dilation_h),
        "inner_w": max(0, inner_w),
        "row_quads": order.row_quads,
        "rest": order.rest,
        "rest_quads": order.rest_quads,
    }
    fields = {**u16(sizes, where), "in_zero": requantization(graph, op).input_zero_point}
    return {f"columns.{name}": field for name, field in fields.items()}


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
    _, out_h, out_w, _ = graph.tensor(op.outputs[0]).shape
    return (
        Call(
            "tk_convolution_widened" if widened else "tk_convolution_packed",
            "tk_convolution_t",
            {**_fields(graph, op, where), **rows, "positions": out_h * out_w},
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            arrays,
            scratch_bytes=order.scratch_bytes,
        ),
    )


def _cost(graph: Graph, op: Op, *, widened: bool) -> Cost:
    _, out_h, out_w, out_c = graph.tensor(op.outputs[0]).shape
    order = _columns(graph, op)
    num_quads = order.depth // 4
    blocks = -(-out_c // BLOCK)
    per_pair = 150 + 7 * num_quads + blocks * (10 * num_quads + 25)
    constant_bytes = sum(
        array.nbytes for call in _calls(graph, op, "", widened=widened) for array in call.arrays.values()
    )
    return Cost(-(-out_h * out_w // 2) * per_pair, constant_bytes)


def _kernel(variant: str, *, widened: bool) -> Kernel:
    return Kernel(
        f"tk_convolution_{variant}",
        partial(_applies, widened=widened),
        partial(_calls, widened=widened),
        variant,
        partial(_cost, widened=widened),
    )


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType({"conv_2d": (_kernel("widened", widened=True),)})
