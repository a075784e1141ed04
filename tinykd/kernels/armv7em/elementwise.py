"""Elementwise ops and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, add_params
from tinykd.ir.fixedpoint import multiply_by_quantized_multiplier
from tinykd.ir.requant import ADD_LEFT_SHIFT, QMAX, QMIN, AddParams, MulParams, Requantization, mul_params
from tinykd.kernels import elementwise as portable
from tinykd.kernels.call import Call, Field, Kernel, always, arguments, int8
from tinykd.kernels.requantize import Rounding, rounding

AFFINE_SHIFT = 20
"""TK_AFFINE_SHIFT of `tk_armv7em_elementwise.h`."""

_X = np.arange(QMIN, QMAX + 1, dtype=np.int64)
_NEAR = 2.0**-7
"""Pairs nearer to a threshold than this share of an output step decide which factors are tried further."""
_STRETCHES = (0.0, *(2.0**-k for k in range(22, 13, -1)))
"""Halves are rounded away from zero: sums that are a little too large in magnitude do so by themselves."""
_JITTERS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
"""How far from the nearest integer factors are tried."""


@dataclass(frozen=True)
class AffineSum:
    """Constants of y = SSAT(8, ((a * a_factor >> 8) + (b * b_factor >> 8) + offset) >> AFFINE_SHIFT)."""

    a_factor: int
    b_factor: int
    offset: int

    def sums(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the number that is shifted and limited, int64."""
        return (a * self.a_factor >> 8) + (b * self.b_factor >> 8) + self.offset


@lru_cache(maxsize=64)
def affine_sum(constants: AddParams, sign: int) -> AffineSum | None:
    """Return an affine function that equals TFLite Micro's sum for all pairs of int8, before the activation's clamp.

    Args:
        constants: of the op.
        sign: of the second operand: -1 for a difference.
    """
    expected = _plain(constants, sign)
    first, second = _factor(constants, 0), sign * _factor(constants, 1)
    exact = np.add.outer(first * (_X - constants.zero_points[0]), second * (_X - constants.zero_points[1]) + 0.5)
    near = np.nonzero(np.abs(exact - np.round(exact)) < _NEAR)
    rng = np.random.default_rng(0)
    for stretch in _STRETCHES:
        for reach in _JITTERS:
            jitter = rng.integers(-reach, reach + 1, 2)
            scale = (1 + stretch) * 2 ** (AFFINE_SHIFT + 8)
            tried = AffineSum(round(first * scale) + int(jitter[0]), round(second * scale) + int(jitter[1]), 0)
            if max(abs(tried.a_factor), abs(tried.b_factor)) >= 1 << 31:
                return None
            if _offset(tried.sums(_X[near[0]], _X[near[1]]), expected[near]) is None:
                continue
            sums = tried.sums(_X[:, None], _X[None, :])
            offset = _offset(sums, expected)
            if offset is not None and _fits(tried, sums + offset):
                return AffineSum(tried.a_factor, tried.b_factor, offset)
    return None


def _plain(constants: AddParams, sign: int) -> np.ndarray:
    """Return TFLite Micro's outputs (256, 256) for all pairs of int8, limited to int8 only."""
    terms = [
        multiply_by_quantized_multiplier((_X - zero) << ADD_LEFT_SHIFT, multiplier, shift)
        for zero, multiplier, shift in zip(constants.zero_points, constants.multipliers, constants.shifts, strict=True)
    ]
    total = np.add.outer(terms[0], sign * terms[1])
    y = multiply_by_quantized_multiplier(total, constants.output_multiplier, constants.output_shift)
    return np.clip(y + constants.output_zero_point, -128, 127)


def _factor(constants: AddParams, index: int) -> float:
    """Return an operand's scale over the output's."""
    inner = constants.multipliers[index] * 2.0 ** (constants.shifts[index] - 31 + ADD_LEFT_SHIFT)
    return inner * constants.output_multiplier * 2.0 ** (constants.output_shift - 31)


