"""`tinykd verify --board`: every activation of the emulated firmware equals the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from graphs import random_network
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.board import load_board
from tinykd.commands.pipeline import ensure_build, ensure_plan
from tinykd.commands.target import resolve_target
from tinykd.commands.verify import command
from tinykd.errors import UnsupportedModelError
from tinykd.export import parity
from tinykd.formats import tflite_writer
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
