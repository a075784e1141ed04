"""Builds the real firmware (server, HAL, start-up) around `fake_model.c`, for a board or for this host."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tinykd.board import Board, load_board
from tinykd.build.project import board_header, machine_flags, memory_script
from tinykd.resources import find_resource

COMPILER = shutil.which("arm-none-eabi-gcc")
HOST_COMPILER = shutil.which("gcc") or shutil.which("clang")
SHA256 = "0123456789abcdef" + "00" * 24
INPUT_BYTES, OUTPUT_BYTES = 64, 10
FAKE_MODEL = Path(__file__).parent / "fake_model.c"

needs_unicorn = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("unicorn", "capstone")),
    reason="needs unicorn and capstone: tinykd[sim]",
)
needs_arm_gcc = pytest.mark.skipif(COMPILER is None, reason="needs arm-none-eabi-gcc")


def expected_output(x: bytes) -> bytes:
    """What fake_model.c computes."""
    first = [(value + 1) & 0xFF for value in x]
    second = [(first[i] + first[(i + 1) % INPUT_BYTES]) & 0xFF for i in range(INPUT_BYTES)]
    return bytes(second[6 * i] for i in range(OUTPUT_BYTES))


def build_elf(board: Board | str, folder: Path, *flags: str) -> Path:
    """Compile and link the firmware with the fake model for a board."""
    board = load_board(board) if isinstance(board, str) else board
    root = find_resource("firmware")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tk_board.h").write_text(board_header(board))
    (folder / "tk_memory.ld").write_text(memory_script(board, 1024))
    libraries = [root / "lib" / name for name in ("tk_core", "tk_startup", f"tk_hal_{board.hal}")]
    includes = [root / "include", folder, *sorted((root / "lib").glob("*/include"))]
    sources = [root / "src" / "main.c", FAKE_MODEL, *(path for lib in libraries for path in lib.glob("src/*.c"))]
    elf = folder / "firmware.elf"
    command = [str(COMPILER), *machine_flags(board), "-std=c11", "-O2", "-ffunction-sections", "-Wl,--gc-sections"]
    command += ["-nostartfiles", "-specs=nano.specs", "-L", folder, "-L", root / "ld", "-T", root / "ld/tk_firmware.ld"]
    command += [f"-I{path}" for path in includes]
    subprocess.run([*map(str, command), *flags, *map(str, sources), "-o", str(elf)], check=True)
    return elf


def build_host(folder: Path, main: Path) -> Path:
    """Compile the server and the fake model for this host, with sanitizers where the compiler has them."""
    root = find_resource("firmware")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tk_board.h").write_text('#define TK_CLOCK_HZ 1000000U\n#define TK_BOARD_NAME "host"\n')
    core = root / "lib" / "tk_core"
    sources = [*core.glob("src/*.c"), FAKE_MODEL, main]
    includes = [f"-I{path}" for path in (root / "include", core / "include", folder)]
    program = folder / "core_host"
    command = [str(HOST_COMPILER), "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *includes]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    return program
