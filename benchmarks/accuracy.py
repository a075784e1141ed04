"""Trains the rows of a suite with several seeds and writes a table: `python benchmarks/accuracy.py SUITE`.

A suite (`benchmarks/suites/*.yaml`) names a recipe, seeds, overrides for all rows, and rows: overrides, or a recipe and
overrides. Finished runs are kept, interrupted ones go on. Reported is the last epoch on the test split, and with `int8`
(in the suite) the exported student on the host as well. Nothing is chosen by its test accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from tinykd.train import limit_spinning

limit_spinning()

import torch  # noqa: E402

from tinykd.config import load_recipe  # noqa: E402
from tinykd.train import train  # noqa: E402
from tinykd.train.progress import PlainProgress  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "results"
KEPT = ("top1_float", "teacher_top1", "params", "macs", "epochs", "seconds", "steps_per_s", "cost", "methods")


def run_row(suite: dict[str, Any], row: Any, seed: int, folder: Path, device: str | None) -> dict[str, Any]:
    """Train and, where the suite wants it, export one row with one seed; return what is kept of it."""
    own = row if isinstance(row, dict) else {"set": row}
    overrides = [*suite.get("set", []), *own.get("set", []), f"train.seed={seed}"]
    recipe = load_recipe(own.get("recipe", suite["recipe"]), overrides)
    results = train(recipe, folder, progress=PlainProgress(), device=device).results
    metrics = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    kept = {key: results[key] for key in KEPT}
    kept.update(seed=seed, top1_train=metrics[-1]["top1_train"], data=results["data_provenance"])
    if suite.get("int8"):
        from tinykd.commands.export_stage import ensure_export

        kept["top1_int8"] = ensure_export(folder).results["top1_int8"]
    return kept


def summarise(name: str, runs: list[dict[str, Any]], suite: dict[str, Any]) -> dict[str, Any]:
    """Return mean and deviation of a row, and how it stands to the published figure where there is one."""
    values = [100 * run["top1_float"] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    row: dict[str, Any] = {"row": name, "mean": statistics.mean(values), "deviation": deviation, "runs": runs}
    if "top1_int8" in runs[0]:
        row["mean_int8"] = statistics.mean(100 * run["top1_int8"] for run in runs)
    published = suite.get("published", {}).get(name)
    if published is not None:
        error = (deviation or 0) / math.sqrt(len(values))
        row["published"] = published
        row["agrees"] = abs(row["mean"] - published) <= max(0.6, 2 * error)
    return row


def show(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table("row", "top-1 %", "± sd", "int8 %", "train %", "published", "agrees", "seconds a run")
    for row in rows:
        runs = row["runs"]
        table.add_row(
            row["row"],
            f"{row['mean']:.2f}",
            "" if row["deviation"] is None else f"{row['deviation']:.2f}",
            f"{row['mean_int8']:.2f}" if "mean_int8" in row else "",
            f"{statistics.mean(100 * run['top1_train'] for run in runs):.2f}",
            f"{row['published']:.2f}" if "published" in row else "",
            {True: "yes", False: "no"}.get(row.get("agrees"), ""),  # type: ignore[arg-type]
            f"{statistics.mean(run['seconds'] for run in runs):.0f}",
        )
    return table


def main() -> None:
    """Run a suite, or the part of it that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", help="a name in benchmarks/suites")
    parser.add_argument("rows", nargs="*", help="only these rows [default: all]")
    parser.add_argument("--seeds", help="for example 0,1,2 [default: the suite's]")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="where the runs are kept")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    suite = yaml.safe_load((HERE / "suites" / f"{arguments.suite}.yaml").read_text())
    seeds = [int(seed) for seed in arguments.seeds.split(",")] if arguments.seeds else suite["seeds"]
    names = arguments.rows or list(suite["rows"])
    path = RESULTS / f"accuracy-{arguments.suite}.json"
    before = {row["row"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    for seed in seeds:
        for name in names:
            folder = arguments.runs / arguments.suite / f"{name}-{seed}"
            print(f"== {name}, seed {seed}", flush=True)
            run = run_row(suite, suite["rows"][name], seed, folder, arguments.device)
            others = [other for other in before.get(name, {}).get("runs", []) if other["seed"] != seed]
            before[name] = summarise(name, sorted([*others, run], key=lambda item: item["seed"]), suite)
            rows = [before[row] for row in suite["rows"] if row in before]
            record = {
                "what": (HERE / "suites" / f"{arguments.suite}.yaml").read_text().splitlines()[0].lstrip("# "),
                "command": f"python benchmarks/accuracy.py {arguments.suite}",
                "suite": suite,
                "machine": {
                    "cores": os.cpu_count(),
                    "arch": platform.machine(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                },
                "versions": {package: version(package) for package in ("tinykd", "torch", "numpy")},
                "rows": rows,
                "not_run": [row for row in suite["rows"] if row not in before],
            }
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(record, indent=1) + "\n")
    Console().print(show([before[row] for row in suite["rows"] if row in before]))


if __name__ == "__main__":
    main()
