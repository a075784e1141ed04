"""Changes single fields of a `.tflite`, as another producer would have written them."""

from __future__ import annotations

import struct

import tflite


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
