"""Runs the very ELF that the board would run, in the Unicorn CPU emulator (an optional package).

The core executes exactly the instructions of the real one; memories are where the board file says, flash is read-only,
and `peripherals` imitates the registers. There are no interrupts and there is no notion of time: what costs is counted
in retired instructions. The emulator runs only while the host waits for an answer, and stops when the firmware waits
for the host.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal

from tinykd.board import Board
from tinykd.errors import ConfigError, DeviceError
from tinykd.run.transport.base import BlockCount, InstructionCounts, count_instructions
from tinykd.run.transport.firmware import INVOKE_SYMBOL, Firmware, read_firmware
from tinykd.run.transport.peripherals import UART_MODELS, Registers, Uart

_PAGE = 0x1000
_NOWHERE = 0xFFFF_FFFE  # emulation never reaches it
_PERIPHERALS = (0x4000_0000, 0x6000_0000)  # ARM DDI 0403E, section B3.1: the system address map
_PRIVATE_PERIPHERALS = (0xE000_0000, 0xE010_0000)
_PAINT = 0xA5  # SRAM after power-up is not zero on a chip either


def _import_unicorn() -> Any:
    try:
        import unicorn
    except ImportError as error:
        raise DeviceError(
            "the Unicorn emulator is not installed", "Install it: pip install 'tinykd[sim]' (tinykd doctor checks it)."
        ) from error
    return unicorn


class UnicornTransport:
    """An emulated board behind the transport interface.

    Args:
        elf: the firmware.
        board: the board that it was built for.
        timeout_s: wall-clock seconds that the firmware may run without waiting for the host.

    Raises:
        DeviceError: the emulator is not installed, or the firmware faults, hangs or jumps away (at any later call too).
        ConfigError: the board file does not say how to emulate the board, or the ELF is damaged or does not fit it.
    """

    name = "unicorn"
    counter_unit: Literal["cycles", "instructions", "none"] = "none"

    def __init__(self, elf: Path, board: Board, *, timeout_s: float = 120.0) -> None:
        facts = board.emulator.unicorn
        if facts is None:
            raise ConfigError(
                f"board '{board.name}' has no [emulator.unicorn] section",
                "Choose a board that has one (tinykd list boards), or use a real board with --port.",
            )
        if facts.uart_model not in UART_MODELS or "TK_UART_BASE" not in board.defines:
            raise ConfigError(
                f"board '{board.name}': the emulator needs TK_UART_BASE in [defines] and a uart_model of "
                f"{', '.join(UART_MODELS)}, not '{facts.uart_model}'"
            )
        self._unicorn = _import_unicorn()
        self.firmware: Firmware = read_firmware(elf)
        self._board = board
        self._timeout_s = timeout_s
        self._dead: DeviceError | None = None
        self._idle = False
        self._reset_wanted = False
        self._last_fault: tuple[int, int] | None = None
        self._uc = self._make_core(facts.cpu)
        self.counter: UnicornCounter | None = UnicornCounter(self._unicorn, self._uc, self.firmware)
        self._registers = Registers(facts.mirror_bits, facts.cpu, self.counter.retired_now, self._on_reset)
        base = board.defines["TK_UART_BASE"]
        self._uart = Uart(UART_MODELS[facts.uart_model], base, self._registers, self._on_idle)
        self._map(base)
        self._watchdog = _Watchdog(self._uc.emu_stop)
        self._power_up()

    def write(self, data: bytes) -> None:
        """Put bytes on the line; the firmware sees them when the host reads."""
        self._alive()
        self._uart.put(data)

    def read(self, timeout_s: float) -> bytes:
        """Run the firmware until it waits for the host; return what it has sent (b"": nothing more will come)."""
        self._alive()
        if not self._idle or self._uart.has_input:
            try:
                self._run()
            except DeviceError as error:
                self._dead = error
                raise
        return self._uart.take()

    def restart(self) -> None:
        """Reset the chip, as its button does: SRAM keeps its contents."""
        self._alive()
        self._boot()

    def close(self) -> None:
        """End the emulation."""
        self._watchdog.close()

    @property
    def stack_bytes_measured(self) -> int:
        """The deepest that the stack has been since power-up, in bytes: the SRAM between it and the static data still
        carries the paint that it was given."""
        bottom = self._stack_limit
        free = bytes(self._uc.mem_read(bottom, self._stack_top - bottom))
        used = len(free.lstrip(bytes([_PAINT])))
        return -(-used // 4) * 4  # the core pushes words; one of them may begin with the paint's value

    def _make_core(self, cpu: str) -> Any:
        unicorn = self._unicorn
        model = getattr(unicorn.arm_const, f"UC_CPU_ARM_{cpu.upper().replace('-', '_')}")
        # UC_MODE_MCLASS would silently select a Cortex-M33.
        core = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
        core.ctl_set_cpu_model(model)
        memory = self._board.memory
        core.mem_map(
            memory.flash.origin, _whole_pages(memory.flash.size_bytes), unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
        )
        core.mem_map(memory.sram.origin, _whole_pages(memory.sram.size_bytes), unicorn.UC_PROT_ALL)
        core.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid)
        return core

    def _map(self, uart_base: int) -> None:
        """Map the peripherals; the UART's page has callbacks of its own, because they are called for every byte."""
        uart_page = uart_base & ~(_PAGE - 1)
        plain = self._registers.read, self._registers.write
        for start, end, read, write in (
            (_PERIPHERALS[0], uart_page, *plain),
            (uart_page, uart_page + _PAGE, self._uart.read, self._uart.write),
            (uart_page + _PAGE, _PERIPHERALS[1], *plain),
            (*_PRIVATE_PERIPHERALS, *plain),
        ):
            if start < end:
                self._map_region(start, end - start, read, write)

    def _map_region(self, start: int, num_bytes: int, read: Any, write: Any) -> None:
        def on_read(core: Any, offset: int, size: int, _: Any) -> int:
            return read(start + offset, size)

        def on_write(core: Any, offset: int, size: int, value: int, _: Any) -> None:
            write(start + offset, size, value)

        self._uc.mmio_map(start, num_bytes, on_read, None, on_write, None)

    def _power_up(self) -> None:
        memory = self._board.memory
        self._uc.mem_write(memory.flash.origin, b"\xff" * memory.flash.size_bytes)
        self._uc.mem_write(memory.sram.origin, bytes([_PAINT]) * memory.sram.size_bytes)
        for address, data in self.firmware.segments:
            if not memory.flash.origin <= address <= memory.flash.origin + memory.flash.size_bytes - len(data):
                raise ConfigError(
                    f"{self.firmware.path} has {len(data)} B for 0x{address:08x}, outside the flash of "
                    f"'{self._board.name}'",
                    "Build it for this board: tinykd build --board.",
                )
            self._uc.mem_write(address, data)
        self._stack_top = self._word(memory.flash.origin)
        sram_end = memory.sram.origin + memory.sram.size_bytes
        if not memory.sram.origin < self._stack_top <= sram_end:
            raise ConfigError(
                f"{self.firmware.path}: its stack pointer 0x{self._stack_top:08x} is outside the SRAM of "
                f"'{self._board.name}'"
            )
        statics = [end for end in self.firmware.static_ends if memory.sram.origin <= end <= self._stack_top]
        self._stack_limit = max(statics, default=memory.sram.origin)
        self._boot()

    def _boot(self) -> None:
        self._registers.reset()
        self._uart.reset()
        self._idle = self._reset_wanted = False
        arm = self._unicorn.arm_const
        self._uc.reg_write(arm.UC_ARM_REG_SP, self._stack_top)
        self._uc.reg_write(arm.UC_ARM_REG_LR, 0xFFFF_FFFF)
        self._pc = self._word(self._board.memory.flash.origin + 4) & ~1

    def _word(self, address: int) -> int:
        return int.from_bytes(self._uc.mem_read(address, 4), "little")

    def _run(self) -> None:
        unicorn = self._unicorn
        while True:
            self._idle = False
            self._last_fault = None
            self._uart.wake()
            with self._watchdog.limit(self._timeout_s):
                try:
                    self._uc.emu_start(self._pc | 1, _NOWHERE)
                except unicorn.UcError as error:
                    raise self._fault(str(error)) from error
            self._pc = self._uc.reg_read(unicorn.arm_const.UC_ARM_REG_PC)
            if self._reset_wanted:
                self._boot()
            elif self._idle:
                return
            elif self._watchdog.expired:
                raise DeviceError(
                    f"unicorn: the firmware has not come back in {self._timeout_s:g} s; it runs at "
                    f"{self.firmware.locate(self._pc)}",
                    "It hangs, or the model is too large for emulation.",
                )
            else:
                # Some faults stop the emulator without a word.
                raise self._fault("it stopped for no reason that the emulator tells")

    def _fault(self, reason: str) -> DeviceError:
        pc = self._uc.reg_read(self._unicorn.arm_const.UC_ARM_REG_PC) & ~1
        where = f"at {self.firmware.locate(pc)}"
        if self._last_fault is not None:
            where += f", access to 0x{self._last_fault[1]:08x}"
        return DeviceError(
            f"unicorn: the firmware faulted {where}: {reason}",
            "On the board this is a hard fault. Build the firmware for this board; if it was, please report the model.",
        )

    def _alive(self) -> None:
        if self._dead is not None:
            raise self._dead

    def _on_idle(self) -> None:
        self._idle = True
        self._uc.emu_stop()

    def _on_reset(self) -> None:
        self._reset_wanted = True
        self._uc.emu_stop()

    def _on_invalid(self, core: Any, access: int, address: int, size: int, value: int, _: Any) -> bool:
        self._last_fault = (access, address)
        return False


