"""Choices between kernels that `tinykd tune` measured: `tuned.toml` beside this module, and the user's own file.

A choice never changes a result, only what it takes. Where nothing was measured, the kernels' own estimates decide.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from tinykd.errors import ConfigError
from tinykd.toml import tomllib

COMMITTED = Path(__file__).with_name("tuned.toml")
TUNED_VARIABLE = "TINYKD_TUNED"
"""Names the user's file; empty: none. Unset: `tuned.toml` in tinykd's cache folder."""

Choices = Mapping[str, Mapping[str, str]]
"""goal -> `signature` of an op -> `Kernel.variant`."""

_MEND = "Delete it, and run tinykd tune."
_HEADER = """\
# Which variant of a kernel takes least where a measurement in the emulator disagrees with the kernels' own estimates:
# goal, signature of the op, variant. Written by `tinykd tune`; do not edit. Results never depend on it.
"""


def user_file() -> Path | None:
    """Return where the user's own choices are, or would be; None when they are switched off."""
    named = os.environ.get(TUNED_VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    from tinykd.data.files import cache_dir

    return cache_dir() / "tuned.toml"


def measured_choices(goal: str) -> Mapping[str, str]:
    """Return the choices for a goal, the user's before the committed ones.

    Raises:
        ConfigError: the user's file is not one that `tinykd tune` wrote.
    """
    user = user_file()
    return _merged(goal, user, _stamp(user))


def user_digest() -> str | None:
    """Return the SHA-256 of the user's choices; None without any. What is built with them depends on it."""
    user = user_file()
    return hashlib.sha256(user.read_bytes()).hexdigest() if user is not None and user.is_file() else None


def read_choices(path: Path) -> dict[str, dict[str, str]]:
    """Return the choices of a file, none when there is no such file.

    Raises:
        ConfigError: it is not one that `tinykd tune` wrote.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read tuned choices from {path}: {error}", _MEND) from error
    for goal, table in raw.items():
        if not isinstance(table, dict) or not all(isinstance(variant, str) for variant in table.values()):
            raise ConfigError(f"{path}: '{goal}' is not a table of variants", _MEND)
    return raw


def write_choices(path: Path, choices: Choices) -> None:
    """Write choices, sorted; the file is there as a whole or not at all."""
    lines = [_HEADER]
    for goal in sorted(choices):
        rows = [f'"{key}" = "{variant}"' for key, variant in sorted(choices[goal].items())]
        lines.append("\n".join([f"[{goal}]", *rows, ""]))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text("\n".join(lines), encoding="utf-8")
    draft.replace(path)


def _stamp(path: Path | None) -> int:
    try:
        return path.stat().st_mtime_ns if path is not None else 0
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _merged(goal: str, user: Path | None, stamp: int) -> Mapping[str, str]:
    """Read both files; `stamp` makes a changed file another key."""
    own = read_choices(user) if user is not None and stamp else {}
    return MappingProxyType({**read_choices(COMMITTED).get(goal, {}), **own.get(goal, {})})
