"""How each IR op is spelled in a `.tflite`: builtin code, version, options. Shared by reader and writer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import tflite

BUILTIN_NAMES: Mapping[int, str] = MappingProxyType(
    {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
)
TYPE_NAMES: Mapping[int, str] = MappingProxyType(
    {value: name for name, value in vars(tflite.TensorType).items() if isinstance(value, int)}
)
DTYPE_OF_TYPE: Mapping[int, str] = MappingProxyType(
    {
        tflite.TensorType.INT8: "int8",
        tflite.TensorType.INT32: "int32",
        tflite.TensorType.FLOAT32: "float32",
    }
)
KIND_OF_BUILTIN: Mapping[int, str] = MappingProxyType(
    {
        tflite.BuiltinOperator.CONV_2D: "conv_2d",
        tflite.BuiltinOperator.DEPTHWISE_CONV_2D: "depthwise_conv_2d",
        tflite.BuiltinOperator.FULLY_CONNECTED: "fully_connected",
        tflite.BuiltinOperator.ADD: "add",
        tflite.BuiltinOperator.AVERAGE_POOL_2D: "average_pool_2d",
        tflite.BuiltinOperator.MAX_POOL_2D: "max_pool_2d",
        tflite.BuiltinOperator.MEAN: "mean",
        tflite.BuiltinOperator.PAD: "pad",
        tflite.BuiltinOperator.RESHAPE: "reshape",
        tflite.BuiltinOperator.SOFTMAX: "softmax",
    }
)
BUILTIN_OF_KIND: Mapping[str, int] = MappingProxyType({kind: code for code, kind in KIND_OF_BUILTIN.items()})

# The lowest version whose int8 form has the semantics that we write.
VERSION_OF_KIND: Mapping[str, int] = MappingProxyType(
    {
        "conv_2d": 3,
        "depthwise_conv_2d": 3,
        "fully_connected": 4,
        "add": 2,
        "average_pool_2d": 2,
        "max_pool_2d": 2,
        "mean": 2,
        "pad": 2,
        "reshape": 1,
        "softmax": 2,
    }
)
FULLY_CONNECTED_PER_CHANNEL_VERSION = 12

ACTIVATION_OF_CODE: Mapping[int, str] = MappingProxyType(
    {
        tflite.ActivationFunctionType.NONE: "none",
        tflite.ActivationFunctionType.RELU: "relu",
        tflite.ActivationFunctionType.RELU6: "relu6",
    }
)
CODE_OF_ACTIVATION: Mapping[str, int] = MappingProxyType({name: code for code, name in ACTIVATION_OF_CODE.items()})

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
OFFLINE_PLAN = "OfflineMemoryAllocation"
