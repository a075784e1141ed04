"""Removes ops that give back their input: reshapes to the same shape, pads by nothing, concatenations of one..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.export.passes.rewrite import bypass
from tinykd.export.passes.value_ranges import Bounds, value_ranges
from tinykd.ir import Graph, Op, activation_range, tensor_quant
from tinykd.ir.lookup import has_table, table


def remove_identities(graph: Graph) -> Graph:
    """Return the graph without ops whose output equals their input for every value that the input can take."""
    kept = -1
    while True:
        index = next((i for i in range(kept + 1, len(graph.ops)) if _is_identity(graph, graph.ops[i])), None)
        if index is None:
            return graph
        without = bypass(graph, index)
        kept = index if without is None else index - 1
        graph = graph if without is None else without


def _is_identity(graph: Graph, op: Op) -> bool:
    rule = _RULES.get(op.kind)
    if rule is None or len(op.inputs) != 1 or len(op.outputs) != 1:
        return False
    x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
    return x.shape == y.shape and x.dtype == y.dtype and x.quant == y.quant and rule(graph, op)


def _always(graph: Graph, op: Op) -> bool:
    """Ops that only move or requantise elements: equal shapes and parameters leave them nothing to do."""
    return True


def _keeps_order(graph: Graph, op: Op) -> bool:
    shape = graph.tensor(op.inputs[0]).shape
    return [axis for axis in op.attrs["perm"] if shape[axis] > 1] == [i for i, dim in enumerate(shape) if dim > 1]


def _takes_all(graph: Graph, op: Op) -> bool:
    shape = graph.tensor(op.inputs[0]).shape
    return all(step == 1 or dim == 1 for step, dim in zip(op.attrs["strides"], shape, strict=True))


def _pools_nothing(graph: Graph, op: Op) -> bool:
    if op.attrs["kernel"] != (1, 1) or op.attrs["stride"] != (1, 1) or any(op.attrs["padding"]):
        return False
    low, high = activation_range(tensor_quant(graph.tensor(op.outputs[0])), op.attrs["activation"])
    reached = _reached(graph, op)
    return bool(low <= reached.low.min() and reached.high.max() <= high)


def _maps_to_itself(graph: Graph, op: Op) -> bool:
    if not has_table(graph, op):
        return False
    reached = _reached(graph, op)
    values = np.arange(int(reached.low.min()), int(reached.high.max()) + 1)
    return bool((table(graph, op)[values + 128] == values).all())


def _reached(graph: Graph, op: Op) -> Bounds:
    return value_ranges(graph)[op.inputs[0]]


_RULES: Mapping[str, Callable[[Graph, Op], bool]] = MappingProxyType(
    {
        "reshape": _always,
        "pad": _always,
        "quantize": _always,
        "concatenation": _always,
        "split": _always,
        "resize_nearest_neighbor": _always,
        "transpose": _keeps_order,
        "strided_slice": _takes_all,
        "average_pool_2d": _pools_nothing,
        "max_pool_2d": _pools_nothing,
        "relu": _maps_to_itself,
        "relu6": _maps_to_itself,
        "leaky_relu": _maps_to_itself,
    }
)
