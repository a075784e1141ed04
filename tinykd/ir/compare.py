"""Whether two graphs are the same, and if not, the first thing that differs."""

from __future__ import annotations

import numpy as np

from tinykd.ir.graph import Graph, Op, Tensor


def difference(first: Graph, second: Graph) -> str | None:
    """Return what differs first between two graphs, as one sentence, or None when they are the same.

    Everything counts but the graphs' names and the ops' `source`: tensor names, their order among ops, shapes, types,
    quantisation, constants bit for bit, kinds, attributes, edges.
    """
    for what, a, b in (("inputs", first.inputs, second.inputs), ("outputs", first.outputs, second.outputs)):
        if a != b:
            return f"the {what} are {list(a)} and {list(b)}"
    if len(first.ops) != len(second.ops):
        return f"there are {len(first.ops)} and {len(second.ops)} ops"
    for index, (op, other) in enumerate(zip(first.ops, second.ops, strict=True)):
        if found := _op_difference(op, other):
            return f"op {index} ({op.kind}): {found}"
    if missing := set(first.tensors) ^ set(second.tensors):
        return f"tensors in one graph only: {sorted(missing)}"
    for name, tensor in first.tensors.items():
        if found := _tensor_difference(tensor, second.tensors[name]):
            return f"tensor '{name}': {found}"
    return None


def _op_difference(a: Op, b: Op) -> str | None:
    for what, left, right in (
        ("kind", a.kind, b.kind),
        ("inputs", a.inputs, b.inputs),
        ("outputs", a.outputs, b.outputs),
        ("attributes", dict(a.attrs), dict(b.attrs)),
    ):
        if left != right:
            return f"{what} {left!r} and {right!r}"
    return None


def _tensor_difference(a: Tensor, b: Tensor) -> str | None:
    for what, left, right in (
        ("shape", a.shape, b.shape),
        ("type", a.dtype, b.dtype),
        ("quantisation", a.quant, b.quant),
        ("variable", a.variable, b.variable),
        ("constant", a.is_constant, b.is_constant),
    ):
        if left != right:
            return f"{what} {left} and {right}"
    if a.data is not None and b.data is not None and a.data.tobytes() != b.data.tobytes():
        return f"{int(np.count_nonzero(a.data != b.data))} values differ"
    return None
