"""One op on given values, computed by the integer reference: what passes fold constants and carry bounds with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinykd.export import reference
from tinykd.ir import Graph, Op


def evaluate(graph: Graph, op: Op, operands: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """Return what an op computes, one array of the tensor's shape for each of its outputs.

    Args:
        graph: the graph that holds the op's tensors.
        op: the op.
        operands: one value of the tensor's shape for each input; None for those that stay the constants that they are.
    """
    # Each operand has a name of its own: an op may read one tensor twice and be asked about two values of it.
    names = tuple(f"operand {index}" if value is not None else op.inputs[index] for index, value in enumerate(operands))
    tensors = dict(graph.tensors)
    values = {}
    for name, original, value in zip(names, op.inputs, operands, strict=True):
        if value is not None:
            tensors[name] = replace(graph.tensor(original), name=name, data=None)
            values[name] = value[None]
    results = reference.run_op(replace(graph, tensors=tensors), replace(op, inputs=names), values)
    return tuple(result[0] for result in results)
