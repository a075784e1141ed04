"""C ahead of time: turns an int8 graph and its memory plan into an implementation of `firmware/include/tk_model.h`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tinykd
from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, MemoryPlan, Op, op_macs
from tinykd.ir.ops import BINARY
from tinykd.kernels import PORTABLE, SCRATCH, Argument, Call, Engine, planned_calls, unique_arrays

NAME_CHARACTERS = 31
_C_TYPES = {"int8": "int8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t"}


@dataclass(frozen=True)
class GeneratedOp:
    """One op of the generated sequence.

    Attributes:
        op: its number in the sequence, NNN of `tk_op_NNN`.
        graph_op: its index in the graph's ops (ops whose outputs lie where they belong already generate nothing, so
            the numbers differ).
        kind, source, macs: of the graph's op.
        kernel: the C function that does the work, in one call or several.
    """

    op: int
    graph_op: int
    kind: str
    source: str
    macs: int
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """Return the op as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class GeneratedModel:
    """The generated files (name -> text) and the sequence of ops that they run."""

    files: Mapping[str, str]
    ops: tuple[GeneratedOp, ...]


def generate(graph: Graph, plan: MemoryPlan, model_sha256: str, engine: Engine = PORTABLE) -> GeneratedModel:
    """Write the C of a model: `tk_model.c`, `tk_model_data.c` and `tk_model_data.h`.

    The text depends on the arguments and on the version of tinykd only, to the byte.

    Args:
        graph: int8, one input and one output.
        plan: where each activation lies; made for the same engine.
        model_sha256: of the `.tflite`, 64 hex digits.
        engine: which kernels.

    Raises:
        UnsupportedModelError: names the op that no kernel can run.
    """
    _check_edges(graph)
    ops: list[GeneratedOp] = []
    calls: list[tuple[Call, ...]] = []
    for index, (op, needed) in enumerate(zip(graph.ops, planned_calls(graph, plan, engine), strict=True)):
        if needed:
            calls.append(needed)
            ops.append(GeneratedOp(len(ops), index, op.kind, op.source, op_macs(graph, op), needed[0].function))
    constants = _Constants(graph, calls)
    files = {
        "tk_model.c": _model_source(graph, plan, model_sha256, ops, calls, constants),
        "tk_model_data.h": _data_header(model_sha256, constants),
        "tk_model_data.c": _data_source(model_sha256, constants),
    }
    return GeneratedModel(files, tuple(ops))


def _check_edges(graph: Graph) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedModelError(
            f"model '{graph.name}' has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "the firmware takes one of each"
        )
    for names, known in ((graph.inputs, ("int8",)), (graph.outputs, ("int8", "int32"))):
        dtype = graph.tensor(names[0]).dtype
        if dtype not in known:
            raise UnsupportedModelError(
                f"model '{graph.name}': '{names[0]}' is {dtype}; the firmware takes {' or '.join(known)} there",
                "Export with int8 inputs and outputs; tinykd optimize moves float edges to the host.",
            )


class _Constants:
    """The arrays of a model under their C names; equal ones stand there once.

    Attributes:
        arrays: C name -> values.
    """

    def __init__(self, graph: Graph, calls: list[tuple[Call, ...]]) -> None:
        named = [
            (_name(key, op, turn), data)
            for op, row in enumerate(calls)
            for turn, call in enumerate(row)
            for key, data in call.arrays.items()
        ]
        self._operands: dict[str, str] = {}
        arguments = (item for row in calls for call in row for item in call.arguments)
        for tensor in (graph.tensor(item.tensor) for item in arguments if item.tensor != SCRATCH.tensor):
            if tensor.data is not None and tensor.name not in self._operands:
                self._operands[tensor.name] = _name("constant", len(self._operands))
                named.append((self._operands[tensor.name], tensor.data))
        self.arrays, self._names = unique_arrays(named)

    def array(self, key: str, op: int, turn: int) -> str:
        """Return the C name of an array of a call."""
        return self._names[_name(key, op, turn)]

    def operand(self, tensor: str) -> str | None:
        """Return the C name of a constant that is read as an activation (an operand of an ADD, say), else None."""
        return self._names[self._operands[tensor]] if tensor in self._operands else None


