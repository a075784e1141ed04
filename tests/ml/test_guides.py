"""The code in the guides works as printed."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tinykd import distill, models
from tinykd.distill import Method
from tinykd.distill.base import DistillStep
from tinykd.models import ModelEntry

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def load_module() -> Iterator[object]:
    """Make a module of source text importable for one test."""
    names: list[str] = []

    def load(name: str, source: str) -> None:
        module = types.ModuleType(name)
        sys.modules[name] = module
        names.append(name)
        exec(compile(source, name, "exec"), module.__dict__)

    yield load
    for name in names:
        del sys.modules[name]


def test_adding_a_model(load_module, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The guide's model, with the guide's row, is built by name and takes its argument."""
    code, row = blocks("adding-a-model.md")
    load_module("tinykd.models.twostep", code)
    entry = eval(row.strip().rstrip(","), {"ModelEntry": ModelEntry})
    monkeypatch.setitem(models.MODELS, entry.name, entry)
    model = models.build_model("twostep", 10, 28, 1, channels=16)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_adding_a_method(load_module, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The guide's method, with the guide's row, is built by key and gives the loss that it promises."""
    code, row = blocks("adding-a-method.md")
    load_module("tinykd.distill.logit_l2", code)
    method = eval(row.strip().rstrip(","), {"Method": Method})
    monkeypatch.setitem(distill.METHODS, method.key, method)
    loss = distill.build_method("logit_l2")
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    step = DistillStep(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), student, teacher)
    assert float(loss(step)) == pytest.approx(0.5 * (4 + 16) / 2)
