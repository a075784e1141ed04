"""Estimates cycles from the instructions that ran: a documented table for the Cortex-M4, a range for the Cortex-M7.

Nothing here knows flash wait states, caches, buses or alignment; docs/profile.md says what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from tinykd.run.transport.base import BlockCount

_DIVIDE_CYCLES = (2, 12)
_PRIVILEGED_CYCLES = (1, 2)
_REFILL_CYCLES = (1, 3)  # P of ARM DDI 0439, section 3.3.1
_FLOAT_CYCLES: Mapping[str, int] = MappingProxyType(
    {**dict.fromkeys(("vdiv", "vsqrt"), 14), **dict.fromkeys(("vmla", "vmls", "vnmla", "vnmls", "vfma", "vfms"), 3)}
)
"""ARM DDI 0439, table 7-1; every other floating-point instruction takes one cycle."""
_LOADS = ("ldr", "ldm", "pop", "vldr", "vldm", "vpop")
_STORES = ("str", "stm", "push", "vstr", "vstm", "vpush")
_BRANCHES = ("b", "bl", "bx", "blx", "cbz", "cbnz", "tbb", "tbh")
_PRIVILEGED = ("mrs", "msr", "cps", "dsb", "dmb", "isb")
_MULTIPLIES = ("mul", "mla", "mls", "smul", "smla", "smml", "smmul", "smls", "smus", "smua", "umul", "umla", "umaal")
_SHIFTERS = ("sxt", "uxt", "bf", "sbf", "ubf", "pkh", "ssat", "usat", "rev", "lsl", "lsr", "asr", "ror")


@dataclass(frozen=True)
class Cycles:
    """An estimate: at least `low`, at most `high`, as far as the model goes."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The one number where one is wanted: half-way between the bounds."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Instruction:
    """What timing depends on.

    Attributes:
        name: mnemonic without condition and width: "ldr".
        unit: "alu", "shift", "multiply", "divide", "float", "load", "store", "branch", "it" or "privileged".
        reads, writes: registers; `address` are those that make up an address.
        words: how many registers a load or store moves; 0 for others.
        by_register: a load or store whose offset is a register.
        jumps: it writes the program counter.
    """

    name: str
    unit: str
    reads: frozenset[str]
    writes: frozenset[str]
    address: frozenset[str] = frozenset()
    words: int = 0
    by_register: bool = False
    jumps: bool = False

    @property
    def is_single(self) -> bool:
        """Whether it moves one register from or to memory, which is what pipelines on the Cortex-M4."""
        return self.words == 1 and self.name[:3] in ("ldr", "str") and not self.jumps


@dataclass(frozen=True)
class _BlockCost:
    """Cycles of a block that falls through, and what leaving it by a jump adds."""

    stay: Cycles
    jump: Cycles


def estimate(blocks: Iterable[BlockCount], core: str) -> Cycles:
    """Return the cycles of everything that ran.

    Args:
        blocks: what ran how often.
        core: "cortex-m4" or "cortex-m7".

    Raises:
        ModuleNotFoundError: the disassembler is not installed (`tinykd[sim]`).
    """
    low = high = 0.0
    for block in blocks:
        cost = _block_cost(block.code, core)
        low += block.times * cost.stay.low + block.jumps * cost.jump.low
        high += block.times * cost.stay.high + block.jumps * cost.jump.high
    return Cycles(low, high)


def decode(code: bytes) -> list[Instruction]:
    """Return the instructions of a block of Thumb code."""
    return [_instruction(item) for item in _disassembler().disasm(code, 0)]


def cortex_m4(instructions: list[Instruction]) -> Cycles:
    """Return the cycles of a block that falls through, by ARM DDI 0439, sections 3.3.1 and 3.3.2."""
    low = high = 0.0
    before: Instruction | None = None
    for item in instructions:
        least, most = _m4_alone(item)
        follows_load = before is not None and before.unit == "load" and before.is_single
        if before is not None and item.address:
            if follows_load and item.is_single and not before.writes & item.address:
                least, most = 1, 1  # pipelined with the load in front of it
            elif before.unit in ("alu", "shift", "multiply") and before.writes & item.address:
                least, most = least + 1, most + 1  # no forwarding from data processing to an address
        low, high, before = low + least, high + most, item
    return Cycles(low, high)


def cortex_m7(instructions: list[Instruction]) -> Cycles:
    """Return the cycles of a block that falls through.

    Low: in order, two at a time wherever units and registers allow it, every result at once. High: one at a time, and
    one cycle of waiting where a loaded or multiplied value is used at once.
    """
    low = high = 0.0
    index = 0
    while index < len(instructions):
        low += _m7_issue(instructions[index])[0]
        index += 2 if index + 1 < len(instructions) and _m7_pair(*instructions[index : index + 2]) else 1
    before: Instruction | None = None
    for item in instructions:
        late = before is not None and before.unit in ("load", "multiply") and bool(before.writes & item.reads)
        accumulates = before is not None and before.unit == item.unit == "multiply"
        high, before = high + _m7_issue(item)[1] + (late and not accumulates), item
    return Cycles(low, high)


