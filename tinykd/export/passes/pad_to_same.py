"""Turns a PAD before convolutions into their own padding, where the sum is TensorFlow's SAME."""

from __future__ import annotations

from tinykd.export.passes.fold_pad import fold_pad
from tinykd.formats.tflite.writer import is_expressible
from tinykd.ir import Graph, Op


def pad_to_same(graph: Graph) -> Graph:
    """Return the graph without the pads that a `.tflite` can express as padding of the convolutions behind them."""

    def is_same(padded: Graph, op: Op) -> bool:
        return is_expressible(op.attrs["padding"], padded, op)

    return fold_pad(graph, is_same)
