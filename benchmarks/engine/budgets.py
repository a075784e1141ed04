"""What each model may take on each core for each goal: `budgets.json`, committed; beyond it the check fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGETS = Path(__file__).with_name("budgets.json")
KEYS = ("instructions", "code_bytes", "stack_bytes", "arena_bytes")
TOLERANCE = 0.01

Budgets = dict[str, dict[str, dict[str, dict[str, int]]]]
"""model -> core -> goal -> what it may take, one number for each of `KEYS`."""


@dataclass(frozen=True)
class Change:
    """A figure that is off its budget by more than the tolerance; `budget` is None where there is none."""

    row: str
    key: str
    value: int
    budget: int | None

    @property
    def is_worse(self) -> bool:
        """Whether it is a reason to fail."""
        return self.budget is None or self.value > self.budget

    def __str__(self) -> str:
        if self.budget is None:
            return f"{self.row}: no budget for {self.key} ({self.value:,}); --save keeps one"
        change = f"{self.value / self.budget - 1:+.1%}" if self.budget else "from nothing"
        return f"{self.row}: {self.key} {self.value:,}, budget {self.budget:,} ({change})"


def read_budgets(path: Path = BUDGETS) -> Budgets:
    """Return the committed budgets; none where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8"))["budgets"] if path.is_file() else {}


def budgets_compiler(path: Path = BUDGETS) -> str:
    """Return the version of the compiler whose code the budgets are of; empty where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8"))["provenance"]["compiler"] if path.is_file() else ""


def compare(rows: Iterable[dict[str, Any]], budgets: Budgets) -> list[Change]:
    """Return what is off by more than the tolerance, worse or better, row by row."""
    changes = []
    for row in rows:
        known = budgets.get(row["model"], {}).get(row["core"], {}).get(row["goal"], {})
        for key in KEYS:
            budget = known.get(key)
            if budget is None or abs(row[key] - budget) > TOLERANCE * budget:
                changes.append(Change(f"{row['model']} {row['core']} {row['goal']}", key, row[key], budget))
    return changes


def save_budgets(rows: Iterable[dict[str, Any]], provenance: dict[str, str], path: Path = BUDGETS) -> None:
    """Let the measured rows be the budgets; those of other rows stay."""
    budgets = read_budgets(path)
    for row in rows:
        budgets.setdefault(row["model"], {}).setdefault(row["core"], {})[row["goal"]] = {key: row[key] for key in KEYS}
    text = json.dumps({"provenance": provenance, "budgets": budgets}, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
