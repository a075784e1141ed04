"""Draws random int8 models and holds the rules of `tests/fuzzing` against each: `python -m benchmarks.fuzz`.

Every op kind gets its share of the models; the judge is TFLite Micro. With --engine their generated C runs in the
emulator instead, on each core and for each goal, and every activation and every access to memory is looked at. A model
that breaks a rule is shrunk and, with --save-failures, kept in tests/regression, where a test replays it from then on.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import importlib.util
import json
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing.check import DEVICE_RULES, Judge  # noqa: E402
from fuzzing.device import CONFIGURATIONS, Emulated, kernels_of  # noqa: E402
from fuzzing.hunt import PACKAGES, hunt  # noqa: E402
from fuzzing.judge import IsolatedTflm  # noqa: E402
from fuzzing.kinds import DEVICE_KINDS, KINDS, MOST_OPS, int8_kinds  # noqa: E402
from fuzzing.record import dumps, loads  # noqa: E402

from tinykd.export import oracle  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
REGRESSION = ROOT / "tests" / "regression"
CHUNK = 50
"""Models for each hunt: a failure ends one hunt, not the run."""
ENGINE_CHUNK = 10
"""The same with an emulated core; the hunts take the configurations in turn."""
SHARES = {"conv_2d": 6, "depthwise_conv_2d": 6, "fully_connected": 3, "add": 3}
"""Hunts for kinds whose kernels are many; the others get one."""


@dataclass(frozen=True)
class Task:
    """One hunt: what `hunt` takes, and the configuration of an emulated core ("": TFLite Micro is the judge)."""

    kind: str
    seed: int
    count: int
    most_ops: int
    configuration: str = ""


@dataclass(frozen=True)
class Outcome:
    """How many models of a hunt were sound, their ops, the kernels that ran, and the text of a failure."""

    graphs: int
    ops: Counter[str]
    kernels: Counter[str]
    failure: str | None


def tasks(kinds: list[str], count: int, seed: int, most_ops: int) -> list[Task]:
    """Return the hunts with TFLite Micro; every kind gets the same share, rounded up."""
    share = -(-count // len(kinds))
    return [
        Task(kind, seed + start, min(CHUNK, share - start), most_ops)
        for start in range(0, share, CHUNK)
        for kind in kinds
    ]


def engine_tasks(kinds: list[str], count: int, seed: int, most_ops: int, configurations: list[str]) -> list[Task]:
    """Return the hunts on emulated cores: `count` models, rounded up to whole hunts."""
    shared = [kind for turn in range(max(SHARES.values())) for kind in kinds if turn < SHARES.get(kind, 1)]
    return [
        Task(
            shared[number % len(shared)],
            seed + number,
            min(ENGINE_CHUNK, count),
            most_ops,
            # Another one for the same kind in the next round.
            configurations[(number + number // len(shared)) % len(configurations)],
        )
        for number in range(-(-count // ENGINE_CHUNK))
    ]


_judges: dict[str, Judge] = {}


def judge_of(configuration: str) -> Judge:
    """Return this process's judge."""
    if configuration not in _judges:
        folder = Path(tempfile.mkdtemp(prefix="tinykd-fuzz-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _judges[configuration] = Emulated(configuration, folder) if configuration else IsolatedTflm()
    return _judges[configuration]


def work(task: Task) -> Outcome:
    """Run one hunt."""
    judge = judge_of(task.configuration)
    kinds = DEVICE_KINDS if task.configuration else tuple(KINDS)
    if isinstance(judge, Emulated):
        judge.kernels.clear()
    catch = hunt(task.kind, task.seed, task.count, kinds, judge, task.most_ops, wide=bool(task.configuration))
    kernels = Counter(judge.kernels) if isinstance(judge, Emulated) else Counter()
    return Outcome(catch.graphs, catch.ops, kernels, None if catch.failure is None else dumps(catch.failure))


def keep(text: str) -> Path:
    """Save a failure under a name that its content gives."""
    failure = loads(text)
    kind = failure.graph.ops[0].kind if len(failure.graph.ops) == 1 else "graph"
    digest = hashlib.sha256(f"{failure.rule}{failure.problem}".encode()).hexdigest()[:8]
    folder = REGRESSION / ("engine" if failure.rule in DEVICE_RULES else "fuzz")
    path = folder / f"{kind}-{failure.rule.replace(' ', '-').lower()}-{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main() -> int:
    """Hunt, print, save; return 1 when a rule was broken or an op or kernel never came up, 5 without the judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="models")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", nargs="*", default=list(KINDS), choices=list(KINDS), help="each model has one of these"
    )
    parser.add_argument("--most-ops", type=int, default=MOST_OPS, help="ops of the largest model")
    parser.add_argument("--engine", action="store_true", help="run the generated C in the emulator")
    parser.add_argument(
        "--on", nargs="*", default=list(CONFIGURATIONS), metavar="CORE:GOAL", help="with --engine: cores and goals"
    )
    parser.add_argument("--save-failures", action="store_true", help=f"keep them in {REGRESSION.relative_to(ROOT)}")
    parser.add_argument("--out", type=Path, help=f"write the figures here (make fuzz: {RESULTS.relative_to(ROOT)})")
    arguments = parser.parse_args()
    if problem := missing_judge(arguments.engine):
        print(f"fuzz: {problem}")
        return 5
    started = time.perf_counter()
    if arguments.engine:
        kinds = [kind for kind in arguments.kind if kind in DEVICE_KINDS]
        todo = engine_tasks(kinds, arguments.count, arguments.seed, arguments.most_ops, arguments.on)
    else:
        todo = tasks(arguments.kind, arguments.count, arguments.seed, arguments.most_ops)
    ops: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    graphs = failures = 0
    # Processes that were never forked from one with threads; each has its own judges.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for task, outcome in zip(todo, pool.map(work, todo), strict=True):
            graphs += outcome.graphs
            ops.update(outcome.ops)
            kernels.update(outcome.kernels)
            if outcome.failure is not None:
                failure = loads(outcome.failure)
                failures += 1
                print(f"{task}: {failure.rule}: {failure.problem}", flush=True)
                if arguments.save_failures:
                    print(f"  kept in {keep(outcome.failure)}", flush=True)
    seconds = time.perf_counter() - started
    covered, wanted = (kernels, kernels_of(arguments.on)) if arguments.engine else (ops, int8_kinds())
    table = Table("kernel" if arguments.engine else "op", "times")
    for name in sorted(wanted):
        table.add_row(name, f"{covered[name]:,}")
    Console(width=60).print(table)
    missing = sorted(name for name in wanted if not covered[name])
    print(
        f"{graphs:,} models without a difference, {failures} with one, in {seconds:.0f} s"
        + (f"; never drawn: {', '.join(missing)}" if missing else "")
    )
    if arguments.out:
        record: dict[str, Any] = {
            "provenance": {
                "command": f"python -m benchmarks.fuzz --count {arguments.count} --jobs {arguments.jobs} "
                f"--seed {arguments.seed}" + " --engine" * arguments.engine,
                "seed": arguments.seed,
                "python": platform.python_version(),
                **{package: version(package) for package in ("tinykd", *PACKAGES)},
            },
            "models": graphs,
            "differences": failures,
            "ops": {kind: ops[kind] for kind in sorted(DEVICE_KINDS if arguments.engine else int8_kinds())},
            **({"kernels": {name: kernels[name] for name in sorted(wanted)}} if arguments.engine else {}),
            "seconds": round(seconds, 1),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failures or missing else 0


def missing_judge(engine: bool) -> str | None:
    """Return what must be installed first, None where all is there."""
    if not engine:
        return (
            None if oracle.is_available() else f"the tflite-micro wheel, the judge, is not installed: {oracle.INSTALL}"
        )
    if importlib.util.find_spec("unicorn") is None:
        return "the emulator is not installed: pip install 'tinykd[sim]'"
    return None if shutil.which("arm-none-eabi-gcc") else "arm-none-eabi-gcc is not on PATH"


if __name__ == "__main__":
    sys.exit(main())
