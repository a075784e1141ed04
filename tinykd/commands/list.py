"""`tinykd list`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

Row = dict[str, Any]


def board_rows() -> list[Row]:
    """Return one row per board; sizes in bytes, frequency in Hz."""
    from tinykd.board import list_boards, load_board

    rows = []
    for name in list_boards():
        board = load_board(name)
        rows.append(
            {
                "name": name,
                "description": board.description,
                "mcu": board.mcu,
                "core": board.core,
                "clock_hz": board.clock_hz,
                "sram_bytes": board.memory.sram.size_bytes,
                "sram_budget_bytes": board.sram_budget_bytes,
                "flash_bytes": board.memory.flash.size_bytes,
                "flash_budget_bytes": board.flash_budget_bytes,
                "emulators": sorted(kind for kind, settings in board.emulator if settings is not None),
                "run_on_silicon": board.run_on_silicon,
            }
        )
    return rows


def model_rows() -> list[Row]:
    """Return one row per model or family of models."""
    from tinykd.models import MODELS

    return [
        {
            "name": entry.name,
            "role": entry.role,
            "summary": entry.summary,
            "source": entry.source,
            "args": dict(entry.args),
        }
        for entry in MODELS.values()
    ]


def method_rows() -> list[Row]:
    """Return one row per distillation method."""
    from tinykd.distill import METHODS

    return [
        {
            "name": method.key,
            "title": method.title,
            "axis": method.axis,
            "matches": method.matches,
            "stages": method.stages,
            "cost": method.cost,
            "usual_weight": method.weight,
            "needs_teacher": method.needs_teacher,
            "paper": method.paper,
            "args": dict(method.args),
        }
        for method in METHODS.values()
    ]


def dataset_rows() -> list[Row]:
    """Return one row per data set."""
    from tinykd.data import DATASETS

    return [{"name": entry.name, "summary": entry.summary, "source": entry.source} for entry in DATASETS.values()]


def recipe_rows() -> list[Row]:
    """Return one row per recipe of the package."""
    from tinykd.config import list_recipes, load_recipe

    rows = []
    for name in list_recipes():
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "data": recipe.data.name,
                "student": recipe.student.model,
                "teacher": recipe.teacher.model if recipe.teacher else None,
                "methods": [loss.method for loss in recipe.distill],
                "epochs": recipe.train.epochs,
                "description": recipe.description,
            }
        )
    return rows


# What is listed -> (its rows, the columns that people see, those of them that only a wide terminal has room for).
LISTS: dict[str, tuple[Callable[[], list[Row]], list[str], list[str]]] = {
    "boards": (
        board_rows,
        ["name", "mcu", "core", "clock_hz", "sram_bytes", "flash_bytes", "emulators", "description"],
        ["core", "description"],
    ),
    "models": (model_rows, ["name", "role", "summary", "source"], ["source"]),
    "methods": (method_rows, ["name", "axis", "matches", "stages", "cost", "paper"], ["axis", "paper"]),
    "datasets": (dataset_rows, ["name", "summary", "source"], ["source"]),
    "recipes": (
        recipe_rows,
        ["name", "data", "student", "teacher", "methods", "epochs", "description"],
        ["teacher", "methods", "epochs"],
    ),
}
_WIDE_COLUMNS = 110
_PROSE = ("summary", "description", "source", "matches", "cost", "paper")

_TITLES = {"clock_hz": "clock", "sram_bytes": "SRAM", "flash_bytes": "flash", "mcu": "MCU"}


def _for_people(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "clock_hz":
        return f"{value / 1e6:g} MHz"
    if column.endswith("_bytes"):
        return f"{value // 1024:,} kB"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


@click.command("list")
@click.argument("what", type=click.Choice(list(LISTS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
def command(what: str, as_json: bool) -> None:
    """Show all boards, models, methods, datasets or recipes."""
    make_rows, columns, wide_only = LISTS[what]
    rows = make_rows()
    if as_json:
        click.echo(json.dumps({what: rows}, sort_keys=True))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.width < _WIDE_COLUMNS:
        columns = [column for column in columns if column not in wide_only]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numeric = column.endswith(("_bytes", "_hz")) or column == "epochs"
        # A name is there to be copied, so it is never broken; the prose at the end takes the room that is left.
        table.add_column(
            _TITLES.get(column, column),
            no_wrap=column not in _PROSE,
            min_width=max(len(str(row["name"])) for row in rows) if column == "name" else None,
            style="cyan" if index == 0 else None,
            justify="right" if numeric else "left",
        )
    for row in rows:
        table.add_row(*(Text(_for_people(column, row[column])) for column in columns))
    console.print(table)
