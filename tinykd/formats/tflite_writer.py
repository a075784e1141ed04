"""Writes an int8 graph as a `.tflite` that TFLite Micro runs: the same graph always gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
import tflite

from tinykd.errors import InternalError
from tinykd.formats.tflite_ops import (
    BUILTIN_OF_KIND,
    CODE_OF_ACTIVATION,
    FILE_IDENTIFIER,
    FULLY_CONNECTED_PER_CHANNEL_VERSION,
    OFFLINE_PLAN,
    SCHEMA_VERSION,
    VERSION_OF_KIND,
)
from tinykd.ir import Graph, Op, Quant, Tensor, same_padding

_TYPE_OF_DTYPE = {
    "int8": tflite.TensorType.INT8,
    "int32": tflite.TensorType.INT32,
    "float32": tflite.TensorType.FLOAT32,
}
_DATA_ALIGNMENT = 16
PLAN_ONLINE = -1


def write(graph: Graph, offsets: Mapping[str, int] | None = None) -> bytes:
    """Return the `.tflite` file of an int8 graph.

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
    return _padding_code(padding, graph, op) is not None


def _padding_code(padding: tuple[int, int, int, int], graph: Graph, op: Op) -> int | None:
    if not any(padding):
        return tflite.Padding.VALID
    x = graph.tensor(op.inputs[0])
    kernel = op.attrs["kernel"] if "kernel" in op.attrs else graph.tensor(op.inputs[1]).shape[1:3]
    dilation = op.attrs.get("dilation", (1, 1))
    same = (
        *same_padding(x.shape[1], kernel[0], op.attrs["stride"][0], dilation[0]),
        *same_padding(x.shape[2], kernel[1], op.attrs["stride"][1], dilation[1]),
    )
    return tflite.Padding.SAME if tuple(padding) == same else None


