"""Goals and profiles through the real command line: a small model, built, emulated and counted."""

import json
from collections import Counter

import pytest
from commandline import tinykd
from graphs import random_network
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.board import load_board
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.run.session import Session
from tinykd.run.transport import open_emulator

pytestmark = [needs_unicorn, needs_arm_gcc]
BOARD = "nucleo-f412"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a small random network."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "net.tflite").write_bytes(tflite_writer.write(random_network(7).graph()))
    return folder


def call(run, verb, *arguments):
    """Run a verb on the network; return its JSON."""
    exit_code, out, err = tinykd(run, verb, "net.tflite", "--board", BOARD, "--out", "r", "--json", *arguments)
    assert exit_code == 0, err
    return json.loads(out)


def test_a_profile_accounts_for_every_instruction(run):
    """Ops account for 99 % of the instructions, functions for all of them, and cycles lie in their range."""
    result = call(run, "bench", "--samples", "2", "--profile")
    total = result["instructions_per_inference"]
    assert total * 0.99 <= sum(row["instructions"] for row in result["per_op"]) <= total
    assert sum(row["instructions"] for row in result["by_function"]) == total
    assert result["optimize_for"] == "balanced"
    kernels = {row["kernel"] for row in result["per_op"]}
    assert all(name.startswith("tk_") for name in kernels)
    assert kernels <= {row["function"].split()[0] for row in result["by_function"]}
    for row in (result, *result["per_op"], *result["by_function"]):
        assert 0 < row["cycles_low"] <= row["estimated_cycles"] <= row["cycles_high"]
    assert sum(row["cycles_low"] for row in result["per_op"]) <= result["cycles_low"]
    # A Cortex-M4 takes at least a cycle for an instruction, and seldom more than two.
    assert 1 <= result["cycles_per_instruction"] <= 2


def test_the_profile_is_shown(run):
    """--profile shows kernels, cycles and functions; without it the short table stands alone."""
    shown = {}
    for option in ("--profile", "--seed=0"):
        arguments = ("bench", "net.tflite", "--board", BOARD, "--out", "r", "--samples", "1", option)
        exit_code, shown[option], err = tinykd(run, *arguments)
        assert exit_code == 0, err
    for words in ("kernel", "cycles, about", "at most", "function", "others"):
        assert words in shown["--profile"], words
        assert words not in shown["--seed=0"], words
    assert "estimated" in shown["--seed=0"]


def with_skipped(steps, firmware):
    """Return the steps (address, bytes) with those that an IT skipped: the core issues them, single steps do not."""
    ((origin, flash), *_) = firmware.segments

    def halfword(address):
        return int.from_bytes(flash[address - origin : address - origin + 2], "little")

    whole, index = [], 0
    while index < len(steps):
        address, size = steps[index]
        whole.append((address, size))
        index += 1
        mask = halfword(address) & 15 if halfword(address) >> 8 == 0xBF else 0
        for _ in range(5 - (mask & -mask).bit_length() if mask else 0):
            address, size = address + size, 4 if halfword(address + size) >= 0xE800 else 2
            whole.append((address, size))
            index += index < len(steps) and steps[index] == (address, size)
    return whole


def test_blocks_that_jump_are_told_from_those_that_fall_through(run):
    """Single steps give the same counts of instructions, block by block, and the same number of jumps."""
    elf = run / "r" / "boards" / BOARD / "build" / "firmware.elf"
    if not elf.is_file():
        call(run, "build")
    transport = open_emulator("unicorn", elf, load_board(BOARD))
    session = Session(transport)
    session.hello()
    info = session.info()
    x = bytes(info.input_bytes)
    transport.counter.start()
    session.infer(x, info.output_bytes)
    counts = transport.counter.stop()

    steps: list[tuple[int, int]] = []
    start = transport.firmware.symbols["tk_server_invoke"]
    unicorn = transport._unicorn
    hook = transport._uc.hook_add(unicorn.UC_HOOK_CODE, lambda _, address, size, __: steps.append((address, size)))
    transport._uc.ctl_flush_tb()
    session.infer(x, info.output_bytes)
    transport._uc.hook_del(hook)
    transport.close()

    steps = with_skipped(steps, transport.firmware)
    first = next(index for index, (address, _) in enumerate(steps) if address == start)
    ran = steps[first : first + counts.total]
    by_function = Counter(transport.firmware.function_at(address) for address, _ in ran)
    counted = Counter()
    for part in counts.blocks:
        for block in part:
            counted[block.function] += block.instructions
    assert counted == by_function
    following = steps[first : first + counts.total + 1]
    jumps = sum(a + size != b for (a, size), (b, _) in zip(following, following[1:], strict=False))
    assert sum(block.jumps for part in counts.blocks for block in part) == jumps


def test_build_compares_the_goals(run):
    """The table has one row for each goal; the chosen one's sizes are the plan's."""
    built = call(run, "build", "--optimize-for", "size")
    assert [row["optimize_for"] for row in built["goals"]] == ["speed", "balanced", "size"]
    (chosen,) = (row for row in built["goals"] if row["chosen"])
    assert chosen["optimize_for"] == built["optimize_for"] == "size"
    assert built["reused"] is False
    plan = json.loads((run / "r" / "boards" / BOARD / "plan" / "plan.json").read_text())
    assert chosen["flash_bytes"] == plan["flash_total_bytes"]
    assert chosen["sram_bytes"] == plan["sram_total_bytes"]
    assert chosen["fits"] and chosen["estimated_instructions"] > 0
    exit_code, out, err = tinykd(run, "build", "net.tflite", "--board", BOARD, "--out", "r", "--optimize-for", "size")
    assert exit_code == 0, err
    assert [word for word in ("unchanged", "optimize for", "speed", "balanced", "chosen") if word not in out] == []


def test_a_plan_for_another_goal_is_made_anew(run):
    """Plan, build and bench follow the goal; a report leaves out what was made for another one than the plan."""
    assert call(run, "plan", "--optimize-for", "speed")["optimize_for"] == "speed"
    assert call(run, "bench", "--samples", "1", "--optimize-for", "size")["optimize_for"] == "size"
    plan = json.loads((run / "r" / "boards" / BOARD / "plan" / "plan.json").read_text())
    assert plan["optimize_for"] == "size"
    exit_code, out, err = tinykd(run, "report", "net.tflite", "--out", "r", "--json")
    assert exit_code == 0, err
    assert json.loads(out)["boards"][BOARD] == {"plan": "done", "build": "done", "bench": "done"}
    call(run, "plan", "--optimize-for", "balanced")
    exit_code, out, err = tinykd(run, "report", "net.tflite", "--out", "r", "--json")
    stale = {"plan": "done", "build": "out of date", "bench": "out of date"}
    assert json.loads(out)["boards"][BOARD] == stale
