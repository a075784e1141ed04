"""TOML for every Python that tinykd runs on: `from tinykd.toml import tomllib`."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has no TOML reader of its own.
    import tomli as tomllib

__all__ = ["tomllib"]
