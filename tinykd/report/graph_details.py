"""Everything about one op of a graph: its constants, how their values spread, the factors of its output channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinykd.errors import ConfigError
from tinykd.ir import Graph, Tensor, requantization
from tinykd.report.graph_table import OpRow

HISTOGRAM_BINS = 16
_WITH_FACTORS = ("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected")


def details(graph: Graph, table: Sequence[OpRow], number: int) -> dict[str, Any]:
    """Return the JSON object of one op.

    Returns:
        the row of the table, `attrs`, `constants` (see `_constant`) and `channels`: for each output channel of a
        convolution or dense layer its weights' scale and reach, its bias, and the factor to the output.

    Raises:
        ConfigError: the graph has no op `number`.
    """
    if not 0 <= number < len(table):
        raise ConfigError(f"there is no op {number} in '{graph.name}'", f"Its ops are 0 to {len(table) - 1}.")
    op = graph.ops[number]
    constants = [graph.tensor(name) for name in dict.fromkeys(op.inputs) if name and graph.tensor(name).is_constant]
    return {
        **table[number].to_dict(),
        "attrs": {key: list(value) if isinstance(value, tuple) else value for key, value in op.attrs.items()},
        "constants": [_constant(tensor) for tensor in constants],
        "channels": _channels(graph, number) if op.kind in _WITH_FACTORS else [],
    }


def _constant(tensor: Tensor) -> dict[str, Any]:
    """Return shape, type, bytes, range and quantisation; for int8 also counts of equal bins over -128..127."""
    assert tensor.data is not None
    quant = tensor.quant
    data = tensor.data
    counts: list[int] = []
    if data.dtype == np.int8:
        counts = np.histogram(data, HISTOGRAM_BINS, (-128, 128))[0].tolist()
    return {
        "tensor": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "num_bytes": tensor.num_bytes,
        "min": data.min().item(),
        "max": data.max().item(),
        "axis": None if quant is None else quant.axis,
        "scales": [] if quant is None else list(quant.scales),
        "zero_points": [] if quant is None else list(quant.zero_points),
        "histogram": counts,
    }


def _channels(graph: Graph, number: int) -> list[dict[str, Any]]:
    op = graph.ops[number]
    constants = requantization(graph, op)
    weights = graph.tensor(op.inputs[1])
    if weights.data is None or weights.quant is None:
        return []
    axis = 3 if op.kind == "depthwise_conv_2d" else 0
    count = weights.shape[axis]
    reach = np.abs(np.moveaxis(weights.data, axis, 0).reshape(count, -1).astype(np.int64)).max(axis=1)
    scales = weights.quant.scales if len(weights.quant.scales) > 1 else weights.quant.scales * count
    bias = graph.tensor(op.inputs[2]).data if len(op.inputs) > 2 and op.inputs[2] else None
    return [
        {
            "channel": channel,
            "weight_scale": scales[channel],
            "largest_weight": int(reach[channel]),
            "bias": 0 if bias is None else int(bias[channel]),
            "multiplier": constants.multipliers[channel],
            "shift": constants.shifts[channel],
        }
        for channel in range(count)
    ]
