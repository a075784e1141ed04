"""Reads an ONNX model with QuantizeLinear and DequantizeLinear pairs as an int8 graph, its integers and scales kept.

The nodes are read as those of a float model; each QuantizeLinear becomes a quantize op, each DequantizeLinear a
dequantize op. `_Lowering` then gives every op the integers on both of its sides: what is read through a pair is read as
int8, and what a pair follows is written as int8. Constants keep the integers of the file. uint8 becomes int8 with a
zero point that is 128 lower: the same real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from tinykd.errors import UnsupportedModelError
from tinykd.formats.onnx.elementwise import HARD_SIGMOID_RAMP
from tinykd.formats.onnx.reader import Node, Reader
from tinykd.ir import Graph, Op, Quant, Tensor, verify
from tinykd.ir.affine import FIXED_OUTPUTS, OUTPUT_CHANNEL_AXIS, QUANT_KEEPERS, QUANT_SHARERS, activation_quant
from tinykd.ir.requant import QMAX, QMIN

_KEEPS_SCALES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_RECENTRED = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128, np.dtype(np.int32): 0}
_EDGES = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
_OUR_SUFFIXES = ("/q", "/dq")
# Rounding can be moved in front of these: they choose or move values, and rounding keeps their order.
_MOVES = tuple(kind for kind in QUANT_KEEPERS if kind not in ("average_pool_2d", "relu6"))
_WAY_OUT = "Quantise its output as well (a QuantizeLinear and DequantizeLinear pair), or export the float model."


@dataclass(frozen=True)
class _Scales:
    """Parameters of a constant: float32 scales, integer zero points of int8, one each or one for each channel."""

    scales: np.ndarray
    zero_points: np.ndarray
    dtype: np.dtype


class QdqReader(Reader):
    """A `Reader` for quantised models.

    Attributes:
        scales: parameters of the ONNX constants that a DequantizeLinear gave.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        super().__init__(model, name)
        self.scales: dict[str, _Scales] = {}

    def graph(self) -> Graph:
        """Return the verified int8 graph; its edges are int8 as well.

        Raises:
            InvalidModelError, UnsupportedModelError: see `tinykd.formats.onnx.reader.read_quantised`.
        """
        inputs, outputs = self.walk()
        mixed = Graph(self.name, self.tensors, tuple(self.ops), inputs, outputs)
        graph = _Lowering(self, mixed).graph()
        return verify(_with_our_names(graph, self.origins) if self.is_ours else graph)

    def edge_type(self, item: onnx.ValueInfoProto) -> str:
        """Integer inputs are allowed; their parameters are those of the DequantizeLinear that reads them."""
        return "int8" if item.type.tensor_type.elem_type in _EDGES else super().edge_type(item)

    def handle(self, node: Node) -> None:
        """Give the outputs of a node their values."""
        if node.proto.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.proto.op_type == "DequantizeLinear":
            self._dequantise(node)
        else:
            super().handle(node)

    def fold(self, node: Node) -> None:
        """Compute a constant node, and remember the scales of dequantised ones."""
        if node.proto.op_type != "DequantizeLinear":
            super().fold(node)
            if node.proto.op_type in _KEEPS_SCALES and node.proto.input[0] in self.scales:
                self.scales[node.proto.output[0]] = self.scales[node.proto.input[0]]
            return
        values = node.constant(0)
        scales, zeros, dtype = self._parameters(node, values.dtype)
        shape = [1] * values.ndim
        if scales.ndim and scales.size > 1:
            shape[node.axis(node.attrs.get("axis", 1), values.ndim)] = scales.size
        real = (values.astype(np.float64) - zeros.reshape(shape)) * scales.astype(np.float64).reshape(shape)
        self.constants[node.proto.output[0]] = real
        self.scales[node.proto.output[0]] = _Scales(scales.reshape(-1), zeros.reshape(-1) - _RECENTRED[dtype], dtype)

    def _parameters(self, node: Node, dtype: np.dtype | None) -> tuple[np.ndarray, np.ndarray, np.dtype]:
        scales = node.constant(1)
        if node.attrs.get("block_size", 0):
            raise node.refusal("blocked quantisation is not supported", "Quantise per tensor or per channel.")
        zeros = node.constant(2) if node.has(2) else np.zeros(scales.shape, dtype or np.uint8)
        if zeros.dtype not in _RECENTRED:
            raise node.refusal(f"quantises to {zeros.dtype}; only int8 and uint8 are supported", "Quantise to int8.")
        if scales.size != zeros.size or scales.ndim > 1:
            raise node.refusal(f"has {scales.size} scales and {zeros.size} zero points")
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise node.refusal("has a scale that is not positive and finite")
        return scales.astype(np.float32), zeros.reshape(scales.shape).astype(np.int64), zeros.dtype

    def _activation_quant(self, node: Node) -> Quant:
        scales, zeros, dtype = self._parameters(node, None)
        if scales.size != 1 or dtype == np.int32:
            raise node.refusal("activations have one scale, and are int8 or uint8", "Quantise activations per tensor.")
        return Quant.per_tensor(float(scales.reshape(())), int(zeros.reshape(())) - _RECENTRED[dtype])

    def _quantise(self, node: Node) -> None:
        value, quant = node.value(), self._activation_quant(node)
        shape = self.tensors[value.name].shape
        name = node.op("quantize", (value.name,), node.proto.output[0], shape, "int8")
        self.tensors[name] = replace(self.tensors[name], quant=quant)
        node.pass_on(replace(value, name=name))

    def _dequantise(self, node: Node) -> None:
        value = node.value()
        tensor, quant = self.tensors[value.name], self._activation_quant(node)
        if tensor.dtype != "int8" or tensor.quant not in (None, quant):
            raise node.refusal("reads integers of other parameters than its own", "Quantise and dequantise in pairs.")
        self.tensors[tensor.name] = replace(tensor, quant=quant)
        name = node.op("dequantize", (value.name,), node.proto.output[0], tensor.shape, "float32")
        node.pass_on(replace(value, name=name))


