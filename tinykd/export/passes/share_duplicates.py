"""Keeps one of several equal constants, and one of several ops that compute the same from the same."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tinykd.export.passes.rewrite import renamed
from tinykd.ir import Graph, Op, Tensor


def share_duplicates(graph: Graph) -> Graph:
    """Return the graph in which equal values have one tensor."""
    first: dict[Hashable, str] = {}
    names = {}
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            original = first.setdefault((*_type(tensor), tensor.data.tobytes()), name)
            if original != name:
                names[name] = original
    graph = renamed(graph, names) if names else graph
    index = 0
    seen: dict[Hashable, Op] = {}
    while index < len(graph.ops):
        op = graph.ops[index]
        twin = seen.setdefault(_key(graph, op), op)
        changes_state = any(name and graph.tensor(name).variable for name in op.inputs)
        if twin is op or changes_state or set(op.outputs) & set(graph.outputs):
            index += 1
        else:
            graph = renamed(graph, dict(zip(op.outputs, twin.outputs, strict=True)), {index})
    return graph


def _key(graph: Graph, op: Op) -> Hashable:
    outputs = tuple(_type(graph.tensor(name)) for name in op.outputs)
    return op.kind, op.inputs, tuple(sorted((key, _hashable(value)) for key, value in op.attrs.items())), outputs


def _type(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.dtype, tensor.shape, tensor.quant


def _hashable(value: Any) -> str:
    # Attributes of one kind have one type each: their spelling tells them apart.
    return repr(value)
