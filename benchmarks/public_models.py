"""Takes every .tflite of a folder, unchanged, through plan, build and bench on each board; keeps the provenance."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "public-models.json"
PLAN_KEYS = ("arena_bytes", "lower_bound_bytes", "tflm_arena_bytes", "tflm_arena_online_bytes", "macs", "num_ops")
PLANNED_KEYS = ("sram_total_bytes", "flash_total_bytes")
BUILD_KEYS = ("flash_bytes", "sram_total_bytes", "stack_bytes_max", "code_bytes", "model_bytes", "compiler")
BENCH_KEYS = (
    "transport",
    "samples",
    "outputs_equal",
    "instructions_per_inference",
    "latency_us",
    "latency_kind",
    "host",
)


def tinykd(folder: str, *arguments: str) -> dict[str, Any]:
    """Run a verb with --json in `folder` and return its object; the script ends where the verb fails."""
    command = [sys.executable, "-m", "tinykd", *arguments, "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def measure(model: Path, board: str, samples: int, folder: str) -> dict[str, Any]:
    """Return the figures of one model on one board."""
    target = str(model.resolve())
    plan = tinykd(folder, "plan", target, "--board", board)
    build = tinykd(folder, "build", target, "--board", board)
    bench = tinykd(folder, "bench", target, "--board", board, "--samples", str(samples))
    return {
        "model": model.name,
        "model_sha256": plan["model_sha256"],
        "board": board,
        "plan": {key: plan[key] for key in (*PLAN_KEYS, *PLANNED_KEYS)},
        "build": {key: build[key] for key in BUILD_KEYS},
        "bench": {key: bench[key] for key in BENCH_KEYS},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with .tflite files")
    parser.add_argument("--boards", nargs="+", default=["nucleo-f746", "nucleo-f412"])
    parser.add_argument("--samples", type=int, default=20, help="seeded pseudo-random inputs per model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = sorted(arguments.models.glob("*.tflite"))
    if not models:
        sys.exit(f"{arguments.models} has no .tflite files")
    rows = []
    table = Table("model", "board", "instructions", "per MAC", "arena B", "flash B", "outputs equal TFLM")
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            for board in arguments.boards:
                row = measure(model, board, arguments.samples, folder)
                rows.append(row)
                count = row["bench"]["instructions_per_inference"]
                table.add_row(
                    model.stem,
                    board,
                    f"{count:,}",
                    f"{count / row['plan']['macs']:.2f}",
                    f"{row['plan']['arena_bytes']:,}",
                    f"{row['build']['flash_bytes']:,}",
                    f"{row['bench']['samples']} of {row['bench']['samples']}"
                    if row["bench"]["outputs_equal"]
                    else "NO",
                )
    Console(width=120).print(table)
    provenance = {
        "command": f"python benchmarks/public_models.py --models FOLDER --samples {arguments.samples}",
        "seed": 0,
        "python": platform.python_version(),
        **{package: version(package) for package in ("tinykd", "numpy", "unicorn", "tflite-micro", "platformio")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