class _Lowering:
    """Turns a graph of float ops between quantize and dequantize ops into an int8 graph."""

    def __init__(self, reader: QdqReader, mixed: Graph) -> None:
        self.reader, self.mixed = reader, mixed
        self.tensors = dict(mixed.tensors)
        self.ops: list[Op] = []
        # Float tensors that are known as int8 ones, and int8 tensors that turned out to be others.
        self.known: dict[str, str] = {}
        self.alias: dict[str, str] = {}
        self.absorbed: set[int] = set()
        self.consumers = mixed.consumers()

    def graph(self) -> Graph:
        inputs = []
        for name in self.mixed.inputs:
            inputs.append(self._edge(name))
        for index, op in enumerate(self.mixed.ops):
            if index in self.absorbed:
                continue
            if op.kind == "dequantize":
                self.known[op.outputs[0]] = self._resolve(op.inputs[0])
            elif op.kind == "quantize":
                self._quantise(index, op)
            else:
                self._lower(index, op)
        outputs = []
        for name in self.mixed.outputs:
            if self.tensors[name].dtype == "float32" and name not in self.known:
                raise UnsupportedModelError(f"'{self.mixed.name}': the output '{name}' is left in float", _WAY_OUT)
            outputs.append(self.known.get(name, self._resolve(name)))
        graph = Graph(self.mixed.name, self.tensors, tuple(self.ops), tuple(inputs), tuple(outputs))
        return graph.with_ops(graph.ops)

    def _resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _edge(self, name: str) -> str:
        """Return the int8 tensor that an input of the graph becomes."""
        if self.tensors[name].dtype == "int8":
            return name
        quant = self._wanted(name)
        if quant is None:
            raise UnsupportedModelError(
                f"'{self.mixed.name}': the input '{name}' is not quantised in one way before it is used",
                "Put one QuantizeLinear and DequantizeLinear pair behind it.",
            )
        self.known[name] = self._written(name, quant)
        return self.known[name]

    def _wanted(self, name: str) -> Quant | None:
        """Return the parameters that all readers of a float tensor quantise it with, moved in front of moves."""
        found: set[Quant | None] = {None} if name in self.mixed.outputs else set()
        for index in self.consumers.get(name, ()):
            op = self.mixed.ops[index]
            if op.kind == "quantize":
                found.add(self.tensors[op.outputs[0]].quant)
            elif op.kind in _MOVES:
                found.update(self._wanted(output) for output in op.outputs)
            else:
                found.add(None)
        return found.pop() if len(found) == 1 else None

    def _written(self, name: str, quant: Quant) -> str:
        """Return the int8 tensor that stands for the float tensor `name`: its QuantizeLinear's, or one of its name."""
        readers = (self.mixed.ops[index] for index in self.consumers.get(name, ()))
        outputs = (op.outputs[0] for op in readers if op.kind == "quantize")
        written = next(outputs, name)
        self.tensors[written] = replace(self.tensors[written], dtype="int8", quant=quant)
        return written

    def _quantise(self, index: int, op: Op) -> None:
        source, y = op.inputs[0], op.outputs[0]
        known = self.known.get(source)
        if known is None:
            raise self._left(index, op)
        if known == y:
            return
        if self.tensors[known].quant == self.tensors[y].quant:
            self.alias[y] = known
        else:
            self.ops.append(replace(op, inputs=(known,)))

    def _left(self, index: int, op: Op) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"'{self.mixed.name}': op {index} ({op.kind}, {op.source}) is left in float", _WAY_OUT
        )

    def _lower(self, index: int, op: Op) -> None:
        if op.kind == "batch_norm":
            raise UnsupportedModelError(
                f"'{self.mixed.name}': op {index} (batch_norm, {op.source}) is left in float",
                "Fold batch normalisation into the convolution before quantising.",
            )
        op = self._with_activation(self._with_bias(op))
        inputs = list(op.inputs)
        for position, name in enumerate(inputs):
            tensor = self.mixed.tensor(name)
            if tensor.is_constant:
                continue
            if tensor.dtype == "float32" and name not in self.known:
                raise self._left(index, op)
            inputs[position] = self.known.get(name, self._resolve(name))
        op = replace(op, inputs=tuple(inputs))
        if op.kind == "arg_max" or self.tensors[op.outputs[0]].dtype != "float32":
            self.ops.append(op)
            return
        x = self.tensors[op.inputs[0]].quant
        own = x if op.kind in QUANT_KEEPERS else FIXED_OUTPUTS.get(op.kind)
        if op.outputs[0].endswith(HARD_SIGMOID_RAMP):
            # One node of the file is several ops: between them the range is known.
            own = activation_quant(0.0, 6.0)
        written, requantised = [], []
        for name in op.outputs:
            wanted = self._wanted(name)
            if wanted is None and (own is None or self._is_quantised(name)):
                raise self._left(index, op)
            quant = own or wanted
            assert quant is not None
            if wanted is None or wanted == quant:
                self.known[name] = self._written(name, quant)
                written.append(self.known[name])
                continue
            between = f"{name}/as {op.kind}"
            self.tensors[between] = Tensor(between, self.tensors[name].shape, "int8", quant)
            self.known[name] = self._written(name, wanted)
            written.append(between)
            requantised.append(Op("quantize", (between,), (self.known[name],), {}, f"{op.source} (quantize)"))
        self.ops.append(self._with_constants(replace(op, outputs=tuple(written))))
        self.ops += requantised

    def _is_quantised(self, name: str) -> bool:
        """Whether some readers of a float tensor quantise it, and others do not."""
        readers = [self.mixed.ops[index].kind for index in self.consumers.get(name, ())]
        return "quantize" in readers

    def _with_bias(self, op: Op) -> Op:
        """Return a layer without a bias with the constant that alone is added to its output, and leave the sum out."""
        if op.kind not in OUTPUT_CHANNEL_AXIS or op.inputs[2] in self.reader.origins:
            return op
        index = self._sole_reader(op.outputs[0])
        if index is None or self.mixed.ops[index].kind != "add":
            return op
        add = self.mixed.ops[index]
        bias = next(name for name in add.inputs if name != op.outputs[0])
        tensor = self.mixed.tensor(bias)
        channels = self.mixed.tensor(op.outputs[0]).shape[-1]
        if not tensor.is_constant or tensor.shape not in ((1,), (channels,)):
            return op
        self.absorbed.add(index)
        self.reader.exact[bias] = np.broadcast_to(self.reader.exact[bias], (channels,))
        return replace(op, inputs=(*op.inputs[:2], bias), outputs=add.outputs, attrs={**op.attrs, **add.attrs})

    def _with_activation(self, op: Op) -> Op:
        """Return an op with the activation that alone reads its output, and leave that one out."""
        while op.attrs.get("activation") == "none":
            found = self._activation_behind(op.outputs[0])
            if found is None:
                break
            activation, absorbed = found
            self.absorbed.update(absorbed)
            op = replace(
                op,
                outputs=self.mixed.ops[absorbed[-1]].outputs,
                attrs={**op.attrs, "activation": activation},
            )
        return op

    def _activation_behind(self, name: str) -> tuple[str, list[int]] | None:
        """Return the activation that alone reads a tensor, and the ops that it is made of."""
        index = self._sole_reader(name)
        if index is None:
            return None
        op = self.mixed.ops[index]
        if op.kind in ("relu", "relu6"):
            return op.kind, [index]
        upper = self._sole_reader(op.outputs[0]) if self._bound(op, "maximum") == -1.0 else None
        if upper is not None and self._bound(self.mixed.ops[upper], "minimum") == 1.0:
            return "relu_n1_to_1", [index, upper]
        return None

    def _sole_reader(self, name: str) -> int | None:
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.mixed.outputs else None

    def _bound(self, op: Op, kind: str) -> float | None:
        data = self.mixed.tensor(op.inputs[1]).data if op.kind == kind else None
        return float(data.reshape(())) if data is not None and data.size == 1 else None

    def _with_constants(self, op: Op) -> Op:
        """Return an int8 op whose constants are integers, its activations on the grids that it needs."""
        quant = self.tensors[op.outputs[0]].quant
        assert quant is not None
        if op.kind in OUTPUT_CHANNEL_AXIS:
            self._weights(op)
            return op
        inputs, attrs = list(op.inputs), dict(op.attrs)
        for position, name in enumerate(inputs):
            tensor = self.tensors[name]
            if tensor.is_constant and tensor.dtype == "float32":
                inputs[position] = self._operand(op, name, quant if op.kind in QUANT_SHARERS else None)
            elif op.kind in QUANT_SHARERS and tensor.quant != quant:
                inputs[position] = f"{op.outputs[0]}/requantised{position}"
                self.tensors[inputs[position]] = Tensor(inputs[position], tensor.shape, "int8", quant)
                self.ops.append(Op("quantize", (name,), (inputs[position],), {}, f"{op.source} (quantize)"))
        if op.kind == "pad" and attrs["value"] is not None:
            value = int(np.clip(np.rint(attrs["value"] / quant.scale) + quant.zero_point, QMIN, QMAX))
            attrs["value"] = None if value == quant.zero_point else value
        return replace(op, inputs=tuple(inputs), attrs=attrs)

    def _scales(self, name: str) -> tuple[_Scales | None, slice]:
        origin, channels = self.reader.origins.get(name, ("", slice(None)))
        return self.reader.scales.get(origin), channels

    def _operand(self, op: Op, name: str, shared: Quant | None) -> str:
        """Make a constant operand an integer one, on the grid `shared` or on its own, and return its name."""
        scales, _ = self._scales(name)
        exact = self.reader.exact[name]
        if scales is not None and scales.scales.size == 1 and scales.dtype != np.int32:
            own = Quant.per_tensor(float(scales.scales[0]), int(scales.zero_points[0]))
        elif scales is None and exact.size == 1:
            # A single number is its own scale, exactly.
            own = activation_quant(float(exact.min()), float(exact.max()))
        else:
            raise UnsupportedModelError(
                f"'{self.mixed.name}': op '{op.source}' ({op.kind}) has a float constant of {exact.size} values",
                "Quantise the constant per tensor as well.",
            )
        quant = own if shared is None else shared
        integers = np.rint(exact / quant.scale) + quant.zero_point
        if shared is None and (integers.min() < QMIN or integers.max() > QMAX):
            raise UnsupportedModelError(f"'{self.mixed.name}': op '{op.source}' has a constant beyond int8")
        data = np.clip(integers, QMIN, QMAX).astype(np.int8)
        self.tensors[name] = Tensor(name, data.shape, "int8", quant, data)
        return name

    def _weights(self, op: Op) -> None:
        where = f"'{self.mixed.name}': op '{op.source}' ({op.kind})"
        name = op.inputs[1]
        scales, channels = self._scales(name)
        if scales is None or scales.dtype == np.int32:
            raise UnsupportedModelError(f"{where} has float weights", "Quantise the weights to int8.")
        if scales.zero_points.any():
            raise UnsupportedModelError(
                f"{where} has weights with zero points other than 0", "Quantise weights symmetrically, to int8."
            )
        exact = self.reader.exact[name]
        axis = OUTPUT_CHANNEL_AXIS[op.kind] or 0
        steps = scales.scales if scales.scales.size == 1 else scales.scales[channels]
        if steps.size not in (1, exact.shape[axis]):
            raise UnsupportedModelError(f"{where} has {steps.size} scales for {exact.shape[axis]} output channels")
        integers = _integers(exact, steps, axis)
        if integers is None or np.abs(integers).max(initial=0) > 128 or integers.max(initial=0) > QMAX:
            raise UnsupportedModelError(
                f"{where} has weights that are no int8 multiples of their scales",
                "Give weights a scale for each output channel, or one.",
            )
        quant = _quant(steps, axis)
        self.tensors[name] = Tensor(name, exact.shape, "int8", quant, integers.astype(np.int8))
        self._bias(op, op.inputs[2], steps)

    def _bias(self, op: Op, name: str, weight_scales: np.ndarray) -> None:
        x = self.tensors[op.inputs[0]].quant
        assert x is not None
        products = np.float32(x.scale) * weight_scales.astype(np.float64)
        exact = self.reader.exact[name]
        scales, channels = self._scales(name)
        steps = products.astype(np.float32)
        if scales is not None:
            own = scales.scales if scales.scales.size == 1 else scales.scales[channels]
            # Integers in the file mean what TFLite's do when their scale is the product of the other two.
            if own.size == products.size and np.allclose(own, products, rtol=1e-6, atol=0):
                integers = _integers(exact, own, 0)
                if integers is not None:
                    self._define_bias(op, name, integers, own)
                    return
        self._define_bias(op, name, np.rint(exact / products), steps)

    def _define_bias(self, op: Op, name: str, integers: np.ndarray, steps: np.ndarray) -> None:
        if np.abs(integers).max(initial=0) >= 1 << 31:
            raise UnsupportedModelError(f"'{self.mixed.name}': op '{op.source}' has a bias beyond int32")
        self.tensors[name] = Tensor(name, integers.shape, "int32", _quant(steps, 0), integers.astype(np.int32))


