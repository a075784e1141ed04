"""Writes an int8 graph as a QDQ ONNX model: NCHW, with the very scales, zero points and integers of the `.tflite`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tinykd
from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, Quant, Tensor, op_label
from tinykd.ir.affine import QUANT_KEEPERS
from tinykd.ir.graph import DTYPES

OPSET = 19

# Where ONNX has the dimensions of a map (1, H, W, C), and where the IR has those of (1, C, H, W).
_TO_ONNX, _TO_IR = (0, 2, 3, 1), (0, 3, 1, 2)
_BEFORE_THE_FIRST = int(np.iinfo(np.int64).min)
_TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min", "prelu": "PRelu"}
_UNARY = {"logistic": "Sigmoid", "tanh": "Tanh", "hard_swish": "HardSwish", "relu": "Relu"}
_BOUNDS = {"relu6": (0, 6), "relu_n1_to_1": (-1, 1)}


def write_qdq(graph: Graph) -> bytes:
    """Return the QDQ ONNX model of a verified int8 graph.

    Every activation passes QuantizeLinear and DequantizeLinear with its int8 parameters; weights and biases are stored
    as the integers of the graph. Inputs and outputs are float32 (indices int32). Runtimes that fuse Q/DQ pairs compute
    in int8; others give the fake-quantised float result. The integers of activation `a` are called `a/q`, its
    dequantised values `a/dq`.

    Raises:
        UnsupportedModelError: an op that has no ONNX form: one with a state, of another integer type, or one that gives
            the integers that it copies another meaning.
    """
    model = _Writer(graph).model()
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: set[str] = set()

    def model(self) -> onnx.ModelProto:
        graph = self.graph
        inputs = [self._input(graph.tensor(name)) for name in graph.inputs]
        for index, op in enumerate(graph.ops):
            writer = _WRITERS.get(op.kind)
            if writer is None:
                raise UnsupportedModelError(
                    f"{op_label(index, op)} has no QDQ ONNX form", "Keep the `.tflite`, which has all of the model."
                )
            quants = {graph.tensor(name).quant for name in (op.inputs[0], *op.outputs)}
            if op.kind in QUANT_KEEPERS and len(quants) > 1:
                raise UnsupportedModelError(
                    f"{op_label(index, op)} gives its integers other scales than they came with, which ONNX cannot say",
                    "Keep the `.tflite`, which has all of the model.",
                )
            writer(self, op)
        outputs = [self._output(graph.tensor(name)) for name in graph.outputs]
        proto = helper.make_graph(self.nodes, graph.name, inputs, outputs, self.initializers)
        return helper.make_model(
            proto,
            producer_name="tinykd",
            producer_version=tinykd.__version__,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,
        )

    def _input(self, tensor: Tensor) -> onnx.ValueInfoProto:
        # What the graph itself quantises comes in as it is.
        name = f"{tensor.name}/{'dq' if tensor.dtype == 'float32' else 'float'}"
        if tensor.dtype != "float32":
            self.quantize(tensor.name, name, tensor)
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, _nchw(tensor.shape))

    def _output(self, tensor: Tensor) -> onnx.ValueInfoProto:
        kind = TensorProto.INT32 if tensor.dtype == "int32" else TensorProto.FLOAT
        return helper.make_tensor_value_info(f"{tensor.name}/dq", kind, _nchw(tensor.shape))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initialiser, once."""
        if name not in self.names:
            self.names.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, name: str, values: Sequence[int]) -> str:
        """Add a vector of int64."""
        return self.constant(name, np.array(values, np.int64))

    def node(self, kind: str, inputs: Sequence[str], output: str, name: str, **attrs: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attrs))
        return output

    def _parameters(self, name: str, quant: Quant, dtype: Any) -> tuple[str, str]:
        scale: np.ndarray = np.array(quant.scales, np.float32)
        zero: np.ndarray = np.array(quant.zero_points, dtype)
        if quant.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return self.constant(f"{name}/scale", scale), self.constant(f"{name}/zero_point", zero)

    def quantize(self, name: str, value: str, tensor: Tensor) -> None:
        """Pass a float value through the parameters of the activation `tensor`."""
        if tensor.quant is None or tensor.dtype not in _TYPES:
            raise UnsupportedModelError(
                f"'{self.graph.name}': '{name}' is {tensor.dtype}, which has no QDQ ONNX form",
                "Keep the `.tflite`, which has all of the model.",
            )
        scale, zero = self._parameters(name, tensor.quant, DTYPES[tensor.dtype])
        self.node("QuantizeLinear", [value, scale, zero], f"{name}/q", f"{name}/quantize")
        self.node("DequantizeLinear", [f"{name}/q", scale, zero], f"{name}/dq", f"{name}/dequantize")

    def dequantized(self, name: str, value: np.ndarray, axis: int = 0) -> str:
        """Store an integer constant with its quantised axis (if any) at `axis`, and return its dequantised value."""
        quant = self.graph.tensor(name).quant
        assert quant is not None
        scale, zero = self._parameters(name, quant, value.dtype.type)
        attrs = {} if quant.axis is None else {"axis": axis}
        known = f"{name}/q" in self.names
        inputs = [self.constant(f"{name}/q", value), scale, zero]
        return (
            f"{name}/dq"
            if known
            else self.node("DequantizeLinear", inputs, f"{name}/dq", f"{name}/dequantize", **attrs)
        )

    def bias(self, op: Op) -> list[str]:
        """Return the dequantised bias, if the op has one."""
        if len(op.inputs) < 3 or not op.inputs[2]:
            return []
        return [self.dequantized(op.inputs[2], _data(self.graph, op.inputs[2]))]

    def finish(self, op: Op, value: str, output: int = 0) -> None:
        """Apply the fused activation and quantise the op's output."""
        y = self.graph.tensor(op.outputs[output])
        self.quantize(y.name, self._activate(value, op, y), y)

    def _activate(self, value: str, op: Op, y: Tensor) -> str:
        activation = op.attrs.get("activation", "none")
        if activation == "none":
            return value
        if activation == "relu":
            return self.node("Relu", [value], f"{y.name}/relu", f"{op.source}/relu")
        return self.clip(value, f"{y.name}/{activation}", f"{op.source}/{activation}", activation)

    def clip(self, value: str, output: str, name: str, activation: str) -> str:
        """Return a value between the bounds of `activation`."""
        bounds = [self.constant(f"const/{bound}", np.array(bound, np.float32)) for bound in _BOUNDS[activation]]
        return self.node("Clip", [value, *bounds], output, name)

    def in_ir_order(self, value: str, shape: Sequence[int], name: str) -> str:
        """Return a value of the IR's shape `shape` in the order of its dimensions there."""
        if len(shape) != 4:
            return value
        return self.node("Transpose", [value], f"{name}/turned", f"{name}/transpose", perm=list(_TO_ONNX))

    def in_onnx_order(self, value: str, shape: Sequence[int], output: str, name: str) -> str:
        """Return a value that lies as the IR has it in the order of ONNX."""
        if len(shape) != 4:
            return value
        return self.node("Transpose", [value], output, f"{name}/transpose back", perm=list(_TO_IR))

    def reshape(self, value: str, x: Sequence[int], shape: Sequence[int], output: str, name: str) -> str:
        """Return a value of the IR's shape `x` under the IR's shape `shape`."""
        if len(x) == 4 and x[3] > 1 and x[1] * x[2] > 1:
            value = self.in_ir_order(value, x, output)
        # Where there is one channel or one position, both orders are the same.
        moves = len(shape) == 4 and shape[3] > 1 and shape[1] * shape[2] > 1
        wanted = self.ints(f"{output}/shape", shape if moves else _nchw(shape))
        reshaped = self.node("Reshape", [value, wanted], f"{output}/nhwc" if moves else output, name)
        return self.in_onnx_order(reshaped, shape, output, name) if moves else reshaped