def _name(key: str, op: int, turn: int = 0) -> str:
    """Return the C name of what belongs to call number `turn` of an op."""
    return f"tk_model_{key}_{op:03d}" + (f"_{turn}" if turn else "")


def _banner(what: str, model_sha256: str) -> str:
    return (
        f"/* {what}\n"
        f" * Generated by tinykd {tinykd.__version__} from the model with SHA-256\n"
        f" * {model_sha256}. Do not edit: run `tinykd build` again. */\n"
    )


def _data_header(model_sha256: str, constants: _Constants) -> str:
    lines = [_banner("Constants of the model, one array a line.", model_sha256)]
    lines += ["#ifndef TK_MODEL_DATA_H", "#define TK_MODEL_DATA_H", "", "#include <stdint.h>", ""]
    for name, data in constants.arrays.items():
        lines.append(f"extern const {_C_TYPES[data.dtype.name]} {name}[{data.size}];")
    return "\n".join([*lines, "", "#endif", ""])


def _data_source(model_sha256: str, constants: _Constants) -> str:
    parts = [_banner("Constants of the model.", model_sha256), '#include "tk_model_data.h"\n']
    for name, data in constants.arrays.items():
        # Four-byte alignment lets a kernel load several weights at once.
        parts.append(
            f"const {_C_TYPES[data.dtype.name]} {name}[{data.size}] __attribute__((aligned(4))) = {{\n"
            f"{_values(data)}\n}};\n"
        )
    return "\n".join(parts)


def _values(data: np.ndarray) -> str:
    per_line = 24 if data.dtype == np.int8 else 8
    numbers = [_c_int(value) for value in data.ravel().tolist()]
    return "\n".join(
        "    " + ", ".join(numbers[start : start + per_line]) + "," for start in range(0, len(numbers), per_line)
    )


def _c_int(value: int) -> str:
    # -2147483648 is in C the negation of a number that int32 cannot hold.
    return "(-2147483647 - 1)" if value == -(1 << 31) else str(value)


def _comment(text: str) -> str:
    """Make a foreign name safe inside a C comment."""
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")


def _c_string(text: str) -> str:
    """Return a C string literal of at most `NAME_CHARACTERS` characters."""
    printable = re.sub(r"[^A-Za-z0-9 ._+/:=-]", "?", text)[:NAME_CHARACTERS]
    return f'"{printable}"'


def _shape(graph: Graph, name: str) -> str:
    return "x".join(str(dim) for dim in graph.tensor(name).shape)