_CORES: Mapping[str, tuple[Callable[[list[Instruction]], Cycles], Cycles]] = MappingProxyType(
    {
        "cortex-m4": (cortex_m4, Cycles(*_REFILL_CYCLES)),
        # A jump that was foreseen is free; one cycle is what the target's fetch may take.
        "cortex-m7": (cortex_m7, Cycles(0, 1)),
    }
)


@lru_cache(maxsize=1 << 14)
def _block_cost(code: bytes, core: str) -> _BlockCost:
    count, jump = _CORES[core]
    return _BlockCost(count(decode(code)), jump)


def _m4_alone(item: Instruction) -> tuple[float, float]:
    if item.unit == "divide":
        return _DIVIDE_CYCLES
    if item.unit == "privileged":
        return _PRIVILEGED_CYCLES
    if item.unit == "it":
        return 0, 1  # folded onto a 16-bit instruction in front of it, or not
    if item.unit == "float":
        return (_FLOAT_CYCLES.get(item.name, 1),) * 2
    if item.name in ("tbb", "tbh"):
        return 2, 2
    if item.words > 1 or item.name in ("push", "pop"):
        return (1 + item.words,) * 2
    if item.unit == "store":
        return (2, 2) if item.by_register else (1, 1)
    return (2, 2) if item.unit == "load" else (1, 1)


def _m7_issue(item: Instruction) -> tuple[float, float]:
    """Return the cycles in which an instruction holds the issue stage."""
    if item.unit == "divide":
        return _DIVIDE_CYCLES
    if item.unit == "privileged":
        return _PRIVILEGED_CYCLES
    if item.unit == "float":
        cycles = _FLOAT_CYCLES.get(item.name, 1)
        return (cycles if cycles == 14 else 1), cycles
    # Memory is 64 bits wide.
    return max(1, -(-item.words // 2)), max(1, item.words)


def _m7_pair(first: Instruction, second: Instruction) -> bool:
    """Whether two neighbours can be issued together."""
    if max(first.words, second.words) > 2 or {first.unit, second.unit} & {"divide", "privileged"} or first.jumps:
        return False
    if first.unit == second.unit and first.unit in ("shift", "multiply", "store", "branch", "float"):
        return False
    if first.words + second.words > 2:
        return False
    flags = frozenset(("cpsr",))
    if second.unit == "branch":
        return not first.writes - flags & second.reads
    return not first.writes & (second.reads | second.writes - flags)


@lru_cache(maxsize=1)
def _disassembler() -> Any:
    import capstone

    engine = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS)
    engine.detail = True
    engine.skipdata = True  # what it does not know counts as one instruction of one cycle
    return engine


def _instruction(item: Any) -> Instruction:
    if item.id == 0:
        return Instruction(item.mnemonic, "alu", frozenset(), frozenset())
    name = item.insn_name()
    read, written = (frozenset(map(item.reg_name, registers)) for registers in item.regs_access())
    unit = _unit(name, item)
    # The library leaves out some second operands (of SSAT, UXTAB, PKHBT).
    if unit not in ("load", "float"):
        read |= {item.reg_name(operand.reg) for operand in item.operands[1:] if operand.type == 1}
    if unit not in ("load", "store") or not item.operands:
        return Instruction(name, unit, read, written, jumps=unit == "branch" or "pc" in written)
    memory = [operand.mem for operand in item.operands if operand.type == 3]
    address = {item.reg_name(part) for operand in memory for part in (operand.base, operand.index) if part}
    if not memory:  # a list of registers behind its base, or behind the stack pointer
        address = {"sp"} if name in ("push", "pop", "vpush", "vpop") else {item.reg_name(item.operands[0].reg)}
    registers = [operand for operand in item.operands if operand.type == 1]
    words = len(registers) - (not memory and name not in ("push", "pop", "vpush", "vpop"))
    doubles = sum(item.reg_name(operand.reg).startswith("d") for operand in registers)
    return Instruction(
        name,
        unit,
        read,
        written,
        frozenset(address),
        words + doubles,
        any(operand.index for operand in memory),
        "pc" in written,
    )


def _unit(name: str, item: Any) -> str:
    if name.startswith(_LOADS):
        return "load"
    if name.startswith(_STORES):
        return "store"
    if name in _BRANCHES:
        return "branch"
    if name in ("sdiv", "udiv"):
        return "divide"
    if name.startswith(_PRIVILEGED):
        return "privileged"
    if name.startswith("it"):
        return "it"
    if name.startswith("v"):
        return "float"
    if name.startswith(_MULTIPLIES):
        return "multiply"
    shifted = any(operand.type == 1 and operand.shift.type for operand in item.operands)
    return "shift" if shifted or name.startswith(_SHIFTERS) else "alu"
