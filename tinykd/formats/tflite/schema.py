"""Names and codes of the TFLite schema that reader and writer share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import tflite

BUILTIN_NAMES: Mapping[int, str] = MappingProxyType(
    {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
)
TYPE_NAMES: Mapping[int, str] = MappingProxyType(
    {value: name.lower() for name, value in vars(tflite.TensorType).items() if isinstance(value, int)}
)
ACTIVATION_NAMES: Mapping[int, str] = MappingProxyType(
    {value: name for name, value in vars(tflite.ActivationFunctionType).items() if isinstance(value, int)}
)
OPTION_CODES: Mapping[str, int] = MappingProxyType(
    {name: value for name, value in vars(tflite.BuiltinOptions).items() if isinstance(value, int)}
)

TYPE_OF_DTYPE: Mapping[str, int] = MappingProxyType(
    {
        "int8": tflite.TensorType.INT8,
        "uint8": tflite.TensorType.UINT8,
        "int16": tflite.TensorType.INT16,
        "int32": tflite.TensorType.INT32,
        "float32": tflite.TensorType.FLOAT32,
    }
)
CODE_OF_ACTIVATION: Mapping[str, int] = MappingProxyType(
    {
        "none": tflite.ActivationFunctionType.NONE,
        "relu": tflite.ActivationFunctionType.RELU,
        "relu6": tflite.ActivationFunctionType.RELU6,
        "relu_n1_to_1": tflite.ActivationFunctionType.RELU_N1_TO_1,
    }
)
ACTIVATION_OF_CODE: Mapping[int, str] = MappingProxyType({code: name for name, code in CODE_OF_ACTIVATION.items()})

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
OFFLINE_PLAN = "OfflineMemoryAllocation"
LAST_OLD_CODE = 127
"""The old field of an operator code is a byte: larger builtins are in the new field only, and this stands in it."""


def unique_names(names: Iterable[str]) -> list[str]:
    """Return one name for each tensor of a file, in its order: its own where nothing before it has that name.

    Others get their number behind them; a tensor without a name is called by its number alone.
    """
    taken: dict[str, None] = {}
    for index, name in enumerate(names):
        candidate = name or f"tensor_{index}"
        while candidate in taken:
            candidate = f"{candidate}#{index}"
        taken[candidate] = None
    return list(taken)
