"""What a kernel call is, and what every kind of call checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, Tensor, tensor_quant

Field = int | str | tuple[int, ...]


@dataclass(frozen=True)
class Argument:
    """A pointer that a kernel gets: `offset` bytes behind the first byte of a tensor, or of the op's `SCRATCH`."""

    tensor: str
    offset: int = 0


SCRATCH = Argument("")
"""The op's scratch memory in the arena: aligned to 4 bytes, without meaning before and after the op."""


@dataclass(frozen=True)
class Call:
    """One call of a kernel, as C needs it.

    Attributes:
        function: the kernel, for example "tk_conv_2d".
        struct: type of its parameter block, for example "tk_conv_2d_t".
        fields: members of the parameter block in the order of the C struct ("shape.size" is a member of a member); a
            string is the key of an array, a tuple initialises an array in the block.
        arguments: what is passed after the parameter block, in order.
        arrays: key -> constant int8, int16, uint16 or int32 array, flattened.
        is_move: it only moves bytes, all of them in one piece, from its first argument to its second.
        scratch_bytes: what it needs behind `SCRATCH`.
    """

    function: str
    struct: str
    fields: Mapping[str, Field]
    arguments: tuple[Argument, ...]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    is_move: bool = False
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Cost:
    """What running an op with a kernel takes, to choose by.

    Attributes:
        instructions: an estimate of what retires.
        constant_bytes: exact.
        loaded_words: an estimate of the words that LDM and LDRD load in the innermost loop.
    """

    instructions: float
    constant_bytes: int
    loaded_words: float = 0

    @property
    def cycles(self) -> float:
        """One for each instruction, and one more for each word of a wide load, as on a Cortex-M4.

        A Cortex-M7 loads two words at a time and issues two instructions at a time: there the ratio is about the same.
        """
        return self.instructions + self.loaded_words


@dataclass(frozen=True)
class Kernel:
    """A row of a table of kernels.

    Attributes:
        function: the C function.
        applies: whether the kernel can run an op.
        calls: derives the constants of an op that it can run.
        variant: tells kernels for the same op apart: "widened", "packed".
        cost: needed where several kernels of one table can run the same op.
    """

    function: str
    applies: Callable[[Graph, Op], bool]
    calls: Callable[[Graph, Op, str], tuple[Call, ...]]
    variant: str = ""
    cost: Callable[[Graph, Op], Cost] | None = None


def always(graph: Graph, op: Op) -> bool:
    """The kernel can run every op of its kind."""
    return True


def arguments(*names: str) -> tuple[Argument, ...]:
    """Return pointers to the first bytes of tensors."""
    return tuple(Argument(name) for name in names)


def int8(tensor: Tensor, where: str) -> Tensor:
    """Return the tensor if it is int8.

    Raises:
        UnsupportedModelError: it is not.
    """
    if tensor.dtype != "int8":
        raise UnsupportedModelError(
            f"{where}: tensor '{tensor.name}' is {tensor.dtype}; the kernels take int8",
            "Export the model with full integer quantisation; tinykd optimize moves float edges to the host.",
        )
    return tensor


def edges(graph: Graph, op: Op, where: str) -> tuple[Tensor, Tensor]:
    """Return an op's first input and its first output, both int8."""
    return int8(graph.tensor(op.inputs[0]), where), int8(graph.tensor(op.outputs[0]), where)


def within(value: int, low: int, high: int, what: str, where: str) -> int:
    """Return the value as an int if it lies in low .. high, else raise UnsupportedModelError."""
    if not low <= value <= high:
        raise UnsupportedModelError(f"{where}: {what} is {value}; the kernels take {low} to {high}")
    return int(value)


def u16(sizes: Mapping[str, int], where: str) -> dict[str, Field]:
    """Return sizes as fields of 16 bits without sign."""
    return {name: within(value, 0, 0xFFFF, name, where) for name, value in sizes.items()}


def constant(graph: Graph, name: str, dtype: str, what: str, where: str) -> np.ndarray:
    """Return the value of a constant of this dtype, else raise UnsupportedModelError."""
    tensor = graph.tensor(name)
    if tensor.data is None or tensor.dtype != dtype:
        state = "computed" if tensor.data is None else tensor.dtype
        raise UnsupportedModelError(f"{where}: {what} '{name}' must be a constant of {dtype}, not {state}")
    return tensor.data


def weights(graph: Graph, name: str, where: str, dtype: str = "int8") -> np.ndarray:
    """Return constant weights without a zero point, else raise UnsupportedModelError."""
    data = constant(graph, name, dtype, "its weights", where)
    if any(tensor_quant(graph.tensor(name)).zero_points):
        raise UnsupportedModelError(f"{where}: the weights '{name}' have a zero point; the kernels take 0 only")
    return data


def bias(graph: Graph, op: Op, index: int, count: int, where: str) -> np.ndarray:
    """Return the bias at input `index` as int64 (count,), zeros when the op has none."""
    if len(op.inputs) > index and op.inputs[index]:
        return constant(graph, op.inputs[index], "int32", "its bias", where).astype(np.int64)
    return np.zeros(count, np.int64)


def check_reach(values: np.ndarray, sums: np.ndarray, where: str) -> None:
    """Prove that no accumulator leaves int32.

    Args:
        values: int64 (channels,), the biases.
        sums: int64 (channels,), the sums of the weights' magnitudes.

    Raises:
        UnsupportedModelError: names the first channel with the largest sum.
    """
    reach = np.abs(values) + 256 * sums
    if int(reach.max()) >= 1 << 31:
        channel = int(reach.argmax())
        raise UnsupportedModelError(
            f"{where}: output channel {channel} can sum up to {int(reach[channel])}, beyond int32 (2147483647)",
            "Such a model has no defined result in TFLite either; look for a wrong bias scale.",
        )


def folded_bias(graph: Graph, op: Op, taps: np.ndarray, axis: int, zero_point: int, where: str) -> np.ndarray:
    """Return bias - zero_point * sum(weights) per output channel, after proving that no accumulator leaves int32."""
    others = tuple(i for i in range(taps.ndim) if i != axis)
    wide = taps.astype(np.int64)
    values = bias(graph, op, 2, taps.shape[axis], where)
    check_reach(values, np.abs(wide).sum(axis=others), where)
    return (values - zero_point * wide.sum(axis=others)).astype(np.int32)
