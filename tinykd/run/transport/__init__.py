"""Transports: how bytes reach a device. One registry; each entry is imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tinykd.board import Board
from tinykd.errors import ConfigError, DeviceError, nearest
from tinykd.run.transport.base import InstructionCounter, InstructionCounts, Transport

__all__ = [
    "EMULATORS",
    "InstructionCounter",
    "InstructionCounts",
    "Transport",
    "open_emulator",
    "open_serial",
]


def _unicorn(elf: Path, board: Board) -> Transport:
    from tinykd.run.transport.unicorn import UnicornTransport

    return UnicornTransport(elf, board)


def _not_yet(elf: Path, board: Board) -> Transport:
    raise DeviceError("this emulator is not available in this version of tinykd", "Use --sim unicorn.")


EMULATORS: Mapping[str, Callable[[Path, Board], Transport]] = {
    "unicorn": _unicorn,
    "qemu": _not_yet,
    "renode": _not_yet,
}


def open_emulator(name: str, elf: Path, board: Board) -> Transport:
    """Start the firmware `elf` in the emulator called `name`.

    Raises:
        ConfigError: unknown emulator, or it cannot emulate the board.
        DeviceError: the emulator is missing or not supported yet.
    """
    if name not in EMULATORS:
        raise ConfigError(f"unknown emulator '{name}'.{nearest(name, EMULATORS)}", f"Known: {', '.join(EMULATORS)}.")
    return EMULATORS[name](elf, board)


def open_serial(board: Board, port: str | None = None) -> Transport:
    """Open the serial port of a board; None looks for it by the board's USB ids.

    Raises:
        DeviceError: no port, more than one, or it cannot be opened.
    """
    from tinykd.run.transport.serial import SerialTransport, find_port

    return SerialTransport(port or find_port(board), board.baud)
