"""Writes an int8 graph as a QDQ ONNX model: NCHW, with the very scales, zero points and integers of the `.tflite`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tinykd
from tinykd.errors import InternalError
from tinykd.ir import Graph, Op, Quant, Tensor

OPSET = 19


def write_qdq(graph: Graph) -> bytes:
    """Return the QDQ ONNX model of a verified int8 graph.

    Every activation passes QuantizeLinear and DequantizeLinear with its int8 parameters; weights and biases are stored
    as the integers of the graph. Input and output are float32. Runtimes that fuse Q/DQ pairs compute in int8; others
    give the fake-quantised float result.

    Raises:
        InternalError: an op that has no ONNX form here.
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
        source, sink = graph.tensor(graph.inputs[0]), graph.tensor(graph.outputs[0])
        self._quantize(source.name, f"{source.name}/float", source)
        for op in graph.ops:
            self._op(op)
        inputs = [helper.make_tensor_value_info(f"{source.name}/float", TensorProto.FLOAT, _nchw(source.shape))]
        outputs = [helper.make_tensor_value_info(f"{sink.name}/dq", TensorProto.FLOAT, _nchw(sink.shape))]
        proto = helper.make_graph(self.nodes, graph.name, inputs, outputs, self.initializers)
        return helper.make_model(
            proto,
            producer_name="tinykd",
            producer_version=tinykd.__version__,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,
        )

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.names:
            self.names.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, name: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attrs))
        return output

    def _parameters(self, name: str, quant: Quant, dtype: type) -> tuple[str, str]:
        scale: np.ndarray = np.array(quant.scales, np.float32)
        zero: np.ndarray = np.array(quant.zero_points, dtype)
        if quant.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return self._constant(f"{name}/scale", scale), self._constant(f"{name}/zero_point", zero)

    def _quantize(self, name: str, value: str, tensor: Tensor) -> None:
        assert tensor.quant is not None
        scale, zero = self._parameters(name, tensor.quant, np.int8)
        self._node("QuantizeLinear", [value, scale, zero], f"{name}/q", f"{name}/quantize")
        self._node("DequantizeLinear", [f"{name}/q", scale, zero], f"{name}/dq", f"{name}/dequantize")

    def _weights(self, name: str, value: np.ndarray, axis: int) -> str:
        """Store an integer constant with its quantised axis (if any) at `axis`, and return its dequantised value."""
        quant = self.graph.tensor(name).quant
        assert quant is not None
        scale, zero = self._parameters(name, quant, value.dtype.type)
        attrs = {} if quant.axis is None else {"axis": axis}
        inputs = [self._constant(f"{name}/q", value), scale, zero]
        return self._node("DequantizeLinear", inputs, f"{name}/dq", f"{name}/dequantize", **attrs)

    def _op(self, op: Op) -> None:
        graph = self.graph
        y = graph.tensor(op.outputs[0])
        x = graph.tensor(op.inputs[0])
        value = f"{x.name}/dq"
        name = op.source or y.name
        result = f"{y.name}/float"
        if op.kind in ("conv_2d", "depthwise_conv_2d"):
            top, bottom, left, right = op.attrs["padding"]
            weights = _data(graph, op.inputs[1])
            order = (0, 3, 1, 2) if op.kind == "conv_2d" else (3, 0, 1, 2)
            inputs = [value, self._weights(op.inputs[1], weights.transpose(order), 0), *self._bias(op)]
            self._node(
                "Conv",
                inputs,
                result,
                name,
                strides=list(op.attrs["stride"]),
                dilations=list(op.attrs["dilation"]),
                pads=[top, left, bottom, right],
                group=1 if op.kind == "conv_2d" else x.shape[3],
            )
        elif op.kind == "fully_connected":
            if len(x.shape) != 2:
                value = self._flatten(value, x, (1, x.num_elements), f"{name}/flatten")
            matrix = self._weights(op.inputs[1], _data(graph, op.inputs[1]), 0)
            self._node("Gemm", [value, matrix, *self._bias(op)], result, name, transB=1)
        elif op.kind == "add":
            self._node("Add", [value, f"{op.inputs[1]}/dq"], result, name)
        elif op.kind in ("average_pool_2d", "max_pool_2d"):
            top, bottom, left, right = op.attrs["padding"]
            self._node(
                "AveragePool" if op.kind == "average_pool_2d" else "MaxPool",
                [value],
                result,
                name,
                kernel_shape=list(op.attrs["kernel"]),
                strides=list(op.attrs["stride"]),
                pads=[top, left, bottom, right],
            )
        elif op.kind == "mean":
            axes = self._constant("const/height_and_width", np.array([2, 3], np.int64))
            self._node("ReduceMean", [value, axes], result, name, keepdims=int(op.attrs["keep_dims"]))
        elif op.kind == "pad":
            (top, bottom), (left, right) = op.attrs["paddings"][1:3]
            pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
            self._node("Pad", [value, self._constant(f"{y.name}/pads", pads)], result, name)
        elif op.kind == "reshape":
            self._flatten(value, x, y.shape, name, result)
        elif op.kind == "softmax":
            self._node("Softmax", [value], result, name, axis=-1)
        else:
            raise InternalError(f"op '{op.source}' ({op.kind}) has no QDQ ONNX form")
        self._quantize(y.name, self._activate(result, op, y), y)

    def _bias(self, op: Op) -> list[str]:
        if len(op.inputs) < 3 or not op.inputs[2]:
            return []
        return [self._weights(op.inputs[2], _data(self.graph, op.inputs[2]), 0)]

    def _activate(self, value: str, op: Op, y: Tensor) -> str:
        activation = op.attrs.get("activation", "none")
        if activation == "none":
            return value
        if activation == "relu":
            return self._node("Relu", [value], f"{y.name}/relu", f"{op.source}/relu")
        bounds = [self._constant(f"const/{bound}", np.array(bound, np.float32)) for bound in (0, 6)]
        return self._node("Clip", [value, *bounds], f"{y.name}/relu6", f"{op.source}/relu6")

    def _flatten(self, value: str, x: Tensor, shape: tuple[int, ...], name: str, output: str = "") -> str:
        if len(x.shape) == 4 and x.shape[1] * x.shape[2] > 1:
            value = self._node("Transpose", [value], f"{name}/nhwc", f"{name}/transpose", perm=[0, 2, 3, 1])
        target = self._constant(f"{name}/shape", np.array(_nchw(shape), np.int64))
        return self._node("Reshape", [value, target], output or f"{name}/flat", name)


def _data(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _nchw(shape: tuple[int, ...]) -> list[int]:
    return [shape[0], shape[3], shape[1], shape[2]] if len(shape) == 4 else list(shape)
