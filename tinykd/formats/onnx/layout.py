"""How the axes of an ONNX value lie in a tensor of the IR, so that channels first becomes channels last at no cost.

A value's elements are counted by factors: an image (1, C, H, W) that lies as (1, H, W, C) has the factors (H, W, C),
and its ONNX axes are (), (2,), (0,), (1,). Reshaping splits factors and regroups them, transposing permutes the axes;
neither moves an element. Elements move, through a TRANSPOSE, only where an op needs its input in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A value of an ONNX model.

    Attributes:
        name: the tensor of the IR that holds its elements, in any shape.
        factors: sizes that multiply to the number of elements, outermost first; none of them is 1.
        axes: for each ONNX axis the indices of its factors, outermost first; none for an axis of length 1.
    """

    name: str
    factors: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> Shape:
        """The shape that ONNX gives the value."""
        return tuple(math.prod(self.factors[index] for index in axis) for axis in self.axes)

    def order(self, perm: Sequence[int]) -> tuple[int, ...]:
        """Return the factors in the order of the ONNX axes `perm`; 0, 1, 2... where the elements lie like that."""
        return tuple(index for axis in perm for index in self.axes[axis])

    def lies_as(self, perm: Sequence[int]) -> bool:
        """Whether the elements lie in the order of the ONNX axes `perm`."""
        order = self.order(perm)
        return order == tuple(range(len(order)))


def value_of(name: str, shape: Sequence[int], perm: Sequence[int]) -> Value:
    """Return the value of ONNX shape `shape` that lies in the tensor `name` in the order of its axes `perm`."""
    factors: list[int] = []
    axes: list[tuple[int, ...]] = [()] * len(shape)
    for axis in perm:
        if shape[axis] != 1:
            axes[axis] = (len(factors),)
            factors.append(shape[axis])
    return Value(name, tuple(factors), tuple(axes))


def transposed(value: Value, perm: Sequence[int]) -> Value:
    """Return the value after ONNX's Transpose: its axis i is axis perm[i] of the input."""
    return replace(value, axes=tuple(value.axes[axis] for axis in perm))


def reshaped(value: Value, target: Sequence[int]) -> Value | None:
    """Return the value under another ONNX shape of as many elements, or None where elements must be moved before.

    That is where a new axis would take a part of a factor that no whole number of its innermost elements makes up.
    """
    factors = list(value.factors)
    waiting = [index for axis in value.axes for index in axis]
    axes: list[tuple[int, ...]] = []
    for size in target:
        axis: list[int] = []
        rest = size
        while rest > 1:
            index = waiting.pop(0)
            factor = factors[index]
            if factor > rest:
                if factor % rest:
                    return None
                # The outer part ends this axis, the inner part, a factor of its own, begins the next one.
                factors[index : index + 1] = [rest, factor // rest]
                axes, axis, waiting = _shift(axes, index), _shift([axis], index)[0], _shift([waiting], index)[0]
                waiting.insert(0, index + 1)
                factor = rest
            elif rest % factor:
                return None
            axis.append(index)
            rest //= factor
        axes.append(tuple(axis))
    return Value(value.name, tuple(factors), tuple(axes))


def _shift(axes: Sequence[Sequence[int]], index: int) -> list:
    """Return the factor indices after the factor `index` was split in two."""
    return [type(axis)(item + (item > index) for item in axis) for axis in axes]  # type: ignore[call-arg]


def runs(order: Sequence[int]) -> list[list[int]]:
    """Return the factors in the given order, joined where neighbours are neighbours in memory as well."""
    joined: list[list[int]] = []
    for index in order:
        if joined and joined[-1][-1] + 1 == index:
            joined[-1].append(index)
        else:
            joined.append([index])
    return joined


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the ONNX axes (N, C, spatial...) in the order of the IR, (N, spatial..., C)."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))
