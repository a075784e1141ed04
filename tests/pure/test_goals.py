"""Goals of the engine: what each would take, and which of them is recommended."""

from typing import get_args

import numpy as np
import pytest
from graphs import Builder

import tinykd.kernels as kernels_module
from tinykd.board import load_board
from tinykd.commands.output import GOALS as OFFERED
from tinykd.commands.pipeline import goal_of
from tinykd.commands.target import Target
from tinykd.config import FirmwareConfig, load_recipe
from tinykd.errors import DoesNotFitError
from tinykd.kernels import KERNELS, Cost, Kernel, OptimizeFor, engine_for
from tinykd.plan import plan_graph
from tinykd.plan.footprint import predict
from tinykd.plan.goals import GOALS, compare_goals
from tinykd.plan.summary import refusal, summarize

EXTRA_BYTES = 4000
BOARD = load_board("nucleo-f746")


@pytest.fixture
def graph(monkeypatch):
    """Three convolutions, each with two kernels: a fast one with many constants, a slow one with few."""
    plain = KERNELS["conv_2d"][-1]

    def with_copy(graph, op, where):
        (call,) = plain.calls(graph, op, where)
        arrays = {**call.arrays, "copy": np.full(EXTRA_BYTES, graph.ops.index(op), np.int8)}
        return (type(call)(**{**call.__dict__, "arrays": arrays, "scratch_bytes": 512}),)

    fast = Kernel(plain.function, plain.applies, with_copy, "widened", lambda graph, op: Cost(1000, EXTRA_BYTES))
    slow = Kernel(plain.function, plain.applies, plain.calls, "packed", lambda graph, op: Cost(3000, 0))
    monkeypatch.setattr(kernels_module, "ARMV7EM", {"conv_2d": (slow, fast)})
    builder = Builder(np.random.default_rng(0), (1, 8, 8, 4))
    for _ in range(3):
        builder.conv(4)
    return builder.graph()


def board_with_flash(size_bytes):
    """The board with another flash."""
    flash = BOARD.memory.flash.model_copy(update={"size_bytes": size_bytes})
    return BOARD.model_copy(update={"memory": BOARD.memory.model_copy(update={"flash": flash})})


def summary_of(graph, board, goal):
    """What `tinykd plan` finds."""
    return summarize(graph, plan_graph(graph, engine=engine_for(board.core, goal)), board, goal)


def test_every_goal_is_predicted_as_if_it_were_chosen(graph):
    """The rows of one goal's table are what the other goals' own plans say, and the chosen one is marked."""
    tables = {goal: summary_of(graph, BOARD, goal) for goal in GOALS}
    for goal, summary in tables.items():
        assert [row["optimize_for"] for row in summary["goals"] if row["chosen"]] == [goal] == [summary["optimize_for"]]
        for row in summary["goals"]:
            other = tables[row["optimize_for"]]
            assert (row["flash_bytes"], row["sram_bytes"], row["fits"]) == (
                other["flash_total_bytes"],
                other["sram_total_bytes"],
                other["fits"],
            )
            assert row["model_bytes"] == other["model_bytes"]


def test_speed_costs_flash_and_size_costs_instructions(graph):
    """Speed takes the fast kernels, size the small ones; balanced weighs 16 instructions against a byte."""
    speed, balanced, size = compare_goals(graph, BOARD, plan_graph(graph), "size")
    assert [row["estimated_instructions"] for row in (speed, balanced, size)] == [3000, 9000, 9000]
    assert speed["model_bytes"] - size["model_bytes"] == 3 * EXTRA_BYTES
    assert speed["sram_bytes"] > size["sram_bytes"]
    assert {key: balanced[key] for key in size if key not in ("optimize_for", "chosen")} == {
        key: size[key] for key in size if key not in ("optimize_for", "chosen")
    }


def test_another_goal_is_recommended_only_where_it_fits(graph):
    """A model whose fast form is too large is sent to the goal that fits; a hopeless one to a larger board."""
    plans = {goal: plan_graph(graph, engine=engine_for(BOARD.core, goal)) for goal in GOALS}
    speed, size = (predict(graph, BOARD, plans[goal], goal)["flash_bytes"] for goal in ("speed", "size"))
    error = refusal(summary_of(graph, board_with_flash(speed - 1), "speed"))
    assert isinstance(error, DoesNotFitError)
    assert "--optimize-for balanced" in error.next_step
    assert f"{size:,} B of flash".replace(",", " ") in error.next_step
    hopeless = summary_of(graph, board_with_flash(size - 1), "size")
    assert not hopeless["fits"]
    assert "--optimize-for" not in refusal(hopeless).next_step


def test_ops_that_only_move_bytes_in_place_are_free(graph):
    """A RESHAPE that generates nothing adds nothing to the estimate."""
    builder = Builder(np.random.default_rng(0), (1, 8, 8, 4))
    builder.conv(4)
    plain = builder.graph()
    builder.reshape((1, 256))
    longer = builder.graph()
    engine = engine_for(BOARD.core, "size")
    for graph in (plain, longer):
        *_, row = compare_goals(graph, BOARD, plan_graph(graph, engine=engine), "size")
        assert row["estimated_instructions"] == 3000


def test_a_recipe_says_the_goal_unless_the_user_does(tmp_path):
    """A run is built as its recipe says, somebody's model balanced, and the command line wins over both."""
    recipe = load_recipe("smoke", ["firmware.optimize_for=size"])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "recipe.yaml").write_text(recipe.to_yaml())
    ours, theirs = (Target("m", tmp_path / "m.tflite", tmp_path, exported=exported) for exported in (True, False))
    assert (goal_of(ours, None), goal_of(ours, "speed")) == ("size", "speed")
    assert (goal_of(theirs, None), goal_of(theirs, "speed")) == ("balanced", "speed")
    # Another goal needs no new training.
    assert recipe.digest() == load_recipe("smoke").digest()


def test_goals_have_the_same_names_everywhere():
    """The command line and recipes offer what the engine knows."""
    assert OFFERED == GOALS == get_args(OptimizeFor) == get_args(FirmwareConfig.model_fields["optimize_for"].annotation)
    assert FirmwareConfig().optimize_for == "balanced"
