"""Engines that take one kernel where there are several."""

from __future__ import annotations

from tinykd.ir import Graph
from tinykd.kernels import Engine, candidates, signature


def forced(graph: Graph, variant: str, *, everywhere: bool = True) -> Engine:
    """Return an engine that takes this variant wherever it applies: to each op, or at least to the first one."""
    engine = Engine("armv7em", choices={signature(graph, op): variant for op in graph.ops})
    ops = graph.ops if everywhere else graph.ops[:1]
    assert {candidates(graph, op, engine)[0].variant for op in ops} == {variant}
    return engine
