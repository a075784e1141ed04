"""`python -m benchmarks.engine`: what it counts is what the firmware takes, and beyond a budget it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Builder, public_models
from sim.fakeboard import needs_arm_gcc, needs_unicorn
from sim.test_bench_command import bench

from tinykd.build.toolchain import compiler_version
from tinykd.formats.tflite import writer

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks" / "engine").is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.engine import __main__ as engine  # noqa: E402
from benchmarks.engine import budgets, measure, models, peer, standins  # noqa: E402

ROW = {"model": "m", "core": "cortex-m7", "goal": "speed", "instructions": 1000, "code_bytes": 1000}
ROW |= {"stack_bytes": 100, "arena_bytes": 100}
BUDGET = {"m": {"cortex-m7": {"speed": {key: ROW[key] for key in budgets.KEYS}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network as a file."""
    builder = Builder(np.random.default_rng(2), (1, 9, 8, 3))
    builder.conv(8, (3, 3), (2, 2), activation="relu6")
    builder.depthwise(1, (3, 3), (1, 1))
    builder.conv(12, (1, 1), activation="relu")
    builder.mean()
    builder.dense(5)
    builder.softmax()
    path = tmp_path_factory.mktemp("model") / "small.tflite"
    path.write_bytes(writer.write(builder.graph()))
    return path


def run(*arguments):
    """Run the benchmark as a user does; return its exit code, stdout and stderr."""
    command = [sys.executable, "-m", "benchmarks.engine", "--jobs", "1", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )
    return done.returncode, done.stdout, done.stderr


@needs_unicorn
@needs_arm_gcc
def test_the_command_measures_cores_and_goals(model):
    """A row for each core and goal that differ, equal to the judge; without a budget the check fails."""
    code, out, errors = run(
        "--models", model, "--cores", "cortex-m0plus,cortex-m7", "--goals", "speed,size", "--json", "--check"
    )
    rows = {(row["core"], row["goal"]): row for row in json.loads(out)}
    portable = {("cortex-m0plus", "balanced")}
    assert set(rows) == portable | {("cortex-m7", goal) for goal in ("speed", "size")}
    assert all(measure.is_exact(row) and engine.is_stack_proven(row) for row in rows.values())
    assert all(row["activations"] == 7 and row["inputs"] == 3 for row in rows.values())
    speed, size = rows["cortex-m7", "speed"], rows["cortex-m7", "size"]
    assert speed["instructions"] <= size["instructions"]
    assert size["model_bytes"] <= speed["model_bytes"]
    assert rows["cortex-m0plus", "balanced"]["instructions"] > speed["instructions"]
    assert code == 1
    assert "small cortex-m7 speed: no budget for instructions" in errors


@needs_unicorn
@needs_arm_gcc
def test_a_bare_image_takes_what_the_firmware_takes(model, tmp_path):
    """Op by op the same instructions as in the whole firmware on the board with that core."""
    case = models.Case(models.Model("small", {}), model)
    kernels = engine.build_kernels("cortex-m7", tmp_path / "kernels")
    row = measure.measure(measure.Job(case, "cortex-m7", "balanced", tmp_path / "bare", kernels, 1))
    x = measure._expected(model, False, 1).x
    np.save(tmp_path / "x.npy", x)
    result = bench(model, tmp_path / "run", "--data", str(tmp_path / "x.npy"))
    bare = [(op["kind"], op["instructions"]) for op in row["per_op"]]
    assert bare == [(op["kind"], op["instructions"]) for op in result["per_op"]]
    assert row["instructions"] == pytest.approx(result["instructions_per_inference"], rel=0.01)


def test_wrong_outputs_are_not_exact():
    """One activation or one input that differs is enough."""
    assert measure.is_exact({"activations_different": [], "inputs_different": 0})
    assert not measure.is_exact({"activations_different": ["y"], "inputs_different": 0})
    assert not measure.is_exact({"activations_different": [], "inputs_different": 1})


def test_a_figure_may_be_one_percent_off_its_budget():
    """More is worse, less is better, within 1 % is nothing; the words name row, key and change."""
    assert budgets.compare([ROW, {**ROW, "instructions": 1010}, {**ROW, "instructions": 990}], BUDGET) == []
    (worse,) = budgets.compare([{**ROW, "instructions": 1011}], BUDGET)
    (better,) = budgets.compare([{**ROW, "code_bytes": 989}], BUDGET)
    assert (worse.is_worse, better.is_worse) == (True, False)
    assert str(worse) == "m cortex-m7 speed: instructions 1,011, budget 1,000 (+1.1%)"
    grown = {**ROW, "stack_bytes": 104, "arena_bytes": 104}
    assert [change.key for change in budgets.compare([grown], BUDGET)] == ["stack_bytes", "arena_bytes"]


def test_a_row_without_a_budget_fails():
    """An unknown model, core or goal is not passed over."""
    for key in ("model", "core", "goal"):
        changes = budgets.compare([{**ROW, key: "other"}], BUDGET)
        assert len(changes) == len(budgets.KEYS)
        assert all(change.is_worse for change in changes)


