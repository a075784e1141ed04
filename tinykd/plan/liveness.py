"""When each activation must be in memory, and which activations share one buffer."""

from __future__ import annotations

from dataclasses import dataclass

from tinykd.ir import Graph

BEFORE_FIRST_OP = -1


@dataclass(frozen=True)
class Buffer:
    """One piece of the arena to place.

    Attributes:
        tensors: the activations that share it; the first one owns it, the others are aliases.
        num_bytes: its size without alignment.
        first_op, last_op: live range, both ends included; `BEFORE_FIRST_OP` for what is there
            before: the graph's inputs, and its variables, which stay for good.
    """

    tensors: tuple[str, ...]
    num_bytes: int
    first_op: int
    last_op: int

    def overlaps(self, other: Buffer) -> bool:
        """Whether both must be in memory at some moment."""
        return self.first_op <= other.last_op and other.first_op <= self.last_op


def find_buffers(graph: Graph, *, alias: bool) -> list[Buffer]:
    """Return the buffers of a graph in the order in which they come to life.

    Args:
        graph: a verified graph.
        alias: let the output of a RESHAPE share its input's buffer (our engine); TFLite Micro copies instead.
    """
    owner: dict[str, str] = {}
    for op in graph.ops:
        if alias and op.kind == "reshape":
            owner[op.outputs[0]] = owner.get(op.inputs[0], op.inputs[0])
    producers, consumers = graph.producers(), graph.consumers()
    members: dict[str, list[str]] = {}
    variables = graph.variables()
    activations = [*graph.inputs, *variables, *(name for op in graph.ops for name in op.outputs)]
    for name in activations:
        members.setdefault(owner.get(name, name), []).append(name)
    buffers = []
    for names in members.values():
        first = min(producers.get(name, BEFORE_FIRST_OP) for name in names)
        last = first
        for name in names:
            last = max([last, producers.get(name, BEFORE_FIRST_OP), *consumers.get(name, [])])
            if name in graph.outputs or name in variables:
                last = len(graph.ops) - 1
        size = max(graph.tensor(name).num_bytes for name in names)
        buffers.append(Buffer(tuple(names), size, first, last))
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
