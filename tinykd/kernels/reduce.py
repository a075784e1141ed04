"""Kernels that take a whole axis together: mean, softmax, arg_max."""

from __future__ import annotations

import math

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, mean_params, softmax_params, tensor_quant
from tinykd.kernels.call import Call, Field, arguments, edges, int8
from tinykd.kernels.layout import Axis, columns, merged, strides

SOFTMAX_MAX_CHANNELS = 4095
MEAN_MAX_AREA = 1 << 23
MEAN_RANK = 3


def averages_rows(graph: Graph, op: Op) -> bool:
    """The axes that stay are the innermost ones, so that x is (area, channels)."""
    kept, _ = _mean_loops(graph, op)
    return all(step == 1 for _, step in kept)


def mean(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a mean over rows of channels."""
    fields = _mean_fields(graph, op, where)
    return (Call("tk_mean", "tk_mean_t", fields, arguments(op.inputs[0], op.outputs[0])),)


def mean_axes(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a mean over any axes."""
    kept, summed = _mean_loops(graph, op)
    fields: dict[str, Field] = {f"core.{name}": field for name, field in _mean_fields(graph, op, where).items()}
    fields["size"], fields["step"] = columns(kept, MEAN_RANK, 1, where)
    fields["sum_size"], fields["sum_step"] = columns(summed, MEAN_RANK, 1, where)
    return (Call("tk_mean_axes", "tk_mean_axes_t", fields, arguments(op.inputs[0], op.outputs[0])),)


def softmax(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a softmax over the last axis."""
    x, y = edges(graph, op, where)
    quant = tensor_quant(y)
    if quant.scale != 1 / 256 or quant.zero_point != -128:
        raise UnsupportedModelError(
            f"{where}: output scale {quant.scale:g}, zero point {quant.zero_point}; TFLite's is 1/256 and -128"
        )
    channels = x.shape[-1]
    if channels > SOFTMAX_MAX_CHANNELS:
        raise UnsupportedModelError(f"{where}: {channels} classes; the fixed-point sum holds {SOFTMAX_MAX_CHANNELS}")
    constants = softmax_params(graph, op)
    fields: dict[str, Field] = {
        "rows": x.num_elements // channels,
        "channels": channels,
        "multiplier": constants.multiplier,
        "left_shift": constants.left_shift,
        "diff_min": constants.diff_min,
    }
    return (Call("tk_softmax", "tk_softmax_t", fields, arguments(x.name, y.name)),)


def arg_max(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of an arg_max; its output is int32."""
    x, y = int8(graph.tensor(op.inputs[0]), where), graph.tensor(op.outputs[0])
    if y.dtype != "int32":
        raise UnsupportedModelError(f"{where}: its output '{y.name}' is {y.dtype}; the kernel writes int32")
    axis = op.attrs["axis"]
    fields: dict[str, Field] = {
        "outer": math.prod(x.shape[:axis]),
        "count": x.shape[axis],
        "inner": math.prod(x.shape[axis + 1 :]),
    }
    return (Call("tk_arg_max", "tk_arg_max_t", fields, arguments(x.name, y.name)),)


def _mean_loops(graph: Graph, op: Op) -> tuple[list[Axis], list[Axis]]:
    """Return the loops (size, step) over the axes that stay and over those that are averaged."""
    shape = graph.tensor(op.inputs[0]).shape
    axes = list(zip(shape, strides(shape), strict=True))
    kept = [axis for index, axis in enumerate(axes) if index not in op.attrs["axes"]]
    return merged(kept), merged([axes[index] for index in op.attrs["axes"]])


def _mean_fields(graph: Graph, op: Op, where: str) -> dict[str, Field]:
    x, y = edges(graph, op, where)
    area = x.num_elements // y.num_elements
    if area > MEAN_MAX_AREA:
        raise UnsupportedModelError(f"{where}: mean over {area} positions; the limit is {MEAN_MAX_AREA}")
    constants = mean_params(graph, op)
    return {
        "area": area,
        "channels": y.num_elements,
        "zero_sum": constants.zero_sum,
        "multiplier": constants.multiplier,
        "out_zero": constants.output_zero_point,
        "shift": constants.shift,
    }
