"""Axes as loops: C-order strides, and loops that run over the same addresses merged into one."""

from __future__ import annotations

from collections.abc import Sequence

from tinykd.errors import UnsupportedModelError

Axis = tuple[int, ...]
"""(size, step of the first operand, step of the second one, ..)."""


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return how many elements lie between neighbours along each axis (C order)."""
    result, step = [], 1
    for size in reversed(shape):
        result.append(step)
        step *= size
    return tuple(reversed(result))


def merged(axes: Sequence[Axis]) -> list[Axis]:
    """Return loops (outermost first) that visit the same addresses in the same order, as few as possible."""
    found: list[Axis] = []
    for axis in axes:
        if axis[0] == 1:
            continue
        size, *steps = axis
        if found and all(before == size * step for before, step in zip(found[-1][1:], steps, strict=True)):
            found[-1] = (found[-1][0] * size, *steps)
        else:
            found.append(axis)
    return found


def columns(axes: Sequence[Axis], rank: int, operands: int, where: str) -> list[tuple[int, ...]]:
    """Return sizes and steps as one tuple each, filled up in front with loops of one turn to `rank` loops.

    Raises:
        UnsupportedModelError: there are more than `rank` loops.
    """
    if len(axes) > rank:
        raise UnsupportedModelError(
            f"{where}: needs {len(axes)} nested loops over its axes; the kernels have {rank}",
            "Transpose or reshape the tensors around it so that neighbouring axes stay together.",
        )
    full = [(1, *(0,) * operands)] * (rank - len(axes)) + list(axes)
    return [tuple(axis[column] for axis in full) for column in range(operands + 1)]
