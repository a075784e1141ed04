"""`tinykd build`: the firmware of a model for a board, as C, as a PlatformIO project and as an ELF file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import (
    board_option,
    goal_option,
    goals_table,
    json_option,
    kilobytes,
    out_option,
    print_json,
    table_console,
)

if TYPE_CHECKING:
    from tinykd.build import BuildResult


@click.command("build")
@click.argument("target")
@board_option
@goal_option
@click.option(
    "--engine",
    type=click.Choice(["tinykd", "tflm"]),
    default="tinykd",
    show_default=True,
    help="tinykd: C generated ahead of time; tflm: the TFLite Micro interpreter (not available yet).",
)
@click.option(
    "--builder",
    type=click.Choice(["auto", "pio", "gcc"]),
    default="auto",
    show_default=True,
    help="pio: through PlatformIO; gcc: directly, with the same flags; auto: PlatformIO where it is installed.",
)
@out_option
@json_option
def command(
    target: str, board: str, optimize_for: str | None, engine: str, builder: str, out: str | None, as_json: bool
) -> None:
    """Build the firmware of TARGET (a run folder or MODEL.tflite) for a board.

    The folder RUN/boards/<board>/build/ then holds firmware.elf, firmware.map, build.json and project/, a complete
    PlatformIO project. An unchanged model is not built again. The table compares what every goal would take, as
    predicted. Exit code 3 when it does not fit, 5 when the compiler is missing or fails.
    """
    from tinykd.board import load_board
    from tinykd.commands.pipeline import ensure_build, ensure_plan, goal_of
    from tinykd.commands.target import resolve_target

    resolved, the_board = resolve_target(target, out), load_board(board)
    goal = goal_of(resolved, optimize_for)
    result = ensure_build(resolved, the_board, engine, builder, goal)
    goals = ensure_plan(resolved, the_board, goal)[1]["goals"]
    if as_json:
        print_json({**result.to_dict(), "goals": goals})
    else:
        _print(result, goals)


def _print(result: BuildResult, goals: list[dict[str, Any]]) -> None:
    console = table_console()
    state = "unchanged" if result.reused else f"built with {result.builder}"
    console.print(f"[bold]{result.elf}[/] ({state}, {len(result.ops)} ops)", soft_wrap=True)
    console.print(
        f"  flash {result.flash_bytes:>9,} B of {kilobytes(result.flash_budget_bytes):>9}   "
        f"code {result.code_bytes:,} B, model {result.model_bytes:,} B"
    )
    console.print(
        f"  SRAM  {result.sram_total_bytes:>9,} B of {kilobytes(result.sram_budget_bytes):>9}   "
        f"arena {result.arena_bytes:,} B, stack at most {result.stack_bytes_max:,} B"
    )
    deepest = " > ".join(f"{name} {size}" for name, size in result.stack_path)
    console.print(f"  deepest stack: {deepest}", soft_wrap=True, style="dim")
    console.print(goals_table(goals))
