"""Folds a PAD with zeros into the convolutions that read it, so that no PAD op costs memory and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tinykd.ir import Graph, Op, spatial_padding

_FOLDS_INTO = ("conv_2d", "depthwise_conv_2d")


def fold_pad(graph: Graph, fits: Callable[[Graph, Op], bool] = lambda graph, op: True) -> Graph:
    """Return the graph with each pad merged into its readers, where all of them are convolutions.

    A convolution's padding adds nothing to its sums, and so does the real 0 that a pad writes. Pads with other values,
    and those that change scale or zero point, stay.

    Args:
        fits: whether a convolution may have the padding that it has in the graph given; all of a pad's readers must.
    """
    for index in reversed(range(len(graph.ops))):
        pad = graph.ops[index]
        if pad.kind != "pad" or pad.outputs[0] in graph.outputs:
            continue
        extra = spatial_padding(pad)
        if extra is None or graph.tensor(pad.inputs[0]).quant != graph.tensor(pad.outputs[0]).quant:
            continue
        readers = graph.consumers().get(pad.outputs[0], [])
        if not readers or any(graph.ops[reader].kind not in _FOLDS_INTO for reader in readers):
            continue
        ops = list(graph.ops)
        for reader in readers:
            op = ops[reader]
            padding = tuple(a + b for a, b in zip(op.attrs["padding"], extra, strict=True))
            ops[reader] = replace(op, inputs=(pad.inputs[0], *op.inputs[1:]), attrs={**op.attrs, "padding": padding})
        folded = [ops[reader] for reader in readers]
        del ops[index]
        candidate = graph.with_ops(ops)
        if all(fits(candidate, op) for op in folded):
            graph = candidate
    return graph