def _conv(w: _Writer, op: Op) -> None:
    x = w.graph.tensor(op.inputs[0])
    top, bottom, left, right = op.attrs["padding"]
    order = (0, 3, 1, 2) if op.kind == "conv_2d" else (3, 0, 1, 2)
    weights = w.dequantized(op.inputs[1], _data(w.graph, op.inputs[1]).transpose(order))
    value = w.node(
        "Conv",
        [f"{x.name}/dq", weights, *w.bias(op)],
        _result(op),
        _label(op),
        strides=list(op.attrs["stride"]),
        dilations=list(op.attrs["dilation"]),
        pads=[top, left, bottom, right],
        group=1 if op.kind == "conv_2d" else x.shape[3],
    )
    w.finish(op, value)


def _transpose_conv(w: _Writer, op: Op) -> None:
    top, bottom, left, right = op.attrs["padding"]
    weights = w.dequantized(op.inputs[1], _data(w.graph, op.inputs[1]).transpose(3, 0, 1, 2), axis=1)
    value = w.node(
        "ConvTranspose",
        [f"{op.inputs[0]}/dq", weights, *w.bias(op)],
        _result(op),
        _label(op),
        strides=list(op.attrs["stride"]),
        pads=[top, left, max(bottom, 0), max(right, 0)],
        output_padding=[max(-bottom, 0), max(-right, 0)],
    )
    w.finish(op, value)


