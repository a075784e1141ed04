"""What the commands share: options of the same name and meaning, and how results reach stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False),
    default=None,
    help="Run folder for a model that tinykd did not train [default: runs/<name>].",
)
board_option = click.option(
    "--board", required=True, metavar="B", help="Board name (tinykd list boards) or a .toml file."
)
# As tinykd.kernels.OptimizeFor, which needs NumPy; a test holds them together.
GOALS = ("speed", "balanced", "size")
goal_option = click.option(
    "--optimize-for",
    type=click.Choice(GOALS),
    default=None,
    help="What the choice of kernels goes by: fewest cycles, least flash, or both [default: the recipe's, "
    "else balanced].",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the pseudo-random inputs.")


def print_json(result: dict[str, Any]) -> None:
    """Print a result as one JSON object on one line."""
    click.echo(json.dumps(result, sort_keys=True))


def table_console(width: int = 140) -> Console:
    """Return a console for tables: as wide as the terminal, or `width` columns where a pipe or a file has no width."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(width, console.width))


def goals_table(goals: list[dict[str, Any]]) -> Table:
    """Return the `goals` of a plan as a table, the chosen one marked."""
    from rich import box
    from rich.table import Table

    columns = ("optimize for", "instructions, about", "code B", "constants B", "flash B", "SRAM B", "")
    table = Table(*columns, box=box.SIMPLE_HEAD, header_style="bold")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in goals:
        sizes = (row[key] for key in ("code_bytes", "model_bytes", "flash_bytes", "sram_bytes"))
        notes = [*(["chosen"] if row["chosen"] else []), *([] if row["fits"] else ["does not fit"])]
        table.add_row(
            row["optimize_for"],
            f"{row['estimated_instructions'] / 1e6:,.2f} M",
            *(f"{size:,}" for size in sizes),
            ", ".join(notes),
            style="bold" if row["chosen"] else "",
        )
    return table


def kilobytes(number: int) -> str:
    """Return a byte count for people: kB with one decimal (1 kB = 1024 B)."""
    return f"{number / 1024:.1f} kB"