def _integers(exact: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the integers that the real numbers `exact` are, in steps along `axis`, or None if they are none."""
    shape: list[Any] = [1] * exact.ndim
    if steps.size > 1:
        shape[axis] = steps.size
    multiples = exact / steps.astype(np.float64).reshape(shape)
    integers = np.rint(multiples)
    return integers if np.abs(multiples - integers).max(initial=0) < 1e-3 else None


def _quant(steps: np.ndarray, axis: int) -> Quant:
    values = tuple(float(step) for step in steps)
    return Quant(values, (0,) * len(values), axis if len(values) > 1 else None)


def _with_our_names(graph: Graph, origins: Mapping[str, tuple[str, slice]]) -> Graph:
    """Return a graph that `onnx_writer.write_qdq` wrote, its tensors under the names they had before."""
    names: dict[str, str] = {}
    for name in graph.tensors:
        before = origins[name][0] if name in origins else name
        plain = next((before[: -len(end)] for end in _OUR_SUFFIXES if before.endswith(end)), name)
        names[name] = name if plain in graph.tensors or plain in names.values() else plain
    ops = [
        replace(op, inputs=tuple(names[x] for x in op.inputs), outputs=tuple(names[y] for y in op.outputs))
        for op in graph.ops
    ]
    tensors = {names[name]: replace(tensor, name=names[name]) for name, tensor in graph.tensors.items()}
    edges = (tuple(names[name] for name in edge) for edge in (graph.inputs, graph.outputs))
    return Graph(graph.name, tensors, tuple(ops), *edges)