class _Writer:
    def __init__(self, graph: Graph, offsets: Mapping[str, int] | None) -> None:
        self.graph = graph
        self.builder = flatbuffers.Builder(1 << 16)
        self.tensors = list(graph.tensors.values())
        self.extra_inputs: dict[int, int] = {}
        for index, op in enumerate(graph.ops):
            constant = _shape_constant(graph, op)
            if constant is not None:
                self.extra_inputs[index] = len(self.tensors)
                self.tensors.append(constant)
        self.index = {tensor.name: number for number, tensor in enumerate(self.tensors)}
        if len(self.index) != len(self.tensors):
            raise InternalError(f"graph '{graph.name}': two tensors share a name")
        # Buffer 0 is empty by convention: every activation points to it.
        self.buffers: list[bytes] = [b""]
        self.buffer_of: list[int] = []
        for tensor in self.tensors:
            if tensor.data is None:
                self.buffer_of.append(0)
            else:
                self.buffer_of.append(len(self.buffers))
                little_endian = tensor.data.astype(tensor.data.dtype.newbyteorder("<"))
                self.buffers.append(np.ascontiguousarray(little_endian).tobytes())
        self.plan_buffer = 0
        if offsets is not None:
            self.plan_buffer = len(self.buffers)
            plan = [1, 0, len(self.tensors), *(offsets.get(tensor.name, PLAN_ONLINE) for tensor in self.tensors)]
            self.buffers.append(np.array(plan, "<i4").tobytes())

    def finish(self) -> bytes:
        b = self.builder
        buffers = self._table_vector([self._buffer(data) for data in self.buffers])
        codes = self._codes()
        code_table = self._table_vector([self._operator_code(*code) for code in codes])
        subgraphs = self._table_vector([self._subgraph(codes)])
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

    def _codes(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys(self._code(op) for op in self.graph.ops))

    def _code(self, op: Op) -> tuple[int, int]:
        version = VERSION_OF_KIND[op.kind]
        if op.kind == "fully_connected":
            quant = self.graph.tensor(op.inputs[1]).quant
            if quant is not None and quant.axis is not None:
                version = FULLY_CONNECTED_PER_CHANNEL_VERSION
        return BUILTIN_OF_KIND[op.kind], version

    def _operator_code(self, builtin: int, version: int) -> int:
        b = self.builder
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(builtin, 127))
        tflite.OperatorCodeAddVersion(b, version)
        tflite.OperatorCodeAddBuiltinCode(b, builtin)
        return tflite.OperatorCodeEnd(b)

    def _metadata(self) -> int:
        name = self.builder.CreateString(OFFLINE_PLAN)
        tflite.MetadataStart(self.builder)
        tflite.MetadataAddName(self.builder, name)
        tflite.MetadataAddBuffer(self.builder, self.plan_buffer)
        return tflite.MetadataEnd(self.builder)

    def _subgraph(self, codes: list[tuple[int, int]]) -> int:
        b = self.builder
        tensors = self._table_vector(
            [self._tensor(tensor, i) for tensor, i in zip(self.tensors, self.buffer_of, strict=True)]
        )
        ops = self._table_vector(
            [self._operator(index, op, codes.index(self._code(op))) for index, op in enumerate(self.graph.ops)]
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
        tflite.TensorAddType(b, _TYPE_OF_DTYPE[tensor.dtype])
        tflite.TensorAddBuffer(b, buffer)
        tflite.TensorAddName(b, name)
        if quant is not None:
            tflite.TensorAddQuantization(b, quant)
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

    def _operator(self, index: int, op: Op, code: int) -> int:
        b = self.builder
        numbers = [self.index[name] if name else -1 for name in op.inputs]
        if index in self.extra_inputs:
            numbers.append(self.extra_inputs[index])
        inputs, outputs = self._ints(numbers), self._ints([self.index[name] for name in op.outputs])
        kind, options = self._options(op)
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, code)
        tflite.OperatorAddInputs(b, inputs)
        tflite.OperatorAddOutputs(b, outputs)
        tflite.OperatorAddBuiltinOptionsType(b, kind)
        tflite.OperatorAddBuiltinOptions(b, options)
        return tflite.OperatorEnd(b)

    def _options(self, op: Op) -> tuple[int, int]:
        b, attrs = self.builder, op.attrs
        union: Any = tflite.BuiltinOptions
        if op.kind == "conv_2d":
            tflite.Conv2DOptionsStart(b)
            tflite.Conv2DOptionsAddPadding(b, self._padding(op))
            tflite.Conv2DOptionsAddStrideH(b, attrs["stride"][0])
            tflite.Conv2DOptionsAddStrideW(b, attrs["stride"][1])
            tflite.Conv2DOptionsAddDilationHFactor(b, attrs["dilation"][0])
            tflite.Conv2DOptionsAddDilationWFactor(b, attrs["dilation"][1])
            tflite.Conv2DOptionsAddFusedActivationFunction(b, CODE_OF_ACTIVATION[attrs["activation"]])
            return union.Conv2DOptions, tflite.Conv2DOptionsEnd(b)
        if op.kind == "depthwise_conv_2d":
            channels = self.graph.tensor(op.inputs[0]).shape[3]
            tflite.DepthwiseConv2DOptionsStart(b)
            tflite.DepthwiseConv2DOptionsAddPadding(b, self._padding(op))
            tflite.DepthwiseConv2DOptionsAddStrideH(b, attrs["stride"][0])
            tflite.DepthwiseConv2DOptionsAddStrideW(b, attrs["stride"][1])
            tflite.DepthwiseConv2DOptionsAddDepthMultiplier(b, self.graph.tensor(op.outputs[0]).shape[3] // channels)
            tflite.DepthwiseConv2DOptionsAddDilationHFactor(b, attrs["dilation"][0])
            tflite.DepthwiseConv2DOptionsAddDilationWFactor(b, attrs["dilation"][1])
            tflite.DepthwiseConv2DOptionsAddFusedActivationFunction(b, CODE_OF_ACTIVATION[attrs["activation"]])
            return union.DepthwiseConv2DOptions, tflite.DepthwiseConv2DOptionsEnd(b)
        if op.kind == "fully_connected":
            tflite.FullyConnectedOptionsStart(b)
            tflite.FullyConnectedOptionsAddFusedActivationFunction(b, CODE_OF_ACTIVATION[attrs["activation"]])
            return union.FullyConnectedOptions, tflite.FullyConnectedOptionsEnd(b)
        if op.kind == "add":
            tflite.AddOptionsStart(b)
            tflite.AddOptionsAddFusedActivationFunction(b, CODE_OF_ACTIVATION[attrs["activation"]])
            return union.AddOptions, tflite.AddOptionsEnd(b)
        if op.kind in ("average_pool_2d", "max_pool_2d"):
            tflite.Pool2DOptionsStart(b)
            tflite.Pool2DOptionsAddPadding(b, self._padding(op))
            tflite.Pool2DOptionsAddStrideH(b, attrs["stride"][0])
            tflite.Pool2DOptionsAddStrideW(b, attrs["stride"][1])
            tflite.Pool2DOptionsAddFilterHeight(b, attrs["kernel"][0])
            tflite.Pool2DOptionsAddFilterWidth(b, attrs["kernel"][1])
            tflite.Pool2DOptionsAddFusedActivationFunction(b, CODE_OF_ACTIVATION[attrs["activation"]])
            return union.Pool2DOptions, tflite.Pool2DOptionsEnd(b)
        if op.kind == "mean":
            tflite.ReducerOptionsStart(b)
            tflite.ReducerOptionsAddKeepDims(b, attrs["keep_dims"])
            return union.ReducerOptions, tflite.ReducerOptionsEnd(b)
        if op.kind == "pad":
            tflite.PadOptionsStart(b)
            return union.PadOptions, tflite.PadOptionsEnd(b)
        if op.kind == "reshape":
            shape = self._ints(self.graph.tensor(op.outputs[0]).shape)
            tflite.ReshapeOptionsStart(b)
            tflite.ReshapeOptionsAddNewShape(b, shape)
            return union.ReshapeOptions, tflite.ReshapeOptionsEnd(b)
        if op.kind == "softmax":
            tflite.SoftmaxOptionsStart(b)
            tflite.SoftmaxOptionsAddBeta(b, attrs["beta"])
            return union.SoftmaxOptions, tflite.SoftmaxOptionsEnd(b)
        raise InternalError(f"op '{op.source}' ({op.kind}) has no form in a .tflite")

    def _padding(self, op: Op) -> int:
        code = _padding_code(op.attrs["padding"], self.graph, op)
        if code is None:
            raise InternalError(
                f"op '{op.source}' pads by {op.attrs['padding']}: neither SAME nor VALID; run lower_padding first"
            )
        return code


def _shape_constant(graph: Graph, op: Op) -> Tensor | None:
    """Return the int32 constant that TFLite wants as a further input of some ops."""
    y = graph.tensor(op.outputs[0])
    if op.kind == "reshape":
        return _int32(f"{y.name}/shape", np.array(y.shape, np.int32))
    if op.kind == "mean":
        return _int32(f"{y.name}/axes", np.array(op.attrs["axes"], np.int32))
    if op.kind == "pad":
        return _int32(f"{y.name}/paddings", np.array(op.attrs["paddings"], np.int32))
    return None


def _int32(name: str, data: np.ndarray) -> Tensor:
    return Tensor(name, data.shape, "int32", None, data)
