"""How ranges and weights become int8 parameters: one home for the exporter and for quantisation-aware training.

The arithmetic is float64 and uses nothing but operators and methods that NumPy arrays and torch tensors share, so that
both compute the same bits; scales are rounded to float32 at the end, as a `.tflite` stores them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tinykd.errors import InternalError
from tinykd.ir.graph import Graph
from tinykd.ir.quant import Quant

WEIGHT_MAX = 127
QUANT_KEEPERS = (
    "average_pool_2d",
    "max_pool_2d",
    "pad",
    "relu6",
    "reshape",
    "resize_nearest_neighbor",
    "split",
    "strided_slice",
    "transpose",
)
"""Op kinds whose outputs have the quantisation of their input. TFLite Micro's RELU6 only clamps; RELU rescales."""
QUANT_SHARERS = ("concatenation", "maximum", "minimum")
"""Op kinds whose inputs, constants included, and output have one quantisation among them."""
OUTPUT_CHANNEL_AXIS: Mapping[str, int | None] = MappingProxyType(
    {"conv_2d": 0, "depthwise_conv_2d": 3, "transpose_conv": 0, "fully_connected": None}
)
"""Ops with weights, and the axis along which these have a scale each; None is one scale for the whole tensor."""
SOFTMAX_QUANT = Quant.per_tensor(1 / 256, -128)
FIXED_OUTPUTS: Mapping[str, Quant] = MappingProxyType(
    {"softmax": SOFTMAX_QUANT, "logistic": SOFTMAX_QUANT, "tanh": Quant.per_tensor(1 / 128, 0)}
)
"""Op kinds whose output has these parameters, whatever its range."""
# Accumulators are int32: a bias may take half of the range.
_BIAS_LIMIT = 1 << 30
_SMALLEST_SCALE = 1e-8

InputQuants = Quant | Mapping[str, Quant]
"""Parameters of the graph's first input, or of several inputs by name; the other inputs have a range."""


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


def quant_sources(graph: Graph, kinds: tuple[str, ...] = QUANT_KEEPERS + QUANT_SHARERS) -> dict[str, str]:
    """Map each activation to the first one, in execution order, of all those that share its quantisation.

    Args:
        graph: a float graph, or one whose activations are to be quantised.
        kinds: the ops whose inputs and outputs share theirs.
    """
    parents: dict[str, str] = {name: name for name in graph.inputs}
    order = {name: index for index, name in enumerate(parents)}

    def first(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    for op in graph.ops:
        if op.kind == "arg_max":
            continue
        written = [name for name in op.inputs if name in parents]
        parents.update({name: name for name in op.outputs})
        order.update({name: len(order) + index for index, name in enumerate(op.outputs)})
        if op.kind not in kinds:
            continue
        roots = {first(name): None for name in (*written, *op.outputs)}
        earliest = min(roots, key=order.__getitem__)
        parents.update(dict.fromkeys(roots, earliest))
    return {name: first(name) for name in parents}


def range_owners(graph: Graph) -> tuple[str, ...]:
    """Return the activations whose values decide the ranges: all but outputs of ops that move values or choose some.

    The range of each group of `quant_sources` is the union of its owners' ranges and of `constant_ranges`.
    """
    moved = QUANT_KEEPERS + QUANT_SHARERS
    made = (name for op in graph.ops if op.kind not in moved and op.kind != "arg_max" for name in op.outputs)
    return (*graph.inputs, *made)


def constant_ranges(graph: Graph, sources: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Return (low, high) of the constants that activations share their quantisation with, by the group's first one.

    These are the constants of CONCATENATION, MAXIMUM and MINIMUM, and finite values of PAD.
    """
    found: dict[str, tuple[float, float]] = {}
    for op in graph.ops:
        if op.kind not in QUANT_SHARERS and op.kind != "pad":
            continue
        datas = (graph.tensor(name).data for name in op.inputs)
        values = [value for data in datas if data is not None for value in (float(data.min()), float(data.max()))]
        if op.kind == "pad" and op.attrs["value"] is not None and math.isfinite(op.attrs["value"]):
            values.append(float(op.attrs["value"]))
        if values:
            group = sources[op.outputs[0]]
            found[group] = _union([found.get(group, (values[0], values[0])), (min(values), max(values))])
    return found


def fixed_quants(graph: Graph, input_quant: InputQuants) -> dict[str, Quant]:
    """Return the parameters of the activations that no range decides: inputs, and the outputs of `FIXED_OUTPUTS`."""
    fixed = dict(input_quant) if isinstance(input_quant, Mapping) else {graph.inputs[0]: input_quant}
    fixed.update({op.outputs[0]: FIXED_OUTPUTS[op.kind] for op in graph.ops if op.kind in FIXED_OUTPUTS})
    return fixed


def shared_ranges(
    graph: Graph, sources: Mapping[str, str], fixed: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return how groups of activations come by their quantisation: (fixed by which activation, ranged by which ones).

    Both by the group's first activation; each group is in one of the two.

    Raises:
        InternalError: a group has two fixed quantisations, or a fixed one and a range; `separate_fixed` prevents it.
    """
    given: dict[str, str] = {}
    for name in fixed:
        other = given.setdefault(sources[name], name)
        if fixed[other] != fixed[name]:
            raise InternalError(f"'{other}' and '{name}' share a quantisation, but each has its own")
    ranged: dict[str, list[str]] = {}
    for name in range_owners(graph):
        if name in fixed:
            continue
        if sources[name] in given:
            raise InternalError(f"'{name}' shares its quantisation with '{given[sources[name]]}', which has its own")
        ranged.setdefault(sources[name], []).append(name)
    return given, ranged


def activation_quants(
    graph: Graph, ranges: Mapping[str, tuple[float, float]], input_quant: InputQuants
) -> dict[str, Quant]:
    """Return the int8 parameters of every activation of a float graph.

    Args:
        graph: a float graph, activations fused.
        ranges: (low, high) of at least the `range_owners` that are not fixed.
        input_quant: parameters of the inputs.

    Raises:
        InternalError: see `shared_ranges`.
    """
    fixed = fixed_quants(graph, input_quant)
    sources = quant_sources(graph)
    given, ranged = shared_ranges(graph, sources, fixed)
    constants = constant_ranges(graph, sources)
    quants = {group: fixed[name] for group, name in given.items()}
    for group, owners in ranged.items():
        bounds = [ranges[name] for name in owners]
        quants[group] = activation_quant(*_union([*bounds, constants[group]] if group in constants else bounds))
    return {name: quants[source] for name, source in sources.items()}


def _union(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
