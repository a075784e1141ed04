"""Puts a firmware image on a board: by copying to the probe's USB drive, or through OpenOCD.

Written from the probes' documentation; the pages and board files say that it was not yet run on silicon.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tinykd.board import Board
from tinykd.errors import ConfigError, DeviceError
from tinykd.run.transport.firmware import read_firmware

IMAGE_FILE = "firmware.bin"
# A drive with both files is one that an ST-LINK/V2-1 or a DAPLink probe shows (UM1974, section on USB mass storage).
_DRIVE_FILES = ("DETAILS.TXT", "MBED.HTM")
_FAILURE_FILE = "FAIL.TXT"
_OPENOCD_TARGETS = {"stm32f4": "target/stm32f4x.cfg", "stm32f7": "target/stm32f7x.cfg"}
_OPENOCD_TIMEOUT_S = 120


def flash_image(elf: Path, board: Board) -> bytes:
    """Return what the board's flash must hold, from its first byte on; gaps are 0xFF.

    Raises:
        ConfigError: the ELF is damaged, or not for this board's flash.
    """
    flash = board.memory.flash
    image = bytearray()
    for address, data in sorted(read_firmware(elf).segments):
        offset = address - flash.origin
        if offset < 0 or offset + len(data) > flash.size_bytes:
            raise ConfigError(f"{elf} has {len(data)} B for 0x{address:08x}, outside the flash of '{board.name}'")
        image.extend(b"\xff" * (offset - len(image)))
        image[offset : offset + len(data)] = data
    return bytes(image)


def mounted_drives() -> list[Path]:
    """Return the folders where a desktop mounts USB drives."""
    user = os.environ.get("USER", "")
    roots = [Path("/media"), Path("/media") / user, Path("/run/media") / user, Path("/Volumes")]
    return sorted({path for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()})


def find_drive(drives: Iterable[Path]) -> Path | None:
    """Return the only drive of a probe, or None when there is none.

    Raises:
        DeviceError: more than one: no guessing between two boards.
    """
    found = [drive for drive in drives if all((drive / name).is_file() for name in _DRIVE_FILES)]
    if len(found) > 1:
        raise DeviceError(
            f"{len(found)} boards show a USB drive: {', '.join(map(str, found))}", "Say which one: --drive PATH."
        )
    return found[0] if found else None


def copy_to_drive(image: bytes, drive: Path) -> None:
    """Copy an image to a probe's USB drive, which programs it.

    Raises:
        DeviceError: the drive refuses it.
    """
    try:
        with (drive / IMAGE_FILE).open("wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DeviceError(
            f"cannot copy the firmware to {drive}: {error.strerror or error}",
            "Unplug the board, plug it in, try again.",
        ) from error
    failure = drive / _FAILURE_FILE
    if failure.is_file():
        raise DeviceError(f"the probe refused the firmware: {failure.read_text(errors='replace').strip()[:200]}")


def openocd_command(elf: Path, board: Board) -> list[str] | None:
    """Return the OpenOCD call that programs, verifies and starts a board; None: OpenOCD or family unknown."""
    program = shutil.which("openocd")
    target = _OPENOCD_TARGETS.get(board.hal)
    if program is None or target is None:
        return None
    action = f"program {{{elf.resolve()}}} verify reset exit"
    return [program, "-f", "interface/stlink.cfg", "-f", target, "-c", action]


def run_openocd(command: list[str]) -> None:
    """Run OpenOCD; DeviceError with the end of its output when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_OPENOCD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"OpenOCD did not finish: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise DeviceError(f"OpenOCD failed:\n{tail}", "Check the probe's cable; tinykd doctor checks its permissions.")


def program(elf: Path, board: Board, drive: Path | None = None) -> str:
    """Put `elf` on the board that is connected, the first way that is there; return which way it was.

    Args:
        drive: the probe's USB drive; None looks for it.

    Raises:
        DeviceError: no way to the board, or it failed.
    """
    drive = drive or find_drive(mounted_drives())
    if drive is not None:
        copy_to_drive(flash_image(elf, board), drive)
        return f"copied to {drive}"
    command = openocd_command(elf, board)
    if command is None:
        raise DeviceError(
            f"no way to flash '{board.name}': its probe shows no USB drive and OpenOCD is not installed",
            "Mount the probe's drive (--drive PATH), or: sudo apt-get install openocd, or upload with PlatformIO: "
            "the folder project/ beside the firmware is a PlatformIO project.",
        )
    run_openocd(command)
    return "programmed by OpenOCD"