_Passages = dict[tuple[int, int, int], int]
"""(address of the block before, address, bytes) -> how often a block ran right after that one."""


class UnicornCounter:
    """Counts retired instructions block by block, exactly, and splits those of an inference by op.

    A block is a run of instructions that the emulator executes as one; a call, a return or a branch ends it. An op's
    share is everything between the entry to its function and the return to its caller, callees included.
    """

    def __init__(self, unicorn: Any, core: Any, firmware: Firmware) -> None:
        self._unicorn = unicorn
        self._uc = core
        self._firmware = firmware
        self._hook: int | None = None
        self._code: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._retired = 0
        self._open: _Passages = {}
        self._open_retired = 0
        self._last: list[_Passages] | None = None

    def retired_now(self) -> int:
        """Instructions retired while counting, up to the end of the present block; stands still otherwise."""
        return self._retired + self._instructions(self._open) - self._open_retired

    def start(self) -> None:
        """Count from now on; about four times slower."""
        if self._hook is None:
            callback = self._make_callback(self._firmware.ops())
            self._hook = self._uc.hook_add(self._unicorn.UC_HOOK_BLOCK, callback)
            self._uc.ctl_flush_tb()  # code that was translated before has no hook in it
        self._last = None

    def stop(self) -> InstructionCounts:
        """Stop counting and return the counts of the last inference since `start`.

        Raises:
            DeviceError: no inference was finished.
        """
        if self._hook is not None:
            self._uc.hook_del(self._hook)
            self._uc.ctl_flush_tb()
            self._hook = None
        if self._last is None:
            raise DeviceError("unicorn: no inference was finished while instructions were counted")
        *per_op, overhead = (self._instructions(passages) for passages in self._last)
        blocks = tuple(self._blocks(passages) for passages in self._last)
        return InstructionCounts(sum(per_op) + overhead, tuple(per_op), overhead, blocks)

    def _make_callback(self, ops: dict[int, int]) -> Any:
        # Local variables, because this runs for every block: tens of millions of times a minute.
        invoke = self._firmware.symbols[INVOKE_SYMBOL]
        outside: _Passages = defaultdict(int)
        here = outside  # the passages of where the core is
        watched: Container[int] = (invoke,)  # the addresses where that changes
        parts: list[_Passages] = []  # of each op, and last of the loop
        after_invoke = before = -1

        def on_block(_: Any, address: int, size: int, __: Any) -> None:
            nonlocal here, before
            if address in watched:
                here = enter(address)
            here[before, address, size] += 1
            before = address

        def enter(address: int) -> _Passages:
            """Return where passages are counted from now on: outside, in an op, or in the loop around ops."""
            nonlocal watched, parts, after_invoke
            if address == invoke:
                parts = [defaultdict(int) for _ in range(len(ops) + 1)]
                after_invoke = self._return_address()
                entered = parts[-1]
            elif here is not parts[-1]:
                entered = parts[-1]
            elif address == after_invoke:
                self._last, entered = parts, outside
            else:
                entered = parts[ops[address]]
                watched = (invoke, self._return_address())
            if entered is outside:
                watched = (invoke,)
            elif entered is parts[-1]:
                watched = {invoke, *ops, after_invoke}
            self._switch(entered)
            return entered

        self._switch(outside)
        return on_block

    def _return_address(self) -> int:
        return int(self._uc.reg_read(self._unicorn.arm_const.UC_ARM_REG_LR)) & ~1

    def _switch(self, passages: _Passages) -> None:
        """Let `retired_now` follow other passages from now on."""
        self._retired = self.retired_now()
        self._open, self._open_retired = passages, self._instructions(passages)

    def _instructions(self, passages: _Passages) -> int:
        return sum(self._block(address, size)[0] * times for (_, address, size), times in passages.items())

    def _block(self, address: int, size: int) -> tuple[int, bytes]:
        """Return a block's number of instructions, and its code."""
        found = self._code.get((address, size))
        if found is None:
            code = bytes(self._uc.mem_read(address, size))
            found = self._code[address, size] = count_instructions(code), code
        return found

    def _blocks(self, passages: _Passages) -> tuple[BlockCount, ...]:
        times: Counter[tuple[int, int]] = Counter()
        fallen_into: Counter[tuple[int, int]] = Counter()  # by the block in front and the address behind it
        for (before, address, size), count in passages.items():
            times[address, size] += count
            fallen_into[before, address] += count
        return tuple(
            BlockCount(
                self._firmware.function_at(address),
                self._block(address, size)[1],
                count,
                count - min(count, fallen_into[address, address + size]),
            )
            for (address, size), count in times.items()
        )


class _Watchdog:
    """Stops a run that takes too long. One thread for all runs: there are several for each inference."""

    def __init__(self, stop: Any) -> None:
        self.expired = False
        self._stop = stop
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="tinykd-unicorn-watchdog", daemon=True)
        self._thread.start()

    def limit(self, seconds: float) -> _Watchdog:
        """Use as `with watchdog.limit(seconds):` around a run."""
        self.expired = False
        self._deadline = time.monotonic() + seconds
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._deadline = None

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                self._condition.wait(0.25)
                deadline = self._deadline
                if deadline is not None and time.monotonic() > deadline:
                    self.expired = True
                    self._stop()


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
