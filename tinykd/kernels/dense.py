"""Kernels of dense layers: fully connected, and SVDF with its memory."""

from __future__ import annotations

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization, tensor_quant
from tinykd.ir.requant import QMAX, QMIN, svdf_params
from tinykd.kernels.call import Call, Field, arguments, bias, check_reach, edges, folded_bias, weights, within
from tinykd.kernels.windows import conv_fields, factors


def has_one_row(graph: Graph, op: Op) -> bool:
    """The input is a single row of Cin."""
    return graph.tensor(op.inputs[0]).num_elements == graph.tensor(op.inputs[1]).shape[1]


def fully_connected(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a dense layer over one row."""
    edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    per_channel = len(tensor_quant(graph.tensor(op.inputs[1])).scales) > 1
    count = len(taps) if per_channel else 1
    fields: dict[str, Field] = {
        "in_c": taps.shape[1],
        "out_c": taps.shape[0],
        "out_zero": constants.output_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        "channel_step": int(per_channel),
        **{name: name for name in ("weights", "bias", "multiplier", "shift")},
    }
    arrays = {
        "weights": taps,
        "bias": folded_bias(graph, op, taps, 0, constants.input_zero_point, where),
        **{name: array[:count] for name, array in factors(constants).items()},
    }
    return (Call("tk_fully_connected", "tk_fully_connected_t", fields, arguments(op.inputs[0], op.outputs[0]), arrays),)


def rows(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of a dense layer over several rows: a pointwise convolution, each row a pixel."""
    x, _ = edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    count = x.num_elements // taps.shape[1]
    sizes = dict.fromkeys(("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
    fields = conv_fields(
        {
            "in_h": count,
            "in_w": 1,
            "in_c": taps.shape[1],
            "out_h": count,
            "out_w": 1,
            "out_c": taps.shape[0],
            **sizes,
            "pad_top": 0,
            "pad_left": 0,
        },
        constants,
        where,
    )
    folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
    arrays = {"weights": taps, "bias": folded, **factors(constants)}
    return (Call("tk_conv_2d_1x1", "tk_conv_2d_t", fields, arguments(op.inputs[0], op.outputs[0]), arrays),)


def svdf(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call of an SVDF."""
    x, _ = edges(graph, op, where)
    feature, time = weights(graph, op.inputs[1], where), weights(graph, op.inputs[2], where, "int16")
    constants = svdf_params(graph, op)
    state = graph.tensor(op.inputs[4])
    zero_point = tensor_quant(state).zero_point
    if state.dtype != "int16" or zero_point:
        raise UnsupportedModelError(
            f"{where}: its state '{state.name}' is {state.dtype} with zero point {zero_point}; the kernel takes int16 "
            "with 0"
        )
    wide = feature.astype(np.int64)
    check_reach(np.zeros(len(feature), np.int64), np.abs(wide).sum(axis=1), where)
    units = len(feature) // op.attrs["rank"]
    fields: dict[str, Field] = {
        "in_c": x.num_elements,
        "filters": len(feature),
        "rank": op.attrs["rank"],
        "memory": time.shape[1],
        "out_zero": constants.output_zero_point,
        "out_min": QMIN,
        "out_max": QMAX,
        "feature_shift": constants.feature_shift,
        "out_shift": constants.time_shift,
        "feature_multiplier": constants.feature_multiplier,
        "out_multiplier": constants.time_multiplier,
        **{name: name for name in ("feature_weights", "feature_bias", "time_weights", "bias")},
    }
    arrays = {
        "feature_weights": feature,
        "feature_bias": (-constants.input_zero_point * wide.sum(axis=1)).astype(np.int32),
        "time_weights": time,
        "bias": bias(graph, op, 3, units, where).astype(np.int32),
    }
    within(2 * feature.shape[0] * time.shape[1], 0, (1 << 31) - 1, "its state in bytes", where)
    return (Call("tk_svdf", "tk_svdf_t", fields, arguments(op.inputs[0], op.inputs[4], op.outputs[0]), arrays),)
