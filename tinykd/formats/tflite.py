"""Reads an int8 `.tflite` of any producer into the IR. `write` is in `tflite_writer`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tflite

from tinykd.errors import ConfigError, InvalidModelError, TinykdError, UnsupportedModelError
from tinykd.formats.tflite_ops import (
    ACTIVATION_OF_CODE,
    BUILTIN_NAMES,
    DTYPE_OF_TYPE,
    FILE_IDENTIFIER,
    KIND_OF_BUILTIN,
    TYPE_NAMES,
)
from tinykd.ir import DTYPES, Graph, Op, Quant, Tensor, same_padding, verify

MAX_TENSOR_BYTES = 1 << 28


def read(path: Path | str, name: str = "") -> Graph:
    """Read a `.tflite` file.

    Args:
        path: the file.
        name: the graph's name; "" takes the file's.

    Raises:
        ConfigError: the file cannot be opened.
        InvalidModelError: it is corrupt, truncated or contradicts itself.
        UnsupportedModelError: it uses something beyond int8 ops with one input and one output; names the op.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    return read_bytes(data, name or path.stem)


def read_bytes(data: bytes, name: str = "model") -> Graph:
    """Read the bytes of a `.tflite` file; see `read`."""
    if len(data) < 16 or data[4:8] != FILE_IDENTIFIER:
        raise InvalidModelError(
            f"'{name}' is not a .tflite file: {len(data)} B, and bytes 4 to 8 are {data[4:8]!r} "
            f"instead of {FILE_IDENTIFIER!r}",
            "If it was downloaded, download it again; an ONNX or Keras file must be converted first.",
        )
    try:
        return _Reader(data, name).graph()
    except TinykdError:
        raise
    except (
        struct.error,
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        UnicodeDecodeError,
    ) as error:
        raise InvalidModelError(
            f"'{name}' is corrupt or truncated ({len(data)} B): {type(error).__name__}: {error}",
            "Compare its size and hash with where it came from.",
        ) from error


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.model = tflite.Model.GetRootAs(data, 0)
        count = self._count(self.model.SubgraphsLength(), "subgraphs")
        if count != 1:
            raise UnsupportedModelError(
                f"'{name}' has {count} subgraphs; tinykd takes models with one (no control flow)",
            )
        self.subgraph = self.model.Subgraphs(0)
        self.names: list[str] = []
        self.tensors: dict[str, Tensor] = {}

    def graph(self) -> Graph:
        inputs = [self.subgraph.Inputs(i) for i in range(self._count(self.subgraph.InputsLength(), "inputs"))]
        outputs = [self.subgraph.Outputs(i) for i in range(self._count(self.subgraph.OutputsLength(), "outputs"))]
        self._refuse_float(inputs + outputs)
        num_ops = self._count(self.subgraph.OperatorsLength(), "operators")
        kinds = [self._kind(index) for index in range(num_ops)]
        self._read_tensors()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnsupportedModelError(
                f"'{self.name}' has {len(inputs)} inputs and {len(outputs)} outputs; tinykd takes one of each",
                "Split the model, or concatenate its outputs before conversion.",
            )
        ops = tuple(self._op(index, kind) for index, kind in enumerate(kinds))
        names = {name for op in ops for name in (*op.inputs, *op.outputs) if name}
        edges = (self._name(inputs[0]), self._name(outputs[0]))
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in names or name in edges}
        for tensor in tensors.values():
            self._check_type(tensor, ops)
        return verify(Graph(self.name, tensors, ops, edges[:1], edges[1:]))

    def _count(self, number: int, what: str) -> int:
        # Every element takes at least four bytes: a larger count is a corrupt length and would loop for hours.
        if not 0 <= number <= len(self.data) // 4:
            raise InvalidModelError(f"'{self.name}' claims {number} {what} in {len(self.data)} B: it is corrupt")
        return number

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self.names):
            raise InvalidModelError(f"'{self.name}' names tensor {index} of {len(self.names)}: it is corrupt")
        return self.names[index]

    def _refuse_float(self, edges: list[int]) -> None:
        count = self._count(self.subgraph.TensorsLength(), "tensors")
        types = [self.subgraph.Tensors(index).Type() for index in edges if 0 <= index < count]
        for index, kind in zip(edges, types, strict=False):
            if kind != tflite.TensorType.INT8:
                tensor = self.subgraph.Tensors(index)
                label = TYPE_NAMES.get(kind, str(kind)).lower()
                float_model = kind == tflite.TensorType.FLOAT32
                raise UnsupportedModelError(
                    f"'{self.name}': its edge '{_text(tensor.Name())}' is {label}; tinykd takes models that are int8 "
                    "from edge to edge" + (" (this looks like a float model)" if float_model else ""),
                    "Quantise it fully to int8 (converter.inference_input_type = inference_output_type = tf.int8), "
                    "or train and export it with tinykd.",
                )

    def _kind(self, index: int) -> str:
        operator = self.subgraph.Operators(index)
        code_index = operator.OpcodeIndex()
        if not 0 <= code_index < self._count(self.model.OperatorCodesLength(), "operator codes"):
            raise InvalidModelError(f"'{self.name}': op {index} names operator code {code_index}: it is corrupt")
        code = self.model.OperatorCodes(code_index)
        # The old field is a byte; newer files repeat small codes in both fields and large ones in the new one only.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = KIND_OF_BUILTIN.get(builtin)
        if kind is None:
            label = BUILTIN_NAMES.get(builtin, f"builtin {builtin}")
            if builtin == tflite.BuiltinOperator.CUSTOM:
                label = f"custom op '{_text(code.CustomCode())}'"
            place = self._output_name(operator)
            raise UnsupportedModelError(
                f"'{self.name}': op {index} ({label}, writing '{place}') is not supported",
                f"Supported: {', '.join(sorted(BUILTIN_NAMES[code] for code in KIND_OF_BUILTIN))}.",
            )
        return kind

    def _output_name(self, operator: Any) -> str:
        if operator.OutputsLength() < 1:
            return "?"
        return _text(self.subgraph.Tensors(operator.Outputs(0)).Name())

    def _read_tensors(self) -> None:
        count = self._count(self.subgraph.TensorsLength(), "tensors")
        num_buffers = self._count(self.model.BuffersLength(), "buffers")
        for index in range(count):
            raw = self.subgraph.Tensors(index)
            name = _text(raw.Name()) or f"tensor_{index}"
            if name in self.tensors:
                name = f"{name}#{index}"
            self.names.append(name)
            shape = tuple(int(raw.Shape(i)) for i in range(self._count(raw.ShapeLength(), "dimensions")))
            dtype = DTYPE_OF_TYPE.get(raw.Type(), TYPE_NAMES.get(raw.Type(), str(raw.Type())).lower())
            item_bytes = DTYPES[dtype].itemsize if dtype in DTYPES else 1
            num_bytes = item_bytes
            for dim in shape:
                num_bytes *= dim
            if not 0 <= num_bytes <= MAX_TENSOR_BYTES:
                raise InvalidModelError(
                    f"'{self.name}': tensor '{name}' has shape {list(shape)}; the limit is {MAX_TENSOR_BYTES} B"
                )
            buffer = raw.Buffer()
            if not 0 <= buffer < num_buffers:
                raise InvalidModelError(f"'{self.name}': tensor '{name}' names buffer {buffer} of {num_buffers}")
            self.tensors[name] = Tensor(
                name, shape, dtype, self._quant(raw, shape), self._data(name, buffer, shape, dtype)
            )

    def _data(self, name: str, buffer: int, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        raw = self.model.Buffers(buffer)
        if raw.Size() > 1:
            # Large models keep their buffers behind the flatbuffer.
            blob = self.data[raw.Offset() : raw.Offset() + raw.Size()]
            if len(blob) != raw.Size():
                raise InvalidModelError(f"'{self.name}': the data of tensor '{name}' lies beyond the end of the file")
        elif raw.DataLength():
            if raw.DataLength() > len(self.data):
                raise InvalidModelError(f"'{self.name}': the data of tensor '{name}' is longer than the file")
            blob = raw.DataAsNumpy().tobytes()
        else:
            return None
        if dtype not in DTYPES:
            return np.frombuffer(blob, np.uint8)
        expected = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        if len(blob) != expected:
            raise InvalidModelError(
                f"'{self.name}': tensor '{name}' ({dtype}{list(shape)}) takes {expected} B "
                f"but its buffer has {len(blob)}"
            )
        value = np.frombuffer(blob, DTYPES[dtype].newbyteorder("<")).astype(DTYPES[dtype]).reshape(shape)
        value.flags.writeable = False
        return value

    def _quant(self, raw: Any, shape: tuple[int, ...]) -> Quant | None:
        quant = raw.Quantization()
        if quant is None or quant.ScaleLength() == 0:
            return None
        count = self._count(quant.ScaleLength(), "scales")
        scales = tuple(float(value) for value in quant.ScaleAsNumpy())
        zeros = tuple(int(value) for value in quant.ZeroPointAsNumpy()) if quant.ZeroPointLength() else (0,) * count
        if len(zeros) == 1 and count > 1:
            zeros *= count
        if count == 1:
            return Quant(scales, zeros)
        # Some producers count the axis of a bias in the weights' dimensions (person_detect: 3 for a vector).
        axis = 0 if len(shape) == 1 else quant.QuantizedDimension()
        return Quant(scales, zeros, axis)

    def _op(self, index: int, kind: str) -> Op:
        raw = self.subgraph.Operators(index)
        inputs = [raw.Inputs(i) for i in range(self._count(raw.InputsLength(), "op inputs"))]
        outputs = [raw.Outputs(i) for i in range(self._count(raw.OutputsLength(), "op outputs"))]
        names_in = tuple(self._name(i) if i >= 0 else "" for i in inputs)
        names_out = tuple(self._name(i) for i in outputs)
        if not names_in or not names_in[0] or not names_out:
            raise InvalidModelError(f"'{self.name}': op {index} ({kind}) has no input or no output")
        source = names_out[0]
        where = f"'{self.name}': op {index} ({BUILTIN_NAMES_OF_KIND[kind]}, writing '{source}')"
        names_in, attrs = _OPTIONS[kind](self, raw, names_in, names_out, where)
        return Op(kind, names_in, names_out, attrs, source)

    def options(self, raw: Any, cls: Any, where: str) -> Any:
        """Return the op's builtin options as `cls`; they must be there."""
        table = raw.BuiltinOptions()
        if table is None:
            raise InvalidModelError(f"{where} has no options: the file is corrupt")
        options = cls()
        options.Init(table.Bytes, table.Pos)
        return options

    def constant(self, name: str, where: str, what: str) -> np.ndarray:
        """Return the value of a constant input; a computed one is not supported."""
        data = self.tensors[name].data if name else None
        if data is None:
            raise UnsupportedModelError(f"{where}: its {what} must be a constant")
        return data

    def activation(self, options: Any, where: str) -> str:
        """Return the fused activation's name."""
        code = options.FusedActivationFunction()
        if code not in ACTIVATION_OF_CODE:
            raise UnsupportedModelError(
                f"{where}: fused activation {code} is not supported", "Supported: none, RELU, RELU6."
            )
        return ACTIVATION_OF_CODE[code]

    def window(
        self, options: Any, x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int], where: str
    ) -> dict[str, Any]:
        """Return stride and explicit padding of a convolution or pooling."""
        stride = (options.StrideH(), options.StrideW())
        if len(x.shape) != 4 or min(*stride, *dilation, *kernel) < 1:
            raise InvalidModelError(f"{where}: input {list(x.shape)}, kernel {kernel}, stride {stride}")
        padding = (0, 0, 0, 0)
        if options.Padding() == tflite.Padding.SAME:
            padding = (
                *same_padding(x.shape[1], kernel[0], stride[0], dilation[0]),
                *same_padding(x.shape[2], kernel[1], stride[1], dilation[1]),
            )
        return {"stride": stride, "padding": padding}

    def _check_type(self, tensor: Tensor, ops: tuple[Op, ...]) -> None:
        if tensor.dtype == "int8" and tensor.quant is not None:
            return
        if tensor.dtype == "int32" and tensor.is_constant:
            return
        for index, op in enumerate(ops):
            if tensor.name in (*op.inputs, *op.outputs):
                problem = f"{tensor.dtype}" if tensor.dtype != "int8" else "int8 without quantisation parameters"
                raise UnsupportedModelError(
                    f"'{self.name}': op {index} ({BUILTIN_NAMES_OF_KIND[op.kind]}, writing '{op.outputs[0]}') uses "
                    f"tensor '{tensor.name}', which is {problem}; tinykd takes int8 activations and weights with "
                    "int32 biases",
                    "Quantise the whole model to int8 with int8 activations.",
                )


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""


