"""Runs a graph's generated C in the emulator, op by op, and watches every byte that an op reads, writes and leaves."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from fuzzing.record import Values
from tinykd.build.bare import MEMORY_BYTES, SRAM_ORIGIN, build_bare, build_kernels
from tinykd.build.codegen import GeneratedModel, generate
from tinykd.export import reference
from tinykd.ir import DTYPES, Graph, Op, verify
from tinykd.kernels import ARMV7EM, KERNELS, Engine, OptimizeFor, engine_for, signature
from tinykd.plan import plan_graph
from tinykd.run.bare import BareMachine

GUARD_BYTES = 64
"""Watched before and behind all variables of the image."""
STACK_LIMIT_BYTES = 2048
_SAVED = range(4, 12)
_IT_STATE = 0x0600_FC00
_ANYWHERE = ("ldr", "ldrh", "ldrsh", "str", "strh")
"""Loads and stores that take any address on Armv7-M (ARM DDI 0403E, section A3.2.1): not LDRD, LDM, STRD, STM."""
_STACK = range(SRAM_ORIGIN + MEMORY_BYTES - (1 << 16), SRAM_ORIGIN + MEMORY_BYTES)


def device_part(graph: Graph) -> Graph | None:
    """Return what the device computes of a graph, None where that is nothing.

    Conversions from and to other types are the host's: an int8 tensor that one of them writes becomes an input.
    """

    def is_int8(name: str) -> bool:
        tensor = graph.tensor(name)
        return tensor.is_constant or tensor.variable or tensor.dtype == "int8"

    ops = tuple(
        op
        for op in graph.ops
        if all(map(is_int8, filter(None, op.inputs))) and (op.kind == "arg_max" or all(map(is_int8, op.outputs)))
    )
    if not ops or len(ops) == len(graph.ops):
        return graph if ops else None
    used = {name for op in ops for name in (*op.inputs, *op.outputs) if name}
    written = {name for op in ops for name in op.outputs}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    inputs = tuple(name for name, t in tensors.items() if name not in written and not t.is_constant and not t.variable)
    outputs = tuple(name for name in written if name in graph.outputs) or ops[-1].outputs
    return verify(replace(graph, tensors=tensors, ops=ops, inputs=inputs, outputs=outputs)) if inputs else None


def single_ended(graph: Graph) -> Graph:
    """Return the graph as the generator takes it: further inputs become variables, which a caller writes as well.

    The output is the last op's: every activation is looked at when it is fresh.
    """
    first, *others = graph.inputs
    tensors = {name: replace(t, variable=t.variable or name in others) for name, t in graph.tensors.items()}
    return replace(graph, tensors=tensors, inputs=(first,), outputs=graph.ops[-1].outputs[:1])


@dataclass(frozen=True)
class Fault:
    """What an op did that it must not.

    Attributes:
        op: its index in the graph.
        text: one sentence.
        sample: the index of the input that shows it.
    """

    op: int
    text: str
    sample: int = 0


ANY_VARIANT = "any"
"""Instead of a goal: any kernel that can run an op may, whatever it costs."""
CONFIGURATIONS = (
    "cortex-m7:balanced",
    "cortex-m7:any",
    "cortex-m4:speed",
    "cortex-m7:size",
    "cortex-m4:any",
    "cortex-m0plus:balanced",
)


def kernels_of(configurations: Iterable[str]) -> set[str]:
    """Return the C functions that should come up: portable ones, and all others where any may be chosen."""
    functions = {kernel.function for row in KERNELS.values() for kernel in row}
    if any(item.endswith(f":{ANY_VARIANT}") for item in configurations):
        functions |= {kernel.function for row in ARMV7EM.values() for kernel in row}
    return functions


def engine_of(core: str, goal: str, graph: Graph) -> Engine:
    """Return the engine; for `ANY_VARIANT` one whose choices look random, and are the same for the same graph."""
    if goal != ANY_VARIANT:
        return engine_for(core, cast(OptimizeFor, goal))
    choices = {}
    for op in graph.ops:
        found = [kernel.variant for kernel in ARMV7EM.get(op.kind, ()) if kernel.applies(graph, op)]
        if found:
            name = signature(graph, op)
            # The last one half of the time: it can do the least.
            choices[name] = found[min(zlib.crc32(name.encode()) % (2 * len(found) - 1), len(found) - 1)]
    return replace(engine_for(core), choices=choices)


class Emulated:
    """An emulated core as a judge of `fuzzing.check`: it runs a graph's generated C.

    Args:
        configuration: core and goal, "cortex-m7:speed", or core and `ANY_VARIANT`.
        folder: where its kernels are kept between the graphs.

    Attributes:
        kernels: C function -> how many ops it ran.
    """

    def __init__(self, configuration: str, folder: Path) -> None:
        self._core, _, self._goal = configuration.partition(":")
        self._folder = folder
        self.options = f" --engine --on {configuration}"
        self.kernels: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"{self._core}, {self._goal}"

    def device(self, graph: Graph) -> Device:
        """Return the graph's code on the core, and count the kernels that it uses."""
        device = Device(graph, self._core, engine_of(self._core, self._goal, graph), self._folder)
        self.kernels.update(op.kernel for op in device.generated.ops)
        return device


