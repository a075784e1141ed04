"""What each goal of the engine (`--optimize-for`) would take on a board: the table that `tinykd build` prints."""

from __future__ import annotations

from typing import Any, get_args

from tinykd.board import Board
from tinykd.ir import Graph, MemoryPlan, Op, op_macs
from tinykd.kernels import Engine, Kernel, OptimizeFor, candidates, engine_for, planned_calls
from tinykd.plan import plan_graph
from tinykd.plan.footprint import predict

GOALS: tuple[OptimizeFor, ...] = get_args(OptimizeFor)
# What kernels without an estimate of their own take, roughly: the portable ones, and those that no other competes with.
_PER_MAC, _PER_DEPTHWISE_MAC, _PER_ELEMENT = 4.0, 8.0, 20.0


def compare_goals(graph: Graph, board: Board, plan: MemoryPlan, optimize_for: OptimizeFor) -> list[dict[str, Any]]:
    """Return one JSON object for each goal; nothing is built.

    Args:
        plan: of `optimize_for`; those of the other goals are made here.

    Returns:
        for each goal: optimize_for, chosen, estimated_instructions, code_bytes, model_bytes (weights and all other
        constants), flash_bytes, sram_bytes (arena, stack and all other variables) and fits.

    Raises:
        UnsupportedModelError: an op has no kernel.
    """
    known: dict[tuple[Kernel, ...], dict[str, Any]] = {}
    rows = []
    for goal in GOALS:
        kernels = _kernels(graph, engine_for(board.core, goal))
        if kernels not in known:
            known[kernels] = _row(graph, board, goal, kernels, plan if goal == optimize_for else None)
        rows.append({"optimize_for": goal, "chosen": goal == optimize_for, **known[kernels]})
    return rows


def estimate_instructions(graph: Graph, plan: MemoryPlan, engine: Engine) -> int:
    """Return what an inference takes by the estimates that kernels are chosen by; exact counts come from a bench."""
    return round(
        sum(
            _instructions(graph, op, kernel)
            for op, kernel, calls in zip(
                graph.ops, _kernels(graph, engine), planned_calls(graph, plan, engine), strict=True
            )
            if calls
        )
    )


def _kernels(graph: Graph, engine: Engine) -> tuple[Kernel, ...]:
    """Return the kernel of each op; `planned_calls` says better than this why one has none."""
    return tuple(found[0] for found in (candidates(graph, op, engine) for op in graph.ops) if found)


def _row(
    graph: Graph, board: Board, goal: OptimizeFor, kernels: tuple[Kernel, ...], plan: MemoryPlan | None
) -> dict[str, Any]:
    engine = engine_for(board.core, goal)
    plan = plan or plan_graph(graph, engine=engine)
    sizes = predict(graph, board, plan, goal)
    return {
        "estimated_instructions": estimate_instructions(graph, plan, engine),
        **{key: sizes[key] for key in ("code_bytes", "model_bytes", "flash_bytes", "sram_bytes")},
        "fits": sizes["sram_bytes"] <= board.sram_budget_bytes and sizes["flash_bytes"] <= board.flash_budget_bytes,
    }


def _instructions(graph: Graph, op: Op, kernel: Kernel) -> float:
    if kernel.cost is not None:
        return kernel.cost(graph, op).instructions
    elements = sum(graph.tensor(name).num_elements for name in op.outputs)
    each = _PER_DEPTHWISE_MAC if op.kind == "depthwise_conv_2d" else _PER_MAC
    return op_macs(graph, op) * each + elements * _PER_ELEMENT
