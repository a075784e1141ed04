"""Reads a float ONNX classifier into the IR: NCHW becomes NHWC, constant expressions are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.ir import Graph, Op, Tensor, conv_output_size, spatial_paddings, verify

_FREE = ("Identity", "Dropout")


def read(source: Path | bytes, name: str = "") -> Graph:
    """Read a float ONNX model (opset 13 or newer), batch size 1 or free.

    Args:
        source: a file, or the bytes of one.
        name: the graph's name; "" takes the file's.

    Returns:
        a float graph with NHWC activations; tensor names are those of the ONNX file.

    Raises:
        InvalidModelError: not an ONNX model.
        UnsupportedModelError: a node that a student cannot have; it is named.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx and protobuf raise types of their own, several of them private.
        label = "the ONNX model" if isinstance(source, bytes) else str(source)
        raise InvalidModelError(f"{label} cannot be read: {error}") from error
    title = name or (model.graph.name if isinstance(source, bytes) else Path(source).stem)
    return _Reader(model, title).graph()


class _Reader:
    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.name = name
        self.model = model
        self.opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=13)
        self.constants: dict[str, np.ndarray] = {
            item.name: numpy_helper.to_array(item) for item in model.graph.initializer
        }
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.alias: dict[str, str] = {}
        # Flattened maps: name -> (C, H, W) of the NCHW order that the consumer's weights expect.
        self.flattened: dict[str, tuple[int, int, int]] = {}

    def graph(self) -> Graph:
        inputs = [item for item in self.model.graph.input if item.name not in self.constants]
        if len(inputs) != 1 or len(self.model.graph.output) != 1:
            raise UnsupportedModelError(
                f"'{self.name}' has {len(inputs)} inputs and {len(self.model.graph.output)} outputs; "
                "students have one of each"
            )
        dims = [dim.dim_value or 1 for dim in inputs[0].type.tensor_type.shape.dim]
        shape = (1, *dims[2:], dims[1]) if len(dims) == 4 else (1, *dims[1:])
        self.define(inputs[0].name, shape)
        for index, node in enumerate(self.model.graph.node):
            if all(name in self.constants for name in node.input if name):
                self.fold(node)
                continue
            handler = _HANDLERS.get(node.op_type)
            if handler is None:
                raise UnsupportedModelError(
                    f"'{self.name}': node {index} ({node.op_type}, '{node.name}') is not supported",
                    f"Supported: {', '.join(sorted(_HANDLERS))}.",
                )
            handler(self, node, f"'{self.name}': node {index} ({node.op_type}, '{node.name}')")
        output = self.resolve(self.model.graph.output[0].name)
        if output in self.flattened and min(self.flattened[output][1:]) > 1:
            raise UnsupportedModelError(f"'{self.name}' ends in a flattened feature map; students end in logits")
        graph = Graph(self.name, self.tensors, tuple(self.ops), (inputs[0].name,), (output,))
        return verify(graph.with_ops(graph.ops))

    def resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def define(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> str:
        if data is not None:
            data = np.ascontiguousarray(data, np.float32)
        self.tensors[name] = Tensor(name, tuple(int(dim) for dim in shape), "float32", None, data)
        return name

    def fold(self, node: onnx.NodeProto) -> None:
        inputs = [
            helper.make_tensor_value_info(name, _onnx_type(self.constants[name]), None) for name in node.input if name
        ]
        outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
        graph = helper.make_graph([node], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        values = ReferenceEvaluator(model).run(None, {name: self.constants[name] for name in node.input if name})
        self.constants.update(zip(node.output, (np.asarray(value) for value in values), strict=True))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def activation(self, node: onnx.NodeProto, index: int, where: str) -> str:
        name = self.resolve(node.input[index])
        if name not in self.tensors:
            raise UnsupportedModelError(f"{where}: input {index} must be an activation")
        return name

    def constant(self, node: onnx.NodeProto, index: int, where: str) -> np.ndarray:
        name = self.resolve(node.input[index]) if index < len(node.input) else ""
        if name not in self.constants:
            raise UnsupportedModelError(f"{where}: input {index} must be a constant")
        return self.constants[name]

    def emit(
        self, kind: str, inputs: tuple[str, ...], node: onnx.NodeProto, shape: tuple[int, ...], **attrs: Any
    ) -> None:
        self.define(node.output[0], shape)
        self.ops.append(Op(kind, inputs, (node.output[0],), attrs, node.name or node.output[0]))


def _onnx_type(value: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(value.dtype)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _padding(attrs: dict[str, Any], where: str) -> tuple[int, int, int, int]:
    if attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"", b"VALID"):
        raise UnsupportedModelError(f"{where}: auto_pad is not supported; export explicit pads")
    top, left, bottom, right = attrs.get("pads", [0, 0, 0, 0])
    return int(top), int(bottom), int(left), int(right)


def _window(
    x: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    return (
        conv_output_size(x[1], kernel[0], stride[0], (padding[0], padding[1]), dilation[0]),
        conv_output_size(x[2], kernel[1], stride[1], (padding[2], padding[3]), dilation[1]),
    )


def _conv(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    attrs = _attributes(node)
    x = reader.activation(node, 0, where)
    weights = reader.constant(node, 1, where)
    shape = reader.shape(x)
    if len(shape) != 4 or weights.ndim != 4:
        raise UnsupportedModelError(f"{where}: only 2-D convolutions are supported")
    group, channels = attrs.get("group", 1), shape[3]
    stride = tuple(attrs.get("strides", (1, 1)))
    dilation = tuple(attrs.get("dilations", (1, 1)))
    padding = _padding(attrs, where)
    if group == 1:
        kind, nhwc = "conv_2d", weights.transpose(0, 2, 3, 1)
    elif group == channels:
        kind, nhwc = "depthwise_conv_2d", weights.transpose(1, 2, 3, 0)
    else:
        raise UnsupportedModelError(f"{where}: {group} groups; only 1 or as many as input channels ({channels})")
    height, width = _window(shape, weights.shape[2:], stride, padding, dilation)
    bias = reader.constant(node, 2, where) if len(node.input) > 2 else np.zeros(len(weights), np.float32)
    inputs = (
        x,
        reader.define(f"{node.output[0]}/weights", nhwc.shape, nhwc),
        reader.define(f"{node.output[0]}/bias", bias.shape, bias),
    )
    reader.emit(
        kind,
        inputs,
        node,
        (1, height, width, len(weights)),
        stride=stride,
        dilation=dilation,
        padding=padding,
        activation="none",
    )


def _dense(reader: _Reader, node: onnx.NodeProto, x: str, weights: np.ndarray, bias: np.ndarray) -> None:
    """Emit x @ weights.T + bias with weights (Cout, Cin), its columns reordered when x was a flattened NCHW map."""
    if x in reader.flattened:
        channels, height, width = reader.flattened[x]
        columns = weights.reshape(len(weights), channels, height, width).transpose(0, 2, 3, 1)
        weights = columns.reshape(len(weights), -1)
    inputs = (
        x,
        reader.define(f"{node.output[0]}/weights", weights.shape, weights),
        reader.define(f"{node.output[0]}/bias", bias.shape, bias),
    )
    reader.emit("fully_connected", inputs, node, (1, len(weights)), activation="none")


def _gemm(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    attrs = _attributes(node)
    x, weights = reader.activation(node, 0, where), reader.constant(node, 1, where)
    if attrs.get("transA", 0):
        raise UnsupportedModelError(f"{where}: a transposed activation is not supported")
    weights = weights if attrs.get("transB", 0) else weights.T
    bias = reader.constant(node, 2, where) if len(node.input) > 2 else np.zeros(len(weights), np.float32)
    bias = np.broadcast_to(bias.reshape(-1), (len(weights),)) * attrs.get("beta", 1.0)
    _dense(reader, node, x, weights * attrs.get("alpha", 1.0), bias)


def _matmul(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    weights = reader.constant(node, 1, where).T
    _dense(reader, node, reader.activation(node, 0, where), weights, np.zeros(len(weights), np.float32))


def _add(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    names = [reader.resolve(name) for name in node.input]
    constant = [name for name in names if name in reader.constants]
    if not constant:
        shapes = {reader.shape(name) for name in names}
        if len(shapes) != 1:
            raise UnsupportedModelError(f"{where}: adds shapes {sorted(shapes)}; both must be the same")
        reader.emit("add", (names[0], names[1]), node, shapes.pop(), activation="none")
        return
    # MatMul followed by a constant Add is a dense layer with a bias.
    x = next(name for name in names if name not in reader.constants)
    producer = next((op for op in reader.ops if op.outputs[0] == x), None)
    bias = reader.constants[constant[0]].reshape(-1)
    if producer is None or producer.kind != "fully_connected" or len(bias) != reader.shape(x)[-1]:
        raise UnsupportedModelError(f"{where}: adds a constant to something that is not a dense layer")
    name = producer.inputs[2]
    old = reader.tensors[name].data
    assert old is not None
    reader.define(name, bias.shape, old + bias)
    reader.alias[node.output[0]] = x


def _relu(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    x = reader.activation(node, 0, where)
    reader.emit("relu", (x,), node, reader.shape(x))
    _keep_flat(reader, x, node)


def _clip(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    low = float(reader.constant(node, 1, where)) if len(node.input) > 1 and node.input[1] else -np.inf
    high = float(reader.constant(node, 2, where)) if len(node.input) > 2 and node.input[2] else np.inf
    if low != 0.0 or high not in (6.0, np.inf):
        raise UnsupportedModelError(f"{where}: clips to [{low:g}, {high:g}]; only [0, 6] and [0, inf] are supported")
    x = reader.activation(node, 0, where)
    reader.emit("relu6" if high == 6.0 else "relu", (x,), node, reader.shape(x))
    _keep_flat(reader, x, node)


def _keep_flat(reader: _Reader, x: str, node: onnx.NodeProto) -> None:
    if x in reader.flattened:
        reader.flattened[node.output[0]] = reader.flattened[x]


def _global_average_pool(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    x = reader.activation(node, 0, where)
    reader.emit("mean", (x,), node, (1, 1, 1, reader.shape(x)[3]), axes=(1, 2), keep_dims=True)


def _reduce_mean(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    attrs = _attributes(node)
    axes = attrs.get("axes") or reader.constant(node, 1, where).reshape(-1).tolist()
    x = reader.activation(node, 0, where)
    if len(reader.shape(x)) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise UnsupportedModelError(f"{where}: a mean over axes {list(axes)}; only over height and width")
    keep = bool(attrs.get("keepdims", 1))
    channels = reader.shape(x)[3]
    reader.emit("mean", (x,), node, (1, 1, 1, channels) if keep else (1, channels), axes=(1, 2), keep_dims=keep)


def _pool(kind: str) -> Callable[[_Reader, onnx.NodeProto, str], None]:
    def handler(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
        attrs = _attributes(node)
        x = reader.activation(node, 0, where)
        shape = reader.shape(x)
        padding = _padding(attrs, where)
        if attrs.get("ceil_mode", 0) or (any(padding) and attrs.get("count_include_pad", 0)):
            raise UnsupportedModelError(f"{where}: ceil_mode and count_include_pad are not supported")
        kernel, stride = tuple(attrs["kernel_shape"]), tuple(attrs.get("strides", (1, 1)))
        height, width = _window(shape, kernel, stride, padding, (1, 1))
        reader.emit(
            kind,
            (x,),
            node,
            (1, height, width, shape[3]),
            kernel=kernel,
            stride=stride,
            padding=padding,
            activation="none",
        )

    return handler


def _pad(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    attrs = _attributes(node)
    x = reader.activation(node, 0, where)
    shape = reader.shape(x)
    pads = reader.constant(node, 1, where).reshape(-1).astype(int).tolist()
    value = float(reader.constant(node, 2, where)) if len(node.input) > 2 and node.input[2] else 0.0
    if attrs.get("mode", b"constant") != b"constant" or value != 0.0 or len(shape) != 4 or len(pads) != 8:
        raise UnsupportedModelError(f"{where}: only constant padding of feature maps with 0 is supported")
    if pads[0] or pads[1] or pads[4] or pads[5] or min(pads) < 0:
        raise UnsupportedModelError(f"{where}: pads {pads}; only height and width can be padded")
    padding = (pads[2], pads[6], pads[3], pads[7])
    if not any(padding):
        reader.alias[node.output[0]] = x
        return
    height, width = shape[1] + pads[2] + pads[6], shape[2] + pads[3] + pads[7]
    reader.emit("pad", (x,), node, (1, height, width, shape[3]), paddings=spatial_paddings(padding), value=None)


def _flatten(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    x = reader.activation(node, 0, where)
    shape = reader.shape(x)
    count = int(np.prod(shape[1:]))
    if node.op_type == "Flatten" and _attributes(node).get("axis", 1) != 1:
        raise UnsupportedModelError(f"{where}: only axis 1 is supported")
    if node.op_type == "Reshape":
        target = reader.constant(node, 1, where).reshape(-1).tolist()
        if len(target) != 2 or target[1] not in (-1, count):
            raise UnsupportedModelError(f"{where}: reshapes {list(shape)} to {target}; only flattening is supported")
    if len(shape) == 2:
        reader.alias[node.output[0]] = x
        return
    reader.emit("reshape", (x,), node, (1, count))
    reader.flattened[node.output[0]] = (shape[3], shape[1], shape[2])


def _batch_norm(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    x = reader.activation(node, 0, where)
    names = []
    for index, part in enumerate(("gamma", "beta", "mean", "variance"), start=1):
        value = reader.constant(node, index, where)
        names.append(reader.define(f"{node.output[0]}/{part}", value.shape, value))
    reader.emit("batch_norm", (x, *names), node, reader.shape(x), epsilon=float(_attributes(node).get("epsilon", 1e-5)))


def _softmax(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    x = reader.activation(node, 0, where)
    shape = reader.shape(x)
    if len(shape) != 2 or _attributes(node).get("axis", -1) not in (-1, 1):
        raise UnsupportedModelError(f"{where}: only a softmax over classes is supported")
    reader.emit("softmax", (x,), node, shape, beta=1.0)


def _free(reader: _Reader, node: onnx.NodeProto, where: str) -> None:
    reader.alias[node.output[0]] = reader.activation(node, 0, where)


_HANDLERS: Mapping[str, Callable[[_Reader, onnx.NodeProto, str], None]] = MappingProxyType(
    {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Add": _add,
        "Relu": _relu,
        "Clip": _clip,
        "GlobalAveragePool": _global_average_pool,
        "ReduceMean": _reduce_mean,
        "AveragePool": _pool("average_pool_2d"),
        "MaxPool": _pool("max_pool_2d"),
        "Pad": _pad,
        "Flatten": _flatten,
        "Reshape": _flatten,
        "BatchNormalization": _batch_norm,
        "Softmax": _softmax,
        **dict.fromkeys(_FREE, _free),
    }
)
