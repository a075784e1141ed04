"""Calls functions of an ELF of `tinykd/build/bare.py` in the Unicorn CPU emulator: no board, no peripherals.

For measuring and testing kernels on any core: one inference costs what its instructions cost, nothing is streamed.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykd.errors import DeviceError
from tinykd.run.transport.base import count_instructions
from tinykd.run.transport.firmware import read_firmware
from tinykd.run.transport.unicorn import _import_unicorn

_MEMORY_BYTES = 16 << 20
_REGIONS = (0x0800_0000, 0x2000_0000)
_STACK_TOP = _REGIONS[1] + _MEMORY_BYTES
_STACK_BYTES = 1 << 16
_RETURN = 0x0F00_0000
_PAINT = 0xA5


@dataclass(frozen=True)
class Profile:
    """What one call retired: `instructions`, and the same by function."""

    instructions: int
    by_function: dict[str, int]


class BareMachine:
    """A Cortex-M with an image in its memory.

    Args:
        elf: from `build_bare`.
        core: "cortex-m0plus", "cortex-m3", "cortex-m4" or "cortex-m7". An instruction that it does not have is a fault.

    Raises:
        DeviceError: the emulator is not installed, or (at any call) the code faults.
    """

    def __init__(self, elf: Path, core: str) -> None:
        self._unicorn = unicorn = _import_unicorn()
        self._arm = unicorn.arm_const
        self.firmware = read_firmware(elf)
        model = {"cortex-m0plus": "cortex-m0"}.get(core, core)
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
        self._uc.ctl_set_cpu_model(getattr(self._arm, f"UC_CPU_ARM_{model.upper().replace('-', '_')}"))
        for origin in (*_REGIONS, _RETURN):
            self._uc.mem_map(origin, 0x1000 if origin == _RETURN else _MEMORY_BYTES, unicorn.UC_PROT_ALL)
        for address, data in self.firmware.segments:
            self._uc.mem_write(address, data)
        self._addresses = [address for address, _ in self.firmware.functions]
        self._blocks: Counter[tuple[int, int]] = Counter()
        self._lengths: dict[tuple[int, int], int] = {}
        # The floating-point unit is on, as after the firmware's start.
        if core in ("cortex-m4", "cortex-m7"):
            self._uc.reg_write(self._arm.UC_ARM_REG_FPEXC, 0x4000_0000)

    def call(self, function: str, *arguments: int) -> int:
        """Call a function with up to four words; return R0."""
        registers = [getattr(self._arm, f"UC_ARM_REG_R{index}") for index in range(4)]
        for register, value in zip(registers, arguments, strict=False):
            self._uc.reg_write(register, value & 0xFFFF_FFFF)
        self._uc.reg_write(self._arm.UC_ARM_REG_SP, _STACK_TOP)
        self._uc.reg_write(self._arm.UC_ARM_REG_LR, _RETURN | 1)
        start = self.firmware.symbols[function]
        try:
            self._uc.emu_start(start | 1, _RETURN)
        except self._unicorn.UcError as error:
            where = self.firmware.locate(self._uc.reg_read(self._arm.UC_ARM_REG_PC) & ~1)
            raise DeviceError(f"{function} faulted at {where}: {error}") from error
        if (stopped := self._uc.reg_read(self._arm.UC_ARM_REG_PC) & ~1) != _RETURN:
            # Some faults stop the emulator without a word.
            raise DeviceError(f"{function} stopped at {self.firmware.locate(stopped)}")
        return int(self._uc.reg_read(self._arm.UC_ARM_REG_R0))

    def profile(self, function: str, *arguments: int) -> Profile:
        """Call a function and count what it retires, exactly, block by block."""
        self._blocks.clear()
        hook = self._uc.hook_add(self._unicorn.UC_HOOK_BLOCK, self._on_block)
        self._uc.ctl_flush_tb()
        try:
            self.call(function, *arguments)
        finally:
            self._uc.hook_del(hook)
            self._uc.ctl_flush_tb()
        total, by_function = 0, Counter[str]()
        for (address, size), times in self._blocks.items():
            if address == _RETURN:
                continue
            count = self._length(address, size) * times
            total += count
            by_function[self._name(address)] += count
        return Profile(total, dict(by_function))

    @property
    def blocks(self) -> dict[tuple[int, int], int]:
        """How often each block (address, bytes) ran during the last `profile`."""
        return {key: times for key, times in self._blocks.items() if key[0] != _RETURN}

    def read(self, address: int, size: int) -> bytes:
        """Return memory."""
        return bytes(self._uc.mem_read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Change memory."""
        self._uc.mem_write(address, data)

    def paint_stack(self) -> None:
        """Fill the stack with a pattern, so that `stack_bytes` tells how deep the calls since then went."""
        self.write(_STACK_TOP - _STACK_BYTES, bytes([_PAINT]) * _STACK_BYTES)

    def stack_bytes(self) -> int:
        """Return the depth in bytes since `paint_stack`."""
        used = self.read(_STACK_TOP - _STACK_BYTES, _STACK_BYTES).lstrip(bytes([_PAINT]))
        return -(-len(used) // 4) * 4

    def _on_block(self, _: Any, address: int, size: int, __: Any) -> None:
        self._blocks[address, size] += 1

    def _length(self, address: int, size: int) -> int:
        if (address, size) not in self._lengths:
            self._lengths[address, size] = count_instructions(self.read(address, size))
        return self._lengths[address, size]

    def _name(self, address: int) -> str:
        index = bisect.bisect_right(self._addresses, address) - 1
        return self.firmware.functions[index][1] if index >= 0 else f"0x{address:08x}"


class BareModel:
    """A model of `build_bare` on a `BareMachine`.

    Args:
        elf, core: see `BareMachine`.
        num_ops: of the generated sequence.
    """

    def __init__(self, elf: Path, core: str, num_ops: int) -> None:
        self.machine = BareMachine(elf, core)
        self.num_ops = num_ops
        self._arena = self.machine.call("tk_model_arena")
        self._input = self.machine.call("tk_model_input")
        self._output = self.machine.call("tk_model_output")

    def run(self, x: np.ndarray, output_bytes: int) -> bytes:
        """Run one inference of int8 `x` with an empty state; return the output's bytes."""
        self.load(x)
        for op in range(self.num_ops):
            self.machine.call("tk_model_run_op", op)
        return self.output(output_bytes)

    def load(self, x: np.ndarray) -> None:
        """Write an input and forget earlier inferences."""
        self.machine.call("tk_model_reset_state")
        self.machine.write(self._input, np.ascontiguousarray(x, np.int8).tobytes())

    def run_op(self, op: int) -> Profile:
        """Run one op of the sequence and count; the dispatch to it (`tk_model_run_op`) is left out."""
        return self.machine.profile(f"tk_op_{op:03d}")

    def infer(self, x: np.ndarray, after_op: Callable[[int, Profile], None] | None = None) -> int:
        """Run one inference with an empty state and return the instructions of all its ops, their dispatch included.

        Args:
            x: int8.
            after_op: called behind each op with its number and what it took.
        """
        self.load(x)
        total = 0
        for op in range(self.num_ops):
            profile = self.machine.profile("tk_model_run_op", op)
            total += profile.instructions
            if after_op is not None:
                after_op(op, profile)
        return total

    def arena(self, offset: int, size: int) -> bytes:
        """Return bytes of the arena."""
        return self.machine.read(self._arena + offset, size)

    def output(self, size: int) -> bytes:
        """Return the output's bytes."""
        return self.machine.read(self._output, size)
