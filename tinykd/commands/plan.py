"""`tinykd plan`: does the model fit the board, to the byte, and where is its peak."""

from __future__ import annotations

from typing import Any

import click

from tinykd.commands.output import board_option, goal_option, json_option, kilobytes, out_option, print_json


@click.command("plan")
@click.argument("target")
@board_option
@goal_option
@click.option("--chart/--no-chart", default=True, show_default=True, help="Show the live bytes during each op.")
@out_option
@json_option
def command(target: str, board: str, optimize_for: str | None, chart: bool, out: str | None, as_json: bool) -> None:
    """Plan the memory of TARGET (a run folder or MODEL.tflite) on a board and prove the plan.

    Exit code 3 when it does not fit; the message names the op at the peak and what to try.
    """
    from tinykd.board import load_board
    from tinykd.commands.pipeline import goal_of, make_plan, require_fit
    from tinykd.commands.target import resolve_target

    the_board = load_board(board)
    resolved = resolve_target(target, out)
    graph = resolved.graph()
    goal = goal_of(resolved, optimize_for)
    plan, result = make_plan(resolved, graph, the_board, goal)
    if as_json:
        print_json(result)
    else:
        from tinykd.kernels import engine_for
        from tinykd.plan.chart import rows

        _print(result, rows(resolved.engine_graph(), plan, engine_for(the_board.core, goal)) if chart else [])
    require_fit(result)


def _print(result: dict[str, Any], rows: list[tuple[str, str, str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if rows:
        table = Table("op", "kind", "live B", "arena while it runs", box=box.SIMPLE_HEAD, header_style="bold")
        table.columns[0].justify = table.columns[2].justify = "right"
        for row in rows:
            table.add_row(*row, style="bold" if "peak" in row[3] else "")
        console.print(table)
    optimal = "optimal" if result["gap_bytes"] == 0 else f"{result['gap_bytes']:,} B above the bound"
    console.print(
        f"[bold]{result['model']}[/] on [bold]{result['board']}[/]: "
        f"{result['num_ops']} ops, {result['macs'] / 1e6:.2f} M MACs"
    )
    console.print(
        f"  arena   {result['arena_bytes']:>9,} B   lower bound {result['lower_bound_bytes']:,} B ({optimal}); "
        f"peak at op {result['peak_op']} ({result['peak_kind']})"
    )
    for label, key in (("SRAM", "sram"), ("flash", "flash")):
        total, budget = result[f"{key}_total_bytes"], result[f"{key}_budget_bytes"]
        share = total / budget
        colour = "green" if total <= budget else "red"
        bar = "█" * min(30, max(1, round(share * 30)))
        console.print(f"  {label:<7} {total:>9,} B of {kilobytes(budget):>9} [{colour}]{bar:<30}[/] {share:6.1%}")
    if result["tflm_arena_bytes"] is not None:
        console.print(
            f"  TFLM    {result['tflm_arena_bytes']:>9,} B with this plan, "
            f"{result['tflm_arena_online_bytes']:,} B with its own (64-bit host, bookkeeping included)"
        )
    verdict = "[green]fits[/]" if result["fits"] else "[red]does not fit[/]"
    console.print(f"  {verdict}, kernels chosen for: {result['optimize_for']}")
