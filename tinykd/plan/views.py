"""Which activations can be pieces of one buffer, so that an op that only moves bytes has nothing to move.

The output of a RESHAPE is its input. Where the parts of a SPLIT lie in one piece within the whole (the axis is the
first one longer than 1), they are views of it; the inputs of such a CONCATENATION are written straight into its output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tinykd.ir import Graph
from tinykd.kernels import Move


@dataclass
class Group:
    """Activations that share one buffer.

    Attributes:
        offsets: bytes from the start of the buffer to each one.
        num_bytes: the whole buffer.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0


def find_groups(
    graph: Graph, steps: Sequence[tuple[Move, ...]], alignment_bytes: int, without: Collection[int]
) -> dict[str, Group]:
    """Return the group of each activation, most of them alone in theirs.

    Every byte of a group is written once, by one op that computes; all other members that hold the byte are the same
    value seen again. So members never need to be kept apart in time, only the group as a whole.

    Args:
        steps: what each op moves (`moves`).
        alignment_bytes: of every offset: a piece that begins elsewhere is copied.
        without: indices of ops whose pieces are to be copied.
    """
    groups: dict[str, Group] = {}
    for name in (*graph.inputs, *graph.variables(), *(name for op in graph.ops for name in op.outputs)):
        groups[name] = Group({name: 0}, graph.tensor(name).num_bytes)
    for index, step in enumerate(steps):
        if index not in without:
            for move in step:
                _try(graph, groups, move, alignment_bytes)
    return groups


def optional_ops(graph: Graph, steps: Sequence[tuple[Move, ...]]) -> list[int]:
    """Return the ops whose pieces may share bytes but need not: sharing keeps the whole alive as long as a piece.

    A RESHAPE is not among them: it always wins.
    """
    return [
        index
        for index, (op, step) in enumerate(zip(graph.ops, steps, strict=True))
        if op.kind != "reshape" and any(move.is_block for move in step)
    ]


def _try(graph: Graph, groups: dict[str, Group], move: Move, alignment_bytes: int) -> None:
    """Join the groups of a move's two ends if the move is then superfluous and nothing else is harmed."""
    source, target = groups.get(move.source), groups[move.target]
    if source is None or source is target or not move.is_block or move.source in graph.variables():
        return
    shift = source.offsets[move.source] + move.source_offset - target.offsets[move.target] - move.target_offset
    if shift % alignment_bytes:
        return
    if move.run == graph.tensor(move.target).num_bytes and len(target.offsets) == 1:
        # The target is a view of the source.
        _join(groups, source, target, shift)
    elif move.run == source.num_bytes and not _is_edge(graph, source):
        # The source is a part of the target, and nothing else lies in its buffer.
        _join(groups, target, source, -shift)


def _is_edge(graph: Graph, group: Group) -> bool:
    return any(name in graph.inputs or name in graph.outputs for name in group.offsets)


def _join(groups: dict[str, Group], into: Group, other: Group, shift: int) -> None:
    for name, offset in other.offsets.items():
        into.offsets[name] = offset + shift
        groups[name] = into
