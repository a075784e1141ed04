"""What the explanations share: the steps they tell, the requantisation of one accumulator, and how inputs are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinykd.ir import Graph, Op
from tinykd.ir.fixedpoint import doubling_high_mul, rounding_shift_right, wrap_int32

Values = Mapping[str, np.ndarray]
"""Input activations of one sample, each with as many elements as its tensor."""
Index = tuple[int, ...]
"""An element of a tensor, one place for each of its dimensions."""


@dataclass(frozen=True)
class Step:
    """One quantity on the way to the value, and what it was."""

    quantity: str
    text: str


@dataclass
class Explanation:
    """How one element came about.

    Attributes:
        value: the element.
        steps: the way to it, in order.
    """

    value: float = 0
    steps: list[Step] = field(default_factory=list)

    def say(self, quantity: str, value: object) -> None:
        """Add a step."""
        self.steps.append(Step(quantity, f"{value:,}" if isinstance(value, int) else str(value)))


Explainer = Callable[[Graph, Op, Values, Index, int, Explanation], float]
"""Returns an element of one of an op's outputs and tells the steps to it."""


def shaped(graph: Graph, values: Values, name: str) -> np.ndarray:
    """Return an input, activation or constant, in its tensor's shape."""
    tensor = graph.tensor(name)
    return tensor.data if tensor.data is not None else values[name].reshape(tensor.shape)


def element(graph: Graph, values: Values, name: str, index: Index) -> np.generic:
    """Return one element of an input."""
    return shaped(graph, values, name)[index]


def operands(graph: Graph, op: Op, values: Values, index: Index) -> list[int]:
    """Return the elements of the two operands that meet at `index`, after broadcasting."""
    shape = graph.tensor(op.outputs[0]).shape
    return [int(np.broadcast_to(shaped(graph, values, name), shape)[index]) for name in op.inputs]


def requantized(acc: int, multiplier: int, shift: int, told: Explanation, what: str = "") -> int:
    """Return acc * multiplier * 2**(shift - 31), rounded twice, and tell each step."""
    prefix = f"{what}: " if what else ""
    factor = multiplier * 2.0 ** (shift - 31)
    told.say(f"{prefix}multiplier, shift", f"{multiplier:,}, {shift} (a factor of {factor:.9g})")
    if shift > 0:
        acc = int(wrap_int32(np.array([acc << shift], np.int64))[0])
        told.say(f"{prefix}after the left shift by {shift}", acc)
    high = int(doubling_high_mul(np.array([acc], np.int64), multiplier)[0])
    told.say(f"{prefix}after the high multiplication", high)
    if shift < 0:
        high = int(rounding_shift_right(np.array([high], np.int64), -shift)[0])
        told.say(f"{prefix}after the rounding shift by {-shift}", high)
    return high


def finished(scaled: int, zero_point: int, low: int, high: int, told: Explanation) -> int:
    """Add the zero point, clamp, and tell both."""
    told.say("plus the output's zero point", f"{scaled:,} + ({zero_point}) = {scaled + zero_point:,}")
    return clamped(scaled + zero_point, low, high, told)


def clamped(value: int, low: int, high: int, told: Explanation) -> int:
    """Clamp and tell it."""
    value = min(max(value, low), high)
    told.say(f"clamped to [{low}, {high}]", value)
    return value
