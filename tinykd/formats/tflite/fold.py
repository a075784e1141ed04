"""Computes shapes while reading: converters of models with a dynamic batch leave SHAPE, STRIDED_SLICE and PACK behind.

The shapes in the file are fixed, so what these ops compute is known, and they vanish from the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import tflite

from tinykd.formats.tflite.layout import read_strided_slice
from tinykd.formats.tflite.source import Source

MAX_VALUES = 64
"""Shapes are short: whatever is longer is data, and not folded."""
_INTEGERS = {"int32": np.int32, "int64": np.int64}
_BUILTIN = tflite.BuiltinOperator


def fold(source: Source, builtin: int) -> np.ndarray | None:
    """Return the integers (int32 or int64) that an op computes from constants and shapes, or None when it does not.

    Raises:
        InvalidModelError: the op contradicts itself.
    """
    folder = _FOLDERS.get(builtin)
    if folder is None or len(source.outputs) != 1 or not 1 <= len(source.inputs) <= MAX_VALUES:
        return None
    if source.output().dtype not in _INTEGERS:
        return None
    values = []
    if builtin != _BUILTIN.SHAPE:
        for position in range(len(source.inputs)):
            if not source.has_input(position):
                return None
            value = source.known(position)
            if value is None or value.dtype.kind != "i" or value.size > MAX_VALUES:
                return None
            values.append(value)
    result = np.asarray(folder(source, values)).astype(_INTEGERS[source.output().dtype])
    if result.size > MAX_VALUES or result.size != np.prod(source.output().shape, dtype=np.int64):
        source.corrupt(f"it computes {list(result.shape)} values, its output has shape {list(source.output().shape)}")
    return result.reshape(source.output().shape)


def _shape(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return np.array(source.input(0).shape, np.int64)


def _pack(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return np.stack(values, source.options("PackOptions").Axis())


def _strided_slice(source: Source, values: list[np.ndarray]) -> np.ndarray:
    attrs = read_strided_slice(source)
    parts = zip(attrs["begin"], attrs["end"], attrs["strides"], strict=True)
    picked = values[0][tuple(slice(first, None if last < 0 else last, step) for first, last, step in parts)]
    return np.squeeze(picked, attrs["shrink_axes"])


def _concatenation(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(values, source.options("ConcatenationOptions").Axis())


def _gather(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return np.take(values[0], values[1], source.options("GatherOptions").Axis())


def _product(source: Source, values: list[np.ndarray]) -> np.ndarray:
    keep_dims = bool(source.options("ReducerOptions").KeepDims())
    return np.prod(values[0], tuple(values[1].reshape(-1).tolist()), dtype=np.int64, keepdims=keep_dims)


def _multiply(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return values[0].astype(np.int64) * values[1]


def _same(source: Source, values: list[np.ndarray]) -> np.ndarray:
    return values[0]


_FOLDERS: Mapping[int, Callable[[Source, list[np.ndarray]], np.ndarray]] = MappingProxyType(
    {
        _BUILTIN.SHAPE: _shape,
        _BUILTIN.PACK: _pack,
        _BUILTIN.STRIDED_SLICE: _strided_slice,
        _BUILTIN.CONCATENATION: _concatenation,
        _BUILTIN.GATHER: _gather,
        _BUILTIN.REDUCE_PROD: _product,
        _BUILTIN.MUL: _multiply,
        _BUILTIN.CAST: _same,
        _BUILTIN.RESHAPE: _same,
        _BUILTIN.SQUEEZE: _same,
        _BUILTIN.EXPAND_DIMS: _same,
    }
)