def test_saved_budgets_leave_other_rows_alone(tmp_path):
    """Saving one row keeps what is known of others, and the next comparison finds nothing."""
    path = tmp_path / "budgets.json"
    budgets.save_budgets([ROW, {**ROW, "core": "cortex-m4"}], {}, path)
    budgets.save_budgets([{**ROW, "instructions": 500}], {}, path)
    known = budgets.read_budgets(path)
    assert budgets.compare([{**ROW, "instructions": 500}, {**ROW, "core": "cortex-m4"}], known) == []
    assert budgets.read_budgets(tmp_path / "none.json") == {}


def test_targets_by_core_goal_and_stand_in():
    """A Cortex-M4 may take 15 % more, `speed` may have its own, a stand-in is scaled by its multiply-accumulates."""
    known = models.all_models()
    resnet8, ad, mcunet = known["resnet8"], known["ad"], known["mcunet-5fps-80"]
    assert resnet8.limit("balanced", "cortex-m7", 1) == 16_000_000
    assert resnet8.limit("balanced", "cortex-m4", 1) == pytest.approx(18_400_000)
    assert resnet8.limit("balanced", "cortex-m0plus", 1) is None
    assert resnet8.limit("size", "cortex-m7", 1) is None
    assert (ad.limit("balanced", "cortex-m7", 1), ad.limit("speed", "cortex-m7", 1)) == (420_000, 330_000)
    assert mcunet.limit("balanced", "cortex-m7", 1_000_000) == pytest.approx(1_750_000)
    assert mcunet.figure("tinyengine", 11_580_000) == pytest.approx(42_700_000)
    assert resnet8.figure("tinyengine", 1) is None


def test_what_ci_checks_has_budgets():
    """Every row of --quick is in the committed budgets."""
    known = budgets.read_budgets()
    assert [row for row in engine.QUICK if not known.get(row[0], {}).get(row[1], {}).get(row[2])] == []


@needs_unicorn
@needs_arm_gcc
def test_the_engine_keeps_its_budgets():
    """What the public models and a stand-in take is within 1 % of what is committed; outputs are the judge's."""
    pytest.importorskip("torch", reason="the stand-in needs torch: tinykd[train]")
    if compiler_version() != budgets.budgets_compiler():
        pytest.skip(f"the budgets are of {budgets.budgets_compiler()}, this is {compiler_version()}")
    code, out, errors = run("--quick", "--check", "--json")
    measured = {(row["model"], row["core"], row["goal"]) for row in json.loads(out)}
    there = {row for row in engine.QUICK if public_models() or row[0].startswith("mcunet")}
    assert (code, measured) == (0, there), errors


def test_models_that_are_not_there_are_named(tmp_path):
    """A missing folder, a missing file and a file of one's own."""
    cases, missing = models.find_cases(["kws", "own.tflite"], None, tmp_path)
    assert ([case.model.name for case in cases], len(missing)) == (["own"], 1)
    assert missing[0].startswith("kws: mlperf__kws_ref_model.tflite needs --folder")
    assert "is not in" in models.find_cases(["kws"], tmp_path, tmp_path)[1][0]


def test_the_peer_is_given_the_graph_up_to_the_op_that_it_named(model):
    """Its words name an op by number; without a number, or with the first op, nothing is left to offer."""
    offers = list(peer._offers(models.Case(models.Model("small", {}), model)))
    assert [offer.what for offer in offers] == ["the file", "written again with batch 1"]
    cut = peer._cut(offers[1], "subgraph[0]/operator[5]: unsupported TFLite builtin operator code 25")
    assert (cut.what, len(cut.graph.ops), cut.graph.ops[-1].kind) == ("up to its softmax", 5, "fully_connected")
    assert peer._cut(offers[1], "no") is None
    assert peer._cut(offers[1], "operator[0]") is None


def test_a_stand_in_is_the_same_every_time_and_alive(tmp_path):
    """Seeded weights give the same file; activations are neither dead nor saturated; the shape is the zoo's."""
    pytest.importorskip("torch", reason="stand-ins need torch: tinykd[train]")
    from tinykd.commands.target import resolve_target
    from tinykd.export import reference

    path = standins.cached_standin("mcunet-10fps", 32, 10, tmp_path)
    assert path.read_bytes() == standins.make_standin("mcunet-10fps", 32, 10)
    graph = resolve_target(path).engine_graph()
    assert sum(op.kind == "depthwise_conv_2d" for op in graph.ops) == 15
    x = np.random.default_rng(0).integers(-128, 128, graph.tensor(graph.inputs[0]).shape, dtype=np.int8)
    for name, value in reference.run(graph, x, keep_all=True).items():
        assert np.ptp(value.astype(int)) > 20, name
        assert (np.abs(value.astype(int)) == 127).mean() <= 0.5, name
