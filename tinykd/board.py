"""Boards as data: reads and checks `boards/<board>.toml`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinykd.errors import ConfigError, nearest
from tinykd.resources import find_resource
from tinykd.toml import tomllib


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Region(_Section):
    """A stretch of memory: start address and size in bytes."""

    origin: int = Field(ge=0)
    size_bytes: int = Field(gt=0)


class Reserve(_Section):
    """Memory at the ends of SRAM and flash that tinykd must leave alone. The stack needs none: its bound is proven."""

    sram_bytes: int = Field(0, ge=0)
    flash_bytes: int = Field(0, ge=0)


class Memory(_Section):
    """The two memories that firmware for this board uses."""

    flash: Region
    sram: Region


class PlatformIO(_Section):
    """How PlatformIO knows the board when its registry is within reach."""

    platform: str
    board: str
    platform_packages: list[str] = []
    upload_protocol: str = "stlink"


class MirrorBit(_Section):
    """One ready bit of an emulated register: reading it gives the value last written to another bit.

    Attributes:
        address, read_bit: the bit that the firmware polls.
        write_address, write_bit: the bit that it follows; `write_address` None stands for `address`.
    """

    address: int
    read_bit: int = Field(ge=0, le=31)
    write_bit: int = Field(ge=0, le=31)
    write_address: int | None = None


class Unicorn(_Section):
    """What the Unicorn transport must imitate beside the core, the memories and the UART."""

    cpu: Literal["cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"]
    uart_model: str
    mirror_bits: list[MirrorBit] = []


class Emulator(_Section):
    """Emulators that run this board's ELF."""

    unicorn: Unicorn | None = None


class Board(_Section):
    """One board: facts, and the document that each came from.

    Attributes:
        defines: C macros of the HAL: clock tree, UART and pins, in the units that `firmware/lib/tk_hal_<hal>` states.
        sources: fact -> document and section.
    """

    name: str
    description: str
    mcu: str
    core: Literal["cortex-m4", "cortex-m7"]
    fpu: str
    clock_hz: int = Field(gt=0)
    hal: str
    memory: Memory
    reserve: Reserve = Reserve()
    baud: int = 115200
    usb_ids: list[str] = []
    defines: dict[str, int] = {}
    platformio: PlatformIO
    emulator: Emulator = Emulator()
    sources: dict[str, str]
    run_on_silicon: bool = False

    @property
    def sram_budget_bytes(self) -> int:
        """SRAM that a firmware may use: the real memory less what the board file reserves."""
        return self.memory.sram.size_bytes - self.reserve.sram_bytes

    @property
    def flash_budget_bytes(self) -> int:
        """Flash that a firmware may use."""
        return self.memory.flash.size_bytes - self.reserve.flash_bytes

    def digest(self) -> str:
        """Return the SHA-256 of the board's facts, 64 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _positive_budgets(self) -> Board:
        if self.sram_budget_bytes <= 0 or self.flash_budget_bytes <= 0:
            raise ValueError("the reserve is larger than the memory")
        flash, sram = self.memory.flash, self.memory.sram
        if flash.origin < sram.origin + sram.size_bytes and sram.origin < flash.origin + flash.size_bytes:
            raise ValueError("flash and sram overlap")
        return self


def list_boards() -> list[str]:
    """Return the names of all boards, sorted."""
    return sorted(path.stem for path in find_resource("boards").glob("*.toml"))


def load_board(name: str) -> Board:
    """Return the board called `name` (or the one in the file `name`, when it ends in .toml).

    Raises:
        ConfigError: unknown board, unreadable file, or facts that contradict each other (all faults at once).
    """
    path = Path(name) if name.endswith(".toml") else find_resource("boards") / f"{name}.toml"
    if not path.is_file():
        known = list_boards()
        raise ConfigError(
            f"unknown board '{name}'.{nearest(name, known)}", f"Known boards: {', '.join(known)} (tinykd list boards)."
        )
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error
    try:
        return Board(**raw)
    except ValidationError as error:
        faults = "\n".join(
            f"  {'.'.join(str(part) for part in item['loc']) or 'board'}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(
            f"{path} has {error.error_count()} fault(s):\n{faults}", "See docs/adding-a-board.md."
        ) from error