def _fully_connected(w: _Writer, op: Op) -> None:
    x, y = w.graph.tensor(op.inputs[0]), w.graph.tensor(op.outputs[0])
    weights, name, value = _data(w.graph, op.inputs[1]), _label(op), f"{x.name}/dq"
    rows = x.num_elements // weights.shape[1]
    if rows == 1:
        if len(x.shape) != 2:
            value = w.reshape(value, x.shape, (1, x.num_elements), f"{y.name}/flat", f"{name}/flatten")
        matrix = w.dequantized(op.inputs[1], weights)
        value = w.node("Gemm", [value, matrix, *w.bias(op)], _result(op), name, transB=1)
        shape: tuple[int, ...] = (1, len(weights))
    else:
        value = w.reshape(value, x.shape, (1, rows, weights.shape[1]), f"{y.name}/flat", f"{name}/rows")
        matrix = w.dequantized(op.inputs[1], weights.T, axis=1)
        bias = w.bias(op)
        value = w.node("MatMul", [value, matrix], f"{y.name}/product" if bias else _result(op), name)
        value = w.node("Add", [value, *bias], _result(op), f"{name}/bias") if bias else value
        shape = (1, rows, len(weights))
    if y.shape != shape:
        value = w.reshape(value, shape, y.shape, f"{y.name}/shaped", f"{name}/reshape")
    w.finish(op, value)


def _binary(w: _Writer, op: Op) -> None:
    rank = len(w.graph.tensor(op.outputs[0]).shape)
    values = []
    for position, name in enumerate(op.inputs):
        tensor = w.graph.tensor(name)
        raised = (1,) * (rank - len(tensor.shape)) + tensor.shape
        if tensor.data is not None:
            data = tensor.data.reshape(raised)
            values.append(w.dequantized(name, data.transpose(_TO_IR) if rank == 4 else data))
        elif raised == tensor.shape:
            values.append(f"{name}/dq")
        else:
            label = f"{op.outputs[0]}/raised{position}"
            values.append(w.reshape(f"{name}/dq", tensor.shape, raised, label, label))
    w.finish(op, w.node(_BINARY[op.kind], values, _result(op), _label(op)))


def _pool(w: _Writer, op: Op) -> None:
    top, bottom, left, right = op.attrs["padding"]
    value = w.node(
        "AveragePool" if op.kind == "average_pool_2d" else "MaxPool",
        [f"{op.inputs[0]}/dq"],
        _result(op),
        _label(op),
        kernel_shape=list(op.attrs["kernel"]),
        strides=list(op.attrs["stride"]),
        pads=[top, left, bottom, right],
    )
    w.finish(op, value)


