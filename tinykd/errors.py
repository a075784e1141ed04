"""The one tree of errors: each branch says whose fault it is and carries the exit code of the command line.

A message has the form *what failed, on which thing, value against limit*; `next_step` says what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TinykdError(Exception):
    """Base of every error that tinykd raises on purpose.

    Args:
        message: what failed, on which thing, value against limit. One sentence or a few lines.
        next_step: what the user can do about it; "" when there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n{self.next_step}" if self.next_step else self.message


class InternalError(TinykdError):
    """tinykd broke one of its own invariants: a bug of ours."""

    exit_code = 1


class ConfigError(TinykdError):
    """The command line, a recipe, a board file, an input file or a data set is wrong: the user can mend it."""

    exit_code = 2


class DataError(ConfigError):
    """A data set is missing, broken or does not have the shape it claims."""


class ArtifactError(ConfigError):
    """An artefact folder is missing, unfinished, or differs from the hash in its manifest."""


class DoesNotFitError(TinykdError):
    """The model needs more SRAM or flash than the board leaves."""

    exit_code = 3


class UnsupportedModelError(TinykdError):
    """The model file is readable but uses something that tinykd does not support."""

    exit_code = 4


class InvalidModelError(UnsupportedModelError):
    """The model file is corrupt, truncated or contradicts itself."""


class ToolchainError(TinykdError):
    """The compiler, PlatformIO or another outside tool is missing or failed."""

    exit_code = 5


class DeviceError(TinykdError):
    """The board, the serial port or the emulator failed or did not answer."""

    exit_code = 6


class ParityError(TinykdError):
    """Two links of the parity chain gave different integers."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the known name closest to `name`, or '' when none is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
