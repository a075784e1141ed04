"""Compiles the generated C of a model with its kernels for any Cortex-M, without board, HAL or protocol.

The image has no entry point: an emulator calls its functions (`tinykd/run/bare.py`). Kernels and flags are the
firmware's, so an op takes the same instructions here and there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tinykd.build.codegen import generate
from tinykd.build.project import include_folders, ini_options
from tinykd.build.stack import deepest, read_call_graphs
from tinykd.build.toolchain import compile_objects, link_objects
from tinykd.errors import ToolchainError
from tinykd.ir import Graph, MemoryPlan
from tinykd.kernels import PORTABLE, Engine
from tinykd.resources import find_resource

MACHINE_FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cortex-m0plus": ("-mcpu=cortex-m0plus", "-mthumb", "-mfloat-abi=soft"),
        "cortex-m3": ("-mcpu=cortex-m3", "-mthumb", "-mfloat-abi=soft"),
        "cortex-m4": ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
        "cortex-m7": ("-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"),
    }
)
FLASH_ORIGIN, SRAM_ORIGIN = 0x0800_0000, 0x2000_0000
MEMORY_BYTES = 16 << 20
_LIBRARIES = ("tk_kernels", "tk_armv7em")
_ENTRY = "tk_model_run_op"
_KEPT = (_ENTRY, "tk_model_input", "tk_model_output", "tk_model_arena", "tk_model_reset_state", "tk_model_info")


@dataclass(frozen=True)
class BareSizes:
    """What a bare image takes.

    Attributes:
        code_bytes: functions, their tables and parameter blocks: .text and .rodata without the model's arrays.
        model_bytes: the arrays of the model: weights, biases, multipliers, tables of its ops.
        stack_bytes: the deepest path from `tk_model_run_op`, proven from the compiler's call graphs.
    """

    code_bytes: int
    model_bytes: int
    stack_bytes: int


def build_bare(
    graph: Graph,
    plan: MemoryPlan,
    core: str,
    folder: Path,
    engine: Engine = PORTABLE,
    model_sha256: str = "00" * 32,
    kernels: Path | None = None,
) -> Path:
    """Return the ELF of a model for a core, made below `folder`; objects of kernels that stand there are used again.

    Args:
        graph: int8, one input and one output.
        plan: made for the same engine.
        core: a key of `MACHINE_FLAGS`.
        kernels: from `build_kernels`, for several models of one core; None keeps the kernels below `folder`.

    Raises:
        UnsupportedModelError: no kernel can run an op.
        ToolchainError: the compiler is missing or failed.
    """
    kernels = build_kernels(core, folder / "kernels") if kernels is None else kernels
    model = generate(graph, plan, model_sha256, engine)
    files = {**model.files, "tk_board.h": f'#define TK_BOARD_NAME "{core}"\n'}
    _write(folder / "generated", files)
    (folder / "bare.ld").write_text(link_script())
    headers = sorted(kernels.rglob("*.h"))
    includes = [f"-I{kernels.resolve() / name}" for name in include_folders(_names(kernels, headers))]
    objects = compile_objects(
        [f"generated/{name}" for name in files if name.endswith(".c")],
        folder,
        [*_compile_flags(core), *includes],
        [*headers, folder / "generated" / "tk_model_data.h"],
    )
    return link_objects(
        [*objects, *sorted((kernels.resolve() / "objects").rglob("*.o"))],
        folder,
        [
            *MACHINE_FLAGS[core],
            "-nostartfiles",
            "-Wl,--gc-sections",
            "-Wl,--no-warn-rwx-segments",
            "-Tbare.ld",
        ],
    )


def build_kernels(core: str, folder: Path) -> Path:
    """Compile all kernels for a core below `folder`, where nothing else may stand, and return `folder`.

    What is there already, from the same sources and flags, is used again.

    Raises:
        ToolchainError: the compiler is missing or failed.
    """
    root = find_resource("firmware")
    files = {
        path.relative_to(root).as_posix(): path.read_text()
        for library in _LIBRARIES
        for path in sorted((root / "lib" / library).rglob("*.[ch]"))
    }
    files["include/tk_model.h"] = (root / "include" / "tk_model.h").read_text()
    flags = _compile_flags(core)
    files["flags.txt"] = "\n".join(flags)
    for path in folder.rglob("*"):
        stale = path.suffix in (".c", ".h") and path.relative_to(folder).as_posix() not in files
        if stale or (path.suffix == ".o" and _source_name(folder, path) not in files):
            path.unlink()
    _write(folder, files)
    headers = [folder / name for name in files if not name.endswith(".c")]
    includes = [f"-I{name}" for name in include_folders(files)]
    compile_objects([name for name in files if name.endswith(".c")], folder, [*flags, *includes], headers)
    return folder


def bare_sizes(elf: Path, kernels: Path | None = None) -> BareSizes:
    """Return what an ELF of `build_bare` takes, with the folder of its kernels where that stands apart.

    Raises:
        InternalError: no bound of the stack can be proven.
    """
    from elftools.elf.elffile import ELFFile

    with elf.open("rb") as file:
        sections = {section.name: section["sh_size"] for section in ELFFile(file).iter_sections()}
    if ".model" not in sections:
        raise ToolchainError(f"{elf} was not made by build_bare: it has no section .model")
    folders = (elf.parent / "objects", (elf.parent / "kernels" if kernels is None else kernels) / "objects")
    graph = read_call_graphs(sorted(path for folder in folders for path in folder.rglob("*.ci")))
    return BareSizes(
        code_bytes=sections[".text"] + sections.get(".rodata", 0),
        model_bytes=sections[".model"],
        stack_bytes=deepest(graph, _ENTRY).total_bytes,
    )


def _compile_flags(core: str) -> list[str]:
    flags = ini_options((find_resource("firmware") / "platformio.ini").read_text(), "compile_flags")
    return [*(flag for flag in flags if not flag.startswith("-ffile-prefix-map")), *MACHINE_FLAGS[core]]


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write what differs, so that times of change tell what must be compiled again."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def _names(folder: Path, paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def _source_name(folder: Path, made: Path) -> str:
    return made.relative_to(folder / "objects").with_suffix(".c").as_posix()


def link_script(kept: Iterable[str] = _KEPT) -> str:
    """Return the linker script of a bare image that keeps these symbols."""
    return (
        "MEMORY\n{\n"
        f"    FLASH (rx) : ORIGIN = 0x{FLASH_ORIGIN:08x}, LENGTH = {MEMORY_BYTES}\n"
        f"    SRAM (rwx) : ORIGIN = 0x{SRAM_ORIGIN:08x}, LENGTH = {MEMORY_BYTES - (1 << 16)}\n"
        "}\n"
        "SECTIONS\n{\n"
        "    .text : { *(.text*) } > FLASH\n"
        "    .model : { *tk_model_data.o(.rodata*) } > FLASH\n"
        "    .rodata : { *(.rodata*) } > FLASH\n"
        "    .ARM.exidx : { *(.ARM.exidx*) } > FLASH\n"
        "    .data : { *(.data*) } > SRAM\n"
        "    .bss : { *(.bss*) *(COMMON) } > SRAM\n"
        "}\n" + "".join(f"EXTERN({name})\n" for name in kept)
    )
