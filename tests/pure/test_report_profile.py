"""The report's pages on speed: goals, kernels, cycles, functions; and records that no longer belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pure.test_report import BOARD, make_run, page_of, residual_graph

from tinykd.artifact import Manifest, draft_artifact, sha256_file, write_json
from tinykd.ir import Scratch
from tinykd.plan import plan_graph
from tinykd.report import charts, collect_records, render

GOALS = [
    {"optimize_for": "speed", "flash_bytes": 61_440, "fits": False, "estimated_instructions": 1_230_000},
    {"optimize_for": "balanced", "flash_bytes": 51_200, "fits": True, "estimated_instructions": 1_560_000},
    {"optimize_for": "size", "flash_bytes": 40_960, "fits": True, "estimated_instructions": 2_780_000},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of all stages, the benchmark with a profile."""
    folder = make_run(tmp_path / "run")
    goals = [{**row, "chosen": row["optimize_for"] == "balanced"} for row in GOALS]
    sizes = {"code_bytes": 9_000, "model_bytes": 30_000, "sram_bytes": 12_000}
    rewrite(folder, "plan", lambda plan: plan.update(goals=[{**row, **sizes} for row in goals]))
    rewrite(folder, "bench", with_profile)
    return folder


def with_profile(bench: dict[str, Any]) -> None:
    """Add what an emulator's benchmark says today."""
    total = bench["instructions_per_inference"]
    for row in bench["per_op"]:
        cost = row["instructions"]
        row.update(kernel=f"tk_{row['kind']}_fast", cycles_low=cost // 2, estimated_cycles=cost, cycles_high=2 * cost)
    names = [f"function_{index}" for index in range(14)]
    bench["by_function"] = [{"function": name, "instructions": 100, "estimated_cycles": 150} for name in names]
    bench.update(cycles_low=total // 2, estimated_cycles=total, cycles_high=2 * total, optimize_for="balanced")


def rewrite(run: Path, stage: str, change: Callable[[dict[str, Any]], object], **manifest: Any) -> None:
    """Change a stage's record, and its manifest where `manifest` says so."""
    folder = run / "boards" / BOARD / stage
    old = Manifest(**json.loads((folder / "manifest.json").read_text()))
    files = {name: (folder / name).read_bytes() for name in old.outputs}
    record = json.loads(files[f"{stage}.json"])
    change(record)
    with draft_artifact(
        folder, stage, inputs={**old.inputs, **manifest.get("inputs", {})}, config=manifest.get("config"), board=BOARD
    ) as draft:
        draft.results.update(old.results)
        for name, data in files.items():
            draft.path(name).write_bytes(data)
        write_json(draft.path(f"{stage}.json"), record)


def nothing(record: dict[str, Any]) -> None:
    """Leave a record as it is."""


def test_the_page_shows_kernels_cycles_and_functions(run: Path) -> None:
    """Every kernel and the range of cycles are there; of the functions the first ten, and the rest in one row."""
    text = "".join(page_of(run).text.split())
    bench = collect_records(run).boards[0].bench.results
    for row in bench["per_op"]:
        assert row["kernel"] in text
        assert f"{row['estimated_cycles']:,}" in text
    assert f"{bench['cycles_low']:,}to{bench['cycles_high']:,}" in text
    assert "function_91007.1%150" in text and "4others40028.6%–" in text
    assert "function_10" not in text
    assert "kernelsforbalanced" in text


def test_the_page_compares_the_goals(run: Path) -> None:
    """One row for each goal; the chosen one and those that do not fit are marked."""
    text = "".join(page_of(run).text.split())
    assert "speed1.23M8.8kB29.3kB60.0kB11.7kBdoesnotfit" in text
    assert "balanced1.56M8.8kB29.3kB50.0kB11.7kBchosen" in text
    assert text.count("chosen") == 1


def test_records_from_before_profiles_are_still_shown(tmp_path: Path) -> None:
    """A benchmark without kernels, functions and ranges gives the table without them."""
    text = page_of(make_run(tmp_path / "run")).text
    assert "Layer by layer" in text
    assert "Function by function" not in text and "Speed against size" not in text


@pytest.mark.parametrize(
    ("stage", "manifest", "statuses"),
    [
        ("plan", {"config": {"optimize_for": "size"}}, ("done", "out of date", "out of date")),
        ("build", {"config": {"optimize_for": "size"}}, ("done", "out of date", "out of date")),
        ("bench", {"config": {"optimize_for": "size"}}, ("done", "done", "out of date")),
        ("bench", {"inputs": {"firmware.elf": "e" * 64}}, ("done", "done", "out of date")),
        ("bench", {"config": {"optimize_for": "balanced"}}, ("done", "done", "done")),
    ],
)
def test_numbers_of_different_goals_are_not_mixed(
    run: Path, stage: str, manifest: dict[str, Any], statuses: tuple[str, ...]
) -> None:
    """What was built or benched for another goal than the plan's, or with another ELF, is out of date."""
    rewrite(run, stage, nothing, **manifest)
    board = collect_records(run).boards[0]
    assert (board.plan.status, board.build.status, board.bench.status) == statuses
    assert ("Function by function" in page_of(run).text) == (board.bench.status == "done")


def test_a_bench_of_the_built_elf_is_shown(run: Path) -> None:
    """The same ELF in both manifests belongs together."""
    elf = sha256_file(run / "boards" / BOARD / "build" / "firmware.elf")
    rewrite(run, "bench", nothing, inputs={"firmware.elf": elf})
    assert collect_records(run).boards[0].bench.status == "done"


def test_scratch_memory_is_drawn() -> None:
    """Each op's scratch memory has a box of its own, told apart from buffers."""
    graph = residual_graph()
    plan = plan_graph(graph)
    with_scratch = replace(plan, scratch=(Scratch(0, 0, 64), Scratch(2, 128, 32)))
    labels = [op.kind for op in graph.ops]
    before, after = (charts.arena_chart(item, labels) for item in (plan, with_scratch))
    assert (before.count('class="scratch'), after.count('class="scratch')) == (0, 2)
    assert before.count('class="buffer') == after.count('class="buffer')
    assert "scratch memory of op 2: 32 B at 128" in after


def test_the_range_stands_beside_the_latency() -> None:
    """An estimated latency names its range of cycles."""
    bench = {"latency_us": 1500.0, "latency_kind": "estimated", "instructions_per_inference": 10, "estimated_cycles": 8}
    fact = render.latency({**bench, "cycles_low": 6, "cycles_high": 11})
    assert fact is not None and fact.note.endswith("8 cycles (from 6 to 11)")
