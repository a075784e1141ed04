"""The suites of trainings fit the recipes: every row is a recipe that passes all checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tinykd.config import load_recipe
from tinykd.train.stages import list_stages

SUITES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "suites").glob("*.yaml"))


def rows() -> list[tuple[str, str, dict[str, Any], Any]]:
    """Return (suite, row's name, suite, row) of all suites."""
    suites = [(path.stem, yaml.safe_load(path.read_text())) for path in SUITES]
    return [(name, row, suite, suite["rows"][row]) for name, suite in suites for row in suite["rows"]]


def test_there_are_suites() -> None:
    """The walk below is not empty."""
    assert len(SUITES) >= 3
    assert len(rows()) >= 20


@pytest.mark.parametrize(
    ("name", "row", "suite", "own"), rows(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_row_is_a_sound_recipe(name: str, row: str, suite: dict[str, Any], own: Any) -> None:
    """Recipe, overrides of the suite and of the row load together; a row named after a method uses it."""
    own = own if isinstance(own, dict) else {"set": own}
    recipe = load_recipe(own.get("recipe", suite["recipe"]), [*suite.get("set", []), *own.get("set", [])])
    methods = {loss.method for stage in list_stages(recipe) for loss in stage.losses}
    from tinykd.distill import METHODS

    if row in METHODS:
        assert methods == {row}
    assert recipe.train.label_weight > 0 or methods


def test_published_figures_belong_to_rows() -> None:
    """A published figure is compared with a row that exists."""
    for path in SUITES:
        suite = yaml.safe_load(path.read_text())
        assert set(suite.get("published", {})) <= set(suite["rows"])
