"""What a linked firmware takes: flash and SRAM by kind, read from the ELF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinykd.errors import ToolchainError

ARENA_SYMBOL = "tk_arena"
_CODE_SECTIONS = (".vectors", ".text")
_MODEL_CODE_PREFIXES = ("tk_op_", "tk_model_")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a firmware.

    Attributes:
        text_bytes: code, the vector table included.
        rodata_bytes: constants, those of the model included.
        data_bytes: initialised variables; they take flash and SRAM.
        bss_bytes: zeroed variables, the arena included.
        arena_bytes: the activation arena alone.
        model_bytes: constants of the model: weights, biases, multipliers, parameter blocks.
        model_code_bytes: generated functions; part of `text_bytes`.
        functions, objects: name -> bytes of every function and variable, the larger one where two files share a name.
    """

    text_bytes: int
    rodata_bytes: int
    data_bytes: int
    bss_bytes: int
    arena_bytes: int
    model_bytes: int
    model_code_bytes: int
    functions: dict[str, int]
    objects: dict[str, int]

    @property
    def flash_bytes(self) -> int:
        """Everything that is programmed: code, constants, and the image of the initialised variables."""
        return self.text_bytes + self.rodata_bytes + self.data_bytes

    @property
    def sram_static_bytes(self) -> int:
        """SRAM that is taken from start to end: all variables, the arena included; without the stack."""
        return self.data_bytes + self.bss_bytes


def read_sizes(elf: Path) -> Sizes:
    """Read the sizes from an ELF file that `tk_firmware.ld` laid out.

    Raises:
        ToolchainError: it is not such a file.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with elf.open("rb") as file:
            image = ELFFile(file)
            sections = {
                section.name: section["sh_size"]
                for section in image.iter_sections()
                if section["sh_flags"] & SH_FLAGS.SHF_ALLOC
            }
            table = image.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise ToolchainError(f"{elf} has no symbol table")
            functions: dict[str, int] = {}
            objects: dict[str, int] = {}
            for symbol in table.iter_symbols():
                kind = symbol["st_info"]["type"]
                if kind in ("STT_FUNC", "STT_OBJECT"):
                    known = functions if kind == "STT_FUNC" else objects
                    known[symbol.name] = max(symbol["st_size"], known.get(symbol.name, 0))
    except (OSError, ELFError) as error:
        raise ToolchainError(f"{elf} cannot be read as an ELF file: {error}") from error
    if ARENA_SYMBOL not in objects or ".model" not in sections:
        raise ToolchainError(f"{elf} holds no tinykd model (symbol {ARENA_SYMBOL}, section .model)")
    text = sum(sections.pop(name, 0) for name in _CODE_SECTIONS)
    data, bss = sections.pop(".data", 0), sections.pop(".bss", 0)
    return Sizes(
        text_bytes=text,
        rodata_bytes=sum(sections.values()),
        data_bytes=data,
        bss_bytes=bss,
        arena_bytes=objects[ARENA_SYMBOL],
        model_bytes=sections[".model"],
        model_code_bytes=sum(size for name, size in functions.items() if name.startswith(_MODEL_CODE_PREFIXES)),
        functions=functions,
        objects=objects,
    )
