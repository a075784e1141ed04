"""The code in the guides works as printed."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distill_support import make_context, make_method, small_models, train_steps

from tinykd import distill, models
from tinykd.distill import Method
from tinykd.distill.base import DistillMethod, DistillStep
from tinykd.errors import ConfigError
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


def load_method(load_module, monkeypatch: pytest.MonkeyPatch, code: str, row: str) -> Method:  # type: ignore[no-untyped-def]
    """Load a method of the guide and enter its row; its key must be new, or the guide would show nothing."""
    method = eval(row.strip().rstrip(","), {"Method": Method})
    assert method.key not in distill.METHODS
    assert method.axis in distill.AXES
    load_module(method.implementation.partition(":")[0], code)
    monkeypatch.setitem(distill.METHODS, method.key, method)
    return method


def test_adding_a_method_on_logits(load_module, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The guide's first method takes its argument, refuses a bad one, and gives the loss that it promises."""
    code, row, *_ = blocks("adding-a-method.md")
    load_method(load_module, monkeypatch, code, row)
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    step = DistillStep(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), student, teacher)
    assert float(distill.build_method("logit_l1")(step)) == pytest.approx((2 + 4) / 2)
    assert float(distill.build_method("logit_l1", {"margin": 0.5})(step)) == pytest.approx((1.5 + 3.5) / 2)
    with pytest.raises(ConfigError, match="logit_l1: margin must be a number of at least 0, not -1"):
        distill.build_method("logit_l1", {"margin": -1})


@pytest.mark.parametrize("taps", [{}, {"student_taps": "@stage3", "teacher_taps": "@last"}])
def test_adding_a_method_on_features(load_module, monkeypatch: pytest.MonkeyPatch, taps: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """The guide's second method sets itself up for two networks, and trains the student and its own layer."""
    _, _, code, row = blocks("adding-a-method.md")
    load_method(load_module, monkeypatch, code, row)
    student, teacher = small_models()
    method = make_method("embedding_l1", taps, make_context(student, teacher))
    assert [parameter.ndim for parameter in method.parameters()] == [2]
    losses = train_steps(method, student, teacher)
    assert losses[-1] < 0.7 * losses[0]


def test_methods_that_the_guide_names_exist() -> None:
    """Keys in the guide's table are methods, and the flags that it tells of are where it says."""
    text = (DOCS / "adding-a-method.md").read_text(encoding="utf-8")
    for example in re.findall(r"\| ([^|]+) \|$", text.partition("## 3.")[2].partition("## 4.")[0], flags=re.MULTILINE):
        for key in re.findall(r"`(\w+)`", example):
            assert key in distill.METHODS, key
    for flag in ("local", "needs_input_grad", "turns", "averaged", "figures", "results", "save"):
        assert hasattr(DistillMethod, flag), flag
    for flag in ("init", "generations", "needs_teacher", "with_labels"):
        assert flag in Method.__dataclass_fields__, flag
