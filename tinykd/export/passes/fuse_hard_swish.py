"""Finds hard-swish where a model spells it out: x * relu6(x + 3) / 6."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinykd.ir import Graph, Op
from tinykd.ir.dead_ops import remove_dead_ops

_TOLERANCE = 1e-4


def fuse_hard_swish(graph: Graph) -> Graph:
    """Return the graph with one hard_swish for x * (relu6(x + 3) / 6) and (x * relu6(x + 3)) / 6."""
    ops = list(graph.ops)
    for index, op in enumerate(ops):
        x = _input_of_hard_swish(graph, op)
        if x is not None:
            ops[index] = replace(op, kind="hard_swish", inputs=(x,), attrs={})
    return remove_dead_ops(graph.with_ops(ops))


def _input_of_hard_swish(graph: Graph, op: Op) -> str | None:
    if op.kind != "mul" or op.attrs["activation"] != "none":
        return None
    whole = _times_sixth(graph, op)
    if whole is not None:
        # (x * relu6(x + 3)) / 6
        product = _writer(graph, whole, "mul")
        return None if product is None else _factor_beside_ramp(graph, product, divided=False)
    return _factor_beside_ramp(graph, op, divided=True)


def _factor_beside_ramp(graph: Graph, op: Op, *, divided: bool) -> str | None:
    """Return x where `op` is x times relu6(x + 3), or that over 6 if it is `divided`."""
    if op.attrs["activation"] != "none":
        return None
    for x, ramp in (op.inputs, op.inputs[::-1]):
        over = _writer(graph, ramp, "mul") if divided else None
        top = _times_sixth(graph, over) if over is not None else None if divided else ramp
        if top is not None and _is_ramp(graph, top, x):
            return x
    return None


def _is_ramp(graph: Graph, name: str, x: str) -> bool:
    """Whether a tensor is relu6(x + 3)."""
    clipped = _writer(graph, name, "relu6")
    shifted = _writer(graph, clipped.inputs[0], "add") if clipped is not None else None
    return shifted is not None and _beside_constant(graph, shifted, 3.0) == x


def _times_sixth(graph: Graph, op: Op) -> str | None:
    return _beside_constant(graph, op, 1 / 6) if op.attrs["activation"] == "none" else None


def _beside_constant(graph: Graph, op: Op, value: float) -> str | None:
    """Return the operand of a binary op beside the constant `value`, or None."""
    for x, other in (op.inputs, op.inputs[::-1]):
        data = graph.tensor(other).data
        if data is not None and data.size == 1 and abs(float(np.ravel(data)[0]) - value) < _TOLERANCE:
            return x
    return None


def _writer(graph: Graph, name: str, kind: str) -> Op | None:
    index = graph.producers().get(name)
    return graph.ops[index] if index is not None and graph.ops[index].kind == kind else None
