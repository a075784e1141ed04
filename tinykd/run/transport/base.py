"""What every transport is: something that carries bytes to a device and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class BlockCount(NamedTuple):
    """A run of instructions that is entered at its start and left at its end, and how often it ran.

    Attributes:
        function: whose code it is.
        code: its instructions.
        times: how often it ran.
        jumps: how often something else than the instruction behind it came next.
    """

    function: str
    code: bytes
    times: int
    jumps: int

    @property
    def instructions(self) -> int:
        """Instructions retired in it."""
        return self.times * count_instructions(self.code)


@dataclass(frozen=True)
class InstructionCounts:
    """Retired instructions of one inference, exact.

    An instruction whose IT condition fails is counted: the core issues it, and other emulators count it too.

    Attributes:
        total: from the first instruction of `tk_server_invoke` to its return, both included.
        per_op: by op of the generated sequence, with everything that the op calls.
        overhead: the loop around the ops; `total == sum(per_op) + overhead`.
        blocks: what ran in each op, and last in the loop around them; empty where the emulator does not tell.
    """

    total: int
    per_op: tuple[int, ...]
    overhead: int
    blocks: tuple[tuple[BlockCount, ...], ...] = ()


def count_instructions(code: bytes) -> int:
    """Return how many Thumb instructions stand in `code` (ARM DDI 0403E, section A5.1: a first halfword of 0b11101,
    0b11110 or 0b11111 begins one of four bytes)."""
    offset = count = 0
    while offset < len(code):
        offset += 4 if code[offset + 1] >= 0xE8 else 2
        count += 1
    return count


class InstructionCounter(Protocol):
    """The capability of an emulator to count instructions. Counting slows it down."""

    def start(self) -> None:
        """Count from now on."""

    def stop(self) -> InstructionCounts:
        """Stop counting and return the counts of the last inference since `start`.

        Raises:
            DeviceError: no inference was finished.
        """


class Transport(Protocol):
    """A connection to one device. Closed once; every other method may raise DeviceError when the device is lost.

    Attributes:
        name: for people: "unicorn", "/dev/ttyACM0".
        counter_unit: whether the device's cycle counter counts core cycles ("cycles"), retired instructions
            ("instructions") or nothing ("none").
    """

    name: str
    counter_unit: Literal["cycles", "instructions", "none"]

    @property
    def counter(self) -> InstructionCounter | None:
        """Counts instructions, on emulators that can; else None."""

    def write(self, data: bytes) -> None:
        """Send bytes to the device, all of them."""

    def read(self, timeout_s: float) -> bytes:
        """Return bytes from the device, at least one.

        b"" means that none came within `timeout_s` seconds, or that none can come before the next `write`.
        """

    def close(self) -> None:
        """Give the device back. Closing twice is harmless."""