BUILTIN_NAMES_OF_KIND: Mapping[str, str] = MappingProxyType(
    {kind: BUILTIN_NAMES[code] for code, kind in KIND_OF_BUILTIN.items()}
)

_Names = tuple[str, ...]
_Result = tuple[_Names, dict[str, Any]]


def _weights_shape(reader: _Reader, names: _Names, rank: int, where: str) -> tuple[int, ...]:
    if len(names) < 2:
        raise InvalidModelError(f"{where} has no weights")
    weights = reader.constant(names[1], where, "weight tensor")
    if len(names) > 2 and names[2]:
        bias = reader.constant(names[2], where, "bias")
        if bias.dtype != np.int32:
            raise UnsupportedModelError(f"{where}: its bias is {bias.dtype}; int8 models have int32 biases")
    if weights.ndim != rank:
        raise InvalidModelError(f"{where}: its weights have shape {list(weights.shape)}")
    return weights.shape


def _conv_2d(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.Conv2DOptions, where)
    _, kernel_h, kernel_w, channels = _weights_shape(reader, names, 4, where)
    x = reader.tensors[names[0]]
    if len(x.shape) == 4 and channels != x.shape[3] and channels and x.shape[3] % channels == 0:
        raise UnsupportedModelError(f"{where}: grouped convolution ({x.shape[3] // channels} groups) is not supported")
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    window = reader.window(options, x, (kernel_h, kernel_w), dilation, where)
    return names, {**window, "dilation": dilation, "activation": reader.activation(options, where)}


