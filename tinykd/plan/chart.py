"""The arena over time as text: one row per op, a bar for the live bytes, the peak marked."""

from __future__ import annotations

from tinykd.ir import Graph, MemoryPlan
from tinykd.kernels import PORTABLE, Engine, planned_calls
from tinykd.plan.liveness import align

_WIDTH = 40


def rows(graph: Graph, plan: MemoryPlan, engine: Engine = PORTABLE) -> list[tuple[str, str, str, str]]:
    """Return (op, kind, live bytes, bar) for each op that does something in our engine; '<' marks the peak."""
    owners = [item for item in plan.placements if item.alias_of is None]
    scratch = {item.op: item.num_bytes for item in plan.scratch}
    scale = max(plan.arena_bytes, 1)
    result = []
    for index, (op, calls) in enumerate(zip(graph.ops, planned_calls(graph, plan, engine), strict=True)):
        if not calls:
            continue
        live = [item.num_bytes for item in owners if item.first_op <= index <= item.last_op]
        live.append(scratch.get(index, 0))
        total = sum(align(size, plan.alignment_bytes) for size in live)
        bar = "█" * max(1, round(total / scale * _WIDTH))
        mark = " ◀ peak" if index == plan.peak_op else ""
        result.append((str(index), op.kind, f"{total:,}", bar + mark))
    return result
