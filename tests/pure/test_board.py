"""Board files: facts with their sources, checked whole, found wherever tinykd is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinykd.board import list_boards, load_board
from tinykd.errors import ConfigError
from tinykd.resources import find_resource

BOARDS = list_boards()


def changed(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """Return the path of a copy of nucleo-f746.toml with some text replaced."""
    text = (find_resource("boards") / "nucleo-f746.toml").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_two_boards_of_the_first_release_are_there() -> None:
    """nucleo-f746 has 320 kB SRAM at 216 MHz, nucleo-f412 256 kB at 100 MHz; both 1 MB of flash."""
    assert {"nucleo-f412", "nucleo-f746"} <= set(BOARDS)
    facts = {name: load_board(name) for name in BOARDS}
    assert facts["nucleo-f746"].memory.sram.size_bytes == 320 * 1024 and facts["nucleo-f746"].clock_hz == 216_000_000
    assert facts["nucleo-f412"].memory.sram.size_bytes == 256 * 1024 and facts["nucleo-f412"].clock_hz == 100_000_000
    assert facts["nucleo-f746"].memory.flash.size_bytes == facts["nucleo-f412"].memory.flash.size_bytes == 1 << 20


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_is_whole(name: str) -> None:
    """The file is named after the board, says where memory and clock come from, and its HAL exists."""
    board = load_board(name)
    assert board.name == name
    assert {"memory", "clock"} <= board.sources.keys()
    assert (find_resource("firmware") / "lib" / f"tk_hal_{board.hal}").is_dir()


@pytest.mark.parametrize("name", BOARDS)
def test_budget_is_memory_less_reserve(name: str) -> None:
    """What a firmware may use is the real memory less what the board file reserves."""
    board = load_board(name)
    assert board.sram_budget_bytes == board.memory.sram.size_bytes - board.reserve.sram_bytes
    assert board.flash_budget_bytes == board.memory.flash.size_bytes - board.reserve.flash_bytes


def test_unknown_board_suggests_the_nearest() -> None:
    """A typing error is answered with the board that was meant and all the others."""
    with pytest.raises(ConfigError, match="Did you mean 'nucleo-f746'") as error:
        load_board("nucleo-f764")
    assert "tinykd list boards" in error.value.next_step


def test_a_file_of_ones_own_is_a_board(tmp_path: Path) -> None:
    """A path that ends in .toml is read instead of the table."""
    board = load_board(changed(tmp_path, ('name = "nucleo-f746"', 'name = "mine"')))
    assert board.name == "mine" and board.mcu == "STM32F746ZG"


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """An unknown key, a wrong type and an impossible value come in one message, each with its place."""
    path = changed(
        tmp_path,
        ("clock_hz = 216_000_000", 'clock_hz = "fast"\nclok = 1'),
        ('core = "cortex-m7"', 'core = "z80"'),
    )
    with pytest.raises(ConfigError) as error:
        load_board(path)
    message = error.value.message
    assert "3 fault(s)" in message and "clock_hz" in message and "clok" in message
    assert "core" in message


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ((("origin = 0x2000_0000", "origin = 0x0800_1000"),), "flash and sram overlap"),
        ((("[platformio]", "[reserve]\nsram_bytes = 327_680\n\n[platformio]"),), "reserve is larger"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: tuple[tuple[str, str], ...], fault: str
) -> None:
    """Memories that overlap and a reserve that leaves nothing are faults of the file."""
    with pytest.raises(ConfigError, match=fault):
        load_board(changed(tmp_path, *changes))


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    """A syntax error names the file."""
    path = tmp_path / "broken.toml"
    path.write_text("name = ")
    with pytest.raises(ConfigError, match=r"broken\.toml is not a readable TOML file"):
        load_board(str(path))


def test_digest_changes_with_any_fact(tmp_path: Path) -> None:
    """Artefacts are rebuilt when a fact of their board changes, and only then."""
    same = load_board(changed(tmp_path))
    assert same.digest() == load_board("nucleo-f746").digest()
    assert load_board(changed(tmp_path, ("baud = 115200", "baud = 57600"))).digest() != same.digest()
