"""How ranges and weights become int8 parameters: one home for the exporter and for quantisation-aware training.

The arithmetic is float64 and uses nothing but operators and methods that NumPy arrays and torch tensors share, so that
both compute the same bits; scales are rounded to float32 at the end, as a `.tflite` stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tinykd.ir.graph import Graph
from tinykd.ir.quant import Quant

WEIGHT_MAX = 127
QUANT_KEEPERS = ("average_pool_2d", "max_pool_2d", "pad", "reshape")
"""Op kinds whose output has the quantisation of their input."""
OUTPUT_CHANNEL_AXIS: Mapping[str, int | None] = MappingProxyType(
    {"conv_2d": 0, "depthwise_conv_2d": 3, "fully_connected": None}
)
"""Ops with weights, and the axis along which these have a scale each; None is one scale for the whole tensor."""
SOFTMAX_QUANT = Quant.per_tensor(1 / 256, -128)
# Accumulators are int32: a bias may take half of the range.
_BIAS_LIMIT = 1 << 30
_SMALLEST_SCALE = 1e-8


def affine_parameters(low: Any, high: Any) -> tuple[Any, Any]:
    """Return (scale, zero point) of int8 activations that cover [low, high] and represent 0 exactly.

    Args:
        low, high: float64 NumPy arrays or torch tensors of one shape.

    Returns:
        both of that shape and type; the scale is still to be rounded to float32.
    """
    low, high = low.clip(max=0.0), high.clip(min=0.0)
    scale = ((high - low) / 255.0).clip(min=_SMALLEST_SCALE)
    return scale, (-128 - low / scale).round().clip(-128, 127)


def activation_quant(low: float, high: float) -> Quant:
    """Return int8 parameters whose range covers [low, high] and represents 0 exactly."""
    scale, zero_point = affine_parameters(np.float64(low), np.float64(high))
    return Quant.per_tensor(float(scale), int(zero_point))


def weight_scales(magnitude: Any, bias_magnitude: Any, input_scale: Any) -> Any:
    """Return the scales of symmetric int8 weights in [-127, 127].

    A channel with tiny weights and a large bias would overflow its int32 bias, whose scale is input scale * weight
    scale: its weights get a larger scale, which costs nothing there.

    Args:
        magnitude: largest absolute weight of each channel, or of the tensor; float64 NumPy array or torch tensor.
        bias_magnitude: the same of the bias.
        input_scale: of the op's input, a float32 value.

    Returns:
        of the shape and type of `magnitude`; still to be rounded to float32.
    """
    scale = (magnitude / WEIGHT_MAX).clip(min=_SMALLEST_SCALE)
    return scale.clip(min=bias_magnitude / (_BIAS_LIMIT * input_scale))


def quant_sources(graph: Graph) -> dict[str, str]:
    """Map each activation to the one that it has its quantisation from: itself, or the input of a chain of keepers."""
    sources = {name: name for name in graph.inputs}
    for op in graph.ops:
        sources[op.outputs[0]] = sources[op.inputs[0]] if op.kind in QUANT_KEEPERS else op.outputs[0]
    return sources


def fixed_quants(graph: Graph, input_quant: Quant) -> dict[str, Quant]:
    """Return the parameters of the activations that no range decides: the input, and the output of each softmax."""
    fixed = {graph.inputs[0]: input_quant}
    fixed.update({op.outputs[0]: SOFTMAX_QUANT for op in graph.ops if op.kind == "softmax"})
    return fixed


def activation_quants(graph: Graph, ranges: Mapping[str, tuple[float, float]], input_quant: Quant) -> dict[str, Quant]:
    """Return the int8 parameters of every activation of a float graph.

    Args:
        graph: a float graph, activations fused.
        ranges: (low, high) of at least the activations whose quantisation is their own.
        input_quant: parameters of the input.
    """
    own = fixed_quants(graph, input_quant)
    sources = quant_sources(graph)
    for name, source in sources.items():
        if name == source and name not in own:
            own[name] = activation_quant(*ranges[name])
    return {name: own[source] for name, source in sources.items()}
