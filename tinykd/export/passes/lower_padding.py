"""Spells paddings that a `.tflite` cannot express (neither SAME nor VALID) as a PAD op before the convolution."""

from __future__ import annotations

from dataclasses import replace

from tinykd.formats.tflite_writer import is_expressible
from tinykd.ir import Graph, Op, Tensor, spatial_paddings

_WINDOWED = ("conv_2d", "depthwise_conv_2d")


def lower_padding(graph: Graph) -> Graph:
    """Return a graph whose convolutions all pad as SAME or VALID do. Students that pad like TF-SAME are unchanged."""
    tensors = dict(graph.tensors)
    ops: list[Op] = []
    for op in graph.ops:
        padding = op.attrs.get("padding")
        if op.kind not in _WINDOWED or padding is None or is_expressible(padding, graph, op):
            ops.append(op)
            continue
        x = graph.tensor(op.inputs[0])
        top, bottom, left, right = padding
        name = f"{op.outputs[0]}/padded"
        shape = (1, x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3])
        tensors[name] = Tensor(name, shape, x.dtype, x.quant)
        attrs = {"paddings": spatial_paddings(padding), "value": None}
        ops.append(Op("pad", (x.name,), (name,), attrs, f"{op.source} (padding)"))
        ops.append(replace(op, inputs=(name, *op.inputs[1:]), attrs={**op.attrs, "padding": (0, 0, 0, 0)}))
    return graph.with_ops(ops, tensors)
