"""Models that together contain every op, on the emulated board: every activation, and the bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from opmix import MODELS
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.board import load_board
from tinykd.build.size import read_sizes
from tinykd.commands.bench import command
from tinykd.commands.pipeline import ensure_build, ensure_plan
from tinykd.commands.target import resolve_target
from tinykd.export import reference
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.plan.footprint import predict
from tinykd.run.activations import DeviceJudge
from tinykd.run.session import open_session
from tinykd.run.transport import open_emulator

pytestmark = [needs_unicorn, needs_arm_gcc]
BOARD = "nucleo-f746"
STACK_LIMIT_BYTES = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each model's file and run folder are kept, so that a model is built once."""
    return tmp_path_factory.mktemp("every_op")


def _target(folder: Path, name: str):
    path = folder / f"{name}.tflite"
    if not path.exists():
        path.write_bytes(tflite_writer.write(MODELS[name](20).graph(name)))
    return resolve_target(path, folder / name)


@pytest.mark.parametrize("name", MODELS)
def test_every_activation_on_the_board_equals_the_reference(folder, name):
    """Run op by op, every activation in the arena is the reference's; a state is forgotten between the inputs.

    The stack that was used stays within the bound that was proven, and both within 2 kB.
    """
    target, board = _target(folder, name), load_board(BOARD)
    built, (plan, _) = ensure_build(target, board), ensure_plan(target, board)
    graph = target.engine_graph()
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (3, *graph.tensor(graph.inputs[0]).shape[1:])).astype(np.int8)
    expected = reference.run(graph, x, keep_all=True)
    with open_session(open_emulator("unicorn", built.elf, board), baud=board.baud) as session:
        judge = DeviceJudge(session, graph, plan, [op.graph_op for op in built.ops])
        for index, sample in enumerate(x):
            judge.reset()
            found = judge.run({graph.inputs[0]: sample[None]})
            for op in graph.ops:
                for output in op.outputs:
                    assert np.array_equal(found[output][0], expected[output][index]), f"{op.kind} {output}"
        measured = session.transport.stack_bytes_measured
    assert 0 < measured <= built.stack_bytes_max <= STACK_LIMIT_BYTES


@pytest.mark.parametrize("name", MODELS)
def test_the_bench_of_every_op_equals_the_host(folder, name):
    """`tinykd bench` finds no difference to the host: int32 classes and models with memory included."""
    target = _target(folder, name)
    arguments = [str(target.model), "--board", BOARD, "--out", str(target.folder), "--json", "--samples", "6"]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.exception is None, done.exception
    result = json.loads(done.stdout)
    assert (result["samples"], result["outputs_equal"], result["agree"]) == (6, True, 1.0)
    assert result["host"] in ("tflite-micro", "numpy-reference")


@pytest.mark.parametrize("name", MODELS)
def test_the_prediction_holds_for_every_op(folder, name):
    """Plan and build agree: the arena to the byte, flash and SRAM within 2 %, also where joins are placed."""
    target, board = _target(folder, name), load_board(BOARD)
    built, (plan, _) = ensure_build(target, board), ensure_plan(target, board)
    predicted = predict(target.engine_graph(), board, plan)
    due = "run: python -m tinykd.build.footprint"
    assert predicted["arena_bytes"] == read_sizes(built.elf).arena_bytes
    assert predicted["flash_bytes"] == pytest.approx(built.flash_bytes, rel=0.02), due
    assert predicted["sram_bytes"] == pytest.approx(built.sram_total_bytes, rel=0.02), due
    assert predicted["model_bytes"] == pytest.approx(built.model_bytes, abs=16)
