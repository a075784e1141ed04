"""Counts what an inference takes on each core for each goal, and holds it to budgets: `python -m benchmarks.engine`.

Counts are exact retired instructions of an emulated core, the same on every machine with the same compiler. Run it in
the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engine.budgets import budgets_compiler, compare, read_budgets, save_budgets
from benchmarks.engine.measure import Job, is_exact, measure, tune_case
from benchmarks.engine.models import all_models, find_cases
from tinykd.build.bare import MACHINE_FLAGS, build_kernels
from tinykd.build.toolchain import compiler_version
from tinykd.commands.tune import keep_choices, print_rows
from tinykd.data.files import cache_dir
from tinykd.errors import TinykdError
from tinykd.kernels import OptimizeFor, engine_for
from tinykd.kernels.tuning import COMMITTED, TUNED_VARIABLE

RESULTS = Path(__file__).parents[1] / "results" / "engine.json"
CORES = ("cortex-m0plus", "cortex-m4", "cortex-m7")
GOALS: tuple[OptimizeFor, ...] = ("speed", "balanced", "size")
QUICK: tuple[tuple[str, str, OptimizeFor], ...] = (
    *((model, "cortex-m7", "balanced") for model, row in all_models().items() if not row.is_standin),
    *((model, "cortex-m4", "balanced") for model in ("resnet8", "vww", "kws")),
    *((model, "cortex-m0plus", "balanced") for model in ("ad", "kws")),
    ("ad", "cortex-m7", "speed"),
    ("kws", "cortex-m7", "size"),
    ("mcunet-5fps-80", "cortex-m7", "balanced"),
)
PACKAGES = ("tinykd", "numpy", "unicorn", "tflite-micro")
CODE_LIMIT_BYTES, STACK_LIMIT_BYTES = 30_000, 2_048


def main() -> int:
    """Measure, print, compare, save; return the exit code."""
    arguments = parse()
    # Whoever repeats this has other tuned choices of their own, or none.
    os.environ[TUNED_VARIABLE] = ""
    console = Console(width=None if sys.stdout.isatty() else 190, highlight=False, stderr=arguments.json)
    if arguments.peer:
        from benchmarks.engine.peer import compare_peer

        return compare_peer(arguments, console)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        try:
            if arguments.tune:
                return tune(arguments, work)
            jobs, missing = plan_jobs(arguments, work)
            rows = run_jobs(jobs, arguments.jobs)
        except TinykdError as error:
            sys.exit(f"{error.message}\n{error.next_step}")
    for sentence in missing:
        print(f"skipped {sentence}", file=sys.stderr)
    if not rows:
        sys.exit("nothing to measure")
    console.print(make_table(rows))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    failures = [f"{label(row)}: differs from {row['judge']}" for row in rows if not is_exact(row)]
    failures += [f"{label(row)}: the stack went deeper than its proof" for row in rows if not is_stack_proven(row)]
    if arguments.check:
        if compiler_version() != budgets_compiler():
            print(f"The budgets are of {budgets_compiler()}, this is {compiler_version()}", file=sys.stderr)
        changes = compare(rows, read_budgets())
        failures += [str(change) for change in changes if change.is_worse]
        for change in changes:
            if not change.is_worse:
                console.print(f"better: {change}; --save lowers the budget")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if arguments.save and not failures:
        save(rows, arguments.inputs)
    return 1 if failures else 0


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"{', '.join(all_models())}, or a .tflite [all]")
    parser.add_argument("--cores", type=_names(MACHINE_FLAGS), default=list(CORES), metavar="A,B", help="[%(default)s]")
    parser.add_argument("--goals", type=_names(GOALS), default=list(GOALS), metavar="A,B", help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="only the rows that CI checks")
    parser.add_argument("--inputs", type=int, default=3, help="inputs to compare; the first is counted [%(default)s]")
    parser.add_argument("--check", action="store_true", help="fail where a budget is exceeded by more than 1 %%")
    parser.add_argument("--save", action="store_true", help="let what is measured be the budget and the result")
    parser.add_argument("--tune", action="store_true", help="measure all kernels of all models, write tuned.toml")
    parser.add_argument("--json", action="store_true", help="rows on stdout, op by op; the table goes to stderr")
    parser.add_argument("--folder", type=Path, help="with the public models [TINYKD_MODELS]")
    parser.add_argument("--standins", type=Path, help="where stand-ins are kept [tinykd's cache]")
    parser.add_argument("--work", type=Path, help="where to build, and to find objects of an earlier run [a new one]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes [%(default)s]")
    parser.add_argument("--peer", choices=("bakenn",), help="count that compiler's output side by side instead")
    parser.add_argument("--venv", type=Path, help="--peer: its virtual environment [a new one]")
    arguments = parser.parse_args()
    if arguments.folder is None and os.environ.get("TINYKD_MODELS"):
        arguments.folder = Path(os.environ["TINYKD_MODELS"])
    arguments.standins = arguments.standins or cache_dir() / "standins"
    return arguments


def _names(known: Any) -> Any:
    def parse_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse_names


def plan_jobs(arguments: argparse.Namespace, work: Path) -> tuple[list[Job], list[str]]:
    """Return what is to be measured, and a sentence for each model that cannot be; compiles the kernels.

    A core without the DSP extension has one engine for all goals: it is measured as "balanced".
    """
    quick = {model for model, _, _ in QUICK}
    wanted = arguments.models or [name for name in all_models() if not arguments.quick or name in quick]
    cases, missing = find_cases(wanted, arguments.folder, arguments.standins)
    rows = [
        (case, core, goal)
        for case in cases
        for core in arguments.cores
        for goal in goals_of(core, arguments.goals)
        if not arguments.quick or (case.model.name, core, goal) in QUICK
    ]
    kernels = {core: build_kernels(core, work / "kernels" / core) for core in {core for _, core, _ in rows}}
    return [
        Job(case, core, goal, work / f"{case.model.name}-{core}-{goal}", kernels[core], arguments.inputs)
        for case, core, goal in rows
    ], missing


def goals_of(core: str, wanted: Sequence[OptimizeFor]) -> Sequence[OptimizeFor]:
    """Return the goals that differ on a core."""
    return wanted if engine_for(core).isa != "portable" else ("balanced",)


def tune(arguments: argparse.Namespace, work: Path) -> int:
    """Let the choices that come with tinykd be those that the models of this benchmark need."""
    core = "cortex-m7"
    cases, missing = find_cases(arguments.models or list(all_models()), arguments.folder, arguments.standins)
    kernels = build_kernels(core, work / "kernels" / core)
    jobs = [(case, core, work / f"tune-{case.model.name}", kernels) for case in cases]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [row for found in pool.map(tune_case, jobs) for row in found]
    for sentence in missing:
        print(f"skipped {sentence}", file=sys.stderr)
    print_rows(rows, keep_choices(rows, COMMITTED), COMMITTED)
    return 0


def run_jobs(jobs: list[Job], processes: int) -> list[dict[str, Any]]:
    """Return the measured rows in order."""
    if processes == 1:
        return [measure(job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(measure, jobs))


def label(row: dict[str, Any]) -> str:
    """Return how a row is named."""
    return f"{row['model']} {row['core']} {row['goal']}"


def is_stack_proven(row: dict[str, Any]) -> bool:
    """Whether the painted stack kept to the bound."""
    return bool(row["stack_bytes_measured"] <= row["stack_bytes"])


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows with their targets, and how many times as much others take on a Cortex-M7."""
    models = all_models()
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("model", "core", "goal"):
        table.add_column(title, no_wrap=True)
    others = {"CMSIS-NN": "cmsis_nn", "TinyEngine": "tinyengine"}
    for title in ("instructions", "per MAC", "to reach", "stretch", *others, "arena", "stack", "code"):
        table.add_column(title, justify="right")
    table.add_column("constants", justify="right")
    table.add_column("equal")
    for row in rows:
        model, count, macs = models.get(row["model"]), row["instructions"], row["macs"]
        limit = model.limit(row["goal"], row["core"], macs) if model else None
        figures = [model.figure(key, macs) if model else None for key in ("stretch", *others.values())]
        table.add_row(
            row["model"],
            row["core"].removeprefix("cortex-"),
            row["goal"],
            f"{count:,}",
            f"{row['per_mac']:.2f}" if row["per_mac"] else "",
            f"{limit / 1e6:.2f} M {'yes' if count <= limit else 'NO'}" if limit else "",
            f"{figures[0] / 1e6:.2f} M {'yes' if count <= figures[0] else 'no'}" if limit and figures[0] else "",
            *(f"{figure / count:.2f} x" if figure else "" for figure in figures[1:]),
            f"{row['arena_bytes']:,}",
            f"{row['stack_bytes_measured']} of {row['stack_bytes']}" + over(row["stack_bytes"], STACK_LIMIT_BYTES),
            f"{row['code_bytes']:,}" + over(row["code_bytes"], CODE_LIMIT_BYTES if row["goal"] == "balanced" else None),
            f"{row['model_bytes']:,}",
            f"{row['inputs'] - row['inputs_different']} of {row['inputs']}" if is_exact(row) else "NO",
        )
    return table


def over(value: int, limit: int | None) -> str:
    """Return a mark for a value beyond its limit."""
    return f" > {limit:,}" if limit is not None and value > limit else ""


def save(rows: list[dict[str, Any]], inputs: int) -> None:
    """Write budgets and results with their provenance; rows that were not measured now stay as they are."""
    provenance = {
        "command": f"python -m benchmarks.engine --inputs {inputs} --save",
        "compiler": compiler_version(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))},
    }
    save_budgets(rows, provenance)
    saved = {label(row): row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.is_file() else {}
    saved.update({label(row): {key: row[key] for key in row if key != "per_op"} for row in rows})
    ordered = [saved[key] for key in sorted(saved)]
    RESULTS.write_text(json.dumps({"provenance": provenance, "rows": ordered}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
