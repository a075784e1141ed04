"""docs/ops.md is what the code's registries say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "ops_page.py"


@pytest.fixture(scope="module")
def script():  # type: ignore[no-untyped-def]
    """Return the module that writes the page."""
    if not SCRIPT.is_file():
        pytest.skip("scripts/ is not part of this installation")
    for package in ("torch", "onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed: it is one of the page's columns")
    spec = importlib.util.spec_from_file_location("ops_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_not_stale(script) -> None:  # type: ignore[no-untyped-def]
    """A change of a registry changes the page: run `python scripts/ops_page.py`."""
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "stale: run python scripts/ops_page.py"


def test_the_page_reads_the_registries_right(script) -> None:  # type: ignore[no-untyped-def]
    """Versions, nodes and restrictions come out of the code as a person reads them there."""
    from tinykd.formats.onnx.handlers import HANDLERS
    from tinykd.ir.ops import SPECS

    rows = {line.split("`")[1]: line for line in script.page().splitlines() if line.startswith("| `")}
    assert set(rows) == set(SPECS)
    assert script.builtins("fully_connected") == "FULLY_CONNECTED 4, 5, 6, 12"
    assert script.builtins("reshape") == "RESHAPE 1, (SQUEEZE), (EXPAND_DIMS)"
    assert script.builtins("batch_norm") == ""
    assert script.kinds_of(HANDLERS["MaxPool"]) == ["max_pool_2d"]
    assert script.kinds_of(HANDLERS["Split"]) == ["split"]
    assert {"conv_2d", "depthwise_conv_2d"} <= set(script.kinds_of(HANDLERS["Conv"]))
    assert script.restrictions("softmax") == "output scale 1/256, zero point -128"
    assert script.operands(SPECS["concatenation"]) == "1-n → 1"
    assert all(spec.macs.__doc__ for spec in SPECS.values())
