"""Proves a memory plan by running it: shares no code with the modules that make plans.

The checker executes the graph on addresses instead of values. Every byte of every activation has a number: a byte
that an op computes gets a new one, a byte that an op only moves keeps the one it has. The arena remembers the number
that was last written to each of its bytes, and an op may read an activation only while all of its bytes are there, in
order. So a piece that shares the bytes of a whole is right exactly when it lies where the whole has it.
"""

from __future__ import annotations

import numpy as np

from tinykd.errors import InternalError
from tinykd.ir import Graph, MemoryPlan, Op, Scratch

_NOBODY = -1
_MOVING = ("concatenation", "reshape", "split", "strided_slice", "transpose")


def check(graph: Graph, plan: MemoryPlan, *, variables: bool = True) -> int:
    """Prove that `plan` is sound for `graph`.

    Args:
        variables: whether the plan places the variables too (our engine) or leaves them to the runtime (TFLite Micro).

    Returns:
        the checker's own lower bound in bytes for the plan's choice of what shares bytes: what must be in memory during
        the fullest op.

    Raises:
        InternalError: a missing, misaligned, out-of-range or overwritten activation, or a false claim of the plan.
    """
    where = {item.tensor: item for item in plan.placements}
    before = (*graph.inputs, *(graph.variables() if variables else ()))
    activations = [*before, *(name for op in graph.ops for name in op.outputs)]
    if set(where) != set(activations) or len(plan.placements) != len(activations):
        raise InternalError(
            f"plan of '{graph.name}': it places {len(plan.placements)} of {len(activations)} activations"
        )
    for name in activations:
        _check_place(graph, plan, name)
    for area in plan.scratch:
        _check_scratch(graph, plan, area)

    numbers: dict[str, np.ndarray] = {}
    thieves = np.full(plan.arena_bytes, "", object)
    arena = np.full(plan.arena_bytes, _NOBODY, np.int64)

    def piece(name: str) -> slice:
        return slice(where[name].offset, where[name].offset + graph.tensor(name).num_bytes)

    def write(name: str) -> None:
        changed = arena[piece(name)] != numbers[name].reshape(-1)
        arena[piece(name)] = numbers[name].reshape(-1)
        thieves[piece(name)][changed] = name

    def read(name: str, reader: str) -> None:
        wrong = np.flatnonzero(arena[piece(name)] != numbers[name].reshape(-1))
        if len(wrong):
            thief = thieves[piece(name)][wrong[0]]
            by = f"which '{thief}' has overwritten" if thief else "which nobody has written"
            raise InternalError(f"plan of '{graph.name}': {reader} reads '{name}', {by}")

    count = 0

    def new(name: str) -> np.ndarray:
        nonlocal count
        tensor = graph.tensor(name)
        size = tensor.num_bytes
        count += size
        return np.arange(count - size, count).reshape(*tensor.shape, size // tensor.num_elements)

    for name in before:
        numbers[name] = new(name)
        write(name)
    for index, op in enumerate(graph.ops):
        operands = [name for name in op.inputs if name in where]
        label = f"op {index} ({op.kind}, {op.source})"
        for name in operands:
            read(name, label)
        for name in op.inputs if op.kind in _MOVING else ():
            if name not in where:
                numbers[name] = new(name)
        areas = [slice(area.offset, area.offset + area.num_bytes) for area in plan.scratch if area.op == index]
        for area_bytes in areas:
            arena[area_bytes] = _NOBODY
            thieves[area_bytes] = f"the scratch memory of op {index}"
        moved = _moved(graph, op, numbers)
        for position, name in enumerate(op.outputs):
            numbers[name] = new(name) if moved is None else moved[position]
            write(name)
        # The op reads while it writes: its operands must have survived its own outputs, and its scratch memory both.
        for name in (*operands, *op.outputs):
            read(name, label)
        for area_bytes in areas:
            if (arena[area_bytes] != _NOBODY).any():
                raise InternalError(f"plan of '{graph.name}': an output of {label} lies in its scratch memory")
    for name in graph.outputs:
        read(name, "the caller")
    for name in graph.variables() if variables else ():
        read(name, "the next inference")
    for item in plan.placements:
        if item.alias_of is not None:
            inside = item.offset - where[item.alias_of].offset
            whole = numbers[item.alias_of].reshape(-1)[inside : inside + item.num_bytes]
            if not np.array_equal(whole, numbers[item.tensor].reshape(-1)):
                raise InternalError(
                    f"plan of '{graph.name}': '{item.tensor}' at {item.offset} is not what '{item.alias_of}', whose "
                    "bytes it claims to share, has there"
                )
    needed_peak = _needed(graph, plan)
    if plan.lower_bound_bytes > needed_peak:
        raise InternalError(
            f"plan of '{graph.name}' claims a lower bound of {plan.lower_bound_bytes} B; "
            f"the checker finds {needed_peak} B"
        )
    return needed_peak


def _check_place(graph: Graph, plan: MemoryPlan, name: str) -> None:
    where = {item.tensor: item for item in plan.placements}
    size, start = graph.tensor(name).num_bytes, where[name].offset
    if start % plan.alignment_bytes:
        raise InternalError(f"plan of '{graph.name}': '{name}' at {start} is not aligned to {plan.alignment_bytes} B")
    if start < 0 or start + size > plan.arena_bytes or where[name].num_bytes != size:
        raise InternalError(
            f"plan of '{graph.name}': '{name}' ({size} B at {start}) leaves the arena of {plan.arena_bytes} B"
        )
    owner = where[name].alias_of
    if owner is None:
        return
    if owner not in where or where[owner].alias_of is not None:
        raise InternalError(f"plan of '{graph.name}': '{name}' claims bytes of '{owner}', which has none of its own")
    if not where[owner].offset <= start or start + size > where[owner].offset + graph.tensor(owner).num_bytes:
        raise InternalError(f"plan of '{graph.name}': '{name}' is no part of '{owner}', whose bytes it claims to share")


def _check_scratch(graph: Graph, plan: MemoryPlan, item: Scratch) -> None:
    """Refuse scratch memory of no op, out of the arena, misaligned, or planned twice for an op."""
    if not 0 <= item.op < len(graph.ops) or [other.op for other in plan.scratch].count(item.op) != 1:
        raise InternalError(f"plan of '{graph.name}': scratch memory of op {item.op} is planned twice, or for no op")
    if item.num_bytes < 1 or item.offset < 0 or item.offset + item.num_bytes > plan.arena_bytes:
        raise InternalError(
            f"plan of '{graph.name}': scratch memory of op {item.op} ({item.num_bytes} B at {item.offset}) leaves the "
            f"arena of {plan.arena_bytes} B"
        )
    if item.offset % plan.alignment_bytes:
        raise InternalError(f"plan of '{graph.name}': scratch memory of op {item.op} is not aligned")


def _moved(graph: Graph, op: Op, numbers: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return the byte numbers of the outputs of an op that only moves bytes, None for an op that computes."""
    if op.kind == "concatenation":
        return [np.concatenate([numbers[name] for name in op.inputs], op.attrs["axis"])]
    if op.kind not in _MOVING:
        return None
    x = numbers[op.inputs[0]]
    if op.kind == "reshape":
        return [x.reshape(*graph.tensor(op.outputs[0]).shape, x.shape[-1])]
    if op.kind == "split":
        ends = np.cumsum([graph.tensor(name).shape[op.attrs["axis"]] for name in op.outputs])
        return np.split(x, ends[:-1], op.attrs["axis"])
    if op.kind == "transpose":
        return [x.transpose(*op.attrs["perm"], len(op.attrs["perm"]))]
    bounds = zip(op.attrs["begin"], op.attrs["end"], op.attrs["strides"], strict=True)
    cut = x[tuple(slice(first, None if last < 0 else last, step) for first, last, step in bounds)]
    return [cut.reshape(*graph.tensor(op.outputs[0]).shape, x.shape[-1])]


def _needed(graph: Graph, plan: MemoryPlan) -> int:
    """Return the bytes that no plan can do without in which the same activations share bytes."""
    written = {name: index for index, op in enumerate(graph.ops) for name in op.outputs}
    spans: dict[str, tuple[int, int]] = {}
    size: dict[str, int] = {}
    for item in plan.placements:
        name, owner = item.tensor, item.alias_of or item.tensor
        uses = [index for index, op in enumerate(graph.ops) if name in op.inputs]
        if name in graph.outputs or graph.tensor(name).variable:
            uses.append(len(graph.ops) - 1)
        first = written.get(name, -1)
        last = max([first, *uses])
        known = spans.get(owner, (first, last))
        spans[owner] = (min(known[0], first), max(known[1], last))
        size[owner] = -(-graph.tensor(owner).num_bytes // plan.alignment_bytes) * plan.alignment_bytes
    scratch = {item.op: -(-item.num_bytes // plan.alignment_bytes) * plan.alignment_bytes for item in plan.scratch}
    return max(
        sum(size[owner] for owner, (first, last) in spans.items() if first <= index <= last) + scratch.get(index, 0)
        for index in range(max(len(graph.ops), 1))
    )
