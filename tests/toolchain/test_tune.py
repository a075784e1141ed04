"""`tinykd tune`: every kernel that could run an op is measured, none changes a result, the best is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder
from sim.fakeboard import needs_unicorn

from tinykd.commands import tune
from tinykd.commands.bare_stage import run_bare
from tinykd.errors import ConfigError, InternalError
from tinykd.export import reference
from tinykd.formats.tflite import writer
from tinykd.kernels import Engine, engine_for, select, signature, tuning

pytestmark = [pytest.mark.arm_compiler, needs_unicorn]


@pytest.fixture(scope="module")
def graph():
    """A small network of layers for which there are several kernels; two convolutions share a signature."""
    builder = Builder(np.random.default_rng(11), (1, 6, 6, 4))
    builder.conv(8, (3, 3), (1, 1), activation="relu")
    builder.depthwise(1, (3, 3), (1, 1), activation="relu")
    builder.conv(8, (1, 1), activation="relu")
    builder.conv(8, (1, 1), activation="relu")
    builder.mean()
    builder.dense(12)
    return builder.graph()


@pytest.fixture(scope="module")
def rows(graph, tmp_path_factory):
    """The measurements of that network."""
    return tune.measure_variants(graph, "cortex-m7", tmp_path_factory.mktemp("tune"))


def test_every_kernel_for_every_op_is_measured(graph, rows):
    """One row for each kernel and signature, over all ops that share it; somewhere there is a choice."""
    found = {(row.signature, row.variant) for row in rows}
    expected = {(key, kernel.variant) for key, able in tune.variants_of(graph).items() for kernel in able}
    assert found == expected
    assert len(rows) == len(found)
    assert len({row.signature for row in rows}) < len(rows), "no op has two kernels"
    twice = signature(graph, graph.ops[2])
    assert {row.count for row in rows if row.signature == twice} == {2}


def test_counts_and_bytes_are_those_of_a_build_with_that_choice(graph, rows, tmp_path):
    """A build with a choice takes what the tuner said: instructions in the emulator, bytes of the arrays."""
    row = next(row for row in rows if row.count == 2 and row.variant == "packed")
    engine = Engine("armv7em", "balanced", {row.signature: row.variant})
    x = np.random.default_rng(0).integers(-128, 128, graph.tensor(graph.inputs[0]).shape, dtype=np.int8)
    run = run_bare(graph, "cortex-m7", engine, tmp_path, x, dict(reference.run(graph, x, keep_all=True)))
    ops = [op for op in run.ops if signature(graph, graph.ops[op.graph_op]) == row.signature]
    assert run.wrong == ()
    # Other ops lie elsewhere in flash and arena, which retires the same instructions.
    assert sum(op.instructions for op in ops) == row.instructions
    calls = [call for op in ops for call in select(graph, graph.ops[op.graph_op], "", engine)]
    assert sum(array.nbytes for call in calls for array in call.arrays.values()) == row.constant_bytes


def test_the_command_keeps_the_best_and_the_engine_takes_it(graph, tmp_path, monkeypatch):
    """From then on the kernel of each op is the cheapest measured one, for each goal."""
    model = tmp_path / "model.tflite"
    model.write_bytes(writer.write(graph))
    monkeypatch.setenv(tuning.TUNED_VARIABLE, str(tmp_path / "own.toml"))
    done = CliRunner().invoke(tune.command, [str(model), "--core", "cortex-m7", "--json"], standalone_mode=False)
    assert done.exception is None, done.exception
    result = json.loads(done.stdout)
    rows = [tune.Measured(**row) for row in result["measured"]]
    assert result["file"] == str(tmp_path / "own.toml")
    for goal in ("speed", "balanced", "size"):
        for key, (best, _) in tune.winners(rows, goal).items():
            op = next(op for op in graph.ops if signature(graph, op) == key)
            chosen = select(graph, op, "", engine_for("cortex-m7", goal))[0]
            wanted = select(graph, op, "", Engine("armv7em", goal, {key: best.variant}))[0]
            assert (chosen.function, chosen.struct) == (wanted.function, wanted.struct), (goal, key)


@pytest.mark.parametrize("arguments", [[], ["--core", "cortex-m0plus"], ["--core", "cortex-m7", "--board", "x"]])
def test_a_core_with_choices_is_needed(arguments):
    """Neither, both, or a core on which every op has one kernel: refused before anything is read."""
    done = CliRunner().invoke(tune.command, ["model.tflite", *arguments], standalone_mode=False)
    assert isinstance(done.exception, ConfigError)


def test_kernels_of_one_variant_are_a_bug(graph, monkeypatch):
    """Two kernels that no choice could tell apart are refused."""
    from tinykd import kernels

    table = {kind: (*rows, *rows) for kind, rows in kernels.ARMV7EM.items()}
    monkeypatch.setattr(kernels, "ARMV7EM", table)
    with pytest.raises(InternalError, match="share the name"):
        tune.variants_of(graph)