class Device:
    """A graph's code on an emulated core.

    Args:
        graph: a `device_part`.
        core: "cortex-m7", say.
        folder: where kernels are kept between models of the same core, and the model's files are made anew.

    Attributes:
        generated: the code, as `generate` returned it.
        elf, kernels: from `build_bare` and `build_kernels`.
        stack_bytes: the deepest that an op went so far.
    """

    def __init__(self, graph: Graph, core: str, engine: Engine, folder: Path) -> None:
        self.graph, ended = graph, single_ended(graph)
        self._core = core
        self.stack_bytes = 0
        self._plan = plan_graph(ended, engine=engine)
        self.generated = generate(ended, self._plan, "00" * 32, engine)
        self.kernels = build_kernels(core, folder / f"kernels-{core}")
        self.elf = build_bare(ended, self._plan, core, folder / f"model-{core}", engine, kernels=self.kernels)
        self._machine = BareMachine(self.elf, core)
        self._arena = self._machine.call("tk_model_arena")
        self._steps = {op.graph_op: op.op for op in self.generated.ops}
        self._symbols = _objects(self.elf)
        self._code = _code(self.elf)
        self._named = _names_of_ops(self.generated)
        end = max(end for end in self._machine.firmware.static_ends if end >= SRAM_ORIGIN)
        self._variables = range(SRAM_ORIGIN, end + GUARD_BYTES)

    @property
    def symbols(self) -> Iterable[str]:
        """Names of the functions and objects of the image."""
        return self._machine.firmware.symbols.keys()

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Run one inference of the graph's only input, straight through; return its output (elements,)."""
        self._load({self.graph.inputs[0]: x})
        for step in range(len(self._steps)):
            self._machine.call("tk_model_run_op", step)
        output = self.graph.tensor(self.graph.outputs[0])
        return np.frombuffer(self._read(self._span(output.name)), DTYPES[output.dtype])

    def first_fault(self, inputs: Values, expected: Values, *, watched: int | None = None) -> Fault | None:
        """Run inputs (N, ..) twice, with other bytes wherever nothing is; return the first op's fault, or None.

        Args:
            expected: all activations by the reference, each (N, ..).
            watched: the sample whose every access to memory is looked at, slowly, or None.
        """
        count = len(inputs[self.graph.inputs[0]])
        for sample in range(count):
            for paint in (0, 1):
                self._paint(seed=2 * sample + paint)
                self._load({name: inputs[name][sample] for name in self.graph.inputs})
                for index, op in enumerate(self.graph.ops):
                    watch = paint == 0 and sample == watched
                    if text := self._fault(index, op, expected, sample, watch=watch):
                        return Fault(index, text, sample)
        return None

    def _fault(self, index: int, op: Op, expected: Values, sample: int, *, watch: bool) -> str | None:
        before = self._read(self._variables)
        if index in self._steps:
            function = f"tk_op_{self._steps[index]:03d}"
            self._machine.paint_stack()
            self._mark_registers()
            if watch:
                reads, writes, uneven = self._watched(function)
                if text := self._stray(index, op, reads, writes) or self._misaligned(uneven):
                    return text
            else:
                self._machine.call(function)
            if lost := self._lost_registers():
                return f"does not restore {', '.join(lost)}"
            self.stack_bytes = max(self.stack_bytes, depth := self._machine.stack_bytes())
            if depth > STACK_LIMIT_BYTES:
                return f"takes {depth} B of stack"
        for name in op.outputs:
            tensor = self.graph.tensor(name)
            found = np.frombuffer(self._read(self._span(name)), DTYPES[tensor.dtype])
            wanted = np.asarray(expected[name][sample]).reshape(-1)
            if not np.array_equal(found, wanted):
                at = int(np.flatnonzero(found != wanted)[0])
                differ = int((found != wanted).sum())
                return (
                    f"'{name}' {tensor.shape}: element {at} is {found[at]} instead of {wanted[at]}, "
                    f"{differ} of {found.size} differ"
                )
        changed = np.flatnonzero(_bytes(before) != _bytes(self._read(self._variables)))
        own = self._own(index, op)
        for address in (int(i) + self._variables.start for i in changed):
            if not any(address in span for span in own):
                return (
                    f"changes byte {address - self._arena} of the arena ({self._plan.arena_bytes} B), which is not its"
                )
        return None

    def _mark_registers(self) -> None:
        for number in _SAVED:
            self._machine._uc.reg_write(self._register(number), 0x5EED_0000 + number)

    def _lost_registers(self) -> list[str]:
        """Return the registers that a function must leave as they were (AAPCS) and did not."""
        found = ((n, self._machine._uc.reg_read(self._register(n))) for n in _SAVED)
        return [f"r{number}" for number, value in found if value != 0x5EED_0000 + number]

    def _register(self, number: int) -> int:
        return int(getattr(self._machine._arm, f"UC_ARM_REG_R{number}"))

    def _watched(self, function: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]], dict[int, int]]:
        """Call a function; return the (address, size) of all that it read and wrote.

        Also instruction -> address of accesses that are not aligned to their size.
        """
        reads: set[tuple[int, int]] = set()
        writes: set[tuple[int, int]] = set()
        uneven: dict[int, int] = {}

        unicorn, core = self._machine._unicorn, self._machine._uc
        status, counter = self._machine._arm.UC_ARM_REG_XPSR, self._machine._arm.UC_ARM_REG_PC

        def on_access(_: Any, access: int, address: int, size: int, *__: Any) -> None:
            (writes if access == unicorn.UC_MEM_WRITE else reads).add((address, size))
            if address % size:
                uneven[core.reg_read(counter) & ~1] = address
            # Before it calls a hook in an IT block the emulator brings the block's state up to date, and then decodes
            # the code behind the block with it.
            if (flags := core.reg_read(status)) & _IT_STATE:
                core.reg_write(status, flags & ~_IT_STATE)

        hook = core.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, on_access)
        core.ctl_flush_tb()
        try:
            self._machine.call(function)
        finally:
            core.hook_del(hook)
            core.ctl_flush_tb()
        return reads, writes, uneven

    def _misaligned(self, uneven: dict[int, int]) -> str | None:
        """Return which instruction would fault: Armv7-M loads and stores single words anywhere, Armv6-M nothing.

        The emulator does not mind.
        """
        import capstone

        decoder = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS)
        for place, address in sorted(uneven.items()):
            name = next((item.mnemonic for item in decoder.disasm(self._machine.read(place, 4), place)), "?")
            if self._core == "cortex-m0plus" or name.removesuffix(".w") not in _ANYWHERE:
                return f"{self._machine.firmware.locate(place)}: {name} at 0x{address:08x}, {self._describe(address)}"
        return None

    def _stray(self, index: int, op: Op, reads: set[tuple[int, int]], writes: set[tuple[int, int]]) -> str | None:
        own = [*self._own(index, op), _STACK]
        readable = [*own, *self._operands(op), *self._constants(index), *self._code]
        for what, accesses, spans in (("reads", reads, readable), ("writes", writes, own)):
            for address, size in sorted(accesses):
                if not any(address in span and address + size <= span.stop for span in spans):
                    return f"{what} {size} B at 0x{address:08x}, {self._describe(address)}"
        return None

    def _own(self, index: int, op: Op) -> list[range]:
        """Return the addresses that an op may change."""
        states = [name for name in op.inputs if name and self.graph.tensor(name).variable]
        scratch = [
            range(self._arena + item.offset, self._arena + item.offset + item.num_bytes)
            for item in self._plan.scratch
            if item.op == index
        ]
        return [*map(self._span, (*op.outputs, *states)), *scratch]

    def _operands(self, op: Op) -> Iterator[range]:
        return (self._span(name) for name in op.inputs if name and not self.graph.tensor(name).is_constant)

    def _constants(self, index: int) -> list[range]:
        """Return the constants that an op's code names, and the tables of the kernels."""
        named = self._named[self._steps[index]]
        return [span for name, span in self._symbols if name in named or not name.startswith("tk_model_")]

    def _describe(self, address: int) -> str:
        near = [(span.start, name, span) for name, span in self._symbols if span.start <= address]
        near += [(self._arena, "the arena", range(self._arena, self._arena + self._plan.arena_bytes))]
        near += [
            (span.start, f"'{name}'", span)
            for name in self.graph.tensors
            if not self.graph.tensor(name).is_constant and (span := self._span(name)).start <= address
        ]
        start, name, span = max((item for item in near if item[0] <= address), key=lambda item: item[0])
        return f"byte {address - start} of {name} ({len(span)} B)"

    def _span(self, name: str) -> range:
        start = self._arena + self._plan.offset(name)
        return range(start, start + self.graph.tensor(name).num_bytes)

    def _read(self, span: range) -> bytes:
        return self._machine.read(span.start, len(span))

    def _paint(self, seed: int) -> None:
        noise = np.random.default_rng(seed).integers(0, 256, len(self._variables), dtype=np.uint8)
        self._machine.write(self._variables.start, noise.tobytes())

    def _load(self, inputs: Values) -> None:
        self._machine.call("tk_model_reset_state")
        for name, value in inputs.items():
            self._machine.write(self._span(name).start, np.ascontiguousarray(value, np.int8).tobytes())


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _objects(elf: Path) -> list[tuple[str, range]]:
    """Return name and addresses of each constant of an image."""
    with elf.open("rb") as file:
        return [
            (symbol.name, range(symbol["st_value"], symbol["st_value"] + symbol["st_size"]))
            for table in ELFFile(file).iter_sections()
            if isinstance(table, SymbolTableSection)
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_OBJECT" and symbol["st_value"] < SRAM_ORIGIN
        ]


def _code(elf: Path) -> list[range]:
    """Return the addresses of the functions, which read constants that stand among them."""
    with elf.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        return [range(section["sh_addr"], section["sh_addr"] + section["sh_size"])]


def _names_of_ops(model: GeneratedModel) -> list[set[str]]:
    """Return for each op of the sequence the arrays and parameter blocks that its code names."""
    parts = re.split(r"^/\* Op \d+: ", model.files["tk_model.c"], flags=re.MULTILINE)[1:]
    return [set(re.findall(r"\btk_model_\w+", part)) for part in parts]


def expected_of(graph: Graph, inputs: Values) -> Values:
    """Return all activations by the reference, each input for itself."""
    x = inputs if len(graph.inputs) > 1 else inputs[graph.inputs[0]]
    return reference.run(graph, x, keep_all=True)
