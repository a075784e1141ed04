"""Post-training quantisation: a float graph and its ranges become an int8 graph with TFLite's int8 specification.

Activations: int8 per tensor, asymmetric. Convolution weights: int8 per output channel, symmetric in [-127, 127].
Dense weights: int8 per tensor (operator version 4, which every TFLite Micro release runs). Biases: int32 with scale
input scale * weight scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinykd.errors import InternalError
from tinykd.export.calibrate import Range
from tinykd.ir import Graph, Op, Quant, Tensor, verify

WEIGHT_MAX = 127
# Accumulators are int32: a bias may take half of the range.
_BIAS_LIMIT = 1 << 30
_SMALLEST_SCALE = 1e-8
_KEEPS_QUANT = ("average_pool_2d", "max_pool_2d", "pad", "reshape")
_OUTPUT_CHANNEL_AXIS = {"conv_2d": 0, "depthwise_conv_2d": 3, "fully_connected": None}


def activation_quant(low: float, high: float) -> Quant:
    """Return int8 parameters whose range covers [low, high] and represents 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255.0, _SMALLEST_SCALE)
    zero_point = int(np.clip(round(-128 - low / scale), -128, 127))
    return Quant.per_tensor(scale, zero_point)


def quantize(graph: Graph, ranges: Mapping[str, Range], input_quant: Quant) -> Graph:
    """Return the int8 graph.

    Args:
        graph: a float graph after `FLOAT_PASSES`.
        ranges: (low, high) of every activation, from `calibrate`.
        input_quant: parameters of the input; chosen so that the int8 input is `pixel - 128`.
    """
    quants = {graph.inputs[0]: input_quant}
    for op in graph.ops:
        output = op.outputs[0]
        if op.kind in _KEEPS_QUANT:
            quants[output] = quants[op.inputs[0]]
        elif op.kind == "softmax":
            quants[output] = Quant.per_tensor(1 / 256, -128)
        else:
            quants[output] = activation_quant(*ranges[output])
    tensors = {
        name: replace(tensor, dtype="int8", quant=quants[name]) if name in quants else tensor
        for name, tensor in graph.tensors.items()
    }
    for op in graph.ops:
        if op.kind in _OUTPUT_CHANNEL_AXIS:
            _quantize_weights(tensors, op)
    return verify(graph.with_ops(graph.ops, tensors))


def _quantize_weights(tensors: dict[str, Tensor], op: Op) -> None:
    weights, bias = (tensors[name].data for name in op.inputs[1:3])
    x_quant = tensors[op.inputs[0]].quant
    if weights is None or bias is None or x_quant is None:
        raise InternalError(f"op '{op.source}' ({op.kind}) has no float weights to quantise")
    axis = _OUTPUT_CHANNEL_AXIS[op.kind]
    channels_last = weights.astype(np.float64) if axis is None else np.moveaxis(weights.astype(np.float64), axis, -1)
    magnitude = np.abs(channels_last).max(axis=None if axis is None else tuple(range(weights.ndim - 1)))
    scale = np.maximum(magnitude / WEIGHT_MAX, _SMALLEST_SCALE)
    # A channel with tiny weights and a large bias would overflow its int32 bias: coarser weights cost nothing there.
    bias_magnitude = np.abs(bias.astype(np.float64))
    needed = (bias_magnitude.max() if axis is None else bias_magnitude) / (_BIAS_LIMIT * x_quant.scale)
    scale = np.maximum(scale, needed).astype(np.float32).astype(np.float64)
    integers = np.clip(np.rint(channels_last / scale), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
    if axis is not None:
        integers = np.moveaxis(integers, -1, axis)
    bias_scale = (scale * x_quant.scale).astype(np.float32)
    bias_integers = np.rint(bias.astype(np.float64) / (scale * x_quant.scale)).astype(np.int32)
    scales = tuple(float(value) for value in np.atleast_1d(scale))
    bias_scales = tuple(float(value) for value in np.atleast_1d(bias_scale))
    zeros = (0,) * len(scales)
    weight_name, bias_name = op.inputs[1:3]
    tensors[weight_name] = Tensor(
        weight_name, weights.shape, "int8", Quant(scales, zeros, axis), np.ascontiguousarray(integers)
    )
    tensors[bias_name] = Tensor(
        bias_name, bias.shape, "int32", Quant(bias_scales, zeros, None if axis is None else 0), bias_integers
    )
