"""Compiles a generated model with the host's compiler into a shared library and runs it op by op through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from tinykd.build import generate
from tinykd.ir import Graph, MemoryPlan
from tinykd.plan import plan_graph
from tinykd.resources import find_resource

HOST_COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]


class HostModel:
    """A generated model on the host: the same C that a board gets."""

    def __init__(self, graph: Graph, folder: Path, flags: tuple[str, ...] = ("-O1",), plan: MemoryPlan | None = None):
        self.graph = graph
        self.plan = plan or plan_graph(graph)
        self.generated = generate(graph, self.plan, "00" * 32)
        sources = write_sources(self.generated.files, folder)
        library = folder / "model.so"
        subprocess.run([str(HOST_COMPILER), *WARNINGS, *flags, "-shared", "-fPIC", *sources, "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.tk_model_input.restype = ctypes.c_void_p
        self.library.tk_model_arena.restype = ctypes.c_void_p

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Run one inference; return every activation as it stood right after the op that made it."""
        name = self.graph.inputs[0]
        data = np.ascontiguousarray(x, np.int8).reshape(-1)
        ctypes.memmove(self.library.tk_model_input(), data.ctypes.data, data.size)
        values = {name: data.reshape(self.graph.tensor(name).shape)}
        for op in self.generated.ops:
            self.library.tk_model_run_op(op.op)
            output = self.graph.ops[op.graph_op].outputs[0]
            values[output] = self._read(output)
        values[self.graph.outputs[0]] = self._read(self.graph.outputs[0])
        return values

    def _read(self, name: str) -> np.ndarray:
        tensor = self.graph.tensor(name)
        address = self.library.tk_model_arena() + self.plan.offset(name)
        return np.frombuffer(ctypes.string_at(address, tensor.num_bytes), np.int8).reshape(tensor.shape)


def write_sources(files: dict[str, str], folder: Path) -> list[str]:
    """Write generated files and a stand-in for tk_board.h; return include flags and C files for a compiler."""
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tk_board.h").write_text('#define TK_BOARD_NAME "host"\n')
    firmware = find_resource("firmware")
    kernels = firmware / "lib" / "tk_kernels"
    includes = [f"-I{path}" for path in (folder, firmware / "include", kernels / "include")]
    return [*includes, *map(str, sorted(kernels.glob("src/*.c"))), *map(str, sorted(folder.glob("tk_*.c")))]
