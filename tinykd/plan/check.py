"""Proves a memory plan by running it: shares no code with the modules that make plans.

The checker executes the graph on addresses instead of values. Every byte of the arena remembers which activation was
last written there; an op may read an activation only while all of its bytes are still its own.
"""

from __future__ import annotations

import numpy as np

from tinykd.errors import InternalError
from tinykd.ir import Graph, MemoryPlan

_NOBODY = -1


def check(graph: Graph, plan: MemoryPlan) -> int:
    """Prove that `plan` is sound for `graph`.

    Returns:
        the checker's own lower bound in bytes: what must be in memory during the fullest op.

    Raises:
        InternalError: a missing, misaligned, out-of-range or overwritten activation, or a false claim of the plan.
    """
    where = {item.tensor: item for item in plan.placements}
    activations = [*graph.inputs, *graph.variables(), *(name for op in graph.ops for name in op.outputs)]
    number = {name: index for index, name in enumerate(activations)}
    if set(where) != set(activations) or len(plan.placements) != len(activations):
        raise InternalError(
            f"plan of '{graph.name}': it places {len(plan.placements)} of {len(activations)} activations"
        )
    same_bytes: dict[str, str] = {}
    for op in graph.ops:
        name = op.outputs[0]
        if where[name].alias_of is not None:
            if op.kind != "reshape" or where[name].offset != where[op.inputs[0]].offset:
                raise InternalError(f"plan of '{graph.name}': '{name}' may not share the bytes of another activation")
            same_bytes[name] = same_bytes.get(op.inputs[0], op.inputs[0])
    for name in activations:
        size = _size(graph, name)
        start = where[name].offset
        if start % plan.alignment_bytes:
            raise InternalError(
                f"plan of '{graph.name}': '{name}' at {start} is not aligned to {plan.alignment_bytes} B"
            )
        if start < 0 or start + size > plan.arena_bytes or where[name].num_bytes != size:
            raise InternalError(
                f"plan of '{graph.name}': '{name}' ({size} B at {start}) leaves the arena of {plan.arena_bytes} B"
            )

    owner = np.full(plan.arena_bytes, _NOBODY, np.int32)

    def bytes_of(name: str) -> np.ndarray:
        return owner[where[name].offset : where[name].offset + _size(graph, name)]

    def identity(name: str) -> int:
        return number[same_bytes.get(name, name)]

    def read(name: str, reader: str) -> None:
        if not (bytes_of(name) == identity(name)).all():
            thief = activations[int(bytes_of(name)[bytes_of(name) != identity(name)][0])]
            raise InternalError(f"plan of '{graph.name}': {reader} reads '{name}', which '{thief}' has overwritten")

    for name in (*graph.inputs, *graph.variables()):
        bytes_of(name)[:] = identity(name)
    needed_peak = 0
    for index, op in enumerate(graph.ops):
        operands = [name for name in op.inputs if name in number]
        label = f"op {index} ({op.kind}, {op.source})"
        for name in operands:
            read(name, label)
        for name in op.outputs:
            bytes_of(name)[:] = identity(name)
        # The op reads while it writes: its operands must have survived its own output.
        for name in operands:
            read(name, label)
        needed_peak = max(needed_peak, _needed(graph, index, same_bytes, plan.alignment_bytes))
    for name in graph.outputs:
        read(name, "the caller")
    for name in graph.variables():
        read(name, "the next inference")
    if plan.lower_bound_bytes > needed_peak:
        raise InternalError(
            f"plan of '{graph.name}' claims a lower bound of {plan.lower_bound_bytes} B; "
            f"the checker finds {needed_peak} B"
        )
    return needed_peak


def _size(graph: Graph, name: str) -> int:
    return graph.tensor(name).num_bytes


def _needed(graph: Graph, index: int, same_bytes: dict[str, str], alignment: int) -> int:
    """Return the bytes that no plan can do without while op `index` runs."""
    written_before = {*graph.inputs, *graph.variables(), *(name for op in graph.ops[:index] for name in op.outputs)}
    read_from_now = {name for op in graph.ops[index:] for name in op.inputs} | {*graph.outputs, *graph.variables()}
    needed = (written_before & read_from_now) | set(graph.ops[index].outputs)
    distinct = {same_bytes.get(name, name) for name in needed}
    return sum(-(-_size(graph, name) // alignment) * alignment for name in distinct)
