"""Counts what another compiler's C takes for the same models, on the same emulated core: `--peer bakenn`.

BakeNN (PyPI, Apache-2.0) compiles a `.tflite` to C, by default with kernels of its own and, where asked, with those of
CMSIS-NN that it carries. It lives in an environment of its own and nothing of it enters this repository. What it
refuses is put to it again in smaller pieces, and its own words are kept: sizes spelt out, then the graph up to the op
that it named.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engine.models import Case, all_models, find_cases
from tinykd.artifact import sha256_file
from tinykd.build.bare import MACHINE_FLAGS, SRAM_ORIGIN, build_kernels, link_script
from tinykd.build.toolchain import compile_objects, compiler_version, link_objects
from tinykd.commands.bare_stage import run_bare
from tinykd.export import oracle, reference
from tinykd.export.optimize import optimize
from tinykd.export.passes import float_edges_to_host, for_engine
from tinykd.formats import tflite
from tinykd.formats.tflite import writer
from tinykd.ir import Graph, graph_macs
from tinykd.kernels import engine_for
from tinykd.run.bare import BareMachine

REQUIREMENT = "bakenn[tflite]==1.0.0"
RESULTS = Path(__file__).parents[1] / "results" / "engine-peer-bakenn.json"
OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "CBackendOptions(target=CORTEX_M4)",
        "CMSIS-NN": "CBackendOptions(kernel_policy=KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True, "
        "target=CORTEX_M4)",
    }
)
"""The code for a Cortex-M4 is that for a Cortex-M7, too: the peer knows no other core with the DSP extension."""

_GENERATE = """
import pathlib, sys
import bakenn
from bakenn import CBackendOptions, CORTEX_M4, KernelPolicy
try:
    bakenn.compile_tflite(pathlib.Path(sys.argv[1]), sys.argv[2], name="model", backend_options=eval(sys.argv[3]))
except bakenn.BakeNNError as error:
    sys.exit(f"{error}")
"""
_BUFFERS = """#include "bknn_model.h"
uint8_t peer_arena[BKNN_MODEL_ARENA_SIZE + 1] __attribute__((aligned(16)));
int8_t peer_input[BKNN_MODEL_INPUT_BYTES] __attribute__((aligned(16)));
int8_t peer_output[BKNN_MODEL_OUTPUT_BYTES] __attribute__((aligned(16)));
"""
_KEPT = ("bknn_model_infer", "peer_arena", "peer_input", "peer_output")


@dataclass(frozen=True)
class Ours:
    """What TFLite Micro says to an input, and what our code takes for it."""

    output: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True)
class Offer:
    """What the peer is given of a model."""

    what: str
    graph: Graph
    data: bytes


def compare_peer(arguments: argparse.Namespace, console: Console) -> int:
    """Count, print, save with `--save`; return the exit code."""
    cases, missing = find_cases(arguments.models or list(all_models()), arguments.folder, arguments.standins)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).resolve()
        python = environment(arguments.venv or work / "bakenn")
        cores = [core for core in arguments.cores if engine_for(core).isa != "portable"]
        kernels = {core: build_kernels(core, work / "kernels" / core) for core in cores}
        jobs = [(case, core, python, work, kernels[core]) for case in cases for core in cores]
        with ProcessPoolExecutor(arguments.jobs) as pool:
            rows = [row for found in pool.map(measure_case, jobs) for row in found]
    for sentence in missing:
        print(f"skipped {sentence}", file=sys.stderr)
    console.print(make_table(rows))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    if arguments.save:
        provenance = {
            "command": "python -m benchmarks.engine --peer bakenn --save",
            "peer": REQUIREMENT,
            "peer_flags": "-O3",
            "compiler": compiler_version(),
            "python": platform.python_version(),
        }
        saved = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
        kept = {(row["model"], row["core"], row["kernels"]): row for row in (*saved, *rows)}
        ordered = [kept[key] for key in sorted(kept)]
        RESULTS.write_text(json.dumps({"provenance": provenance, "rows": ordered}, indent=1, sort_keys=True) + "\n")
    return 0


def environment(folder: Path) -> Path:
    """Return the Python of the peer's virtual environment, made where there is none."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
    return python


def measure_case(job: tuple[Case, str, Path, Path, Path]) -> list[dict[str, Any]]:
    """Return a row for each kind of kernels of the peer, beside ours on the very graph that it took.

    Args:
        job: the model, the core, the peer's Python, a folder to work in, our kernels compiled for the core.
    """
    case, core, python, work, kernels = job
    rows = []
    ours: dict[str, Ours] = {}
    for kind, options in OPTIONS.items():
        folder = work / f"peer-{case.model.name}-{core}-{kind}"
        offer, refusals = first_accepted(case, python, options, folder)
        row: dict[str, Any] = {
            "model": case.model.name,
            "model_sha256": sha256_file(case.path),
            "core": core,
            "kernels": kind,
            "refusals": refusals,
        }
        if offer is not None:
            shape = offer.graph.tensor(offer.graph.inputs[0]).shape
            x = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
            if offer.what not in ours:
                ours[offer.what] = run_ours(offer, core, x, folder, kernels)
            row |= {"taken": offer.what, "macs": graph_macs(offer.graph), **ours[offer.what].counts}
            row |= run_peer(folder, core, x, ours[offer.what].output)
        rows.append(row)
    return rows


