"""The pass that needs nothing but the graph: removes ops whose outputs nobody reads. Readers use it, too."""

from __future__ import annotations

from tinykd.ir.graph import Graph, Op


def remove_dead_ops(graph: Graph) -> Graph:
    """Return the graph without ops that no output depends on.

    An op with a state (SVDF) goes with its state, unless another op reads that state.
    """
    kept: list[Op] = []
    read = set(graph.outputs)
    for op in reversed(graph.ops):
        states = {name for name in op.inputs if name and graph.tensor(name).variable}
        if read.isdisjoint(op.outputs) and read.isdisjoint(states):
            continue
        kept.insert(0, op)
        read.update(op.inputs)
    return graph if len(kept) == len(graph.ops) else graph.with_ops(kept)
