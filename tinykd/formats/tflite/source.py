"""One op of a `.tflite` as its codec reads it: operands, constants and options, each checked where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import flatbuffers
import numpy as np
import tflite

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.formats.tflite.refusals import activation_advice
from tinykd.formats.tflite.schema import ACTIVATION_NAMES, ACTIVATION_OF_CODE, OPTION_CODES
from tinykd.ir import Quant

if TYPE_CHECKING:
    from tinykd.formats.tflite.reader import Reader


@dataclass(frozen=True)
class RawTensor:
    """A tensor as the file describes it.

    Attributes:
        index: its number in the file.
        name: unique in the file (made so where the file repeats or omits names).
        shape: dimensions, as the file says; may hold nonsense until the tensor is used.
        dtype: the name of its type in the schema, in lower case ("int8", "int64", "float16", ...).
        quant: quantisation parameters, or None.
        variable: whether it survives from one inference to the next.
        sparse: whether its values are stored in TFLite's sparse form.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None
    variable: bool
    sparse: bool


def _empty_table() -> tuple[bytearray, int]:
    builder = flatbuffers.Builder(16)
    builder.StartObject(0)
    builder.Finish(builder.EndObject())
    data = builder.Output()
    return data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)


_EMPTY_TABLE = _empty_table()


class Source:
    """One op of the file.

    Attributes:
        where: how messages name it: the model, its index, its builtin and the tensor that it writes.
        inputs, outputs: tensor numbers; -1 for an omitted input.
    """

    def __init__(self, reader: Reader, raw: Any, where: str, inputs: list[int], outputs: list[int]) -> None:
        self._reader = reader
        self._raw = raw
        self.where = where
        self.inputs = inputs
        self.outputs = outputs

    def refuse(self, problem: str, next_step: str = "") -> NoReturn:
        """Raise UnsupportedModelError about this op."""
        raise UnsupportedModelError(f"{self.where}: {problem}", next_step)

    def corrupt(self, problem: str) -> NoReturn:
        """Raise InvalidModelError about this op."""
        raise InvalidModelError(f"{self.where}: {problem}")

    def has_input(self, position: int) -> bool:
        """Whether the input at `position` is there."""
        return position < len(self.inputs) and self.inputs[position] >= 0

    def input(self, position: int) -> RawTensor:
        """Return the input at `position`; it must be there."""
        if not self.has_input(position):
            self.corrupt(f"its input {position} is missing")
        return self._reader.raw(self.inputs[position])

    def output(self, position: int = 0) -> RawTensor:
        """Return the output at `position`."""
        return self._reader.raw(self.outputs[position])

    def known(self, position: int) -> np.ndarray | None:
        """Return the value of the input at `position` if the file has it or it was folded, else None."""
        return self._reader.value(self.input(position))

    def constant(self, position: int, what: str) -> np.ndarray:
        """Return the value of the constant input at `position`, as its own type.

        Raises:
            UnsupportedModelError: it is computed by another op.
        """
        raw = self.input(position)
        data = self._reader.value(raw)
        if data is None:
            self.refuse(
                f"its {what} ('{raw.name}') must be a constant of the file",
                "Convert the model with fixed shapes: give the converter a concrete input shape with batch 1.",
            )
        return data

    def integers(self, position: int, what: str, count: int | None = None) -> list[int]:
        """Return the integers (int32 or int64) of the constant input at `position`.

        Args:
            what: how messages name it.
            count: how many there must be; None: any number.
        """
        data = self.constant(position, what)
        if data.dtype.kind != "i" or data.dtype.itemsize < 4:
            self.corrupt(f"its {what} is {data.dtype} instead of int32")
        if count is not None and data.size != count:
            self.corrupt(f"its {what} has {data.size} values instead of {count}")
        return [int(value) for value in data.reshape(-1)]

    def axis(self, position: int, rank: int) -> int:
        """Return the constant axis at `position`, counted from the front."""
        return self.from_front(self.integers(position, "axis", 1)[0], rank)

    def from_front(self, axis: int, rank: int) -> int:
        """Return an axis of `rank` dimensions counted from the front; negative ones count from the back."""
        if not -rank <= axis < rank:
            self.corrupt(f"axis {axis} of a tensor of {rank} dimensions")
        return axis % rank

    def options(self, name: str) -> Any:
        """Return the option table; one that the file leaves out has the schema's defaults."""
        options = getattr(tflite, name)()
        code, table = self._raw.BuiltinOptionsType(), self._raw.BuiltinOptions()
        if table is None or code == 0:
            options.Init(*_EMPTY_TABLE)
            return options
        if code != OPTION_CODES[name]:
            self.corrupt(f"its options are of type {code} instead of {OPTION_CODES[name]} ({name})")
        options.Init(table.Bytes, table.Pos)
        return options

    def activation(self, options: Any) -> str:
        """Return the fused activation's name in the IR."""
        code = options.FusedActivationFunction()
        if code not in ACTIVATION_OF_CODE:
            label = ACTIVATION_NAMES.get(code, str(code))
            self.refuse(f"its fused activation {label} is not supported", activation_advice())
        return ACTIVATION_OF_CODE[code]