def _model_source(
    graph: Graph,
    plan: MemoryPlan,
    model_sha256: str,
    ops: list[GeneratedOp],
    calls: list[tuple[Call, ...]],
    constants: _Constants,
) -> str:
    def pointer(argument: Argument, graph_op: int = -1) -> str:
        if argument.tensor == SCRATCH.tensor:
            return f"tk_arena + {plan.scratch_offset(graph_op) + argument.offset}"
        operand = constants.operand(argument.tensor)
        if operand is None:
            return f"tk_arena + {plan.offset(argument.tensor) + argument.offset}"
        cast = "" if graph.tensor(argument.tensor).dtype == "int8" else "(const int8_t *)"
        return f"{cast}{operand}" + (f" + {argument.offset}" if argument.offset else "")

    def pointers(call: Call, graph_op: int) -> str:
        return ", ".join(pointer(item, graph_op) for item in call.arguments)

    digest = bytes.fromhex(model_sha256)
    if len(digest) != 32:
        raise ValueError(f"model_sha256 has {len(digest)} bytes instead of 32")
    macs = sum(op.macs for op in ops)
    parts = [
        _banner(
            f"The model '{_comment(graph.name)}': {len(ops)} ops, {macs} multiply-accumulates, "
            f"{plan.arena_bytes} B of activations.",
            model_sha256,
        ),
        '#include "tk_model.h"\n\n#include <string.h>\n\n'
        '#include "tk_armv7em.h"\n#include "tk_board.h"\n#include "tk_kernels.h"\n#include "tk_model_data.h"\n',
        "/* A section of its own, so that the map file tells its size. */\n"
        f"static int8_t tk_arena[{max(plan.arena_bytes, 1)}] "
        '__attribute__((aligned(16), section(".bss.tk_arena")));\n\n'
        f"uint32_t tk_model_op_cycles[{max(len(ops), 1)}];\n",
    ]
    for op, row in zip(ops, calls, strict=True):
        graph_op = graph.ops[op.graph_op]
        read, written = (" + ".join(_shape(graph, name) for name in names if name) for names in _ends(graph_op))
        parts.append(
            f"/* Op {op.op}: {op.kind}, {_comment(op.source or graph_op.outputs[0])}\n"
            f" * {read} -> {written}, {op.macs} MACs (op {op.graph_op} of the graph) */\n"
            + "".join(_parameters(call, op.op, turn, constants) for turn, call in enumerate(row))
            + f"static __attribute__((noinline, noclone)) void tk_op_{op.op:03d}(void)\n{{\n"
            + "".join(
                f"    {call.function}(&{_name('params', op.op, turn)}, {pointers(call, op.graph_op)});\n"
                for turn, call in enumerate(row)
            )
            + "}\n"
        )
    cases = "".join(f"    case {op.op}: tk_op_{op.op:03d}(); break;\n" for op in ops)
    sha = "\n".join(
        "        " + ", ".join(f"0x{byte:02x}" for byte in digest[start : start + 16]) + "," for start in (0, 16)
    )
    parts.append(
        "/* A switch, not a table of pointers: every call can be seen, which makes the stack bound provable. */\n"
        "void tk_model_run_op(uint32_t op)\n"
        f"{{\n    switch (op) {{\n{cases}    default: break;\n    }}\n}}\n"
    )
    parts.append(
        f"int8_t *tk_model_input(void)\n{{\n    return {pointer(Argument(graph.inputs[0]))};\n}}\n\n"
        f"const int8_t *tk_model_output(void)\n{{\n    return {pointer(Argument(graph.outputs[0]))};\n}}\n\n"
        "const int8_t *tk_model_arena(void)\n{\n    return tk_arena;\n}\n"
    )
    variables = [graph.tensor(name) for name in graph.variables()]
    zeros = "".join(f"    memset(tk_arena + {plan.offset(item.name)}, 0, {item.num_bytes});\n" for item in variables)
    parts.append(f"void tk_model_reset_state(void)\n{{\n{zeros}}}\n")
    parts.append(
        "const tk_model_info_t tk_model_info = {\n"
        f"    .name = {_c_string(graph.name)},\n"
        '    .engine = "tinykd",\n'
        "    .board = TK_BOARD_NAME,\n"
        f"    .sha256 = {{\n{sha}\n    }},\n"
        f"    .input_bytes = {graph.tensor(graph.inputs[0]).num_bytes},\n"
        f"    .output_bytes = {graph.tensor(graph.outputs[0]).num_bytes},\n"
        f"    .arena_bytes = {plan.arena_bytes},\n"
        f"    .num_ops = {len(ops)},\n"
        f"    .state_bytes = {sum(item.num_bytes for item in variables)},\n"
        "};\n"
    )
    return "\n".join(parts)


def _ends(op: Op) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what an op reads (without weights, which its first input's shape and its own tell) and what it writes."""
    return (op.inputs if op.kind in (*BINARY, "concatenation") else op.inputs[:1]), op.outputs


def _parameters(call: Call, op: int, turn: int, constants: _Constants) -> str:
    """Return the definition of a call's parameter block."""

    def value(item: int | str | tuple[int, ...]) -> str:
        if isinstance(item, str):
            return constants.array(item, op, turn)
        return _c_int(item) if isinstance(item, int) else "{" + ", ".join(map(_c_int, item)) + "}"

    fields = "\n".join(f"    .{name} = {value(item)}," for name, item in call.fields.items())
    return f"static const {call.struct} {_name('params', op, turn)} = {{\n{fields}\n}};\n\n"
