"""The lists of mutants stay true to the code that they break."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runner():  # type: ignore[no-untyped-def]
    """Return the module behind `python -m benchmarks.mutants`."""
    path = ROOT / "benchmarks" / "mutants" / "__main__.py"
    if not path.is_file():
        pytest.skip("benchmarks/ is not part of this installation")
    spec = importlib.util.spec_from_file_location("mutants_main", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants_main"] = module
    spec.loader.exec_module(module)
    return module


def test_every_mutant_fits_the_code(runner) -> None:  # type: ignore[no-untyped-def]
    """Each one's text occurs exactly once, changes something, and names tests that exist; names are unique."""
    mutants = runner.load_mutants()
    assert len(mutants) >= 40
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        assert mutant.find != mutant.replace, mutant.name
        for test in mutant.tests:
            assert (ROOT / test.partition("::")[0]).is_file(), (mutant.name, test)


def test_a_text_that_is_gone_is_an_error(runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A mutant whose place was rewritten says so instead of passing for killed."""
    (tmp_path / "old.toml").write_text(
        '[[mutant]]\nname = "x"\nfile = "tinykd/errors.py"\nfind = "never there"\nreplace = ""\ntests = ["a"]\n'
    )
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="occurs 0 times in tinykd/errors.py"):
        runner.load_mutants()


def test_lists_by_name_and_verdicts_beside_earlier_ones(runner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """One list is chosen by its file's name; saving some verdicts keeps others, not those of mutants that are gone."""
    ours = runner.load_mutants(lists=["rows"])
    assert 0 < len(ours) < len(runner.load_mutants())
    assert runner.load_mutants(["no such words"], ["rows"]) == []
    record = tmp_path / "mutants.json"
    first, second = (runner.Verdict(mutant.name, True, "t", 1.0) for mutant in ours[:2])
    runner.save([second, runner.Verdict("gone since", True, "t", 1.0)], record)
    runner.save([first], record)
    runner.save([runner.Verdict(second.name, False, "", 2.0)], record)
    saved = json.loads(record.read_text())
    assert [entry["name"] for entry in saved["mutants"]] == [first.name, second.name]
    assert (saved["killed"], saved["mutants"][1]["seconds"]) == (1, 2.0)
