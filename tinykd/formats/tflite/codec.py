"""What one row of the op table says: how an op kind of the IR is spelled in a `.tflite`, and read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.ir import Graph, Op, Tensor

if TYPE_CHECKING:
    from tinykd.formats.tflite.source import Source

Names = tuple[str, ...]
Attrs = dict[str, Any]
Types = tuple[str, ...]

INT8: Types = ("int8",)
INT16: Types = ("int16",)
INT32: Types = ("int32",)


def _inputs_as_they_are(graph: Graph, op: Op) -> Sequence[str | Tensor]:
    return op.inputs


def _no_options(graph: Graph, op: Op) -> Attrs:
    return {}


def _always(graph: Graph, op: Op) -> bool:
    return True


def _read_nothing(source: Source) -> Attrs:
    return {}


@dataclass(frozen=True)
class Codec:
    """One builtin operator of TFLite and the op kind of the IR that it stands for.

    Attributes:
        builtin: code in `tflite.BuiltinOperator`.
        kind: key of `tinykd.ir.SPECS`.
        options: name of its option table in the schema, or "" when it has none.
        version: the lowest operator version whose int8 form has the semantics that we write.
        operands: position among TFLite's inputs of each input of the IR op; None: all, in order.
        read: the attributes, from a `Source`; raises UnsupportedModelError or InvalidModelError.
        inputs: TFLite's inputs in order: names of the graph, or constants that only the file has.
        fields: the fields of the option table.
        writes: whether the writer chooses this builtin for an op of its kind; the first that answers yes is taken.
        input_types: allowed dtypes of each IR input; the last one stands for all further inputs.
        output_types: allowed dtypes of the outputs.
        constants: IR inputs that must be constants.
        one_quantisation: integers are moved or compared as they are, so inputs and outputs share scale and zero point.
        output_quant: (scale, zero point) that the op's output must have, or None.
        drops_omitted: an omitted last input is left out of the list instead of standing in it as -1.
        max_rank: the most dimensions of its operands that TFLite Micro takes, or computes rightly.
        max_inputs: the most inputs that TFLite Micro takes.
    """

    builtin: int
    kind: str
    options: str
    version: int | Callable[[Graph, Op], int]
    operands: tuple[int, ...] | None = None
    read: Callable[[Source], Attrs] = _read_nothing
    inputs: Callable[[Graph, Op], Sequence[str | Tensor]] = _inputs_as_they_are
    fields: Callable[[Graph, Op], Mapping[str, Any]] = _no_options
    writes: Callable[[Graph, Op], bool] = _always
    input_types: tuple[Types, ...] = (INT8,)
    output_types: Types = INT8
    constants: tuple[int, ...] = ()
    one_quantisation: bool = False
    output_quant: tuple[float, int] | None = None
    drops_omitted: bool = False
    max_rank: int = 6
    max_inputs: int = 10

    def version_of(self, graph: Graph, op: Op) -> int:
        """Return the operator version that this op needs."""
        return self.version if isinstance(self.version, int) else self.version(graph, op)

    def types_of(self, position: int) -> Types:
        """Return the dtypes that the IR input at `position` may have."""
        return self.input_types[min(position, len(self.input_types) - 1)]


def never(graph: Graph, op: Op) -> bool:
    """`Codec.writes` of a builtin that is read, and written as another."""
    return False


def int32(op: Op, what: str, values: Any) -> Tensor:
    """Return a constant that TFLite wants as an input and the IR keeps among the attributes."""
    data = np.array(values, np.int32)
    return Tensor(f"{op.outputs[0]}/{what}", data.shape, "int32", None, data)