def _mean(w: _Writer, op: Op) -> None:
    x, y, axes = w.graph.tensor(op.inputs[0]), w.graph.tensor(op.outputs[0]), op.attrs["axes"]
    name = _label(op)
    places = sorted(_axis(axis, len(x.shape)) for axis in axes)
    over = w.ints("const/" + "_".join(map(str, places)), places)
    # The dimensions that are left lie in one order in both if all of the map's or none of them are gone.
    keeps = op.attrs["keep_dims"] or (len(x.shape) == 4 and axes != (1, 2))
    value = w.node("ReduceMean", [f"{x.name}/dq", over], _result(op), name, keepdims=int(keeps))
    if keeps and not op.attrs["keep_dims"]:
        kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.shape))
        value = w.reshape(value, kept, y.shape, f"{y.name}/squeezed", f"{name}/squeeze")
    w.finish(op, value)


def _pad(w: _Writer, op: Op) -> None:
    y = w.graph.tensor(op.outputs[0])
    order = _TO_IR if len(y.shape) == 4 else range(len(y.shape))
    pairs = [op.attrs["paddings"][axis] for axis in order]
    pads = w.ints(f"{y.name}/pads", [before for before, _ in pairs] + [after for _, after in pairs])
    inputs = [f"{op.inputs[0]}/dq", pads]
    if op.attrs["value"] is not None:
        assert y.quant is not None
        fill = np.float32((op.attrs["value"] - y.quant.zero_point) * y.quant.scale)
        inputs.append(w.constant(f"{y.name}/fill", np.array(fill)))
    w.finish(op, w.node("Pad", inputs, _result(op), _label(op)))


def _reshape(w: _Writer, op: Op) -> None:
    x, y = w.graph.tensor(op.inputs[0]), w.graph.tensor(op.outputs[0])
    w.finish(op, w.reshape(f"{x.name}/dq", x.shape, y.shape, _result(op), _label(op)))


def _transpose(w: _Writer, op: Op) -> None:
    perm = op.attrs["perm"]
    if len(perm) == 4:
        perm = [_TO_ONNX[perm[axis]] for axis in _TO_IR]
    w.finish(op, w.node("Transpose", [f"{op.inputs[0]}/dq"], _result(op), _label(op), perm=list(perm)))


def _concatenation(w: _Writer, op: Op) -> None:
    rank = len(w.graph.tensor(op.outputs[0]).shape)
    values = []
    for name in op.inputs:
        data = w.graph.tensor(name).data
        if data is None:
            values.append(f"{name}/dq")
        else:
            values.append(w.dequantized(name, data.transpose(_TO_IR) if rank == 4 else data))
    w.finish(op, w.node("Concat", values, _result(op), _label(op), axis=_axis(op.attrs["axis"], rank)))


def _split(w: _Writer, op: Op) -> None:
    shapes = [w.graph.tensor(name).shape for name in op.outputs]
    axis = op.attrs["axis"]
    sizes = w.ints(f"{op.outputs[0]}/sizes", [shape[axis] for shape in shapes])
    parts = [f"{name}/float" for name in op.outputs]
    place = _axis(axis, len(shapes[0]))
    w.nodes.append(helper.make_node("Split", [f"{op.inputs[0]}/dq", sizes], parts, name=_label(op), axis=place))
    for number, part in enumerate(parts):
        w.finish(op, part, number)


def _strided_slice(w: _Writer, op: Op) -> None:
    x, y = w.graph.tensor(op.inputs[0]), w.graph.tensor(op.outputs[0])
    name, rank = _label(op), len(x.shape)
    ends = [_BEFORE_THE_FIRST if end < 0 else end for end in op.attrs["end"]]
    bounds = {
        "begin": op.attrs["begin"],
        "end": ends,
        "axes": [_axis(axis, rank) for axis in range(rank)],
        "strides": op.attrs["strides"],
    }
    inputs = [f"{x.name}/dq", *(w.ints(f"{y.name}/{key}", values) for key, values in bounds.items())]
    value = w.node("Slice", inputs, _result(op), name)
    if op.attrs["shrink_axes"]:
        cuts = zip(*(op.attrs[key] for key in ("begin", "end", "strides")), strict=True)
        cut = tuple(len(range(*each)) for each in cuts)
        value = w.reshape(value, cut, y.shape, f"{y.name}/shrunk", f"{name}/shrink")
    w.finish(op, value)


