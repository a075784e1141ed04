"""Compiles the generated C of a model with its kernels for any Cortex-M, without board, HAL or protocol.

The image has no entry point: an emulator calls its functions (`tinykd/run/bare.py`). Kernels and flags are the
firmware's, so an op takes the same instructions here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tinykd.build.codegen import generate
from tinykd.build.project import include_folders, ini_options
from tinykd.build.toolchain import compile_files
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
_KEPT = ("run_op", "input", "output", "arena", "reset_state", "info")


def build_bare(
    graph: Graph, plan: MemoryPlan, core: str, folder: Path, engine: Engine = PORTABLE, model_sha256: str = "00" * 32
) -> Path:
    """Return the ELF of a model for a core, made below `folder`; objects of kernels that stand there are used again.

    Args:
        graph: int8, one input and one output.
        plan: made for the same engine.
        core: a key of `MACHINE_FLAGS`.

    Raises:
        UnsupportedModelError: no kernel can run an op.
        ToolchainError: the compiler is missing or failed.
    """
    root = find_resource("firmware")
    files = {
        path.relative_to(root).as_posix(): path.read_text()
        for library in _LIBRARIES
        for path in sorted((root / "lib" / library).rglob("*.[ch]"))
    }
    files["include/tk_model.h"] = (root / "include" / "tk_model.h").read_text()
    model = generate(graph, plan, model_sha256, engine)
    files.update({f"generated/{name}": text for name, text in model.files.items()})
    files["generated/tk_board.h"] = f'#define TK_BOARD_NAME "{core}"\n'
    files["bare.ld"] = _linker_script()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    ini = (root / "platformio.ini").read_text()
    flags = [flag for flag in ini_options(ini, "compile_flags") if not flag.startswith("-ffile-prefix-map")]
    machine = MACHINE_FLAGS[core]
    return compile_files(
        [name for name in files if name.endswith(".c")],
        folder,
        [*flags, *machine, *(f"-I{name}" for name in include_folders(files))],
        [
            *machine,
            "-nostartfiles",
            "-Wl,--gc-sections",
            "-Wl,--no-warn-rwx-segments",
            "-Tbare.ld",
            *(f"-Wl,-u,tk_model_{name}" for name in _KEPT),
        ],
    )


def _linker_script() -> str:
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
        "}\n" + "".join(f"EXTERN(tk_model_{name})\n" for name in _KEPT)
    )
