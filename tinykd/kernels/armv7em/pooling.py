"""Pooling and means, four channels at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.ir import Graph, Op, mean_params
from tinykd.ir.requant import QMAX, QMIN, Requantization
from tinykd.kernels.call import Call, Field, Kernel, arguments, edges
from tinykd.kernels.reduce import averages_rows
from tinykd.kernels.requantize import Rounding, rounding
from tinykd.kernels.windows import pool

MAX_AREA = 256
"""TK_POOL_MAX_AREA of `tk_armv7em_pooling.h`."""


def has_four_channels(graph: Graph, op: Op) -> bool:
    """A word is four channels of one position."""
    return graph.tensor(op.inputs[0]).shape[-1] >= 4


def sums_fit(graph: Graph, op: Op) -> bool:
    """At least four channels, and the sum over a window is an int16."""
    return has_four_channels(graph, op) and math.prod(op.attrs["kernel"]) <= MAX_AREA


def has_fast_mean(graph: Graph, op: Op) -> bool:
    """A mean over the rows of an (area, channels) matrix whose sums are int16, with a requantisation that is proven."""
    x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
    fits = y.num_elements >= 4 and x.num_elements // y.num_elements <= MAX_AREA
    return fits and averages_rows(graph, op) and _mean_rounding(graph, op) is not None


def mean(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a mean over rows of channels."""
    x, y = edges(graph, op, where)
    factors = _mean_rounding(graph, op)
    assert factors is not None, where
    fields: dict[str, Field] = {
        "area": x.num_elements // y.num_elements,
        "channels": y.num_elements,
        "zero_sum": mean_params(graph, op).zero_sum,
        "multiplier": int(factors.multiplier[0]),
        "addend": int(factors.addend[0]),
        "shift": int(factors.shift[0]),
    }
    return (Call("tk_mean_dsp", "tk_mean_dsp_t", fields, arguments(x.name, y.name)),)


def _mean_rounding(graph: Graph, op: Op) -> Rounding | None:
    constants = mean_params(graph, op)
    area = graph.tensor(op.inputs[0]).num_elements // graph.tensor(op.outputs[0]).num_elements
    one = Requantization((constants.multiplier,), (constants.shift,), 0, constants.output_zero_point, QMIN, QMAX)
    return rounding(one, np.array([area * QMIN - constants.zero_sum]), np.array([area * QMAX - constants.zero_sum]))


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "average_pool_2d": (Kernel("tk_average_pool_2d_dsp", sums_fit, pool("tk_average_pool_2d_dsp")),),
        "max_pool_2d": (Kernel("tk_max_pool_2d_dsp", has_four_channels, pool("tk_max_pool_2d_dsp")),),
        "mean": (Kernel("tk_mean_dsp", has_fast_mean, mean),),
    }
)
