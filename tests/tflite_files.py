"""Files of other producers: written field by field, or ours with single fields changed; and how one is refused."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import flatbuffers
import numpy as np
import pytest
import tflite

from tinykd.errors import UnsupportedModelError
from tinykd.formats import tflite as reader


def with_builtin(data: bytes, old: int, new: int) -> bytes:
    """Return the file with another builtin operator in place of `old`, in both fields of its operator code."""
    patched, found = bytearray(data), 0
    model = tflite.Model.GetRootAs(data, 0)
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) == old:
            _set(patched, code, 4, "<b", min(new, 127))
            _set(patched, code, 10, "<i", new)
            found += 1
    assert found, "the file has no such operator"
    return bytes(patched)


def with_type(data: bytes, old: int, new: int) -> bytes:
    """Return the file with tensor type `new` wherever `old` stood."""
    patched, found = bytearray(data), 0
    subgraph = tflite.Model.GetRootAs(data, 0).Subgraphs(0)
    for index in range(subgraph.TensorsLength()):
        tensor = subgraph.Tensors(index)
        if tensor.Type() == old:
            _set(patched, tensor, 6, "<b", new)
            found += 1
    assert found, "the file has no such tensor"
    return bytes(patched)


def with_option(data: bytes, op: int, table: str, field: str, value: float) -> bytes:
    """Return the file with one scalar field of op `op`'s options changed; the field must be stored in the file.

    Args:
        table: the option table of the schema, for example "Pool2DOptions".
        field: its field, for example "StrideH".
    """
    patched = bytearray(data)
    options = getattr(tflite, table)()
    raw = tflite.Model.GetRootAs(data, 0).Subgraphs(0).Operators(op).BuiltinOptions()
    options.Init(raw.Bytes, raw.Pos)
    slot, form = _FIELDS[table, field]
    _set(patched, options, slot, form, value)
    return bytes(patched)


def _set(patched: bytearray, table, slot: int, form: str, value: float) -> None:
    offset = table._tab.Offset(slot)
    assert offset, "the file leaves this field to its default"
    struct.pack_into(form, patched, table._tab.Pos + offset, value)


_FIELDS = {
    ("Conv2DOptions", "StrideW"): (6, "<i"),
    ("Conv2DOptions", "FusedActivationFunction"): (10, "<b"),
    ("Pool2DOptions", "StrideH"): (8, "<i"),
    ("SoftmaxOptions", "Beta"): (4, "<f"),
    ("LeakyReluOptions", "Alpha"): (4, "<f"),
}


@dataclass
class FileTensor:
    """A tensor of a file that is written here; `kind` is its type in the schema's words."""

    name: str | None
    shape: Sequence[int]
    kind: str = "INT8"
    data: np.ndarray | None = None
    scales: Sequence[float] = (0.1,)
    zeros: Sequence[int] = (0,)
    axis: int = 0
    signature: Sequence[int] = ()
    variable: bool = False
    sparse: bool = False


@dataclass
class FileOp:
    """An operator of a file that is written here: tensor numbers, and the fields of its option table."""

    builtin: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    table: str = ""
    fields: Mapping[str, float] = field(default_factory=dict)
    custom: str = ""


