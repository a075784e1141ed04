"""Check that a wheel carries what the package needs beside its Python: python scripts/check_wheel.py WHEEL."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What git ignores below firmware/ must not slip into a release.
LITTER = (".pio/", "__pycache__", ".pyc", ".o", ".elf")


def expected() -> set[str]:
    """Return the paths inside the wheel of every board, firmware, recipe and Python file of the checkout."""
    paths = {f"tinykd/_resources/boards/{path.name}" for path in (ROOT / "boards").glob("*.toml")}
    for path in (ROOT / "firmware").rglob("*"):
        if path.suffix in (".c", ".h", ".ini", ".ld", ".S", ".json", ".py") and ".pio" not in path.parts:
            paths.add(f"tinykd/_resources/{path.relative_to(ROOT).as_posix()}")
    for pattern in ("*.py", "*.yaml", "*.html", "*.css", "*.j2"):
        paths |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tinykd").rglob(pattern)}
    return {path for path in paths if not path.startswith("tinykd/_resources/firmware/test/")}


def main() -> int:
    """Print what is missing or superfluous and return the exit code."""
    names = set(zipfile.ZipFile(sys.argv[1]).namelist())
    missing = sorted(expected() - names)
    litter = sorted(name for name in names if any(mark in name for mark in LITTER[:2]) or name.endswith(LITTER[2:]))
    for name in missing:
        print(f"check_wheel: missing from the wheel: {name}")
    for name in litter:
        print(f"check_wheel: does not belong in the wheel: {name}")
    print(f"check_wheel: {len(names)} files, {len(missing)} missing, {len(litter)} superfluous")
    return 1 if missing or litter else 0


if __name__ == "__main__":
    sys.exit(main())
