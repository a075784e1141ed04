"""What each goal of the engine (`--optimize-for`) would take on a board: the table that `tinykd build` prints."""

from __future__ import annotations

from typing import Any, get_args

from tinykd.board import Board
from tinykd.ir import Graph, MemoryPlan, Op, op_macs
from tinykd.kernels import ARMV7EM, Engine, Kernel, OptimizeFor, candidates, engine_for, planned_calls
from tinykd.plan import plan_graph
from tinykd.plan.footprint import predict

GOALS: tuple[OptimizeFor, ...] = get_args(OptimizeFor)


def compare_goals(graph: Graph, board: Board, plan: MemoryPlan, optimize_for: OptimizeFor) -> list[dict[str, Any]]:
    """Return one JSON object for each goal; nothing is built.

    Args:
        plan: of `optimize_for`; those of the other goals are made here.

    Returns:
        for each goal: optimize_for, chosen, estimated_instructions, what `predict` says of it (`sram_bytes` is arena,
        stack and all other variables; `model_bytes` weights and all other constants), and fits.

    Raises:
        UnsupportedModelError: an op has no kernel.
    """
    known: dict[tuple[Kernel | None, ...], dict[str, Any]] = {}
    rows = []
    for goal in GOALS:
        engine = engine_for(board.core, goal)
        kernels = tuple(next(iter(candidates(graph, op, engine)), None) for op in graph.ops)
        if kernels not in known:
            own = plan if goal == optimize_for else plan_graph(graph, engine=engine)
            known[kernels] = _row(graph, board, own, engine, kernels)
        rows.append({"optimize_for": goal, "chosen": goal == optimize_for, **known[kernels]})
    return rows


def _row(
    graph: Graph, board: Board, plan: MemoryPlan, engine: Engine, kernels: tuple[Kernel | None, ...]
) -> dict[str, Any]:
    calls = planned_calls(graph, plan, engine)
    sizes = predict(graph, board, plan, engine.optimize_for, calls)
    ran = ((op, kernel) for op, kernel, needed in zip(graph.ops, kernels, calls, strict=True) if needed and kernel)
    return {
        "estimated_instructions": round(sum(_instructions(graph, op, kernel) for op, kernel in ran)),
        **sizes,
        "fits": sizes["sram_bytes"] <= board.sram_budget_bytes and sizes["flash_bytes"] <= board.flash_budget_bytes,
    }


def _instructions(graph: Graph, op: Op, kernel: Kernel) -> float:
    """Return the estimate that kernels are chosen by; exact counts come from a bench."""
    if kernel.cost is not None:
        return kernel.cost(graph, op).instructions
    # Kernels that no other competes with have no estimate of their own; these factors were fitted to measurements.
    macs, x, y = op_macs(graph, op), graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
    is_depthwise = op.kind == "depthwise_conv_2d"
    if kernel not in ARMV7EM.get(op.kind, ()):
        return macs * (8 if is_depthwise else 4) + 20 * y.num_elements
    if is_depthwise:
        return 1.2 * macs + 2.5 * x.num_elements + 1.3 * y.num_elements + 170 * x.shape[-1]
    return 4 * macs + 1.2 * x.num_elements + 5 * y.num_elements
