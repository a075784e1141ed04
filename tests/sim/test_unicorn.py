"""The firmware in the Unicorn emulator: boots, computes, is counted exactly, and reports its faults."""

from pathlib import Path

import pytest
from sim.fakeboard import INPUT_BYTES, OUTPUT_BYTES, SHA256, build_elf, expected_output, needs_arm_gcc, needs_unicorn

from tinykd.board import list_boards, load_board
from tinykd.errors import ConfigError, DeviceError
from tinykd.run.session import Session
from tinykd.run.transport import open_emulator
from tinykd.run.transport.base import count_instructions
from tinykd.run.transport.firmware import read_firmware
from tinykd.run.transport.unicorn import UnicornTransport

pytestmark = [needs_unicorn, needs_arm_gcc]
BOARDS = [name for name in list_boards() if load_board(name).emulator.unicorn is not None]
X = bytes(range(40, 40 + INPUT_BYTES))


@pytest.fixture(scope="module")
def elfs(tmp_path_factory):
    """The firmware with the fake model for each board."""
    return {board: build_elf(board, tmp_path_factory.mktemp(board)) for board in BOARDS}


@pytest.fixture(scope="module")
def faulty_elf(tmp_path_factory):
    """A firmware that misbehaves when its first input byte asks for it."""
    return build_elf(BOARDS[0], tmp_path_factory.mktemp("faulty"), "-DTK_TEST_FAULT")


@pytest.fixture
def session(elfs):
    """A session with the first board."""
    transport = open_emulator("unicorn", elfs[BOARDS[0]], load_board(BOARDS[0]))
    yield Session(transport)
    transport.close()


def test_there_are_boards_to_emulate():
    """The list that the other tests walk is not empty."""
    assert len(BOARDS) >= 2


@pytest.mark.parametrize("name", BOARDS)
def test_each_board_boots_and_computes(name, elfs):
    """Clock set-up, UART, start-up code and FPU work in the emulator; the device is what the board file says."""
    board = load_board(name)
    transport = UnicornTransport(elfs[name], board)
    session = Session(transport)
    identity = session.hello()
    assert (identity.board, identity.model_sha256) == (name, SHA256)
    assert session.info().clock_hz == board.clock_hz
    for shift in range(5):
        x = bytes((value + shift) & 0xFF for value in X)
        assert session.infer(x, OUTPUT_BYTES)[0] == expected_output(x)
    assert session.repeats == 0
    transport.close()


def test_counts_add_up_and_repeat(session):
    """Per-op counts and overhead sum to the total; two inferences and a fresh emulator give the same numbers."""
    session.hello()
    counts = []
    for _ in range(2):
        session.transport.counter.start()
        session.infer(X, OUTPUT_BYTES)
        counts.append(session.transport.counter.stop())
    assert counts[0] == counts[1]
    assert len(counts[0].per_op) == 3
    assert counts[0].total == sum(counts[0].per_op) + counts[0].overhead
    assert min(counts[0].per_op) > 64
    again = UnicornTransport(session.transport.firmware.path, load_board(BOARDS[0]))
    other = Session(again)
    other.hello()
    other.infer(bytes(INPUT_BYTES), OUTPUT_BYTES)
    again.counter.start()
    other.infer(X, OUTPUT_BYTES)
    assert again.counter.stop() == counts[0]
    again.close()


def test_block_counts_equal_single_steps(session):
    """Counting by blocks gives what counting instruction by instruction gives, per op, callees included.

    The emulator's instruction hook leaves out instructions whose IT condition fails; the processor issues them, so they
    are counted. The fake model has none.
    """
    unicorn = pytest.importorskip("unicorn")
    transport = session.transport
    session.hello()
    transport.counter.start()
    session.infer(X, OUTPUT_BYTES)
    counts = transport.counter.stop()
    firmware, core = transport.firmware, transport._uc
    invoke, ops = firmware.symbols["tk_server_invoke"], firmware.ops()
    link = unicorn.arm_const.UC_ARM_REG_LR
    state = {"end": None, "op": None, "op_end": None, "total": 0, "per_op": [0] * len(ops)}

    def on_instruction(core, address, size, _):
        if address == invoke:
            state["end"] = core.reg_read(link) & ~1
        if address == state["end"]:
            state["end"] = None
        if state["end"] is None:
            return
        if address == state["op_end"]:
            state["op"] = state["op_end"] = None
        if address in ops and state["op"] is None:
            state["op"], state["op_end"] = ops[address], core.reg_read(link) & ~1
        state["total"] += 1
        if state["op"] is not None:
            state["per_op"][state["op"]] += 1

    hook = core.hook_add(unicorn.UC_HOOK_CODE, on_instruction)
    core.ctl_flush_tb()
    session.infer(X, OUTPUT_BYTES)
    core.hook_del(hook)
    assert (state["total"], tuple(state["per_op"])) == (counts.total, counts.per_op)


def test_the_cycle_counter_shows_instructions_only_while_they_are_counted(session):
    """PROFILE gives the emulator's counts while counting, and zeros otherwise."""
    session.hello()
    assert session.infer(X, OUTPUT_BYTES)[1].cycles == 0
    session.transport.counter.start()
    _, invoked = session.infer(X, OUTPUT_BYTES)
    profile = session.profile(3)
    counts = session.transport.counter.stop()
    assert 0 < sum(counts.per_op) < sum(profile) < invoked.cycles + 100
    assert invoked.cycles < counts.total


