"""Measures one model on one core for one goal: built bare, run in the emulator, compared with TFLite Micro."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.models import Case
from tinykd.artifact import sha256_file
from tinykd.commands.bare_stage import run_bare
from tinykd.commands.target import Target, resolve_target
from tinykd.commands.tune import Measured, measure_variants
from tinykd.export import reference
from tinykd.export.optimize import optimize
from tinykd.export.passes import for_engine
from tinykd.ir import Graph, graph_macs
from tinykd.kernels import OptimizeFor, engine_for

SEED = 0


@dataclass(frozen=True)
class Job:
    """One row to measure.

    Attributes:
        folder: where this row is built.
        kernels: objects of the core's kernels, made beforehand.
        inputs: how many inputs are compared; the first one is counted, each of its activations compared.
    """

    case: Case
    core: str
    goal: OptimizeFor
    folder: Path
    kernels: Path
    inputs: int


@dataclass(frozen=True)
class Expected:
    """A model with inputs (N, ...) and what must come out: activations of the first one, outputs of all (N, bytes)."""

    graph: Graph
    x: np.ndarray
    activations: dict[str, np.ndarray]
    outputs: np.ndarray
    judge: str


def measure(job: Job) -> dict[str, Any]:
    """Return a row of the table: counts, sizes, and whether everything equals."""
    model = job.case.model
    expected = _expected(job.case.path, model.optimized, job.inputs)
    graph = expected.graph
    engine = engine_for(job.core, job.goal)
    run = run_bare(graph, job.core, engine, job.folder, expected.x[:1], expected.activations, job.kernels)
    size = graph.tensor(graph.outputs[0]).num_bytes
    found = [np.frombuffer(run.model.run(x, size), np.int8) for x in expected.x]
    macs = graph_macs(graph)
    kinds: dict[str, Counter[str]] = {}
    for op in run.ops:
        kinds.setdefault(op.kind, Counter()).update(ops=1, macs=op.macs, instructions=op.instructions)
    return {
        "model": model.name,
        "model_sha256": sha256_file(job.case.path),
        "core": job.core,
        "goal": job.goal,
        "isa": engine.isa,
        "instructions": run.instructions,
        "macs": macs,
        "per_mac": round(run.instructions / macs, 4) if macs else None,
        "arena_bytes": run.arena_bytes,
        "stack_bytes": run.sizes.stack_bytes,
        "stack_bytes_measured": run.stack_bytes,
        "code_bytes": run.sizes.code_bytes,
        "model_bytes": run.sizes.model_bytes,
        "activations": len(expected.activations),
        "activations_different": list(run.wrong),
        "inputs": len(expected.x),
        "inputs_different": sum(not np.array_equal(*pair) for pair in zip(found, expected.outputs, strict=True)),
        "judge": expected.judge,
        "by_kind": {kind: dict(counts) for kind, counts in kinds.items()},
        "per_op": [
            {"op": op.graph_op, "kind": op.kind, "kernel": op.kernel, "macs": op.macs, "instructions": op.instructions}
            for op in run.ops
        ],
    }


def is_exact(row: dict[str, Any]) -> bool:
    """Whether nothing of a row differs from TFLite Micro."""
    return not row["activations_different"] and not row["inputs_different"]


def engine_graph(target: Target, optimized: bool) -> Graph:
    """Return what the firmware computes, after `tinykd optimize` where that is wanted."""
    stored = target.graph()
    return for_engine(optimize(stored)[0] if optimized else stored)


def tune_case(job: tuple[Case, str, Path, Path]) -> list[Measured]:
    """Return what each kernel takes for a model: (model, core, folder to build in, kernels of the core)."""
    case, core, folder, kernels = job
    return measure_variants(engine_graph(resolve_target(case.path), case.model.optimized), core, folder, kernels)


@lru_cache(maxsize=2)
def _expected(path: Path, optimized: bool, inputs: int) -> Expected:
    from tinykd.commands.pipeline import host_outputs

    target = resolve_target(path)
    graph = engine_graph(target, optimized)
    shape = graph.tensor(graph.inputs[0]).shape
    x = np.random.default_rng(SEED).integers(-128, 128, (inputs, *shape[1:]), dtype=np.int8)
    for index, value in enumerate((-128, 127), start=1):
        x[index : index + 1] = value
    outputs, judge = host_outputs(target, x)
    activations = reference.run(graph, x[:1], keep_all=True)
    return Expected(graph, x, dict(activations), outputs.reshape(len(x), -1).view(np.int8), judge)
