"""The one intermediate representation: an immutable graph of ops over named tensors; activations are NHWC.

A pass is a function `Graph -> Graph`. `docs/spec-ir.md` lists every op kind with its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from tinykd.ir.quant import Quant

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "int8": np.dtype(np.int8),
        "uint8": np.dtype(np.uint8),
        "int16": np.dtype(np.int16),
        "int32": np.dtype(np.int32),
        "float32": np.dtype(np.float32),
    }
)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value in the graph.

    Attributes:
        name: unique in its graph.
        shape: dimensions; activations are (N, H, W, C) or (N, C) with N = 1.
        dtype: a key of `DTYPES`.
        quant: quantisation parameters, or None for float tensors and shape constants.
        data: the constant's value (C order, read-only), or None for an activation.
        variable: the value survives from one inference to the next, and an op that reads it also changes it (the state
            of an SVDF). It starts at the zero point.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    data: np.ndarray | None = None
    variable: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the tensor's value is known when the graph is made."""
        return self.data is not None

    @property
    def num_elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """The number of bytes that the value takes in memory, without alignment."""
        return self.num_elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Attributes:
        kind: a key of `ops.SPECS`, for example "conv_2d".
        inputs: tensor names; "" stands for an omitted optional input.
        outputs: tensor names.
        attrs: the attributes that `ops.SPECS[kind]` lists.
        source: where the op came from, for example the ONNX node or the tensor name in the original `.tflite`.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """A model: ops in execution order over a table of tensors.

    Attributes:
        name: a short name for reports.
        tensors: every tensor by name; the order is the tensor index of a `.tflite`.
        ops: in execution order (each activation is written before it is read).
        inputs, outputs: names of the graph's edges.
    """

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        # Immutable: a module that holds a graph can be copied, and the copy shares it.
        return self

    def tensor(self, name: str) -> Tensor:
        """Return the tensor called `name`; KeyError when there is none (a bug of the caller)."""
        return self.tensors[name]

    def variables(self) -> tuple[str, ...]:
        """Return the names of the tensors that survive from one inference to the next."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.variable)

    def producers(self) -> dict[str, int]:
        """Map each op output to the index of the op that writes it."""
        return {name: index for index, op in enumerate(self.ops) for name in op.outputs}

    def consumers(self) -> dict[str, list[int]]:
        """Map each tensor to the indices of the ops that read it, in order."""
        readers: dict[str, list[int]] = {}
        for index, op in enumerate(self.ops):
            for name in dict.fromkeys(op.inputs):
                if name:
                    readers.setdefault(name, []).append(index)
        return readers

    def with_ops(self, ops: tuple[Op, ...] | list[Op], tensors: Mapping[str, Tensor] | None = None) -> Graph:
        """Return the graph with other ops (and tensors), without the tensors that nothing names any more."""
        table = self.tensors if tensors is None else tensors
        used = {name for op in ops for name in (*op.inputs, *op.outputs)} | set(self.inputs) | set(self.outputs)
        return replace(self, ops=tuple(ops), tensors={name: t for name, t in table.items() if name in used})
