"""Draws random int8 models and holds the rules of `tests/fuzzing` against each: `python -m benchmarks.fuzz`.

Every op kind gets its share of the models. A model that breaks a rule is shrunk and, with --save-failures, kept in
tests/regression/fuzz, where a test replays it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing.hunt import PACKAGES, hunt  # noqa: E402
from fuzzing.judge import IsolatedTflm  # noqa: E402
from fuzzing.kinds import KINDS, MOST_OPS, int8_kinds  # noqa: E402
from fuzzing.record import dumps, loads  # noqa: E402

from tinykd.export import oracle  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
REGRESSION = ROOT / "tests" / "regression" / "fuzz"
CHUNK = 50
"""Models for each hunt: a failure ends one hunt, not the run."""

Task = tuple[str, int, int, int]


def tasks(kinds: list[str], count: int, seed: int, most_ops: int) -> list[Task]:
    """Return (kind, seed, count, most ops) of each hunt; every kind gets the same share, rounded up."""
    share = -(-count // len(kinds))
    return [
        (kind, seed + start, min(CHUNK, share - start), most_ops) for start in range(0, share, CHUNK) for kind in kinds
    ]


_judge = IsolatedTflm()


def work(task: Task) -> tuple[int, Counter[str], str | None]:
    """Run one hunt; return how many models were sound, their ops, and the text of a failure."""
    kind, seed, count, most_ops = task
    catch = hunt(kind, seed, count, tuple(KINDS), _judge, most_ops)
    return catch.graphs, catch.ops, None if catch.failure is None else dumps(catch.failure)


def keep(text: str) -> Path:
    """Save a failure under a name that its content gives."""
    failure = loads(text)
    kind = failure.graph.ops[0].kind if len(failure.graph.ops) == 1 else "graph"
    digest = hashlib.sha256(f"{failure.rule}{failure.problem}".encode()).hexdigest()[:8]
    path = REGRESSION / f"{kind}-{failure.rule.replace(' ', '-').lower()}-{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main() -> int:
    """Hunt, print, save; return 1 when a rule was broken or an op never came up, 5 without TFLite Micro."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="models")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", nargs="*", default=list(KINDS), choices=list(KINDS), help="each model has one of these"
    )
    parser.add_argument("--most-ops", type=int, default=MOST_OPS, help="ops of the largest model")
    parser.add_argument("--save-failures", action="store_true", help=f"keep them in {REGRESSION.relative_to(ROOT)}")
    parser.add_argument("--out", type=Path, help=f"write the figures here (make fuzz: {RESULTS.relative_to(ROOT)})")
    arguments = parser.parse_args()
    if not oracle.is_available():
        print(f"fuzz: the tflite-micro wheel, the judge, is not installed: {oracle.INSTALL}")
        return 5
    started = time.perf_counter()
    todo = tasks(arguments.kind, arguments.count, arguments.seed, arguments.most_ops)
    covered: Counter[str] = Counter()
    graphs = failures = 0
    # Processes that were never forked from one with threads; each has its own TFLite Micro beside it.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for (kind, seed, count, _), (sound, ops, text) in zip(todo, pool.map(work, todo), strict=True):
            graphs += sound
            covered.update(ops)
            if text is not None:
                failure = loads(text)
                failures += 1
                print(f"{kind} (seed {seed}, {count} models): {failure.rule}: {failure.problem}", flush=True)
                if arguments.save_failures:
                    print(f"  kept in {keep(text)}", flush=True)
    seconds = time.perf_counter() - started
    table = Table("op", "times")
    for kind in sorted(int8_kinds()):
        table.add_row(kind, f"{covered[kind]:,}")
    Console(width=60).print(table)
    missing = sorted(kind for kind in int8_kinds() if not covered[kind])
    print(
        f"{graphs:,} models without a difference, {failures} with one, in {seconds:.0f} s"
        + (f"; never drawn: {', '.join(missing)}" if missing else "")
    )
    if arguments.out:
        record: dict[str, Any] = {
            "provenance": {
                "command": f"python -m benchmarks.fuzz --count {arguments.count} --jobs {arguments.jobs} "
                f"--seed {arguments.seed}",
                "seed": arguments.seed,
                "python": platform.python_version(),
                **{package: version(package) for package in ("tinykd", *PACKAGES)},
            },
            "models": graphs,
            "differences": failures,
            "ops": {kind: covered[kind] for kind in sorted(int8_kinds())},
            "seconds": round(seconds, 1),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())
