"""From the tables of a `.tflite` to the IR: tensors and ops are read when they are needed, and checked there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.formats.tflite.codec import Codec
from tinykd.formats.tflite.fold import fold
from tinykd.formats.tflite.ops import CODEC_OF_BUILTIN
from tinykd.formats.tflite.refusals import builtin_advice, dynamic_advice
from tinykd.formats.tflite.rules import check_op, check_size, check_tensor, check_type
from tinykd.formats.tflite.schema import BUILTIN_NAMES, TYPE_NAMES, unique_names
from tinykd.formats.tflite.source import RawTensor, Source
from tinykd.ir import DTYPES, Graph, Op, Quant, Tensor, verify

MAX_OPS = 1 << 14
MAX_CODES = 1 << 12
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 32
MAX_LIST_BYTES = 1 << 24
"""Of all names, shapes and lists of a file: beyond it the file is no model, but made to exhaust its reader."""
_SHAPE_DTYPES = {**DTYPES, "int64": np.dtype(np.int64)}


@dataclass(frozen=True)
class _Operator:
    builtin: int
    custom: str
    label: str
    source: Source


class Reader:
    """One file, being read.

    Args:
        data: the file.
        name: the graph's name.

    Raises:
        UnsupportedModelError, InvalidModelError: see `tinykd.formats.tflite.read`. Broken offsets also raise
            struct.error, IndexError, ValueError and the like, which the caller turns into InvalidModelError.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.model = tflite.Model.GetRootAs(data, 0)
        # An honest file stores each name, shape and list once: what is read in all cannot be much more than the file.
        self._allowance = min(4 * len(data) + (1 << 20), MAX_LIST_BYTES)
        self.num_subgraphs = self._count(self.model.SubgraphsLength(), "subgraphs")
        self.subgraph = self.model.Subgraphs(0)
        self.num_tensors = self._count(self.subgraph.TensorsLength(), "tensors", MAX_TENSORS)
        self.num_buffers = self._count(self.model.BuffersLength(), "buffers")
        num_codes = self._count(self.model.OperatorCodesLength(), "operator codes", MAX_CODES)
        self.codes = [self._code(index) for index in range(num_codes)]
        self._raw: dict[int, RawTensor] = {}
        self.names = unique_names(self._text(self.subgraph.Tensors(index).Name()) for index in range(self.num_tensors))
        self._blobs: dict[int, np.ndarray | None] = {}
        self._folded: dict[int, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}

    def graph(self) -> Graph:
        """Return the graph of the file, verified."""
        count = self._count(self.subgraph.OperatorsLength(), "operators", MAX_OPS)
        operators = [op for op in map(self._operator, range(count)) if not self._is_folded(op)]
        codecs = self._codecs(operators)
        inputs = self._indices(self.subgraph.InputsAsNumpy(), self.subgraph.InputsLength(), "inputs")
        outputs = self._indices(self.subgraph.OutputsAsNumpy(), self.subgraph.OutputsLength(), "outputs")
        for index in inputs:
            self._check_input(index)
        ops = tuple(self._op(operator, codec) for operator, codec in zip(operators, codecs, strict=True))
        edges = [tuple(self.use(index).name for index in indices) for indices in (inputs, outputs)]
        tensors = {name: self.tensors[name] for name in self.names if name in self.tensors}
        graph = verify(Graph(self.name, tensors, ops, edges[0], edges[1]))
        check_size(graph)
        for operator, op, codec in zip(operators, ops, codecs, strict=True):
            check_op(graph, op, codec, operator.source.where)
        return graph

    def raw(self, index: int) -> RawTensor:
        """Return tensor `index` as the file describes it."""
        if not 0 <= index < self.num_tensors:
            raise InvalidModelError(f"'{self.name}' names tensor {index} of {self.num_tensors}: it is corrupt")
        if index not in self._raw:
            table = self.subgraph.Tensors(index)
            shape = tuple(self._ints(table.ShapeAsNumpy(), table.ShapeLength(), "dimensions", MAX_DIMENSIONS))
            dtype = TYPE_NAMES.get(table.Type(), f"type {table.Type()}")
            self._raw[index] = RawTensor(
                index,
                self.names[index],
                shape,
                dtype,
                self._quant(table, shape),
                bool(table.IsVariable()),
                table.Sparsity() is not None,
            )
        return self._raw[index]

    def value(self, raw: RawTensor) -> np.ndarray | None:
        """Return the constant of a tensor (read-only, a view of the file where it can be), or None when it has none."""
        if raw.index in self._folded:
            return self._folded[raw.index]
        blob = self._blob(self.subgraph.Tensors(raw.index).Buffer(), raw)
        if blob is None:
            return None
        if raw.sparse:
            raise UnsupportedModelError(
                f"'{self.name}': the constant '{raw.name}' is stored in TFLite's sparse form",
                builtin_advice("DENSIFY"),
            )
        dtype = _SHAPE_DTYPES.get(raw.dtype)
        if dtype is None:
            return blob
        expected = dtype.itemsize
        for dim in raw.shape:
            expected *= dim
        if len(blob) != expected:
            raise InvalidModelError(
                f"'{self.name}': tensor '{raw.name}' ({raw.dtype}{list(raw.shape)}) takes {expected} B "
                f"but its buffer has {len(blob)}"
            )
        value = blob.view(dtype.newbyteorder("<")).reshape(raw.shape)
        if not value.flags.aligned or value.dtype != dtype:
            self._claim(len(blob))
            value = value.astype(dtype)
        value.flags.writeable = False
        return value

    def use(self, index: int) -> Tensor:
        """Return tensor `index` as a tensor of the graph."""
        raw = self.raw(index)
        if raw.name not in self.tensors:
            data = self.value(raw)
            check_tensor(raw, self.name)
            self.tensors[raw.name] = Tensor(
                raw.name, raw.shape, raw.dtype, raw.quant, data, raw.variable and data is None
            )
        return self.tensors[raw.name]

    def _count(self, number: int, what: str, most: int = 1 << 31) -> int:
        # Every element takes at least four bytes: a larger count is a corrupt length and would loop for hours.
        if not 0 <= number <= min(len(self.data) // 4, most):
            raise InvalidModelError(f"'{self.name}' claims {number} {what}: it is corrupt ({len(self.data)} B)")
        return number

    def _claim(self, num_bytes: int) -> None:
        self._allowance -= num_bytes
        if self._allowance < 0:
            raise InvalidModelError(
                f"'{self.name}' claims more names, shapes and lists than {len(self.data)} B can hold"
            )

    def _ints(self, vector: Any, length: int, what: str, most: int = 1 << 31) -> list[int]:
        self._claim(4 * self._count(length, what, most))
        return vector.tolist() if length else []

    def _indices(self, vector: Any, length: int, what: str) -> list[int]:
        indices = self._ints(vector, length, what)
        if len(set(indices)) != len(indices):
            raise UnsupportedModelError(
                f"'{self.name}' lists a tensor twice among its {what}",
                "List each once, and copy it in the application.",
            )
        return indices

    def _text(self, value: bytes | None) -> str:
        self._claim(len(value or b""))
        return value.decode("utf-8", "replace") if value else ""

    def _code(self, index: int) -> tuple[int, str]:
        """Return the builtin and the name of a custom op of one operator code."""
        code = self.model.OperatorCodes(index)
        # The old field is a byte; newer files repeat small codes in both fields and large ones in the new one only.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return builtin, self._text(code.CustomCode())

    def _operator(self, index: int) -> _Operator:
        raw = self.subgraph.Operators(index)
        code = raw.OpcodeIndex()
        if not 0 <= code < len(self.codes):
            raise InvalidModelError(f"'{self.name}': op {index} names operator code {code}: it is corrupt")
        builtin, custom = self.codes[code]
        label = BUILTIN_NAMES.get(builtin, f"builtin {builtin}")
        if builtin == tflite.BuiltinOperator.CUSTOM:
            label = f"custom op '{custom}'"
        inputs = self._ints(raw.InputsAsNumpy(), raw.InputsLength(), "op inputs")
        outputs = self._ints(raw.OutputsAsNumpy(), raw.OutputsLength(), "op outputs")
        place = self.raw(outputs[0]).name if outputs else "nothing"
        where = f"'{self.name}': op {index} ({label}, writing '{place}')"
        return _Operator(builtin, custom, label, Source(self, raw, where, inputs, outputs))

    def _is_folded(self, operator: _Operator) -> bool:
        """Compute an op of shape arithmetic; whether it was one."""
        value = fold(operator.source, operator.builtin)
        if value is not None:
            self._folded[operator.source.outputs[0]] = value
        return value is not None

    def _codecs(self, operators: list[_Operator]) -> list[Codec]:
        """Return the codec of each op; refuse the model, naming every op that has none."""
        missing = [operator for operator in operators if operator.builtin not in CODEC_OF_BUILTIN]
        if missing:
            first, others = missing[0], Counter(operator.label for operator in missing[1:])
            also = f"; neither are {', '.join(f'{label} ({n})' for label, n in others.items())}" if others else ""
            raise UnsupportedModelError(
                f"{first.source.where} is not supported{also}",
                builtin_advice(BUILTIN_NAMES.get(first.builtin, ""), first.custom),
            )
        if self.num_subgraphs != 1:
            raise UnsupportedModelError(
                f"'{self.name}' has {self.num_subgraphs} subgraphs; tinykd takes one", builtin_advice("WHILE")
            )
        return [CODEC_OF_BUILTIN[operator.builtin] for operator in operators]

    def _check_input(self, index: int) -> None:
        raw = self.raw(index)
        table = self.subgraph.Tensors(index)
        signature = self._ints(table.ShapeSignatureAsNumpy(), table.ShapeSignatureLength(), "dimensions")
        if self.value(raw) is not None:
            raise InvalidModelError(f"'{self.name}': its input '{raw.name}' is a constant: it is corrupt")
        # Converters write 1 where a dimension is open; what somebody has fixed since then is larger.
        open_axes = [size for size, dim in zip(raw.shape[1:], signature[1:], strict=False) if dim < 0 and size == 1]
        if any(dim < 1 for dim in raw.shape) or open_axes:
            raise UnsupportedModelError(
                f"'{self.name}': its input '{raw.name}' has the dynamic shape {signature or list(raw.shape)}",
                dynamic_advice(),
            )
        if not raw.shape or raw.shape[0] != 1:
            raise UnsupportedModelError(
                f"'{self.name}': its input '{raw.name}' has shape {list(raw.shape)}; the first dimension is the batch "
                "and must be 1",
                dynamic_advice(),
            )

    def _blob(self, buffer: int, raw: RawTensor) -> np.ndarray | None:
        """Return the bytes of a buffer, or None when it is empty (an activation's)."""
        if not 0 <= buffer < self.num_buffers:
            raise InvalidModelError(f"'{self.name}': tensor '{raw.name}' names buffer {buffer} of {self.num_buffers}")
        if buffer not in self._blobs:
            self._blobs[buffer] = self._read_buffer(self.model.Buffers(buffer), raw)
        return self._blobs[buffer]

    def _read_buffer(self, table: Any, raw: RawTensor) -> np.ndarray | None:
        if table.Size() > 1:
            # Large models keep their buffers behind the flatbuffer.
            first, size = table.Offset(), table.Size()
            if first + size > len(self.data):
                raise InvalidModelError(
                    f"'{self.name}': the data of tensor '{raw.name}' lies beyond the end of the file"
                )
            return np.frombuffer(self.data, np.uint8, size, first)
        if table.DataLength() == 0:
            return None
        return table.DataAsNumpy()

    def _quant(self, table: Any, shape: tuple[int, ...]) -> Quant | None:
        quant = table.Quantization()
        if quant is None or quant.ScaleLength() == 0:
            return None
        count = self._count(quant.ScaleLength(), "scales")
        self._claim(12 * count)
        scales = tuple(quant.ScaleAsNumpy().tolist())
        zeros = tuple(self._ints(quant.ZeroPointAsNumpy(), quant.ZeroPointLength(), "zero points")) or (0,) * count
        if len(zeros) == 1 and count > 1:
            zeros *= count
        if count == 1:
            return Quant(scales, zeros)
        # Some producers count the axis of a bias in the weights' dimensions (person_detect: 3 for a vector).
        return Quant(scales, zeros, 0 if len(shape) == 1 else quant.QuantizedDimension())

    def _op(self, operator: _Operator, codec: Codec) -> Op:
        source = operator.source
        inputs, outputs = source.inputs, source.outputs
        operands = codec.operands if codec.operands is not None else range(len(inputs))
        positions = [position for position in operands if position < len(inputs)]
        if not outputs or not positions or not source.has_input(positions[0]):
            source.corrupt("it has no input or no output")
        for at, position in enumerate(positions):
            if source.has_input(position):
                check_type(source.input(position), codec.types_of(at), codec.kind, source.where)
        for number in outputs:
            check_type(self.raw(number), codec.output_types, codec.kind, source.where)
        attrs = codec.read(source)
        names_in = tuple(self.use(inputs[at]).name if inputs[at] >= 0 else "" for at in positions)
        if codec.drops_omitted and not names_in[-1]:
            names_in = names_in[:-1]
        names_out = tuple(self.use(number).name for number in outputs)
        return Op(codec.kind, names_in, names_out, attrs, names_out[0])
