"""The answer of `tinykd plan`: arena, whole SRAM and flash against the board, and what to do when it does not fit."""

from __future__ import annotations

from typing import Any

from tinykd.board import Board
from tinykd.errors import DoesNotFitError
from tinykd.ir import Graph, MemoryPlan, graph_macs
from tinykd.kernels import OptimizeFor
from tinykd.plan.goals import compare_goals


def summarize(graph: Graph, plan: MemoryPlan, board: Board, optimize_for: OptimizeFor = "balanced") -> dict[str, Any]:
    """Return the board's side of the `plan` JSON object: totals, budgets, `fits`, where the peak is, and what the
    engine's goals would take instead.

    Every `*_bytes` is what the firmware with engine `tinykd` will need, predicted before it is built.

    Args:
        plan: made for the board's core and `optimize_for`.
    """
    goals = compare_goals(graph, board, plan, optimize_for)
    (chosen,) = (row for row in goals if row["chosen"])
    peak = graph.ops[plan.peak_op]
    return {
        "board": board.name,
        "arena_bytes": plan.arena_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "gap_bytes": plan.gap_bytes,
        "peak_op": plan.peak_op,
        "peak_source": peak.source,
        "peak_kind": peak.kind,
        "sram_total_bytes": chosen["sram_bytes"],
        "sram_budget_bytes": board.sram_budget_bytes,
        "stack_bytes": chosen["stack_bytes"],
        "flash_total_bytes": chosen["flash_bytes"],
        "flash_budget_bytes": board.flash_budget_bytes,
        "model_bytes": chosen["model_bytes"],
        "fits": chosen["fits"],
        "optimize_for": optimize_for,
        "goals": goals,
        "macs": graph_macs(graph),
        "num_ops": len(graph.ops),
    }


def refusal(summary: dict[str, Any]) -> DoesNotFitError:
    """Return the error that says what does not fit, by how much, where the peak is and what to try."""
    problems = []
    if summary["sram_total_bytes"] > summary["sram_budget_bytes"]:
        problems.append(
            f"SRAM needs {_bytes(summary['sram_total_bytes'])} (arena {_bytes(summary['arena_bytes'])}, stack "
            f"{_bytes(summary['stack_bytes'])}, the rest static data) but {summary['board']} leaves "
            f"{_bytes(summary['sram_budget_bytes'])}; the peak is at op {summary['peak_op']} "
            f"({summary['peak_kind']}, {summary['peak_source']})"
        )
    if summary["flash_total_bytes"] > summary["flash_budget_bytes"]:
        problems.append(
            f"flash needs {_bytes(summary['flash_total_bytes'])} (weights {_bytes(summary['model_bytes'])}) but "
            f"{summary['board']} leaves {_bytes(summary['flash_budget_bytes'])}"
        )
    return DoesNotFitError("; ".join(problems) + ".", _way_out(summary))


def _way_out(summary: dict[str, Any]) -> str:
    """Return what to try; another goal of the engine only when the model was found to fit with it."""
    for row in summary["goals"]:
        if row["fits"]:
            return (
                f"It fits with --optimize-for {row['optimize_for']}: {_bytes(row['flash_bytes'])} of flash, "
                f"{_bytes(row['sram_bytes'])} of SRAM."
            )
    return "Try a smaller width or input resolution, fewer classes, or a board with more memory (tinykd list boards)."


def _bytes(number: int) -> str:
    return f"{number:,} B".replace(",", " ")