def _depthwise(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.DepthwiseConv2DOptions, where)
    _, kernel_h, kernel_w, _ = _weights_shape(reader, names, 4, where)
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    window = reader.window(options, reader.tensors[names[0]], (kernel_h, kernel_w), dilation, where)
    return names, {**window, "dilation": dilation, "activation": reader.activation(options, where)}


def _fully_connected(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.FullyConnectedOptions, where)
    _weights_shape(reader, names, 2, where)
    if options.WeightsFormat() != 0:
        raise UnsupportedModelError(f"{where}: shuffled weights are not supported")
    return names, {"activation": reader.activation(options, where)}


def _add(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.AddOptions, where)
    shapes = [reader.tensors[name].shape for name in names]
    if len(shapes) != 2 or shapes[0] != shapes[1] or any(reader.tensors[name].is_constant for name in names):
        raise UnsupportedModelError(
            f"{where}: adds shapes {' and '.join(str(list(shape)) for shape in shapes)}; "
            "tinykd adds two activations of the same shape"
        )
    return names, {"activation": reader.activation(options, where)}


def _pool(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.Pool2DOptions, where)
    kernel = (options.FilterHeight(), options.FilterWidth())
    window = reader.window(options, reader.tensors[names[0]], kernel, (1, 1), where)
    return names, {**window, "kernel": kernel, "activation": reader.activation(options, where)}


