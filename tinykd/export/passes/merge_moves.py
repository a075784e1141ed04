"""Merges ops that only move elements: reshapes and transposes in a row, pads in a row, transposes that are reshapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import Graph, Op


def merge_moves(graph: Graph) -> Graph:
    """Return the graph with each chain of moves as one op.

    A transpose that moves only axes of length 1 keeps the order of the elements: it becomes a reshape, and so does a
    mean over such axes that keeps scale and zero point, since its factor is exactly 1.
    """
    ops = tuple(_as_reshape(op) if _keeps_elements(graph, op) else op for op in graph.ops)
    if any(new is not old for new, old in zip(ops, graph.ops, strict=True)):
        graph = graph.with_ops(ops)
    index = 0
    while index < len(graph.ops):
        op = graph.ops[index]
        producer = sole_producer(graph, op, (op.kind,)) if op.kind in ("reshape", "transpose", "pad") else None
        attrs = None if producer is None else _merged(graph, graph.ops[producer], op)
        if producer is None or attrs is None:
            index += 1
            continue
        # The merged op stands where the second one stood, which is one place earlier now.
        graph = graph.with_ops(absorb(graph, producer, index, attrs))
    return graph


def _merged(graph: Graph, first: Op, second: Op) -> dict[str, Any] | None:
    """Return the attributes of the one op that does both, or None where there is none."""
    names = (first.inputs[0], second.inputs[0], second.outputs[0])
    if len({graph.tensor(name).quant for name in names}) != 1:
        return None
    if first.kind == "reshape":
        return {}
    if first.kind == "transpose":
        return {"perm": tuple(first.attrs["perm"][axis] for axis in second.attrs["perm"])}
    if first.attrs["value"] != second.attrs["value"]:
        return None
    pairs = zip(first.attrs["paddings"], second.attrs["paddings"], strict=True)
    return {"paddings": tuple((a[0] + b[0], a[1] + b[1]) for a, b in pairs)}


def _keeps_elements(graph: Graph, op: Op) -> bool:
    x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
    if x.quant != y.quant:
        return False
    if op.kind == "transpose":
        moved = [axis for axis in op.attrs["perm"] if x.shape[axis] > 1]
        return moved == sorted(moved)
    return op.kind == "mean" and all(x.shape[axis] == 1 for axis in op.attrs["axes"])


def _as_reshape(op: Op) -> Op:
    return replace(op, kind="reshape", attrs={})
