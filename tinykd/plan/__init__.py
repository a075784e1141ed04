"""Planning: where every activation lives, what the peak is, and whether model and board suit each other."""

from __future__ import annotations

from tinykd.ir import Graph, MemoryPlan, Placement, Scratch
from tinykd.kernels import PORTABLE, Engine, scratch_bytes
from tinykd.plan.allocate import allocate
from tinykd.plan.check import check
from tinykd.plan.liveness import align, find_buffers, live_bytes

ENGINE_ALIGNMENT_BYTES = 4
TFLM_ALIGNMENT_BYTES = 16


def plan_graph(
    graph: Graph,
    alignment_bytes: int = ENGINE_ALIGNMENT_BYTES,
    *,
    alias: bool = True,
    engine: Engine = PORTABLE,
) -> MemoryPlan:
    """Plan the arena of a graph and prove the plan with the independent checker.

    Args:
        graph: a verified graph.
        alignment_bytes: alignment of every offset; `ENGINE_ALIGNMENT_BYTES` or `TFLM_ALIGNMENT_BYTES`.
        alias: whether activations share bytes where an op only moves them (our engine; see `find_buffers`). TFLite
            Micro copies, and finds a place for variables by itself: then the plan has none for them.
        engine: whose kernels' scratch memory is planned, too.

    Raises:
        InternalError: the checker found a fault in the plan: a bug of ours.
    """
    buffers = find_buffers(graph, alignment_bytes, alias=alias, scratch=scratch_bytes(graph, engine))
    totals = live_bytes(buffers, len(graph.ops), alignment_bytes)
    lower_bound = max(totals)
    offsets = allocate(buffers, alignment_bytes, lower_bound)
    arena = max(
        offset + align(buffer.num_bytes, alignment_bytes) for offset, buffer in zip(offsets, buffers, strict=True)
    )
    by_name = {
        name: Placement(
            tensor=name,
            offset=offset + inside,
            num_bytes=graph.tensor(name).num_bytes,
            first_op=buffer.first_op,
            last_op=buffer.last_op,
            alias_of=buffer.tensors[0] if name != buffer.tensors[0] else None,
        )
        for offset, buffer in zip(offsets, buffers, strict=True)
        for name, inside in zip(buffer.tensors, buffer.offsets, strict=True)
    }
    placements = tuple(by_name[name] for name in graph.tensors if name in by_name)
    scratch = tuple(
        Scratch(buffer.first_op, offset, buffer.num_bytes)
        for offset, buffer in zip(offsets, buffers, strict=True)
        if not buffer.tensors
    )
    plan = MemoryPlan(placements, arena, lower_bound, alignment_bytes, totals.index(lower_bound), scratch)
    check(graph, plan, variables=alias)
    return plan


def plan_for_tflm(graph: Graph) -> MemoryPlan:
    """Plan the arena as unmodified TFLite Micro can follow it (alignment 16, no aliasing)."""
    return plan_graph(graph, TFLM_ALIGNMENT_BYTES, alias=False)


def tflm_offsets(plan: MemoryPlan) -> dict[str, int]:
    """Return the offsets by activation name, as the `.tflite` writer stores them; variables have none."""
    return {item.tensor: item.offset for item in plan.placements}
