"""Changes single fields of an ONNX model through protobuf, so that the file stays one: only its sense breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

_INTEGERS = (-1, 0, 1, 2, 3, 7, 255, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
_FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-45, 3e38, 1e-10, 1e10)
_KINDS = ("Conv", "Reshape", "Transpose", "Concat", "Gemm", "MatMul", "Add", "Slice", "Pad", "Resize", "If", "Loop")
_KINDS += ("Split", "Gather", "Expand", "Squeeze", "ConstantOfShape", "Range", "Tile", "Shape", "Cast", "Clip", "Xyz")


def change_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the model with one to four of its fields changed, removed, repeated or exchanged."""
    model = onnx.load_model_from_string(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        places = list(_places(model))
        message, field = places[int(rng.integers(len(places)))]
        _change(message, field, rng)
    return model.SerializeToString()


def _places(message: Any) -> Any:
    """Yield (message, field) of every field that is set, at every depth."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for child in value if _is_list(field) else [value]:
                yield from _places(child)


def _is_list(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _change(message: Any, field: Any, rng: np.random.Generator) -> None:
    value = getattr(message, field.name)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif _is_list(field):
        _change_list(value, field, rng)
    elif field.message_type is None:
        setattr(message, field.name, _scalar(field, value, rng))
    else:
        message.ClearField(field.name)


def _change_list(values: Any, field: Any, rng: np.random.Generator) -> None:
    index, action = int(rng.integers(len(values))), int(rng.integers(4))
    items = list(values)
    if action == 0:
        del items[index]
    elif action == 1:
        items.append(items[index])
    elif action == 2:
        other = int(rng.integers(len(items)))
        items[index], items[other] = items[other], items[index]
    elif field.message_type is None:
        items[index] = _scalar(field, items[index], rng)
    else:
        items[index] = type(items[index])()
    copies = [_copied(item) for item in items]
    del values[:]
    values.extend(copies)


def _copied(item: Any) -> Any:
    if not hasattr(item, "CopyFrom"):
        return item
    copy = type(item)()
    copy.CopyFrom(item)
    return copy


def _scalar(field: Any, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, float):
        return float(rng.choice(_FLOATS))
    if isinstance(value, bytes):
        return value[: int(rng.integers(len(value) + 1))] if rng.random() < 0.5 else rng.bytes(len(value))
    if isinstance(value, str):
        return str(rng.choice(_KINDS)) if field.name == "op_type" else str(rng.choice(["", "x", value + "x", "input0"]))
    if field.enum_type is not None:
        return int(rng.choice([item.number for item in field.enum_type.values]))
    number = value + int(rng.integers(-2, 3)) if rng.random() < 0.3 else int(rng.choice(np.array(_INTEGERS, object)))
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    bits = 63 if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) else 31
    return min(max(number, 0 if unsigned else -(1 << bits)), (1 << bits) - 1)
