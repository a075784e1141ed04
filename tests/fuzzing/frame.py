"""A graph while hypothesis draws it: the activations so far, and the draws that every op kind shares.

Nothing is rejected: every draw is bounded by what was drawn before it, and small and plain choices come first, so that
a graph that fails shrinks to one that a person can read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from tinykd.ir import DTYPES, Graph, Op, Quant, Tensor, output_shapes, verify

T = TypeVar("T")
Shape = tuple[int, ...]

MAX_ELEMENTS = 600
"""Of a tensor that an op may enlarge; keeps graphs quick."""
OCTAVE = 1 << 10
"""Steps of a drawn scale per factor of two."""
LEAST_SCALE, LARGEST_SCALE = 2.0**-22, 2.0**16
"""Between these a quantised 6 still fits int32, and a product of two scales is a normal float32 number."""
ZERO_POINTS = (0, -128, 127, -1)
WIDE_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 20)
WIDE_CHANNELS = (4, 8, 12, 16, 1, 2, 3, 5, 7, 33, 6, 10, 24, 40, 8, 16)
"""Around the blocks in which kernels work: whole ones, and what is left over of one."""
WIDE_MACS = 150_000
"""Of an op of a wide model: the reference and an emulator that looks at every access must be quick."""


class Frame:
    """The graph so far.

    Args:
        draw: hypothesis' draw function.
        wide: sizes that matter to the kernels: more channels, larger maps, uneven padding.

    Attributes:
        follows: the next op reads the latest activation that it can.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], *, wide: bool = False) -> None:
        self._draw = draw
        self.wide = wide
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.inputs: list[str] = []
        self.follows = False

    @property
    def largest(self) -> int:
        """The most elements of what most ops read."""
        return (12 if self.wide else 4) * MAX_ELEMENTS

    def integer(self, low: int, high: int) -> int:
        """Draw an integer, both ends included."""
        return int(self._draw(st.integers(low, high)))

    def choice(self, options: Sequence[T]) -> T:
        """Draw one of the options; the first is the plainest."""
        return self._draw(st.sampled_from(list(options)))  # type: ignore[no-any-return]

    def flag(self) -> bool:
        """Draw a boolean."""
        return bool(self._draw(st.booleans()))

    def real(self, low: float, high: float) -> float:
        """Draw a float32 number, in steps of 1/1024 of the range."""
        return float(np.float32(low + (high - low) * self.integer(0, 1024) / 1024))

    def permutation(self, items: Sequence[T]) -> tuple[T, ...]:
        """Draw an order of the items."""
        return tuple(self._draw(st.permutations(list(items))))

    def zero_point(self) -> int:
        """Draw an int8 zero point; the ends of the range are favoured."""
        return self.choice(ZERO_POINTS) if self.flag() else self.integer(-128, 127)

    def scale(self, low: float = -12, high: float = 4) -> float:
        """Draw a scale between 2**low and 2**high, log-uniformly."""
        return 2.0 ** (self.integer(round(low * OCTAVE), round(high * OCTAVE)) / OCTAVE)

    def quant(self, near: float | None = None, *, least: float = LEAST_SCALE, largest: float = LARGEST_SCALE) -> Quant:
        """Draw per-tensor parameters: mostly around the scale `near`, sometimes those of an earlier activation.

        Args:
            near: the scale that would use the int8 range well; None draws one freely.
            least, largest: what the op bears.
        """
        mode = self.choice(("near", "near", "near", "same", "wild"))
        earlier = [name for name in self.activations() if least <= self.quant_of(name).scale <= largest]
        if mode == "same" and earlier:
            return self.quant_of(self.choice(earlier))
        if near is None:
            scale = self.scale()
        else:
            scale = near * (self.scale(-16, 16) if mode == "wild" else self.scale(-3, 3))
        return Quant.per_tensor(min(max(scale, least), largest), self.zero_point())

    def quant_of(self, name: str) -> Quant:
        """Return the parameters of a tensor that has some."""
        quant = self.tensors[name].quant
        assert quant is not None
        return quant

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape."""
        return self.tensors[name].shape

    def size(self, name: str) -> int:
        """Return a tensor's number of elements."""
        return self.tensors[name].num_elements

    def activations(self) -> list[str]:
        """Return the int8 values so far, the oldest first."""
        return [name for name, t in self.tensors.items() if t.dtype == "int8" and t.data is None]

    def new_input(self, shape: Shape, dtype: str = "int8", quant: Quant | None = None) -> str:
        """Add a graph input."""
        name = f"input_{len(self.inputs)}"
        if quant is None and dtype != "float32":
            quant = Quant.per_tensor(self.scale(), self.zero_point())
        self.tensors[name] = Tensor(name, shape, dtype, quant)
        self.inputs.append(name)
        return name

    def pick(
        self,
        ranks: Sequence[int] = (4, 3, 2, 5),
        *,
        largest: int | None = None,
        least_scale: float = 0.0,
        batch_one: bool = False,
    ) -> str:
        """Draw an int8 activation of one of the ranks, the latest first; where none suits, a new graph input.

        Args:
            ranks: the ranks that the op takes.
            largest: its most elements; None: `self.largest`.
            least_scale: its smallest scale.
            batch_one: whether its first dimension must be 1.
        """
        if largest is None:
            largest = self.largest
        found = [
            name
            for name in reversed(self.activations())
            if len(self.shape(name)) in ranks
            and (not batch_one or self.shape(name)[0] == 1)
            and self.size(name) <= largest
            and self.quant_of(name).scale >= least_scale
        ]
        if found:
            # Long chains: passes and plans have more to do in them.
            return found[0] if self.follows or self.flag() else self.choice(found)
        quant = Quant.per_tensor(max(self.scale(), least_scale), self.zero_point())
        return self.new_input(self.new_shape(self.choice(ranks)), quant=quant)

    def maker(self, name: str) -> Op | None:
        """Return the op that writes a tensor, or None."""
        return next((op for op in self.ops if name in op.outputs), None)

    def new_shape(self, rank: int) -> Shape:
        """Draw the shape of an activation: (1, ...)."""
        if self.wide and rank < 5:
            channels = self.choice(WIDE_CHANNELS)
            sides = [self.choice(WIDE_SIDES) for _ in range(rank - 2)]
            while channels * math.prod(sides) > 4 * MAX_ELEMENTS:
                sides = [max(side // 2, 1) for side in sides]
            return (1, *sides, channels)
        return (1, *(self.integer(1, 8 if rank < 5 else 4) for _ in range(rank - 1)))

    def channels(self, most: int, macs: int) -> int:
        """Draw a layer's number of outputs: at most `most`; by the `macs` of each output in a wide model."""
        if not self.wide:
            return self.integer(1, most)
        return self.choice([count for count in WIDE_CHANNELS if count * macs <= WIDE_MACS] or [1])

    def data(self, shape: Shape, dtype: str, low: int, high: int) -> np.ndarray:
        """Draw a constant's integers: all equal, noise, or the ends of the range."""
        style = self.choice(("equal", "noise", "noise", "noise", "ends"))
        if style == "equal":
            return np.full(shape, self.integer(low, high), DTYPES[dtype])
        rng = np.random.default_rng(self.integer(0, 1 << 16))
        values = rng.integers(low, high + 1, shape) if style == "noise" else rng.choice([low, high], shape)
        return np.asarray(values, DTYPES[dtype])

    def constant(self, label: str, data: np.ndarray, quant: Quant | None) -> str:
        """Add a constant of the op that is drawn next."""
        name = f"{label}_{len(self.ops)}"
        frozen = np.ascontiguousarray(data).reshape(data.shape)
        frozen.flags.writeable = False
        self.tensors[name] = Tensor(name, data.shape, str(data.dtype), quant, frozen)
        return name

    def add_variable(self, name: str, shape: Shape, dtype: str, quant: Quant) -> None:
        """Add a value that survives an inference."""
        self.tensors[name] = Tensor(name, shape, dtype, quant, variable=True)

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        quants: Sequence[Quant | None],
        *,
        shapes: Sequence[Shape] | None = None,
        dtype: str = "int8",
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append an op, with the shapes that the IR's own rule gives its outputs unless `shapes` are named."""
        stem = f"{kind}_{len(self.ops)}"
        names = (stem,) if len(quants) == 1 else tuple(f"{stem}_{number}" for number in range(len(quants)))
        op = Op(kind, tuple(inputs), names, attrs, names[0])
        if shapes is None:
            shapes = output_shapes(Graph("", self.tensors, (), (), ()), op)
        for name, shape, quant in zip(names, shapes, quants, strict=True):
            self.tensors[name] = Tensor(name, tuple(shape), dtype, quant)
        self.ops.append(op)
        return names

    def graph(self) -> Graph:
        """Return the verified graph.

        Outputs are what nothing reads, or but some of it, and sometimes an activation between.
        """
        read = {name for op in self.ops for name in op.inputs}
        written = [name for op in self.ops for name in op.outputs]
        last, inner = written[-1], [name for name in written if name in read]
        tapped = self.choice(inner) if inner and self.choice((False, False, False, True)) else None
        idle = self.choice((False, False, False, True))
        outputs = tuple(
            name for name in written if name in (last, tapped) or (name not in read and not (idle and self.flag()))
        )
        inputs = tuple(name for name in self.inputs if name in read)
        used = read | set(written)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        return verify(Graph("fuzzed", tensors, tuple(self.ops), inputs, outputs))