def test_counting_without_an_inference_is_an_error(session):
    """A profile of nothing is not a profile."""
    session.hello()
    session.transport.counter.start()
    with pytest.raises(DeviceError, match="no inference"):
        session.transport.counter.stop()


def test_the_stack_is_measured(session):
    """The high-water mark is above zero, a multiple of 4, and does not change when nothing new happens."""
    session.hello()
    session.infer(X, OUTPUT_BYTES)
    first = session.transport.stack_bytes_measured
    session.infer(X, OUTPUT_BYTES)
    assert 32 < first < 1024
    assert first % 4 == 0
    assert session.transport.stack_bytes_measured == first


def test_reset_over_the_protocol_and_by_the_button(session):
    """RESET restarts the firmware through AIRCR; a reset from outside is noticed and survived."""
    session.hello()
    session.infer(X, OUTPUT_BYTES)
    session.reset()
    assert session.info().inferences == 0
    session.load(X)
    session.transport.restart()
    assert session.infer(X, OUTPUT_BYTES)[0] == expected_output(X)
    assert session.restarts_seen == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (1, r"tk_op_000.*0x08000000.*write-protected"),
        (2, r"tk_op_000.*0x30000000"),
        (3, r"tk_op_000.*nvalid instruction"),
        (4, r"has not come back in 0.5 s; it runs at .*tk_op_000"),
        (5, r"faulted at 0x2000"),
    ],
)
def test_faults_are_reported_with_their_place(faulty_elf, code, message):
    """A write to flash or to nowhere, an undefined instruction, a loop, a jump into data: function and address."""
    transport = UnicornTransport(faulty_elf, load_board(BOARDS[0]), timeout_s=0.5)
    session = Session(transport)
    session.hello()
    with pytest.raises(DeviceError, match=message):
        session.infer(bytes([code]) + X[1:], OUTPUT_BYTES)
    with pytest.raises(DeviceError, match=message):
        session.hello()
    transport.close()


def test_a_damaged_elf_is_refused(elfs, tmp_path):
    """Truncated, foreign and missing files are named before anything runs."""
    board = load_board(BOARDS[0])
    good = elfs[BOARDS[0]].read_bytes()
    for content in (b"", b"not an ELF", good[:100], good[: len(good) // 2]):
        path = tmp_path / "bad.elf"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.elf"):
            UnicornTransport(path, board)
    with pytest.raises(ConfigError, match="cannot read"):
        UnicornTransport(tmp_path / "absent.elf", board)


def test_an_elf_for_another_board_is_refused(elfs):
    """Firmware whose stack lies outside of the board's SRAM does not start."""
    board = load_board(BOARDS[0])
    small = board.memory.sram.model_copy(update={"size_bytes": 4096})
    other = board.model_copy(update={"memory": board.memory.model_copy(update={"sram": small})})
    with pytest.raises(ConfigError, match="stack pointer"):
        UnicornTransport(elfs[BOARDS[0]], other)


def test_a_board_without_emulator_facts_is_refused(elfs):
    """A board file without [emulator.unicorn] gives a clear message."""
    board = load_board(BOARDS[0])
    bare = board.model_copy(update={"emulator": board.emulator.model_copy(update={"unicorn": None})})
    with pytest.raises(ConfigError, match="no \\[emulator.unicorn\\]"):
        UnicornTransport(elfs[BOARDS[0]], bare)


def test_a_stripped_elf_runs_but_is_not_counted(elfs, tmp_path):
    """Without symbols there is nothing to attribute instructions to, and the message says so."""
    import subprocess

    path = tmp_path / "stripped.elf"
    subprocess.run(["arm-none-eabi-strip", "-o", path, elfs[BOARDS[0]]], check=True)
    transport = UnicornTransport(Path(path), load_board(BOARDS[0]))
    session = Session(transport)
    session.hello()
    assert session.infer(X, OUTPUT_BYTES)[0] == expected_output(X)
    with pytest.raises(DeviceError, match="symbols"):
        transport.counter.start()
    transport.close()


def test_addresses_are_told_by_function(elfs):
    """An address in the firmware is shown with its function, any other as it is."""
    firmware = read_firmware(elfs[BOARDS[0]])
    start = firmware.symbols["tk_op_001"]
    assert firmware.locate(start + 4) == f"0x{start + 4:08x} (tk_op_001 + 0x4)"
    assert firmware.locate(0x20000000) == "0x20000000"


def test_functions_of_one_name_are_told_apart_by_their_files(tmp_path):
    """Two static functions may share a name; whose instructions a profile shows is said by the file."""
    sources = []
    for name in ("first", "second"):
        twin = f"__attribute__((noipa)) static int twin(int x) {{ return x + {len(name)}; }}\n"
        sources.append(tmp_path / f"{name}.c")
        sources[-1].write_text(f"int {name}(int x);\n{twin}int {name}(int x) {{ return twin(x) + 1; }}\n")
    elf = build_elf(BOARDS[0], tmp_path / "elf", *map(str, sources), "-Wl,-u,first,-u,second")
    names = [name for _, name in read_firmware(elf).functions]
    assert sorted(name for name in names if "twin" in name) == ["twin (first.c)", "twin (second.c)"]
    assert {"first", "second", "tk_op_000"} <= set(names)


def test_thumb_instructions_are_counted_by_their_first_halfword():
    """push, bl, ldr.w, bx: two of two bytes, two of four."""
    assert count_instructions(bytes.fromhex("10b5fff7feffd8f804107047")) == 4
