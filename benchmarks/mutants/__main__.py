"""Breaks the code on purpose, one place at a time, and expects the tests to notice: `python -m benchmarks.mutants`.

Each mutant of `benchmarks/mutants/*.toml` names a file, a text that occurs in it exactly once, what replaces it, and
the tests that must fail then. A mutant that survives is a mistake that no test would catch. Run it in the repository's
root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Queue

from tinykd.toml import tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
COPIED = ("tinykd", "tests", "boards", "firmware", "docs", "pyproject.toml", "benchmarks")
TESTS_FAILED = 1
"""pytest's exit code; others (no tests, no collection) prove nothing."""


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what goes wrong.
        file: where, from the repository's root.
        find: the text that is there, exactly once.
        replace: what stands there instead.
        tests: pytest arguments; at least one of their tests must fail.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant: killed, and by which test first."""

    name: str
    killed: bool
    by: str
    seconds: float


def load_mutants(words: Iterable[str] = (), lists: Iterable[str] = ()) -> list[Mutant]:
    """Return the mutants whose names contain every word, in any case; only those of some lists when these are named.

    Raises:
        ValueError: an entry that does not fit the code any more.
        FileNotFoundError: there is no such list.
    """
    mutants: list[Mutant] = []
    for path in [FOLDER / f"{name}.toml" for name in lists] or sorted(FOLDER.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            text = (ROOT / mutant.file).read_text(encoding="utf-8")
            if text.count(mutant.find) != 1:
                raise ValueError(
                    f"{path.name}: '{mutant.name}': its text occurs {text.count(mutant.find)} times in {mutant.file}"
                )
            mutants.append(mutant)
    return [mutant for mutant in mutants if all(word.lower() in mutant.name.lower() for word in words)]


def run_tests(copy: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run pytest in a copy of the tree; return its exit code and the first failed test."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return done.returncode, failed[0] if failed else ""


def judge(mutant: Mutant, copy: Path) -> Verdict:
    """Apply a mutant in a copy, run its tests, and undo it."""
    started = time.perf_counter()
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.find, mutant.replace), encoding="utf-8")
    try:
        code, failed = run_tests(copy, mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    return Verdict(mutant.name, code == TESTS_FAILED and bool(failed), failed, time.perf_counter() - started)


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need into `folder`."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".pio"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def save(verdicts: Iterable[Verdict], path: Path = RESULTS) -> None:
    """Write the verdicts in the order of the lists; mutants that were not judged now keep their earlier one.

    The versions are those of the last run.
    """
    known = {entry["name"]: entry for entry in json.loads(path.read_text())["mutants"]} if path.is_file() else {}
    known |= {verdict.name: asdict(verdict) for verdict in verdicts}
    kept = [known[mutant.name] for mutant in load_mutants() if mutant.name in known]
    record = {
        "command": "python -m benchmarks.mutants --save",
        "versions": {name: version(name) for name in ("torch", "numpy", "pytest")},
        "killed": sum(entry["killed"] for entry in kept),
        "mutants": kept,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Judge the mutants, print the survivors, and return how the run ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutants whose names contain these words")
    parser.add_argument("--lists", nargs="+", default=(), metavar="NAME", help="only these files, named without .toml")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="copies at work")
    parser.add_argument("--save", action="store_true", help="keep the verdicts, beside those of earlier runs")
    arguments = parser.parse_args()
    mutants = load_mutants(arguments.words, arguments.lists)
    if not mutants:
        print("no mutant has such a name")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(arguments.jobs):
            copies.put(copy_tree(Path(folder) / str(number)))
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        print(f"{len(mutants)} mutants; first {len(tests)} lists of tests without any, which takes a while", flush=True)
        code, failed = run_tests(Path(folder) / "0", tests)
        if code:
            print(f"the tests do not pass without any mutant ({failed or f'pytest ended with {code}'})")
            return 2

        def work(mutant: Mutant) -> Verdict:
            copy = copies.get()
            try:
                verdict = judge(mutant, copy)
            finally:
                copies.put(copy)
            print(f"{'killed  ' if verdict.killed else 'SURVIVED'} {verdict.name}  ({verdict.by})", flush=True)
            return verdict

        with ThreadPoolExecutor(arguments.jobs) as pool:
            verdicts = list(pool.map(work, mutants))
    survivors = [verdict.name for verdict in verdicts if not verdict.killed]
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} mutants killed")
    if arguments.save:
        save(verdicts)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
