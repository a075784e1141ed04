"""The arena over time as text: one row per op, a bar for the live bytes, the peak marked."""

from __future__ import annotations

from tinykd.ir import Graph, MemoryPlan
from tinykd.plan.liveness import find_buffers, live_bytes

_WIDTH = 40


def rows(graph: Graph, plan: MemoryPlan, *, alias: bool = True) -> list[tuple[str, str, str, str]]:
    """Return (op, kind, live bytes, bar) for each op that computes something; '<' marks the peak."""
    totals = live_bytes(find_buffers(graph, alias=alias), len(graph.ops), plan.alignment_bytes)
    scale = max(plan.arena_bytes, 1)
    result = []
    for index, (op, total) in enumerate(zip(graph.ops, totals, strict=True)):
        if alias and op.kind == "reshape":
            continue
        bar = "█" * max(1, round(total / scale * _WIDTH))
        mark = " ◀ peak" if index == plan.peak_op else ""
        result.append((str(index), op.kind, f"{total:,}", bar + mark))
    return result
