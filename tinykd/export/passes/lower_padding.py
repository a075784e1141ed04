"""Spells paddings that a `.tflite` cannot express (neither SAME nor VALID) as ops of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export.windows import window_counts
from tinykd.formats.tflite.writer import is_expressible
from tinykd.ir import Graph, Op, Tensor, op_label, spatial_paddings
from tinykd.ir.requant import QMIN

_WINDOWED = ("conv_2d", "depthwise_conv_2d", "max_pool_2d", "average_pool_2d")
_NONE = (0, 0, 0, 0)


def lower_padding(graph: Graph) -> Graph:
    """Return a graph whose ops all pad as SAME or VALID do. Students that pad like TF-SAME are unchanged.

    Convolutions and poolings get a PAD before them: with zeros, or for the largest value with the smallest number there
    is. Averages that leave the padding out get a product with one factor for each position behind them, in float graphs
    only. Transposed convolutions compute their full output, and a slice cuts it.

    Raises:
        UnsupportedModelError: an average pooling of an int8 graph, which cannot be spelt without another rounding.
    """
    tensors = dict(graph.tensors)
    ops: list[Op] = []
    for index, op in enumerate(graph.ops):
        padding = op.attrs.get("padding")
        if op.kind not in (*_WINDOWED, "transpose_conv") or padding is None or is_expressible(padding, graph, op):
            ops.append(op)
        elif op.kind == "transpose_conv":
            ops += _cut(graph, op, tensors)
        elif op.kind == "average_pool_2d" and graph.tensor(op.inputs[0]).dtype != "float32":
            raise UnsupportedModelError(
                f"{op_label(index, op)}: its padding {padding} is neither SAME nor VALID",
                "Pool with SAME padding, or without any.",
            )
        else:
            ops += _padded(graph, op, tensors)
    return graph.with_ops(ops, tensors)


def _padded(graph: Graph, op: Op, tensors: dict[str, Tensor]) -> list[Op]:
    x = graph.tensor(op.inputs[0])
    top, bottom, left, right = op.attrs["padding"]
    name = f"{op.outputs[0]}/padded"
    shape = (1, x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3])
    tensors[name] = Tensor(name, shape, x.dtype, x.quant)
    value: float | None = None
    if op.kind == "max_pool_2d":
        value = -np.inf if x.dtype == "float32" else None if x.quant and x.quant.zero_point == QMIN else QMIN
    attrs = {"paddings": spatial_paddings(op.attrs["padding"]), "value": value}
    pad = Op("pad", (x.name,), (name,), attrs, f"{op.source} (padding)")
    window = replace(op, inputs=(name, *op.inputs[1:]), attrs={**op.attrs, "padding": _NONE})
    return [pad, window] if op.kind != "average_pool_2d" else [pad, *_reweighted(graph, op, window, tensors)]


def _reweighted(graph: Graph, op: Op, window: Op, tensors: dict[str, Tensor]) -> list[Op]:
    """Return a pooling that counts the padding, and the product that takes it out of the mean again."""
    y = graph.tensor(op.outputs[0])
    _, height, width, _ = graph.tensor(op.inputs[0]).shape
    counts = window_counts((height, width), op, y.shape)
    kernel_h, kernel_w = op.attrs["kernel"]
    mean, factors = f"{y.name}/mean", f"{y.name}/factors"
    tensors[mean] = Tensor(mean, y.shape, y.dtype)
    data = (kernel_h * kernel_w / counts).astype(np.float32)
    tensors[factors] = Tensor(factors, data.shape, "float32", None, data)
    return [
        replace(window, outputs=(mean,), attrs={**window.attrs, "activation": "none"}),
        Op("mul", (mean, factors), (y.name,), {"activation": op.attrs["activation"]}, f"{op.source} (padding)"),
    ]


def _cut(graph: Graph, op: Op, tensors: dict[str, Tensor]) -> list[Op]:
    y = graph.tensor(op.outputs[0])
    top, bottom, left, right = op.attrs["padding"]
    # Rows and columns behind the full output, which only the bias reaches, stay with the op.
    kept = (0, min(bottom, 0), 0, min(right, 0))
    shape = (1, y.shape[1] + top + max(bottom, 0), y.shape[2] + left + max(right, 0), y.shape[3])
    name = f"{y.name}/full"
    tensors[name] = Tensor(name, shape, y.dtype, y.quant)
    attrs = {
        "begin": (0, top, left, 0),
        "end": (1, top + y.shape[1], left + y.shape[2], y.shape[3]),
        "strides": (1, 1, 1, 1),
        "shrink_axes": (),
    }
    return [
        replace(op, outputs=(name,), attrs={**op.attrs, "padding": kept}),
        Op("strided_slice", (name,), (y.name,), attrs, f"{op.source} (padding)"),
    ]