def write_file(tensors, ops, inputs, outputs, *, outside=False, subgraphs=1, old_codes=False, metadata=()):
    """Return a `.tflite` as another producer would write it.

    Args:
        tensors: `FileTensor`s.
        ops: `FileOp`s, with an operator code each.
        inputs, outputs: tensor numbers.
        outside: the constants lie behind the flatbuffer.
        subgraphs: the same one, so many times.
        old_codes: builtins stand in the old one-byte field only.
        metadata: names of metadata entries; each points to buffer 0.
    """
    blobs = [t.data.tobytes() for t in tensors if t.data is not None]
    sizes = [[1] * (2 * len(blobs))]
    # Offsets of constants that lie outside are only known when the flatbuffer is done: twice, with room for both.
    for _ in range(2 if outside else 1):
        places = sizes[-1]
        data = _write(tensors, ops, inputs, outputs, blobs, places if outside else None, subgraphs, old_codes, metadata)
        start, found = -(-len(data) // 16) * 16, []
        for blob in blobs:
            found += [start, len(blob)]
            start += -(-len(blob) // 16) * 16
        sizes.append(found)
    if not outside:
        return data
    whole = bytearray(data)
    for offset, blob in zip(sizes[-1][::2], blobs, strict=True):
        whole += bytes(offset - len(whole)) + blob
    return bytes(whole)


def _write(tensors, ops, inputs, outputs, blobs, places, subgraphs, old_codes, metadata):
    b = flatbuffers.Builder(1024)
    b.ForceDefaults(True)
    buffers = [_table(b, "Buffer", {})]
    for index, blob in enumerate(blobs):
        if places is None:
            buffers.append(_table(b, "Buffer", {"Data": np.frombuffer(blob, np.uint8)}))
        else:
            buffers.append(_table(b, "Buffer", {"Offset": places[2 * index], "Size": places[2 * index + 1]}))
    number, rows = 0, []
    for tensor in tensors:
        number += tensor.data is not None
        quant = {"Scale": np.array(tensor.scales, np.float32), "ZeroPoint": np.array(tensor.zeros, np.int64)}
        fields = {
            "Shape": np.array(tensor.shape, np.int32),
            "Type": getattr(tflite.TensorType, tensor.kind),
            "Buffer": number if tensor.data is not None else 0,
            "Quantization": _Offset(
                _table(b, "QuantizationParameters", {**quant, "QuantizedDimension": tensor.axis})
                if len(tensor.scales)
                else 0
            ),
            "IsVariable": tensor.variable,
            "Sparsity": _Offset(_table(b, "SparsityParameters", {}) if tensor.sparse else 0),
        }
        if tensor.name is not None:
            fields["Name"] = tensor.name
        if tensor.signature:
            fields["ShapeSignature"] = np.array(tensor.signature, np.int32)
        rows.append(_table(b, "Tensor", fields))
    op_rows, codes = [], []
    for index, op in enumerate(ops):
        builtin = getattr(tflite.BuiltinOperator, op.builtin)
        code = {"DeprecatedBuiltinCode": min(builtin, 127), "Version": 1}
        codes.append(
            _table(
                b,
                "OperatorCode",
                {**code, **({} if old_codes else {"BuiltinCode": builtin}), "CustomCode": op.custom},
            )
        )
        fields = {
            "OpcodeIndex": index,
            "Inputs": np.array(op.inputs, np.int32),
            "Outputs": np.array(op.outputs, np.int32),
        }
        if op.table:
            fields["BuiltinOptionsType"] = getattr(tflite.BuiltinOptions, op.table)
            fields["BuiltinOptions"] = _Offset(_table(b, op.table, op.fields))
        op_rows.append(_table(b, "Operator", fields))
    graph = _table(
        b,
        "SubGraph",
        {
            "Tensors": _Offset(_vector(b, rows)),
            "Operators": _Offset(_vector(b, op_rows)),
            "Inputs": np.array(inputs, np.int32),
            "Outputs": np.array(outputs, np.int32),
        },
    )
    entries = [_table(b, "Metadata", {"Name": name, "Buffer": 0}) for name in metadata]
    model = _table(
        b,
        "Model",
        {
            "Version": 3,
            "OperatorCodes": _Offset(_vector(b, codes)),
            "Subgraphs": _Offset(_vector(b, [graph] * subgraphs)),
            "Buffers": _Offset(_vector(b, buffers)),
            "Metadata": _Offset(_vector(b, entries)),
        },
    )
    b.Finish(model, file_identifier=b"TFL3")
    return bytes(b.Output())


class _Offset(int):
    """A table or vector that is already written; 0 for none."""


def _table(b, name, fields):
    ready = {}
    for key, value in fields.items():
        if isinstance(value, str):
            ready[key] = b.CreateString(value)
        elif isinstance(value, np.ndarray):
            ready[key] = b.CreateNumpyVector(value)
        elif not isinstance(value, _Offset) or value:
            ready[key] = value
    getattr(tflite, f"{name}Start")(b)
    for key, value in ready.items():
        getattr(tflite, f"{name}Add{key}")(b, value)
    return getattr(tflite, f"{name}End")(b)


def _vector(b, offsets):
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


X = FileTensor("x", (1, 4))
W = np.random.default_rng(3).integers(-90, 90, (3, 4)).astype(np.int8)
B = np.array([100, -50, 7], np.int32)


def shape_constant(name, values, kind="INT32"):
    """A constant without quantisation."""
    data = np.asarray(values, np.int64 if kind == "INT64" else np.int32)
    return FileTensor(name, data.shape, kind, data, (), ())


def dense(x=(1, 4), y=(1, 3), bias_scale=0.01, weights=None, **extra):
    """Tensors and op of a FULLY_CONNECTED; `extra` goes to write_file."""
    tensors = [
        FileTensor("x", x),
        weights or FileTensor("w", (3, 4), data=W),
        FileTensor("b", (3,), "INT32", B, (bias_scale,), (0,)),
        FileTensor("y", y, scales=(0.2,), zeros=(5,)),
    ]
    op = FileOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    return write_file(tensors, [op], [0], [3], **extra)


def one(builtin, inputs, outputs=None, table="", **fields):
    """A file of one op: all inputs without data are the graph's, or an idle tensor where it has none."""
    outputs = outputs or [FileTensor("y", (1, 4))]
    tensors = [*inputs, *outputs, FileTensor("idle", (1, 1))]
    numbers = list(range(len(inputs)))
    fed = [number for number in numbers if inputs[number].data is None and not inputs[number].variable]
    out = list(range(len(inputs), len(inputs) + len(outputs)))
    return write_file(tensors, [FileOp(builtin, numbers, out, table, fields)], fed or [len(tensors) - 1], out)


def refusal(data):
    """The error that a file is refused with."""
    with pytest.raises(UnsupportedModelError) as caught:
        reader.read_bytes(data, "m")
    return caught.value
