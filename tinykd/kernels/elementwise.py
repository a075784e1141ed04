"""Kernels that work element by element: two operands that broadcast, or a table for one."""

from __future__ import annotations

from collections.abc import Callable

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, add_params, tensor_quant
from tinykd.ir.lookup import table
from tinykd.ir.requant import mul_params, prelu_params
from tinykd.kernels.call import Call, Field, arguments, edges, int8
from tinykd.kernels.layout import columns, merged, strides

BROADCAST_RANK = 4

Calls = Callable[[Graph, Op, str], tuple[Call, ...]]


def has_equal_shapes(graph: Graph, op: Op) -> bool:
    """Neither operand repeats."""
    first, second, y = (graph.tensor(name) for name in (*op.inputs, op.outputs[0]))
    return first.num_elements == second.num_elements == y.num_elements


def add(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of the sum of equal shapes."""
    fields = _add_fields(graph, op, where)
    return (Call("tk_add", "tk_add_t", fields, arguments(*op.inputs, op.outputs[0])),)


def add_or_sub(function: str) -> Calls:
    """Return what derives the call of a sum or a difference of operands that broadcast."""

    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        core = {f"core.{name}": field for name, field in _add_fields(graph, op, where).items()}
        fields = {**core, **_shape(graph, op, where, "shape.")}
        return (Call(function, "tk_add_broadcast_t", fields, arguments(*op.inputs, op.outputs[0])),)

    return calls


def mul(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a product."""
    constants = mul_params(graph, op)
    fields: dict[str, Field] = {
        **_shape(graph, op, where, "shape."),
        "a_zero": constants.zero_points[0],
        "b_zero": constants.zero_points[1],
        "out_zero": constants.output_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        "shift": constants.shift,
        "multiplier": constants.multiplier,
    }
    return (Call("tk_mul", "tk_mul_t", fields, arguments(*op.inputs, op.outputs[0])),)


def extreme(function: str) -> Calls:
    """Return what derives the call of a maximum or minimum."""

    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        quants = {tensor_quant(graph.tensor(name)) for name in (*op.inputs, op.outputs[0])}
        if len(quants) > 1:
            raise UnsupportedModelError(f"{where}: its operands have different scales or zero points")
        return (Call(function, "tk_broadcast_t", _shape(graph, op, where), arguments(*op.inputs, op.outputs[0])),)

    return calls


def prelu(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a PRELU."""
    constants = prelu_params(graph, op)
    fields: dict[str, Field] = {
        **_shape(graph, op, where, "shape."),
        "a_zero": constants.input_zero_point,
        "b_zero": constants.slope_zero_point,
        "out_zero": constants.output_zero_point,
        "positive_shift": constants.positive_shift,
        "negative_shift": constants.negative_shift,
        "positive_multiplier": constants.positive_multiplier,
        "negative_multiplier": constants.negative_multiplier,
    }
    return (Call("tk_prelu", "tk_prelu_t", fields, arguments(*op.inputs, op.outputs[0])),)


def lookup(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call that looks every element up in a table."""
    x, y = edges(graph, op, where)
    fields: dict[str, Field] = {"count": x.num_elements, "table": "table"}
    return (Call("tk_lookup", "tk_lookup_t", fields, arguments(x.name, y.name), {"table": table(graph, op)}),)


def _shape(graph: Graph, op: Op, where: str, prefix: str = "") -> dict[str, Field]:
    """Return the fields of `tk_broadcast_t`, after checking that all operands are int8."""
    y = int8(graph.tensor(op.outputs[0]), where)
    steps = []
    for name in op.inputs:
        shape = int8(graph.tensor(name), where).shape
        full = (1,) * (len(y.shape) - len(shape)) + shape
        repeated = [0 if size == 1 else step for size, step in zip(full, strides(full), strict=True)]
        steps.append(repeated)
    loops = merged(list(zip(y.shape, *steps, strict=True)))
    names = (f"{prefix}size", f"{prefix}a_step", f"{prefix}b_step")
    return dict(zip(names, columns(loops, BROADCAST_RANK, 2, where), strict=True))


def _add_fields(graph: Graph, op: Op, where: str) -> dict[str, Field]:
    tensors = [int8(graph.tensor(name), where) for name in (*op.inputs, op.outputs[0])]
    constants = add_params(graph, op)
    return {
        "count": tensors[2].num_elements,
        "a_zero": constants.zero_points[0],
        "b_zero": constants.zero_points[1],
        "out_zero": constants.output_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        "a_shift": constants.shifts[0],
        "b_shift": constants.shifts[1],
        "out_shift": constants.output_shift,
        "a_multiplier": constants.multipliers[0],
        "b_multiplier": constants.multipliers[1],
        "out_multiplier": constants.output_multiplier,
    }