def _mean(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.ReducerOptions, where)
    rank = len(reader.tensors[names[0]].shape)
    axes = reader.constant(names[1] if len(names) > 1 else "", where, "axis list").reshape(-1)
    if rank != 4 or sorted(int(axis) % rank for axis in axes) != [1, 2]:
        raise UnsupportedModelError(f"{where}: a mean over axes {axes.tolist()} is not supported; only over H and W")
    return names[:1], {"axes": (1, 2), "keep_dims": bool(options.KeepDims())}


def _pad(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    pads = reader.constant(names[1] if len(names) > 1 else "", where, "padding")
    if pads.shape != (4, 2) or pads[0].any() or pads[3].any() or (pads < 0).any():
        raise UnsupportedModelError(f"{where}: pads {pads.tolist()}; only H and W can be padded")
    return names[:1], {"paddings": tuple((int(a), int(b)) for a, b in pads), "value": None}


def _reshape(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    return names[:1], {}


def _softmax(reader: _Reader, raw: Any, names: _Names, outputs: _Names, where: str) -> _Result:
    options = reader.options(raw, tflite.SoftmaxOptions, where)
    quant = reader.tensors[outputs[0]].quant
    if quant is None or quant.zero_point != -128 or abs(quant.scale - 1 / 256) > 1e-6:
        raise UnsupportedModelError(f"{where}: an int8 softmax has output scale 1/256 and zero point -128")
    return names, {"beta": float(options.Beta())}


_OPTIONS: Mapping[str, Callable[[_Reader, Any, _Names, _Names, str], _Result]] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise,
        "fully_connected": _fully_connected,
        "add": _add,
        "average_pool_2d": _pool,
        "max_pool_2d": _pool,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "softmax": _softmax,
    }
)
