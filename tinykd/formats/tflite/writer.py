"""Writes an int8 graph as a `.tflite` that TFLite Micro runs: the same graph always gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
import tflite

from tinykd.errors import InternalError
from tinykd.formats.tflite.codec import Codec
from tinykd.formats.tflite.conv import padding_code
from tinykd.formats.tflite.ops import codec_of
from tinykd.formats.tflite.rules import beyond_limits
from tinykd.formats.tflite.schema import (
    FILE_IDENTIFIER,
    LAST_OLD_CODE,
    OFFLINE_PLAN,
    OPTION_CODES,
    SCHEMA_VERSION,
    TYPE_OF_DTYPE,
)
from tinykd.ir import Graph, Op, Quant, Tensor, op_label

_DATA_ALIGNMENT = 16
PLAN_ONLINE = -1


def write(graph: Graph, offsets: Mapping[str, int] | None = None) -> bytes:
    """Return the `.tflite` file of an int8 graph.

    Constants of equal bytes share one buffer. Operator versions are the lowest that mean what the graph says, so that
    old runtimes take the file where they can.

    Args:
        graph: a verified graph whose paddings are all SAME or VALID (see the pass `lower_padding`).
        offsets: arena offsets in bytes by activation name; written as `OfflineMemoryAllocation`, which TFLite Micro
            honours without checking it. None leaves the planning to the runtime.

    Raises:
        InternalError: the graph has something that a `.tflite` cannot say.
    """
    return _Writer(graph, offsets).finish()


def is_expressible(padding: tuple[int, int, int, int], graph: Graph, op: Op) -> bool:
    """Whether an op's padding is TensorFlow's SAME or VALID."""
    return padding_code(padding, graph, op) is not None


class _Writer:
    def __init__(self, graph: Graph, offsets: Mapping[str, int] | None) -> None:
        self.graph = graph
        self.builder = flatbuffers.Builder(1 << 16)
        self.tensors = list(graph.tensors.values())
        self.index = {tensor.name: number for number, tensor in enumerate(self.tensors)}
        self.codecs = [codec_of(graph, op) for op in graph.ops]
        for index, (op, codec) in enumerate(zip(graph.ops, self.codecs, strict=True)):
            if problem := beyond_limits(graph, op, codec):
                raise InternalError(f"{op_label(index, op)}: {problem}")
        self.inputs = [self._input_numbers(op, codec) for op, codec in zip(graph.ops, self.codecs, strict=True)]
        # Buffer 0 is empty by convention: every activation points to it.
        self.buffers: dict[bytes, int] = {b"": 0}
        self.buffer_of = [self._share(tensor) for tensor in self.tensors]
        self.plan_buffer = 0
        if offsets is not None:
            plan = [1, 0, len(self.tensors), *(offsets.get(tensor.name, PLAN_ONLINE) for tensor in self.tensors)]
            self.plan_buffer = self.buffers.setdefault(np.array(plan, "<i4").tobytes(), len(self.buffers))

    def _input_numbers(self, op: Op, codec: Codec) -> list[int]:
        """Return the tensor numbers of TFLite's inputs; constants that only the file has join the tensors."""
        numbers = []
        for entry in codec.inputs(self.graph, op):
            if isinstance(entry, Tensor):
                numbers.append(len(self.tensors))
                self.tensors.append(entry)
            else:
                numbers.append(self.index[entry] if entry else -1)
        if codec.drops_omitted and numbers[-1] < 0:
            numbers.pop()
        return numbers

    def _share(self, tensor: Tensor) -> int:
        """Return the buffer of a tensor's constant; equal bytes share one."""
        if tensor.data is None:
            return 0
        data = np.ascontiguousarray(tensor.data.astype(tensor.data.dtype.newbyteorder("<"), copy=False)).tobytes()
        return self.buffers.setdefault(data, len(self.buffers))

    def finish(self) -> bytes:
        b = self.builder
        buffers = self._table_vector([self._buffer(data) for data in self.buffers])
        versions = [
            (codec.builtin, codec.version_of(self.graph, op))
            for op, codec in zip(self.graph.ops, self.codecs, strict=True)
        ]
        codes = {version: number for number, version in enumerate(dict.fromkeys(versions))}
        code_table = self._table_vector([self._operator_code(*code) for code in codes])
        subgraphs = self._table_vector([self._subgraph([codes[version] for version in versions])])
        metadata = self._table_vector([self._metadata()]) if self.plan_buffer else None
        description = b.CreateString("made by tinykd")
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, SCHEMA_VERSION)
        tflite.ModelAddOperatorCodes(b, code_table)
        tflite.ModelAddSubgraphs(b, subgraphs)
        tflite.ModelAddDescription(b, description)
        tflite.ModelAddBuffers(b, buffers)
        if metadata is not None:
            tflite.ModelAddMetadata(b, metadata)
        b.Finish(tflite.ModelEnd(b), file_identifier=FILE_IDENTIFIER)
        return bytes(b.Output())

    def _table_vector(self, offsets: list[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def _ints(self, values: tuple[int, ...] | list[int]) -> int:
        return self.builder.CreateNumpyVector(np.array(values, np.int32))

    def _buffer(self, data: bytes) -> int:
        vector = None
        if data:
            # TFLite Micro reads constants in place: they must be aligned.
            self.builder.StartVector(1, len(data), _DATA_ALIGNMENT)
            self.builder.head = self.builder.Head() - len(data)
            self.builder.Bytes[self.builder.Head() : self.builder.Head() + len(data)] = data
            vector = self.builder.EndVector()
        tflite.BufferStart(self.builder)
        if vector is not None:
            tflite.BufferAddData(self.builder, vector)
        return tflite.BufferEnd(self.builder)

    def _operator_code(self, builtin: int, version: int) -> int:
        b = self.builder
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(builtin, LAST_OLD_CODE))
        tflite.OperatorCodeAddVersion(b, version)
        tflite.OperatorCodeAddBuiltinCode(b, builtin)
        return tflite.OperatorCodeEnd(b)

    def _metadata(self) -> int:
        name = self.builder.CreateString(OFFLINE_PLAN)
        tflite.MetadataStart(self.builder)
        tflite.MetadataAddName(self.builder, name)
        tflite.MetadataAddBuffer(self.builder, self.plan_buffer)
        return tflite.MetadataEnd(self.builder)

    def _subgraph(self, codes: list[int]) -> int:
        b = self.builder
        tensors = self._table_vector(
            [self._tensor(tensor, i) for tensor, i in zip(self.tensors, self.buffer_of, strict=True)]
        )
        ops = self._table_vector(
            [
                self._operator(op, codec, numbers, code)
                for op, codec, numbers, code in zip(self.graph.ops, self.codecs, self.inputs, codes, strict=True)
            ]
        )
        inputs = self._ints([self.index[name] for name in self.graph.inputs])
        outputs = self._ints([self.index[name] for name in self.graph.outputs])
        name = b.CreateString("main")
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddInputs(b, inputs)
        tflite.SubGraphAddOutputs(b, outputs)
        tflite.SubGraphAddOperators(b, ops)
        tflite.SubGraphAddName(b, name)
        return tflite.SubGraphEnd(b)

    def _tensor(self, tensor: Tensor, buffer: int) -> int:
        b = self.builder
        name = b.CreateString(tensor.name)
        shape = self._ints(tensor.shape)
        quant = self._quant(tensor.quant) if tensor.quant is not None else None
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, TYPE_OF_DTYPE[tensor.dtype])
        tflite.TensorAddBuffer(b, buffer)
        tflite.TensorAddName(b, name)
        if quant is not None:
            tflite.TensorAddQuantization(b, quant)
        if tensor.variable:
            tflite.TensorAddIsVariable(b, True)
        return tflite.TensorEnd(b)

    def _quant(self, quant: Quant) -> int:
        b = self.builder
        scales = b.CreateNumpyVector(np.array(quant.scales, np.float32))
        zeros = b.CreateNumpyVector(np.array(quant.zero_points, np.int64))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, scales)
        tflite.QuantizationParametersAddZeroPoint(b, zeros)
        tflite.QuantizationParametersAddQuantizedDimension(b, quant.axis or 0)
        return tflite.QuantizationParametersEnd(b)

    def _operator(self, op: Op, codec: Codec, numbers: list[int], code: int) -> int:
        b = self.builder
        inputs, outputs = self._ints(numbers), self._ints([self.index[name] for name in op.outputs])
        options = self._options(codec.options, codec.fields(self.graph, op)) if codec.options else None
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, code)
        tflite.OperatorAddInputs(b, inputs)
        tflite.OperatorAddOutputs(b, outputs)
        if options is not None:
            tflite.OperatorAddBuiltinOptionsType(b, OPTION_CODES[codec.options])
            tflite.OperatorAddBuiltinOptions(b, options)
        return tflite.OperatorEnd(b)

    def _options(self, name: str, fields: Mapping[str, Any]) -> int:
        values = {field: self._ints(value) if isinstance(value, tuple) else value for field, value in fields.items()}
        getattr(tflite, f"{name}Start")(self.builder)
        for field, value in values.items():
            getattr(tflite, f"{name}Add{field}")(self.builder, value)
        return getattr(tflite, f"{name}End")(self.builder)
