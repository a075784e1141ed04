"""Folds a PAD with zeros into the convolutions that read it, so that no PAD op costs memory and time."""

from __future__ import annotations

from dataclasses import replace

from tinykd.ir import Graph, spatial_padding

_FOLDS_INTO = ("conv_2d", "depthwise_conv_2d")


def fold_pad(graph: Graph) -> Graph:
    """Return the graph with each pad merged into its readers, where all of them are convolutions."""
    for index in reversed(range(len(graph.ops))):
        pad = graph.ops[index]
        if pad.kind != "pad" or pad.outputs[0] in graph.outputs:
            continue
        extra = spatial_padding(pad)
        if extra is None:
            continue
        readers = graph.consumers().get(pad.outputs[0], [])
        if not readers or any(graph.ops[reader].kind not in _FOLDS_INTO for reader in readers):
            continue
        ops = list(graph.ops)
        for reader in readers:
            op = ops[reader]
            padding = tuple(a + b for a, b in zip(op.attrs["padding"], extra, strict=True))
            ops[reader] = replace(op, inputs=(pad.inputs[0], *op.inputs[1:]), attrs={**op.attrs, "padding": padding})
        del ops[index]
        graph = graph.with_ops(ops)
    return graph
