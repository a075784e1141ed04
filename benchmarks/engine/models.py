"""The models of the benchmark: `targets.toml`, the files that stand for its names, stand-ins made when needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinykd.toml import tomllib

TARGETS = Path(__file__).with_name("targets.toml")
SLACK = {"cortex-m7": 1.0, "cortex-m4": 1.15}


@dataclass(frozen=True)
class Model:
    """One row of `targets.toml`.

    Attributes:
        name: for the command line and the budgets.
        facts: everything else that the row says.
    """

    name: str
    facts: Mapping[str, Any]

    @property
    def optimized(self) -> bool:
        """Whether the model is measured as `tinykd optimize` writes it."""
        return bool(self.facts.get("optimize", False))

    @property
    def is_standin(self) -> bool:
        """Whether the model has random weights instead of a public file."""
        return "architecture" in self.facts

    def limit(self, goal: str, core: str, macs: int) -> float | None:
        """Return the instructions that the model may take at most, None where nothing is said."""
        slack = SLACK.get(core)
        key = "to_reach_speed" if goal == "speed" and "to_reach_speed" in self.facts else "to_reach"
        wanted = self.figure(key, macs)
        return None if slack is None or goal == "size" or wanted is None else slack * wanted

    def figure(self, key: str, macs: int) -> float | None:
        """Return a figure ("stretch", "cmsis_nn", ..), None where there is none.

        Args:
            key: of the row.
            macs: what the measured model has; a stand-in's figures, taken with another model, are scaled by it.
        """
        if key not in self.facts:
            return None
        return float(self.facts[key]) * (macs / self.facts["macs"] if self.is_standin else 1.0)


@dataclass(frozen=True)
class Case:
    """A model with its file."""

    model: Model
    path: Path


def all_models() -> dict[str, Model]:
    """Return the rows of `targets.toml` by name."""
    rows = tomllib.loads(TARGETS.read_text(encoding="utf-8"))["models"]
    return {name: Model(name, facts) for name, facts in rows.items()}


def find_cases(wanted: list[str], folder: Path | None, standins: Path) -> tuple[list[Case], list[str]]:
    """Return the models that can be measured here, and one sentence for each that cannot.

    Args:
        wanted: names; a path to a `.tflite` stands for itself.
        folder: with the public models; None when nobody named one.
        standins: where stand-ins are kept.
    """
    from benchmarks.engine.standins import cached_standin

    known = all_models()
    cases: list[Case] = []
    missing: list[str] = []
    for name in wanted:
        if name not in known:
            cases.append(Case(Model(Path(name).stem, {}), Path(name)))
        elif known[name].is_standin:
            facts = known[name].facts
            try:
                path = cached_standin(facts["architecture"], facts["resolution"], facts["classes"], standins)
            except ModuleNotFoundError as error:
                missing.append(f"{name}: its random weights need the Python package {error.name}: tinykd[train]")
            else:
                cases.append(Case(known[name], path))
        elif folder is None or not (folder / known[name].facts["file"]).is_file():
            where = f"is not in {folder}" if folder else "needs --folder or TINYKD_MODELS"
            missing.append(f"{name}: {known[name].facts['file']} {where}")
        else:
            cases.append(Case(known[name], folder / known[name].facts["file"]))
    return cases, missing