def _offset(sums: np.ndarray, expected: np.ndarray) -> int | None:
    """Return the smallest offset with which the sums give the expected outputs, or None."""
    low, high = sums[expected > -128], sums[expected < 127]
    lowest = np.max((expected[expected > -128] << AFFINE_SHIFT) - low, initial=-(1 << 30))
    highest = np.min(((expected[expected < 127] + 1) << AFFINE_SHIFT) - high, initial=1 << 30)
    return int(lowest) if lowest < highest else None


def _fits(tried: AffineSum, sums: np.ndarray) -> bool:
    """Whether no step of the sum leaves int32, in whatever order."""
    ends = np.array([-128, 127])
    terms = tried.sums(ends[:, None], ends[None, :])
    return max(np.abs(terms).max(), np.abs(sums).max()) < 1 << 31


def _sign(op: Op) -> int:
    return -1 if op.kind == "sub" else 1


def is_affine(graph: Graph, op: Op) -> bool:
    """Neither operand repeats, and an affine function gives every output."""
    return portable.has_equal_shapes(graph, op) and affine_sum(add_params(graph, op), _sign(op)) is not None


def add(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a sum or a difference that is an affine function."""
    y = int8(graph.tensor(op.outputs[0]), where)
    for name in op.inputs:
        int8(graph.tensor(name), where)
    constants = add_params(graph, op)
    found = affine_sum(constants, _sign(op))
    assert found is not None, where
    fields: dict[str, Field] = {
        "count": y.num_elements,
        "a_factor": found.a_factor,
        "b_factor": found.b_factor,
        "offset": found.offset,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
    }
    return (Call("tk_add_affine", "tk_add_affine_t", fields, arguments(*op.inputs, y.name)),)


def multiplies_rows(graph: Graph, op: Op) -> bool:
    """Neither operand repeats along the last axis, and the requantisation is proven."""
    try:
        (call,) = portable.mul(graph, op, op.source)
    except UnsupportedModelError:
        return False
    size, *steps = (call.fields[f"shape.{name}"] for name in ("size", "a_step", "b_step"))
    assert isinstance(size, tuple)
    advances = size[-1] == 1 or all(isinstance(step, tuple) and step[-1] == 1 for step in steps)
    return advances and _mul_rounding(mul_params(graph, op)) is not None


def mul(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a product of rows."""
    (call,) = portable.mul(graph, op, where)
    factors = _mul_rounding(mul_params(graph, op))
    assert factors is not None, where
    kept = {name: field for name, field in call.fields.items() if name not in ("out_zero", "shift", "multiplier")}
    fields: dict[str, Field] = {
        **kept,
        "multiplier": int(factors.multiplier[0]),
        "addend": int(factors.addend[0]),
        "shift": int(factors.shift[0]),
    }
    return (Call("tk_mul_dsp", "tk_mul_dsp_t", fields, call.arguments),)


def _mul_rounding(constants: MulParams) -> Rounding | None:
    ends = [np.array([QMIN, QMAX]) - zero for zero in constants.zero_points]
    products = np.multiply.outer(*ends)
    one = Requantization(
        (constants.multiplier,),
        (constants.shift,),
        0,
        constants.output_zero_point,
        constants.out_min,
        constants.out_max,
    )
    return rounding(one, products.min(keepdims=True)[0], products.max(keepdims=True)[0])


def lookup(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call that looks every element up in a table."""
    (call,) = portable.lookup(graph, op, where)
    return (replace(call, function="tk_lookup_dsp"),)


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "add": (Kernel("tk_add_affine", is_affine, add),),
        "sub": (Kernel("tk_add_affine", is_affine, add),),
        "mul": (Kernel("tk_mul_dsp", multiplies_rows, mul),),
        **{
            kind: (Kernel("tk_lookup_dsp", always, lookup),)
            for kind in ("logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "quantize")
        },
    }
)
