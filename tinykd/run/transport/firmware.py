"""Reads the ELF that a board, or an emulator in its place, runs."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tinykd.errors import ConfigError, DeviceError

INVOKE_SYMBOL = "tk_server_invoke"
_OP_SYMBOL = re.compile(r"tk_op_(\d{3,})$")


@dataclass(frozen=True)
class Firmware:
    """An ELF's contents.

    Attributes:
        path: the file.
        segments: (load address, bytes) of everything that flash holds.
        symbols: address of each named object and function (Thumb bit cleared).
        functions: (address, name), sorted; the name of a file's own function is followed by the file, unless it begins
            with tk_ and no other file has it.
        static_ends: first address above each section that takes memory.
    """

    path: Path
    segments: tuple[tuple[int, bytes], ...]
    symbols: dict[str, int]
    functions: tuple[tuple[int, str], ...]
    static_ends: tuple[int, ...]

    def locate(self, address: int) -> str:
        """Return an address in words: `0x08000123 (tk_op_003 + 0x12)`."""
        found = self._function(address)
        return f"0x{address:08x}" if found is None else f"0x{address:08x} ({found[1]} + 0x{address - found[0]:x})"

    def function_at(self, address: int) -> str:
        """Return the name of the function whose code stands at an address, or the address where there is none."""
        found = self._function(address)
        return f"0x{address:08x}" if found is None else found[1]

    def _function(self, address: int) -> tuple[int, str] | None:
        index = bisect.bisect_right(self.functions, (address, "\x7f")) - 1
        if index < 0 or not any(start <= address < start + len(data) for start, data in self.segments):
            return None
        return self.functions[index]

    def ops(self) -> dict[int, int]:
        """Return the index of each generated op by the address of its function.

        Raises:
            DeviceError: the symbols are missing or have gaps: not a firmware of tinykd's, or a stripped one.
        """
        found = {}
        for name, address in self.symbols.items():
            match = _OP_SYMBOL.match(name)
            if match:
                found[address] = int(match[1])
        if INVOKE_SYMBOL not in self.symbols or sorted(found.values()) != list(range(len(found))):
            raise DeviceError(
                f"{self.path} has no symbols to count by ({INVOKE_SYMBOL}, tk_op_000, ..)",
                "Build it again with tinykd build, and do not strip it.",
            )
        return found


def read_firmware(path: Path) -> Firmware:
    """Read an ELF for a 32-bit Arm core.

    Raises:
        ConfigError: missing, not such an ELF, or damaged.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] != "EM_ARM" or elf.elfclass != 32:
                raise ConfigError(f"{path} is an ELF for {elf['e_machine']}, not for a 32-bit Arm core")
            segments = tuple(
                (segment["p_paddr"], segment.data())
                for segment in elf.iter_segments("PT_LOAD")
                if segment["p_filesz"] > 0
            )
            symbols, functions, source = {}, [], ""
            for table in elf.iter_sections():
                if not isinstance(table, SymbolTableSection):
                    continue
                for symbol in table.iter_symbols():
                    kind, name = symbol["st_info"]["type"], symbol.name
                    if kind == "STT_FILE":
                        source = name  # local symbols stand behind their file's
                    if not name or name.startswith("$") or symbol["st_shndx"] == "SHN_UNDEF":
                        continue
                    address = symbol["st_value"] & ~1 if kind == "STT_FUNC" else symbol["st_value"]
                    symbols[name] = address
                    if kind == "STT_FUNC":
                        functions.append((address, name, source if symbol["st_info"]["bind"] == "STB_LOCAL" else ""))
            ends = tuple(
                section["sh_addr"] + section["sh_size"] for section in elf.iter_sections() if section["sh_flags"] & 2
            )
    except OSError as error:
        raise ConfigError(
            f"cannot read the firmware {path}: {error.strerror or error}", "Build it first: tinykd build."
        ) from error
    except (ELFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a readable ELF: {error}", "Build it again: tinykd build.") from error
    if not segments:
        raise ConfigError(f"{path} has nothing to load")
    return Firmware(path, segments, symbols, _told_apart(functions), ends)


def _told_apart(functions: list[tuple[int, str, str]]) -> tuple[tuple[int, str], ...]:
    """Return (address, name), sorted, from (address, name, source file)."""
    uses = Counter(name for _, name, _ in functions)

    def told_apart(name: str, source: str) -> str:
        is_clear = name.startswith("tk_") and uses[name] == 1
        return f"{name} ({source})" if source and not is_clear else name

    return tuple(sorted((at, told_apart(name, source)) for at, name, source in functions))
