"""What the commands share: options of the same name and meaning, and how results reach stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

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
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the pseudo-random inputs.")


def print_json(result: dict[str, Any]) -> None:
    """Print a result as one JSON object on one line."""
    click.echo(json.dumps(result, sort_keys=True))


def table_console(width: int = 140) -> Console:
    """Return a console for tables: as wide as the terminal, or `width` columns where a pipe or a file has no width."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(width, console.width))


def kilobytes(number: int) -> str:
    """Return a byte count for people: kB with one decimal (1 kB = 1024 B)."""
    return f"{number / 1024:.1f} kB"