def _resize(w: _Writer, op: Op) -> None:
    y = w.graph.tensor(op.outputs[0])
    if op.attrs["align_corners"] and op.attrs["half_pixel_centers"]:
        raise UnsupportedModelError(
            f"{op.source}: a resize with aligned corners and half-pixel centres at once has no QDQ ONNX form",
            "Keep the `.tflite`, which has all of the model.",
        )
    modes = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    if op.attrs["align_corners"]:
        modes = {"nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "align_corners"}
    elif op.attrs["half_pixel_centers"]:
        modes = {"nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "half_pixel"}
    inputs = [f"{op.inputs[0]}/dq", "", "", w.ints(f"{y.name}/size", _nchw(y.shape))]
    w.finish(op, w.node("Resize", inputs, _result(op), _label(op), mode="nearest", **modes))


def _softmax(w: _Writer, op: Op) -> None:
    x, value = w.graph.tensor(op.inputs[0]), f"{op.inputs[0]}/dq"
    if op.attrs["beta"] != 1.0:
        beta = w.constant(f"{op.outputs[0]}/beta", np.array(op.attrs["beta"], np.float32))
        value = w.node("Mul", [value, beta], f"{op.outputs[0]}/scaled", f"{_label(op)}/beta")
    w.finish(op, w.node("Softmax", [value], _result(op), _label(op), axis=_axis(len(x.shape) - 1, len(x.shape))))


def _unary(w: _Writer, op: Op) -> None:
    value, name = f"{op.inputs[0]}/dq", _label(op)
    if op.kind == "relu6":
        value = w.clip(value, _result(op), name, "relu6")
    elif op.kind == "leaky_relu":
        value = w.node("LeakyRelu", [value], _result(op), name, alpha=float(op.attrs["alpha"]))
    else:
        value = w.node(_UNARY[op.kind], [value], _result(op), name)
    w.finish(op, value)


def _quantize(w: _Writer, op: Op) -> None:
    w.finish(op, f"{op.inputs[0]}/dq")


def _dequantize(w: _Writer, op: Op) -> None:
    w.node("Identity", [f"{op.inputs[0]}/dq"], f"{op.outputs[0]}/dq", _label(op))


def _arg_max(w: _Writer, op: Op) -> None:
    shape, axis = w.graph.tensor(op.inputs[0]).shape, op.attrs["axis"]
    value, name = f"{op.inputs[0]}/dq", _label(op)
    # Without its channels a map lies in one order in both.
    if len(shape) == 4 and axis == 3:
        axis = 1
    else:
        value = w.in_ir_order(value, shape, op.outputs[0])
    index = w.node("ArgMax", [value], f"{op.outputs[0]}/index", name, axis=axis, keepdims=0)
    w.node("Cast", [index], f"{op.outputs[0]}/dq", f"{name}/cast", to=TensorProto.INT32)


def _data(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _result(op: Op) -> str:
    return f"{op.outputs[0]}/float"


def _label(op: Op) -> str:
    return op.source or op.outputs[0]


def _axis(axis: int, rank: int) -> int:
    """Return where ONNX has a dimension of the IR."""
    return _TO_ONNX[axis] if rank == 4 else axis


def _nchw(shape: tuple[int, ...] | Sequence[int]) -> list[int]:
    return [shape[axis] for axis in _TO_IR] if len(shape) == 4 else list(shape)


_WRITERS: Mapping[str, Callable[[_Writer, Op], None]] = MappingProxyType(
    {
        "conv_2d": _conv,
        "depthwise_conv_2d": _conv,
        "transpose_conv": _transpose_conv,
        "fully_connected": _fully_connected,
        **dict.fromkeys(_BINARY, _binary),
        **dict.fromkeys(_UNARY, _unary),
        "relu6": _unary,
        "leaky_relu": _unary,
        "average_pool_2d": _pool,
        "max_pool_2d": _pool,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "transpose": _transpose,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "resize_nearest_neighbor": _resize,
        "softmax": _softmax,
        "quantize": _quantize,
        "dequantize": _dequantize,
        "arg_max": _arg_max,
    }
)
