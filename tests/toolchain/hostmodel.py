"""Compiles generated C with the host's compiler and runs it: op by op through ctypes, or whole under sanitizers."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinykd.build import generate
from tinykd.ir import DTYPES, Graph, MemoryPlan
from tinykd.ir.plan import Placement, Scratch
from tinykd.kernels import PORTABLE, Engine
from tinykd.plan import plan_graph
from tinykd.resources import find_resource

HOST_COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
_KERNELS = find_resource("firmware") / "lib" / "tk_kernels"
_ARMV7EM = find_resource("firmware") / "lib" / "tk_armv7em"
_INCLUDES = (_KERNELS / "include", _ARMV7EM / "include")
_GAP_BYTES = 32
FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]

_MAIN = """
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include "tk_model.h"
int main(void)
{
    for (int i = 0; i < NUM_GAPS; i++) {
        __asan_poison_memory_region(tk_model_arena() + gaps[i][0], (size_t)gaps[i][1]);
    }
    while (fread(tk_model_input(), 1, tk_model_info.input_bytes, stdin) == tk_model_info.input_bytes) {
        tk_model_reset_state();
        for (uint32_t op = 0; op < tk_model_info.num_ops; op++) {
            tk_model_run_op(op);
        }
        fwrite(tk_model_output(), 1, tk_model_info.output_bytes, stdout);
    }
    return 0;
}
"""


_Placed = TypeVar("_Placed", Placement, Scratch)


class HostModel:
    """A generated model on the host: the same C that a board gets.

    Args:
        kernels: the portable kernel library to use; None takes the firmware's.
        engine: whose kernels; the inner loops of those for other cores are their C twins here.
        armv7em: the library of kernels for cores with the DSP extension; None takes the firmware's.
    """

    def __init__(
        self,
        graph: Graph,
        folder: Path,
        kernels: Path | None = None,
        plan: MemoryPlan | None = None,
        engine: Engine = PORTABLE,
        armv7em: Path | None = None,
    ):
        self.graph = graph
        self.plan = plan or plan_graph(graph, engine=engine)
        self.generated = generate(graph, self.plan, "00" * 32, engine)
        sources = _write_sources(self.generated.files, folder)
        library = folder / "model.so"
        objects = _kernel_objects(kernels or _KERNELS, ("-fPIC",))
        if engine.isa == "armv7em":
            objects += _kernel_objects(armv7em or _ARMV7EM, ("-fPIC",))
        _compile([*FLAGS, "-shared", "-fPIC", *sources, *objects, "-o", str(library)])
        self.library = ctypes.CDLL(str(library))
        self.library.tk_model_input.restype = ctypes.c_void_p
        self.library.tk_model_arena.restype = ctypes.c_void_p

    def reset(self) -> None:
        """Forget earlier inferences."""
        self.library.tk_model_reset_state()

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Run one inference; return every activation as it stood right after the op that made it.

        Ops that cost nothing on the device (their outputs lie where they belong) are part of it, too. A model with
        memory remembers earlier inferences until `reset`.
        """
        name = self.graph.inputs[0]
        data = np.ascontiguousarray(x, np.int8).reshape(-1)
        ctypes.memmove(self.library.tk_model_input(), data.ctypes.data, data.size)
        values = {name: data.reshape(self.graph.tensor(name).shape)}
        numbers = {op.graph_op: op.op for op in self.generated.ops}
        for index, op in enumerate(self.graph.ops):
            if index in numbers:
                self.library.tk_model_run_op(numbers[index])
            values.update({output: self._read(output) for output in op.outputs})
        values[self.graph.outputs[0]] = self._read(self.graph.outputs[0])
        return values

    def _read(self, name: str) -> np.ndarray:
        tensor = self.graph.tensor(name)
        address = self.library.tk_model_arena() + self.plan.offset(name)
        return np.frombuffer(ctypes.string_at(address, tensor.num_bytes), DTYPES[tensor.dtype]).reshape(tensor.shape)


def run_sanitized(graph: Graph, x: np.ndarray, folder: Path, engine: Engine = PORTABLE) -> np.ndarray:
    """Return the model's outputs (N, elements), computed by a program under AddressSanitizer and UBSan.

    Each input stands for itself: a model with memory forgets in between. Activations and scratch memory lie apart, and
    what lies between them must not be touched.
    """
    plan, gaps = _spread(plan_graph(graph, engine=engine))
    sources = _write_sources(generate(graph, plan, "00" * 32, engine).files, folder)
    table = ", ".join(f"{{{offset}, {size}}}" for offset, size in gaps) or "{0, 0}"
    head = f"#define NUM_GAPS {len(gaps)}\nstatic const int gaps[][2] = {{{table}}};\n"
    (folder / "main.c").write_text(head + _MAIN)
    program = folder / "model"
    sanitizers = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    libraries = (_KERNELS, *([_ARMV7EM] if engine.isa == "armv7em" else []))
    objects = [item for library in libraries for item in _kernel_objects(library, sanitizers)]
    _compile([*FLAGS, *sanitizers, *sources, str(folder / "main.c"), *objects, "-o", str(program)])
    done = subprocess.run([program], input=np.ascontiguousarray(x, np.int8).tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:2000]
    return np.frombuffer(done.stdout, DTYPES[graph.tensor(graph.outputs[0]).dtype]).reshape(len(x), -1)


def _spread(plan: MemoryPlan) -> tuple[MemoryPlan, list[tuple[int, int]]]:
    """Return a plan in which nothing shares memory, and its gaps (offset, bytes); one with aliases stays as it is."""
    if any(item.alias_of for item in plan.placements):
        return plan, []
    offset, gaps = 0, []

    def place(item: _Placed) -> _Placed:
        nonlocal offset
        placed = replace(item, offset=offset + _GAP_BYTES)
        end = placed.offset + item.num_bytes
        gaps.append((offset, _GAP_BYTES))
        offset = -(-end // _GAP_BYTES) * _GAP_BYTES
        gaps.append((end, offset - end))
        return placed

    placements = tuple(map(place, plan.placements))
    scratch = tuple(map(place, plan.scratch))
    gaps.append((offset, _GAP_BYTES))
    return replace(plan, placements=placements, scratch=scratch, arena_bytes=offset + _GAP_BYTES), gaps


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([str(HOST_COMPILER), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


def _write_sources(files: dict[str, str], folder: Path) -> list[str]:
    """Write generated files and a stand-in for tk_board.h; return include flags and C files for a compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tk_board.h").write_text('#define TK_BOARD_NAME "host"\n')
    includes = [f"-I{path}" for path in (folder, find_resource("firmware") / "include", *_INCLUDES)]
    return [*includes, *map(str, sorted(folder.glob("tk_*.c")))]


@cache
def _kernel_objects(kernels: Path, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Compile the kernels once for all tests; return the object files."""
    folder = Path(tempfile.mkdtemp(prefix="tinykd-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    objects = []
    for source in sorted(kernels.glob("src/*.c")):
        objects.append(str(folder / f"{source.stem}.o"))
        includes = [f"-I{path}" for path in (kernels / "include", *_INCLUDES)]
        _compile([*FLAGS, *flags, *includes, "-c", str(source), "-o", objects[-1]])
    return tuple(objects)
