"""Ops that move bytes and compute nothing: which bytes go where, and the kernel that carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tinykd.ir import DTYPES, Graph, Op
from tinykd.kernels.call import Argument, Call
from tinykd.kernels.layout import Axis, columns, merged, strides

COPY_RANK = 4


@dataclass(frozen=True)
class Move:
    """A block of bytes, or a regular pattern of blocks, that goes from one tensor to another.

    Attributes:
        source, target: names of tensors.
        source_offset, target_offset: bytes from their start to the first block.
        axes: the loops over blocks, outermost first: (blocks, step in the source, step in the target), in bytes.
        run: bytes of one block.
    """

    source: str
    source_offset: int
    target: str
    target_offset: int
    axes: tuple[Axis, ...]
    run: int

    @property
    def is_block(self) -> bool:
        """Whether it is a single block, so that source and target could be the same bytes."""
        return not self.axes


def moves(graph: Graph, op: Op) -> tuple[Move, ...]:
    """Return what a moving op moves, one move per input or output; () for an op that computes."""
    rule = _RULES.get(op.kind)
    return () if rule is None else rule(graph, op)


def copy_calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the calls that carry out a moving op."""
    return tuple(
        Call(
            "tk_copy",
            "tk_copy_t",
            copy_fields(move, where),
            (Argument(move.source, move.source_offset), Argument(move.target, move.target_offset)),
            is_move=move.is_block,
        )
        for move in moves(graph, op)
    )


def copy_fields(move: Move, where: str) -> dict[str, int | str | tuple[int, ...]]:
    """Return the parameter block of `tk_copy` for a move."""
    size, in_step, out_step = columns(move.axes, COPY_RANK, 2, where)
    return {"size": size, "in_step": in_step, "out_step": out_step, "run": move.run}


def make_move(
    graph: Graph, source: str, target: str, axes: Sequence[Axis], source_start: int = 0, target_start: int = 0
) -> Move:
    """Return the move over `axes`: (size, step in the source, step in the target); steps and starts in elements."""
    item = DTYPES[graph.tensor(target).dtype].itemsize
    in_bytes = [(size, *(item * step for step in steps)) for size, *steps in axes]
    loops = merged([*in_bytes, (item, 1, 1)])
    run = loops.pop()[0] if loops and loops[-1][1:] == (1, 1) else 1
    return Move(source, item * source_start, target, item * target_start, tuple(loops), run)


def _reshape(graph: Graph, op: Op) -> tuple[Move, ...]:
    return (make_move(graph, op.inputs[0], op.outputs[0], [(graph.tensor(op.inputs[0]).num_elements, 1, 1)]),)


def _concatenation(graph: Graph, op: Op) -> tuple[Move, ...]:
    axis, target = op.attrs["axis"], op.outputs[0]
    whole = strides(graph.tensor(target).shape)
    found, start = [], 0
    for name in op.inputs:
        shape = graph.tensor(name).shape
        axes = list(zip(shape, strides(shape), whole, strict=True))
        found.append(make_move(graph, name, target, axes, 0, start * whole[axis]))
        start += shape[axis]
    return tuple(found)


def _split(graph: Graph, op: Op) -> tuple[Move, ...]:
    axis, source = op.attrs["axis"], op.inputs[0]
    whole = strides(graph.tensor(source).shape)
    found, start = [], 0
    for name in op.outputs:
        shape = graph.tensor(name).shape
        axes = list(zip(shape, whole, strides(shape), strict=True))
        found.append(make_move(graph, source, name, axes, start * whole[axis], 0))
        start += shape[axis]
    return tuple(found)


def _strided_slice(graph: Graph, op: Op) -> tuple[Move, ...]:
    begin, end, step = (op.attrs[key] for key in ("begin", "end", "strides"))
    whole = strides(graph.tensor(op.inputs[0]).shape)
    sizes = [len(range(*bounds)) for bounds in zip(begin, end, step, strict=True)]
    axes = [
        (size, stride * every, out) for size, stride, every, out in zip(sizes, whole, step, strides(sizes), strict=True)
    ]
    start = sum(first * stride for first, stride in zip(begin, whole, strict=True))
    return (make_move(graph, op.inputs[0], op.outputs[0], axes, start, 0),)


def _transpose(graph: Graph, op: Op) -> tuple[Move, ...]:
    whole = strides(graph.tensor(op.inputs[0]).shape)
    shape = graph.tensor(op.outputs[0]).shape
    axes = [(size, whole[axis], out) for size, axis, out in zip(shape, op.attrs["perm"], strides(shape), strict=True)]
    return (make_move(graph, op.inputs[0], op.outputs[0], axes),)


_RULES: Mapping[str, Callable[[Graph, Op], tuple[Move, ...]]] = MappingProxyType(
    {
        "reshape": _reshape,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "transpose": _transpose,
    }
)
MOVING = tuple(_RULES)
"""Kinds of ops that only move bytes."""
