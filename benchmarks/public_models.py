"""Takes every .tflite of a folder, unchanged, through plan, build and bench on each board; keeps the provenance.

With --engine it compares instead: on each core and for each goal, the outputs of all inputs with TFLite Micro's, every
activation of the first with the reference's, bytes that no op may change, and the stack that is used with its bound.
"""

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

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing.device import Device, expected_of  # noqa: E402

from tinykd.build.bare import bare_sizes  # noqa: E402
from tinykd.commands.target import resolve_target  # noqa: E402
from tinykd.export import oracle, reference  # noqa: E402
from tinykd.ir import Graph  # noqa: E402
from tinykd.kernels import engine_for  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "public-models.json"
PLAN_KEYS = ("arena_bytes", "lower_bound_bytes", "tflm_arena_bytes", "tflm_arena_online_bytes", "macs", "num_ops")
PLANNED_KEYS = ("sram_total_bytes", "flash_total_bytes")
BUILD_KEYS = ("flash_bytes", "sram_total_bytes", "stack_bytes_max", "code_bytes", "model_bytes", "compiler")
ENGINES = (
    *((core, goal) for core in ("cortex-m7", "cortex-m4") for goal in ("speed", "balanced", "size")),
    ("cortex-m0plus", "balanced"),
)
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


def examine(graph: Graph, wanted: np.ndarray, x: np.ndarray, core: str, goal: str, folder: Path) -> dict[str, Any]:
    """Return what a model's code does on an emulated core.

    Args:
        graph: what the engine computes.
        wanted: outputs (N, elements) of the judge.
        x: int8 inputs (N, ..).
    """
    device = Device(graph, core, engine_for(core, goal), folder)
    first = {graph.inputs[0]: x[:1]}
    fault = device.first_fault(first, expected_of(graph, first))
    found = np.stack([device.infer(sample) for sample in x])
    sizes = bare_sizes(device.elf, device.kernels)
    return {
        "core": core,
        "optimize_for": goal,
        "outputs_equal": int((found == wanted).all(axis=1).sum()),
        "samples": len(x),
        "activations": fault.text if fault else "equal",
        "stack_bytes": device.stack_bytes,
        "stack_bound_bytes": sizes.stack_bytes,
        "code_bytes": sizes.code_bytes,
    }


def compare(models: list[Path], samples: int) -> int:
    """Print a row for each model, core and goal; return 1 where something differs."""
    table = Table("model", "core", "goal", "outputs equal", "activations", "stack B", "bound B", "code B")
    sound = True
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            graph = resolve_target(model).engine_graph()
            shape = graph.tensor(graph.inputs[0]).shape
            x = np.random.default_rng(0).integers(-128, 128, (samples, *shape[1:])).astype(np.int8)
            x[0], x[-1] = -128, 127
            if oracle.is_available():
                wanted = oracle.Oracle(model.read_bytes()).outputs(x).reshape(samples, -1)
            else:
                wanted = reference.run_output(graph, x).reshape(samples, -1)
            for core, goal in ENGINES:
                row = examine(graph, wanted, x, core, goal, Path(folder))
                equal = row["outputs_equal"] == samples and row["activations"] == "equal"
                sound &= equal and row["stack_bytes"] <= row["stack_bound_bytes"]
                table.add_row(
                    model.stem,
                    core,
                    goal,
                    f"{row['outputs_equal']} of {samples}",
                    row["activations"],
                    f"{row['stack_bytes']:,}",
                    f"{row['stack_bound_bytes']:,}",
                    f"{row['code_bytes']:,}",
                )
    Console(width=140).print(table)
    print(f"outputs compared with {'TFLite Micro' if oracle.is_available() else 'the reference'}")
    return 0 if sound else 1


def main() -> int:
    """Measure, print, write; with --engine compare, and return 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with .tflite files")
    parser.add_argument("--boards", nargs="+", default=["nucleo-f746", "nucleo-f412"])
    parser.add_argument("--samples", type=int, help="seeded pseudo-random inputs per model (20; --engine: 50)")
    parser.add_argument("--engine", action="store_true", help="compare on every core and for every goal (50 inputs)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = sorted(arguments.models.glob("*.tflite"))
    if not models:
        sys.exit(f"{arguments.models} has no .tflite files")
    if arguments.engine:
        return compare(models, arguments.samples or 50)
    samples = arguments.samples or 20
    rows = []
    table = Table("model", "board", "instructions", "per MAC", "arena B", "flash B", "outputs equal TFLM")
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            for board in arguments.boards:
                row = measure(model, board, samples, folder)
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
        "command": f"python benchmarks/public_models.py --models FOLDER --samples {samples}",
        "seed": 0,
        "python": platform.python_version(),
        **{package: version(package) for package in ("tinykd", "numpy", "unicorn", "tflite-micro", "platformio")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
