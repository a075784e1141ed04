"""`tinykd verify --board`: every activation of the emulated firmware equals the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder, random_network
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.board import load_board
from tinykd.commands.pipeline import ensure_build, ensure_plan
from tinykd.commands.target import resolve_target
from tinykd.commands.verify import command
from tinykd.errors import UnsupportedModelError
from tinykd.export import parity
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import MemoryPlan
from tinykd.run.activations import DeviceJudge
from tinykd.run.session import open_session
from tinykd.run.transport import open_emulator

pytestmark = [needs_unicorn, needs_arm_gcc]
BOARD = "nucleo-f746"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network as a file; `run` beside it is its folder, built once."""
    path = tmp_path_factory.mktemp("verify") / "random.tflite"
    path.write_bytes(tflite_writer.write(random_network(11).graph()))
    return path


def test_every_activation_of_the_firmware_is_equal(model: Path) -> None:
    """All ops and outputs of the emulated device are compared, and none differs."""
    done = CliRunner().invoke(
        command,
        [str(model), "--out", str(model.parent / "run"), "--board", BOARD, "--oracle", "firmware", "--json"]
        + ["--samples", "4"],
        standalone_mode=False,
    )
    assert done.exception is None, done.exception
    result: dict[str, Any] = json.loads(done.stdout)
    graph = resolve_target(model, model.parent / "run").engine_graph()
    assert result["oracle"] == f"firmware ({BOARD}, unicorn)"
    assert (result["mismatches"], result["ops_checked"]) == (0, len(graph.ops))
    activations = sum(graph.tensor(name).num_elements for op in graph.ops for name in op.outputs)
    assert result["values_checked"] == 4 * (activations + graph.tensor(graph.outputs[0]).num_elements)


def test_a_wrong_activation_on_the_device_is_found(model: Path) -> None:
    """With an activation looked for in the wrong place, the op that writes it is the one that is named."""
    target, board = resolve_target(model, model.parent / "run"), load_board(BOARD)
    built = ensure_build(target, board)
    plan, _ = ensure_plan(target, board)
    graph = target.engine_graph()
    number = len(graph.ops) // 2
    name = graph.ops[number].outputs[0]
    moved = tuple(
        item if item.tensor != name else type(item)(**{**item.__dict__, "offset": item.offset + 1})
        for item in plan.placements
    )
    wrong = MemoryPlan(**{**plan.__dict__, "placements": moved})
    with open_session(open_emulator("unicorn", built.elf, board), baud=board.baud) as session:
        steps = [op.graph_op for op in built.ops]
        judge = DeviceJudge(session, graph, wrong, steps)
        result = parity.compare_judge(graph, judge, parity.sample_inputs(graph, 2, 1))
        assert result.first_mismatch is not None
        assert (result.first_mismatch.op, result.first_mismatch.place) == (number, "activation")
        with pytest.raises(UnsupportedModelError, match="the firmware runs"):
            DeviceJudge(session, graph, plan, steps[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_devices_state_goes_on_or_starts_again(tmp_path: Path, stream: bool) -> None:
    """Without --stream the device restarts before each input; with it, every input goes on from the one before."""
    builder = Builder(np.random.default_rng(0), (1, 24))
    builder.svdf(6, rank=2, memory=4)
    builder.svdf(3)
    path = tmp_path / "state.tflite"
    path.write_bytes(tflite_writer.write(builder.graph()))
    arguments = [str(path), "--out", str(tmp_path / "run"), "--board", BOARD, "--oracle", "firmware", "--samples", "6"]
    done = CliRunner().invoke(command, [*arguments, "--json", *(["--stream"] if stream else [])], standalone_mode=False)
    assert done.exception is None, done.exception
    result = json.loads(done.stdout)
    assert (result["mismatches"], result["values_checked"]) == (0, 6 * (6 + 3 + 3))


def test_the_engines_graph_is_what_is_compared(tmp_path: Path) -> None:
    """Float edges stay on the host and pads inside convolutions: the ops between are compared, many kinds of them."""
    builder = Builder(np.random.default_rng(3), (1, 12, 12, 4), "float32")
    builder.quantize()
    builder.pad((0, 1, 0, 1))
    start = builder.conv(8, (3, 3), (2, 2), same=False, activation="relu")
    builder.unary("hard_swish")
    builder.sub(start)
    parts = builder.split((2, 4, 2), 3)
    builder.x = parts[1]
    builder.unary("logistic")
    builder.mul(parts[1])
    builder.transpose_conv(4, (2, 2), (2, 2))
    builder.transpose((0, 2, 1, 3))
    builder.mean()
    builder.dense(10)
    builder.softmax()
    builder.dequantize()
    path = tmp_path / "many.tflite"
    path.write_bytes(tflite_writer.write(builder.graph()))
    done = CliRunner().invoke(
        command,
        [str(path), "--out", str(tmp_path / "run"), "--board", BOARD, "--oracle", "firmware", "--json"]
        + ["--samples", "3"],
        standalone_mode=False,
    )
    assert done.exception is None, done.exception
    result = json.loads(done.stdout)
    assert (result["mismatches"], result["ops_checked"]) == (0, len(builder.ops) - 3)
