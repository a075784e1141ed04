"""When each activation must be in memory, and which activations share one buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tinykd.ir import Graph
from tinykd.kernels import Move, moves
from tinykd.plan.views import Group, find_groups, optional_ops

BEFORE_FIRST_OP = -1


@dataclass(frozen=True)
class Buffer:
    """One piece of the arena to place.

    Attributes:
        tensors: the activations that share it; the first one fills it, the others are aliases of it or of parts of it.
            Empty: an op's scratch memory.
        num_bytes: its size without alignment.
        first_op, last_op: live range, both ends included; `BEFORE_FIRST_OP` for what is there
            before: the graph's inputs, and its variables, which stay for good.
        offsets: bytes from its start to each of `tensors`.
    """

    tensors: tuple[str, ...]
    num_bytes: int
    first_op: int
    last_op: int
    offsets: tuple[int, ...] = (0,)

    def overlaps(self, other: Buffer) -> bool:
        """Whether both must be in memory at some moment."""
        return self.first_op <= other.last_op and other.first_op <= self.last_op


def find_buffers(
    graph: Graph, alignment_bytes: int, *, alias: bool, scratch: Mapping[int, int] = MappingProxyType({})
) -> list[Buffer]:
    """Return the buffers of a graph in the order in which they come to life, behind them those of scratch memory.

    Args:
        graph: a verified graph.
        alignment_bytes: of every offset.
        alias: let activations share bytes wherever an op only moves them (our engine), unless sharing raises the peak.
            False: nothing is shared, and variables have no place, as TFLite Micro needs it: it copies, and keeps
            variables in a part of the arena that no plan reaches.
        scratch: bytes of the scratch memory of each op that needs some, by its index.
    """
    areas = [Buffer((), size, op, op, ()) for op, size in scratch.items()]
    if not alias:
        names = (*graph.inputs, *(name for op in graph.ops for name in op.outputs))
        return [*_buffers(graph, {name: Group({name: 0}, graph.tensor(name).num_bytes) for name in names}), *areas]

    steps = [moves(graph, op) for op in graph.ops]
    without = _worth_copying(graph, steps, alignment_bytes, areas)
    return [*_buffers(graph, find_groups(graph, steps, alignment_bytes, without)), *areas]


def _worth_copying(
    graph: Graph, steps: Sequence[tuple[Move, ...]], alignment_bytes: int, areas: Sequence[Buffer]
) -> frozenset[int]:
    """Return the ops whose pieces are copied because sharing would raise the peak: it keeps wholes alive for longer.

    A greedy choice, never worse than to copy all of them.

    Args:
        areas: scratch memory, which counts as well.
    """

    def peak(without: frozenset[int]) -> int:
        buffers = _buffers(graph, find_groups(graph, steps, alignment_bytes, without))
        return max(live_bytes([*buffers, *areas], len(graph.ops), alignment_bytes))

    candidates = frozenset(optional_ops(graph, steps))
    without: frozenset[int] = frozenset()
    best = peak(without)
    for index in sorted(candidates):
        if (found := peak(without | {index})) < best:
            without, best = without | {index}, found
    if (found := peak(candidates)) < best:
        without, best = candidates, found
    for index in sorted(without):
        if (found := peak(without - {index})) <= best:
            without, best = without - {index}, found
    return without


def _buffers(graph: Graph, groups: dict[str, Group]) -> list[Buffer]:
    producers, consumers, variables = graph.producers(), graph.consumers(), graph.variables()
    order = {name: position for position, name in enumerate(groups)}
    buffers = []
    for group in {id(group): group for group in groups.values()}.values():
        names = sorted(group.offsets, key=lambda name: (graph.tensor(name).num_bytes != group.num_bytes, order[name]))
        written = [producers.get(name, BEFORE_FIRST_OP) for name in names]
        last = max([*written, *(op for name in names for op in consumers.get(name, []))])
        if any(name in graph.outputs or name in variables for name in names):
            last = len(graph.ops) - 1
        offsets = tuple(group.offsets[name] for name in names)
        buffers.append(Buffer(tuple(names), group.num_bytes, min(written), last, offsets))
    return buffers


def align(num_bytes: int, alignment_bytes: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-num_bytes // alignment_bytes) * alignment_bytes


def live_bytes(buffers: list[Buffer], num_ops: int, alignment_bytes: int) -> list[int]:
    """Return the aligned bytes that are live during each op."""
    totals = [0] * max(num_ops, 1)
    for buffer in buffers:
        for op in range(max(buffer.first_op, 0), buffer.last_op + 1):
            totals[op] += align(buffer.num_bytes, alignment_bytes)
    return totals
