"""The oracle: unmodified TFLite Micro, from the `tflite-micro` wheel, on the host."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykd.errors import ToolchainError, UnsupportedModelError

INSTALL = "pip install tflite-micro (Linux on x86-64; part of tinykd[oracle])"


@dataclass(frozen=True)
class ArenaUse:
    """What TFLite Micro allocates on this 64-bit host, in bytes: activations (head), bookkeeping (tail), both."""

    total_bytes: int
    head_bytes: int
    tail_bytes: int


def is_available() -> bool:
    """Whether the `tflite-micro` wheel can be imported."""
    import importlib.util

    return importlib.util.find_spec("tflite_micro") is not None


class Oracle:
    """One TFLite Micro interpreter.

    Args:
        model: the bytes of a `.tflite`.
        keep_all: keep every activation readable (needs a larger arena; offline plans are ignored by the runtime then).

    Raises:
        ToolchainError: the wheel is not installed.
        UnsupportedModelError: TFLite Micro refuses the model.
    """

    def __init__(self, model: bytes, *, keep_all: bool = False) -> None:
        try:
            from tflite_micro.python.tflite_micro import runtime
        except ImportError as error:
            raise ToolchainError("the tflite-micro wheel, our oracle, is not installed", INSTALL + ".") from error
        config = runtime.InterpreterConfig
        mode = config.kPreserveAllTensors if keep_all else config.kAllocationRecording
        self._output_shape: tuple[int, ...] = ()

        def make() -> Any:
            return runtime.Interpreter.from_bytes(model, intrepreter_config=mode, arena_size=_arena_size(model))

        try:
            self._interpreter, log = _with_captured_stderr(make)
        except RuntimeError as error:
            raise UnsupportedModelError(f"TFLite Micro refuses the model: {error}") from error
        self._input_shape = tuple(int(dim) for dim in self._interpreter.get_input_details(0)["shape"])

    def reset(self) -> None:
        """Put the model's variables back to where they start."""
        self._interpreter.reset()

    def invoke_many(self, inputs: Sequence[np.ndarray], num_outputs: int) -> list[np.ndarray]:
        """Return the outputs for one value of each input, of the inputs' own types, in the file's order."""
        for index, value in enumerate(inputs):
            self._interpreter.set_input(np.ascontiguousarray(value), index)
        self._interpreter.invoke()
        return [np.array(self._interpreter.get_output(index)) for index in range(num_outputs)]

    def invoke(self, x: np.ndarray) -> np.ndarray:
        """Return the int8 output for one int8 input (any shape with the right number of elements)."""
        self._interpreter.set_input(np.ascontiguousarray(x, np.int8).reshape(self._input_shape), 0)
        self._interpreter.invoke()
        return np.array(self._interpreter.get_output(0))

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs for inputs (N, ...) as (N, elements); each input stands for itself."""
        return np.stack([self._invoke_fresh(sample).reshape(-1) for sample in x])

    def _invoke_fresh(self, x: np.ndarray) -> np.ndarray:
        self.reset()
        return self.invoke(x)

    def tensor(self, index: int) -> np.ndarray:
        """Return the value of tensor `index` of the `.tflite` after `invoke`; needs keep_all."""
        return np.array(self._interpreter.GetTensor(index, 0)["tensor_data"])

    def arena(self) -> ArenaUse:
        """Return how much of its arena TFLite Micro uses."""
        _, log = _with_captured_stderr(self._interpreter.print_allocations)
        values = {key: int(number) for key, number in re.findall(r"Arena allocation (\w+) (\d+) bytes", log)}
        return ArenaUse(values["total"], values["head"], values["tail"])


def _arena_size(model: bytes) -> int:
    return max(10 * len(model), 32 << 20)


def _with_captured_stderr(call: Callable[[], Any]) -> tuple[Any, str]:
    """Run `call` and return its result with what native code wrote to file descriptor 2 meanwhile."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            result = call()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        return result, file.read().decode("utf-8", "replace")
