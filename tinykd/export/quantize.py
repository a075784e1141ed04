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
from tinykd.ir.affine import (
    OUTPUT_CHANNEL_AXIS,
    QUANT_SHARERS,
    WEIGHT_MAX,
    InputQuants,
    activation_quant,
    activation_quants,
    weight_scales,
)
from tinykd.ir.requant import QMAX, QMIN


def quantize(graph: Graph, ranges: Mapping[str, Range], input_quant: InputQuants) -> Graph:
    """Return the int8 graph.

    Args:
        graph: a float graph after `FLOAT_PASSES`.
        ranges: (low, high) of every activation that `range_owners` names, from `calibrate`.
        input_quant: of the input, chosen so that the int8 input is `pixel - 128`; of several inputs by name.
    """
    quants = activation_quants(graph, ranges, input_quant)
    tensors = {
        name: replace(tensor, dtype="int8", quant=quants[name]) if name in quants else tensor
        for name, tensor in graph.tensors.items()
    }
    ops: list[Op] = []
    for op in graph.ops:
        if op.kind in OUTPUT_CHANNEL_AXIS:
            _quantize_weights(tensors, op)
        else:
            op = _quantize_constants(tensors, op)
        ops.append(op)
    return verify(graph.with_ops(ops, tensors))


def _quantize_constants(tensors: dict[str, Tensor], op: Op) -> Op:
    """Quantise an op's constant operands under names of their own; return the op that reads these."""
    y_quant = tensors[op.outputs[0]].quant
    inputs = list(op.inputs)
    for index, name in enumerate(inputs):
        data = tensors[name].data
        if data is None or tensors[name].dtype != "float32":
            continue
        # The constant of an op that only chooses among values lies on the grid of all of them.
        own = activation_quant(float(data.min()), float(data.max()))
        quant = y_quant if op.kind in QUANT_SHARERS and y_quant is not None else own
        inputs[index] = f"{op.outputs[0]}/operand{index}"
        tensors[inputs[index]] = Tensor(inputs[index], data.shape, "int8", quant, to_int8(data, quant))
    if op.kind == "pad" and op.attrs["value"] is not None and y_quant is not None:
        value = int(to_int8(np.array(op.attrs["value"]), y_quant))
        op = replace(op, attrs={**op.attrs, "value": None if value == y_quant.zero_point else value})
    return replace(op, inputs=tuple(inputs))


def to_int8(values: np.ndarray, quant: Quant) -> np.ndarray:
    """Return real values as int8 integers of `quant`, halves to even; infinities become the ends of the range."""
    integers = np.rint(values.astype(np.float64) / quant.scale) + quant.zero_point
    return np.clip(integers, QMIN, QMAX).astype(np.int8)


def _quantize_weights(tensors: dict[str, Tensor], op: Op) -> None:
    weights, bias = (tensors[name].data for name in op.inputs[1:3])
    x_quant = tensors[op.inputs[0]].quant
    if weights is None or bias is None or x_quant is None:
        raise InternalError(f"op '{op.source}' ({op.kind}) has no float weights to quantise")
    axis = OUTPUT_CHANNEL_AXIS[op.kind]
    channels_last = weights.astype(np.float64) if axis is None else np.moveaxis(weights.astype(np.float64), axis, -1)
    magnitude = np.abs(channels_last).max(axis=None if axis is None else tuple(range(weights.ndim - 1)))
    bias_magnitude = np.abs(bias.astype(np.float64))
    scale = weight_scales(magnitude, bias_magnitude.max() if axis is None else bias_magnitude, x_quant.scale)
    scale = scale.astype(np.float32).astype(np.float64)
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
