"""Fuses RELU, RELU6 and QUANTIZE ops that only clamp into the clamp of the op that computes their input."""

from __future__ import annotations

import numpy as np

from tinykd.export.passes.rewrite import absorb, sole_producer
from tinykd.ir import ACTIVATIONS, Graph, Op, activation_range, tensor_quant
from tinykd.ir.lookup import has_table, table
from tinykd.ir.ops import SPECS

_CLAMPS = ("relu", "relu6", "quantize")
# What TFLite Micro clamps at the end: TRANSPOSE_CONV and SVDF are left alone, whose activation older runtimes ignore.
_CLAMPING = tuple(
    kind for kind, spec in SPECS.items() if "activation" in spec.attrs and kind not in ("svdf", "transpose_conv")
)


def fuse_clamps(graph: Graph) -> Graph:
    """Return the graph with clamps fused where a fused activation does exactly the same.

    The op's table of 256 values says what it does. It must be a clamp in the producer's own scale and zero point: a
    change of scale rounds a second time, which no single requantisation repeats.
    """
    for index in reversed(range(len(graph.ops))):
        op = graph.ops[index]
        producer = sole_producer(graph, op, _CLAMPING) if op.kind in _CLAMPS and has_table(graph, op) else None
        if producer is None or graph.tensor(op.inputs[0]).quant != graph.tensor(op.outputs[0]).quant:
            continue
        activation = _same_clamp(graph, graph.ops[producer], op)
        if activation is not None:
            graph = graph.with_ops(absorb(graph, producer, index, {"activation": activation}))
    return graph


def _same_clamp(graph: Graph, producer: Op, op: Op) -> str | None:
    """Return the activation of the producer that equals its present one followed by `op`; None when there is none."""
    quant = tensor_quant(graph.tensor(op.outputs[0]))
    every = np.arange(-128, 128)
    both = table(graph, op)[np.clip(every, *activation_range(quant, producer.attrs["activation"])) + 128]
    for activation in (producer.attrs["activation"], op.kind):
        if activation in ACTIVATIONS and (np.clip(every, *activation_range(quant, activation)) == both).all():
            return activation
    return None
