"""Seeded mutations of a file's bytes. `fields` knows where a `.tflite` keeps its numbers; the rest is blind."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import tflite

from hostile.mutate_onnx import change_fields

_HUGE = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x40000000, 0x10000000, 0x01000000, 0x00100000, 0x0000FFFF)
_SMALL = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 0xFFFFFFFE)
_FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-45, 1e-38, 3e38, 1e-10, 1e10)


@dataclass(frozen=True)
class Base:
    """A whole file, from which broken ones are made.

    Attributes:
        name: for reports.
        data: its bytes.
        numbers: positions of the four-byte numbers that say how the file hangs together: offsets, lengths, shapes,
            indices, scales. Empty where nothing is known about the format.
        fields: the file is an ONNX model, whose fields can be changed one by one.
    """

    name: str
    data: bytes
    numbers: tuple[int, ...] = ()
    fields: bool = False


def tflite_base(name: str, data: bytes) -> Base:
    """Return the base of a `.tflite`, with the positions of its numbers."""
    return Base(name, data, tuple(sorted(_tflite_numbers(data))))


def onnx_base(name: str, data: bytes) -> Base:
    """Return the base of an ONNX model."""
    return Base(name, data, fields=True)


def mutate(base: Base, seed: int) -> tuple[str, bytes]:
    """Return the name of a mutation and the broken file; the same seed gives the same."""
    rng = np.random.default_rng([seed, len(base.data)])
    if base.fields and rng.random() < 0.8:
        return "change fields", change_fields(base.data, rng)
    kinds = list(MUTATIONS if base.numbers else BLIND)
    kind = kinds[int(rng.integers(len(kinds)))]
    data = bytearray(base.data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        data = MUTATIONS[kind](data, base, rng)
    return kind, bytes(data)


def _tflite_numbers(data: bytes) -> set[int]:
    positions = {0}

    def table(item: Any) -> None:
        if item is None:
            return
        tab = item._tab
        vtable = tab.Pos - struct.unpack_from("<i", data, tab.Pos)[0]
        positions.update((tab.Pos, vtable))
        for slot in range(4, struct.unpack_from("<H", data, vtable)[0], 2):
            if offset := struct.unpack_from("<H", data, vtable + slot)[0]:
                positions.update((tab.Pos + offset, vtable + slot))

    def vector(item: Any, slot: int, item_bytes: int = 4) -> None:
        offset = item._tab.Offset(slot)
        if offset:
            start = item._tab.Vector(offset)
            positions.update(range(start - 4, start + item._tab.VectorLen(offset) * item_bytes, 4))

    model = tflite.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    table(model)
    table(graph)
    for slot in (6, 8, 12):
        vector(model, slot)
    for slot in (4, 6, 8, 10):
        vector(graph, slot)
    for index in range(model.OperatorCodesLength()):
        table(model.OperatorCodes(index))
    for index in range(model.BuffersLength()):
        table(model.Buffers(index))
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        table(tensor)
        vector(tensor, 4)
        quant = tensor.Quantization()
        table(quant)
        if quant is not None:
            vector(quant, 8)
            vector(quant, 10, 8)
    for index in range(graph.OperatorsLength()):
        op = graph.Operators(index)
        table(op)
        vector(op, 6)
        vector(op, 8)
        if (options := op.BuiltinOptions()) is not None:
            table(_Table(options))
    return {position for position in positions if position + 4 <= len(data)}


@dataclass(frozen=True)
class _Table:
    _tab: Any


def _pick(rng: np.random.Generator, base: Base, data: bytearray) -> int:
    """Return the position of four bytes: one of the base's numbers, or an aligned one anywhere."""
    if base.numbers and rng.random() < 0.9:
        position = base.numbers[int(rng.integers(len(base.numbers)))]
    else:
        position = int(rng.integers(max(len(data) // 4 - 1, 1))) * 4
    return min(position, max(len(data) - 4, 0))


def _write(data: bytearray, position: int, form: str, value: float) -> bytearray:
    if len(data) >= position + 4:
        struct.pack_into(form, data, position, value)
    return data


def _truncate(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(len(data) + 1))]


def _flip_bits(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    for position in rng.integers(0, len(data), int(rng.integers(1, 9))) if data else ():
        data[position] ^= 1 << int(rng.integers(8))
    return data


def _overwrite_run(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    start, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
    fill = [bytes(length), b"\xff" * length, rng.bytes(length)][int(rng.integers(3))]
    data[start : start + length] = fill[: len(data[start : start + length])]
    return data


def _insert(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data) + 1))
    data[start:start] = rng.bytes(int(rng.integers(1, 17)))
    return data


def _delete(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data) + 1))
    del data[start : start + int(rng.integers(1, 65))]
    return data


def _append(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    return data + rng.bytes(int(rng.integers(1, 4097)))


def _repeat_block(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    start, target = (int(value) for value in rng.integers(0, len(data) + 1, 2))
    length = int(rng.integers(4, 257))
    block = data[start : start + length]
    data[target : target + len(block)] = block
    return data[: max(len(base.data), 1)]


def _huge_number(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    return _write(data, _pick(rng, base, data), "<I", int(rng.choice(_HUGE)))


def _small_number(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    return _write(data, _pick(rng, base, data), "<I", int(rng.choice(_SMALL)))


def _odd_float(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    return _write(data, _pick(rng, base, data), "<f", float(rng.choice(_FLOATS)))


def _nudge(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    """Change a number by a little: the offset next door, one dimension more."""
    position = _pick(rng, base, data)
    if len(data) < position + 4:
        return data
    value = struct.unpack_from("<I", data, position)[0] + int(rng.choice([-64, -8, -4, -2, -1, 1, 2, 4, 8, 64]))
    return _write(data, position, "<I", value & 0xFFFFFFFF)


def _swap(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    """Exchange two numbers: tables change places, shapes and indices too."""
    first, second = _pick(rng, base, data), _pick(rng, base, data)
    if abs(first - second) >= 4 and len(data) >= max(first, second) + 4:
        data[first : first + 4], data[second : second + 4] = data[second : second + 4], data[first : first + 4]
    return data


def _point(data: bytearray, base: Base, rng: np.random.Generator) -> bytearray:
    """Let an offset point to another place of the file that holds something: loops, overlaps, tables as vectors."""
    position, target = _pick(rng, base, data), _pick(rng, base, data)
    offset = target - position if rng.random() < 0.5 else position - target
    return _write(data, position, "<I", offset & 0xFFFFFFFF)


_Mutation = Callable[[bytearray, Base, np.random.Generator], bytearray]

BLIND: Mapping[str, _Mutation] = MappingProxyType(
    {
        "truncate": _truncate,
        "flip bits": _flip_bits,
        "overwrite a run": _overwrite_run,
        "insert": _insert,
        "delete": _delete,
        "append garbage": _append,
        "repeat a block": _repeat_block,
        "huge number": _huge_number,
    }
)
MUTATIONS: Mapping[str, _Mutation] = MappingProxyType(
    {
        **BLIND,
        "small number": _small_number,
        "odd float": _odd_float,
        "nudge": _nudge,
        "swap": _swap,
        "point elsewhere": _point,
    }
)
