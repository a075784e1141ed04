"""Breaks whole model files and reads each under limits of time and memory: `python -m benchmarks.hostile`.

The whole files are public models (--models, or the folder that TINYKD_MODELS names), small files of each op kind, and
small ONNX models. Each broken file must end in a graph or in an error of ours; with --save the counts are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hostile import onnx_bases, readers, watch  # noqa: E402
from hostile.mutate import Base, tflite_base  # noqa: E402
from tflite_cases import CASES  # noqa: E402

from tinykd.formats.tflite import writer as tflite_writer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "hostile.json"
PACKAGES = ("tinykd", "numpy", "flatbuffers", "tflite", "onnx")

Read = Callable[[bytes], object]


def suites(models: list[Path]) -> list[tuple[str, Read, list[Base], float]]:
    """Return (title, reader, whole files, share of the count) of each row."""
    public = [tflite_base(path.name, path.read_bytes()) for path in models]
    ops = [tflite_base(name, tflite_writer.write(graph)) for name, graph in CASES.items()]
    onnx = onnx_bases.bases()
    return [
        ("public models: read, written and read again", readers.read_tflite, public, 1.0),
        ("one op each: read, written and read again", readers.read_tflite, ops, 1.0),
        ("one op each: read, planned and run", readers.plan_and_run_tflite, ops, 0.2),
        ("ONNX: read", readers.read_onnx, onnx, 0.5),
    ]


def measure(read: Read, bases: list[Base], seeds: range) -> tuple[dict[str, Any], list[watch.Ending]]:
    """Return the figures of one row, and the endings that are not good."""
    started = time.perf_counter()
    prepare = partial(read, bases[0].data)
    *found, peak = watch.endings(read, bases, seeds, prepare=prepare)
    slowest = max(found, key=lambda ending: ending.seconds)
    bad = [ending for ending in found if not ending.is_good]
    row = {
        "files": len(found),
        "seeds": [seeds.start, seeds.stop],
        "outcomes": dict(sorted(Counter(ending.outcome for ending in found).items())),
        "mutations": dict(sorted(Counter(ending.mutation for ending in found).items())),
        "bad": len(bad),
        "slowest_ms": round(slowest.seconds * 1e3, 1),
        "slowest_file": [slowest.base, slowest.mutation, slowest.seed],
        "peak_mb": round(peak / 2**20, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return row, bad


def main() -> int:
    """Measure, print, save; 1 when a file ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="broken files made of the public models")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--models", type=Path, default=os.environ.get("TINYKD_MODELS"), help="folder of .tflite files")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    models = sorted(Path(arguments.models).glob("*.tflite")) if arguments.models else []
    if not models:
        sys.exit("name a folder with .tflite files: --models FOLDER, or set TINYKD_MODELS")
    console, rows, bad = Console(), [], []
    table = Table("files", "broken", "still graphs", "refused", "bad", "slowest ms", "peak MB")
    for title, read, bases, share in suites(models):
        seeds = range(arguments.seed, arguments.seed + max(int(arguments.count * share), 1))
        row, found = measure(read, bases, seeds)
        rows.append({"suite": title, **row})
        bad += found
        kept = row["outcomes"].get("graph", 0)
        refused = row["files"] - kept - row["bad"]
        figures = (row["files"], kept, refused, row["bad"], row["slowest_ms"], row["peak_mb"])
        table.add_row(title, *(str(figure) for figure in figures))
    console.print(table)
    for ending in bad[:20]:
        console.print(ending)
    if arguments.save:
        result = {
            "command": f"python -m benchmarks.hostile --count {arguments.count} --seed {arguments.seed} --save",
            "limits": {"seconds": watch.SECONDS, "bytes": watch.MEMORY_BYTES},
            "models": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in models},
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "suites": rows,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
