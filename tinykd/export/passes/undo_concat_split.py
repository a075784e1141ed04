"""Removes a SPLIT that takes a CONCATENATION apart again, and a CONCATENATION that joins a SPLIT's parts again."""

from __future__ import annotations

from tinykd.export.passes.rewrite import renamed
from tinykd.ir import Graph, Op


def undo_concat_split(graph: Graph) -> Graph:
    """Return the graph in which readers read the original values; ops that nobody reads any more are left behind."""
    for index in reversed(range(len(graph.ops))):
        op = graph.ops[index]
        names = _same_values(graph, op)
        if names and not set(names) & set(graph.outputs):
            graph = renamed(graph, names, {index})
    return graph


def _same_values(graph: Graph, op: Op) -> dict[str, str]:
    """Map the outputs of an op that undoes another to the values that it restores; {} when it undoes nothing."""
    producers = graph.producers()
    if op.kind == "split" and op.inputs[0] in producers:
        other = graph.ops[producers[op.inputs[0]]]
        pairs = dict(zip(op.outputs, other.inputs, strict=False))
        fits = other.kind == "concatenation" and len(other.inputs) == len(op.outputs)
    elif op.kind == "concatenation" and op.inputs[0] in producers:
        other = graph.ops[producers[op.inputs[0]]]
        pairs = {op.outputs[0]: other.inputs[0]}
        fits = other.kind == "split" and other.outputs == op.inputs
    else:
        return {}
    if not fits or other.attrs["axis"] != op.attrs["axis"]:
        return {}
    for name, original in pairs.items():
        old, new = graph.tensor(name), graph.tensor(original)
        if old.shape != new.shape or old.quant != new.quant or new.is_constant:
            return {}
    return pairs