def run_ours(offer: Offer, core: str, x: np.ndarray, folder: Path, kernels: Path) -> Ours:
    """Run the graph that the peer took with our kernels for two goals."""
    activations = dict(reference.run(offer.graph, x, keep_all=True))
    output = activations[offer.graph.outputs[0]].reshape(-1)
    if oracle.is_available():
        output = oracle.Oracle(offer.data).outputs(x)[0]
    counts = {}
    for goal in ("balanced", "speed"):
        run = run_bare(offer.graph, core, engine_for(core, goal), folder / goal, x, activations, kernels)
        counts[f"tinykd_{goal}"] = run.instructions
        counts["tinykd_different"] = counts.get("tinykd_different", 0) + len(run.wrong)
    return Ours(output, counts)


def first_accepted(case: Case, python: Path, options: str, folder: Path) -> tuple[Offer | None, list[str]]:
    """Return what the peer compiled into `folder`, None where nothing helps, and what it said to everything before."""
    refusals: list[str] = []
    offers = _offers(case)
    offer: Offer | None = next(offers)
    while offer is not None:
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.tflite"
        model.write_bytes(offer.data)
        # The peer writes into an empty folder only.
        shutil.rmtree(folder / "generated", ignore_errors=True)
        command = [str(python), "-c", _GENERATE, str(model), str(folder / "generated"), options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return offer, refusals
        words = done.stderr.strip().splitlines()[-1]
        refusals.append(f"{offer.what}: {words}")
        offer = next(offers, None) or _cut(offer, words)
    return None, refusals


def _offers(case: Case) -> Iterator[Offer]:
    graph = tflite.read(case.path, case.model.name)
    if not case.model.optimized:
        yield Offer("the file", for_engine(graph), case.path.read_bytes())
    inner = float_edges_to_host(optimize(graph)[0] if case.model.optimized else graph)
    yield Offer("written again with batch 1", for_engine(inner), writer.write(inner))


def _cut(offer: Offer, words: str) -> Offer | None:
    """Return the graph up to the op that the peer named, None where it named none."""
    found = re.search(r"operator\[(\d+)\]", words)
    if found is None or int(found[1]) == 0:
        return None
    whole = tflite.read_bytes(offer.data, "model")
    op = whole.ops[int(found[1])]
    graph = replace(whole, outputs=op.inputs[:1]).with_ops(whole.ops[: int(found[1])])
    return Offer(f"up to its {op.kind}", for_engine(graph), writer.write(graph))


def run_peer(folder: Path, core: str, x: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Compile what the peer generated with -O3, run one input and return counts and sizes."""
    generated = folder / "generated"
    (generated / "peer_buffers.c").write_text(_BUFFERS)
    (generated / "bare.ld").write_text(link_script(_KEPT))
    sources = [path.relative_to(generated).as_posix() for path in sorted(generated.rglob("*.c"))]
    headers = sorted(generated.rglob("*.h"))
    machine = MACHINE_FLAGS[core]
    flags = ["-O3", "-std=c11", "-ffunction-sections", "-fdata-sections", "-fcallgraph-info=su", "-fstack-usage"]
    includes = sorted({f"-I{path.parent.relative_to(generated).as_posix()}" for path in headers})
    objects = compile_objects(sources, generated, [*flags, *machine, *includes], headers)
    link = [*machine, "-nostartfiles", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments", "-Tbare.ld"]
    machine_model = BareMachine(link_objects(objects, generated, link), core)
    symbols = machine_model.firmware.symbols
    machine_model.write(symbols["peer_input"], x.tobytes())
    machine_model.paint_stack()
    profile = machine_model.profile(
        "bknn_model_infer", symbols["peer_arena"], symbols["peer_input"], symbols["peer_output"]
    )
    found = np.frombuffer(machine_model.read(symbols["peer_output"], expected.size), np.int8)
    arena = re.search(r"MODEL_ARENA_SIZE (\d+)u", (generated / "bknn_model.h").read_text())
    return {
        "instructions": profile.instructions,
        "outputs_equal": bool(np.array_equal(found, expected)),
        "stack_bytes_measured": machine_model.stack_bytes(),
        "flash_bytes": sum(len(data) for at, data in machine_model.firmware.segments if at < SRAM_ORIGIN),
        "arena_bytes": int(arena[1]) if arena else None,
    }


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Return the counts side by side."""
    table = Table("model", "core", "peer's kernels", "taken", box=box.SIMPLE_HEAD)
    for title in ("peer", "per MAC", "equal to TFLM", "tinykd balanced", "tinykd speed", "ratio"):
        table.add_column(title, justify="right")
    for row in rows:
        start = (row["model"], row["core"].removeprefix("cortex-"), row["kernels"])
        if "instructions" not in row:
            table.add_row(*start, row["refusals"][-1])
            continue
        table.add_row(
            *start,
            row["taken"],
            f"{row['instructions']:,}",
            f"{row['instructions'] / row['macs']:.2f}",
            "yes" if row["outputs_equal"] else "NO",
            f"{row['tinykd_balanced']:,}" + (" WRONG" if row["tinykd_different"] else ""),
            f"{row['tinykd_speed']:,}",
            f"{row['instructions'] / row['tinykd_balanced']:.2f} x",
        )
    return table
