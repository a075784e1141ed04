"""How elementwise ops are spelled in a `.tflite`: binary ones, activations, softmax and changes of type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tflite

from tinykd.formats.tflite.codec import Attrs, Codec
from tinykd.formats.tflite.schema import CODE_OF_ACTIVATION
from tinykd.formats.tflite.source import Source
from tinykd.ir import Graph, Op

_BUILTIN = tflite.BuiltinOperator

_QUANTIZED_FROM = {
    "float32": ("int8", "int16"),
    "int8": ("int8", "uint8", "int16", "int32"),
    "uint8": ("int8",),
    "int16": ("int8", "int16", "int32"),
    "int32": ("int8", "int16"),
}


def _read_activation(options: str) -> Any:
    def read(source: Source) -> Attrs:
        return {"activation": source.activation(source.options(options))}

    return read


def _activation_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"FusedActivationFunction": CODE_OF_ACTIVATION[op.attrs["activation"]]}


def _mul_version(graph: Graph, op: Op) -> int:
    scales = [tensor.quant.scale for name in (*op.inputs, op.outputs[0]) if (tensor := graph.tensor(name)).quant]
    return 3 if len(scales) == 3 and scales[0] * scales[1] / scales[2] >= 1 else 2


def _read_softmax(source: Source) -> Attrs:
    beta = float(source.options("SoftmaxOptions").Beta())
    if not (math.isfinite(beta) and beta > 0):
        source.corrupt(f"beta {beta}: it must be positive and finite")
    return {"beta": beta}


def _read_leaky_relu(source: Source) -> Attrs:
    alpha = float(source.options("LeakyReluOptions").Alpha())
    if not math.isfinite(alpha):
        source.corrupt(f"alpha {alpha}: it must be finite")
    return {"alpha": alpha}


def _read_quantize(source: Source) -> Attrs:
    x, y = source.input(0).dtype, source.output().dtype
    if y not in _QUANTIZED_FROM[x]:
        source.refuse(
            f"from {x} to {y}; TFLite Micro goes from {x} to {' or '.join(_QUANTIZED_FROM[x])}",
            "Let the application change the type, or go through int8.",
        )
    return {}


def _quantize_version(graph: Graph, op: Op) -> int:
    return 2 if graph.tensor(op.outputs[0]).dtype == "int16" else 1


CODECS = (
    Codec(
        _BUILTIN.ADD,
        "add",
        "AddOptions",
        version=2,
        read=_read_activation("AddOptions"),
        fields=_activation_fields,
    ),
    Codec(
        _BUILTIN.SUB,
        "sub",
        "SubOptions",
        version=2,
        read=_read_activation("SubOptions"),
        fields=_activation_fields,
    ),
    Codec(
        _BUILTIN.MUL,
        "mul",
        "MulOptions",
        version=_mul_version,
        read=_read_activation("MulOptions"),
        fields=_activation_fields,
    ),
    Codec(_BUILTIN.MAXIMUM, "maximum", "MaximumMinimumOptions", version=2, one_quantisation=True),
    Codec(_BUILTIN.MINIMUM, "minimum", "MaximumMinimumOptions", version=2, one_quantisation=True),
    Codec(_BUILTIN.PRELU, "prelu", "", version=1, constants=(1,)),
    Codec(
        _BUILTIN.SOFTMAX,
        "softmax",
        "SoftmaxOptions",
        version=2,
        read=_read_softmax,
        fields=lambda graph, op: {"Beta": op.attrs["beta"]},
        output_quant=(1 / 256, -128),
    ),
    Codec(_BUILTIN.LOGISTIC, "logistic", "", version=2, output_quant=(1 / 256, -128)),
    Codec(_BUILTIN.TANH, "tanh", "", version=2, output_quant=(1 / 128, 0)),
    Codec(_BUILTIN.HARD_SWISH, "hard_swish", "HardSwishOptions", version=1),
    Codec(_BUILTIN.RELU, "relu", "", version=2),
    Codec(_BUILTIN.RELU6, "relu6", "", version=2),
    Codec(
        _BUILTIN.LEAKY_RELU,
        "leaky_relu",
        "LeakyReluOptions",
        version=1,
        read=_read_leaky_relu,
        fields=lambda graph, op: {"Alpha": op.attrs["alpha"]},
    ),
    Codec(
        _BUILTIN.QUANTIZE,
        "quantize",
        "QuantizeOptions",
        version=_quantize_version,
        read=_read_quantize,
        input_types=(("int8", "uint8", "int16", "int32", "float32"),),
        output_types=("int8", "uint8", "int16", "int32"),
    ),
    Codec(
        _BUILTIN.DEQUANTIZE,
        "dequantize",
        "DequantizeOptions",
        version=2,
        input_types=(("int8", "uint8", "int16"),),
        output_types=("float32",),
    ),
)
