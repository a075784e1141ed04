"""Reads a float ONNX model into the IR: NCHW becomes NHWC, constant expressions are evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.formats.guard import broken_file
from tinykd.formats.onnx.layout import Value, channels_last, reshaped, runs, value_of
from tinykd.ir import Graph, Op, Quant, Tensor, verify
from tinykd.ir.dead_ops import remove_dead_ops

OPSETS = (13, 24)
"""The oldest and the newest opset whose nodes are known to mean what is read here."""

# What one constant may take when it is computed, bytes: a model's own are in the file.
_FOLD_LIMIT = 1 << 28
# What a handler runs into when a file contradicts itself.
_CONTRADICTIONS = (ArithmeticError, AttributeError, IndexError, LookupError, TypeError, ValueError)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_CHANNELS_FIRST = ("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad")


def read(source: Path | bytes, name: str = "") -> Graph:
    """Read a float ONNX model (opset 13 or newer), batch size 1 or free.

    Maps are (1, C, H, W) in the file and (1, H, W, C) in the graph, edges included; an output that the model itself
    turned to (1, H, W, C) stays so. Everything else keeps its order.

    Args:
        source: a file, or the bytes of one.
        name: the graph's name; "" takes the file's.

    Returns:
        a float graph; tensor names are those of the ONNX file.

    Raises:
        InvalidModelError: not an ONNX model.
        UnsupportedModelError: a node that a student cannot have; it is named.
    """
    with broken_file(title(source, name)):
        return Reader(load(source), title(source, name)).graph()


def load(source: Path | bytes) -> onnx.ModelProto:
    """Return the checked model with its own functions unfolded.

    Raises:
        InvalidModelError: not an ONNX model.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # onnx and protobuf raise types of their own, several of them private.
        label = "the ONNX model" if isinstance(source, bytes) else str(source)
        raise InvalidModelError(f"{label} cannot be read: {error}") from error


def title(source: Path | bytes, name: str) -> str:
    """Return the graph's name: the given one, or the file's."""
    return name or ("model" if isinstance(source, bytes) else Path(source).stem)


def read_quantised(source: Path | bytes, name: str = "") -> Graph:
    """Read an ONNX model with QuantizeLinear and DequantizeLinear pairs as an int8 graph (`tinykd.formats.onnx.qdq`).

    Raises:
        InvalidModelError: not an ONNX model.
        UnsupportedModelError: a node that is not supported, or that is left in float; it is named.
    """
    from tinykd.formats.onnx.qdq import QdqReader

    with broken_file(title(source, name)):
        return QdqReader(load(source), title(source, name)).graph()


class Reader:
    """Walks the nodes in order; each handler gives the node's outputs a `Value` or a constant.

    Attributes:
        constants: arrays by ONNX name: initialisers, and what was computed from them.
        values: activations by ONNX name.
        origins: for a constant of the IR, the ONNX constant that it was made from and the output channels that it took.
        exact: constants of the IR before their rounding to float32.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.name = name
        self.model = model
        self.opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise UnsupportedModelError(
                f"'{name}' has opset {self.opset}; {OPSETS[0]} to {OPSETS[1]} can be read",
                "Export it with opset 17, or convert it with onnx.version_converter.",
            )
        try:
            self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        except Exception as error:  # numpy and onnx disagree on what broken raw data raises
            raise InvalidModelError(f"'{name}' has a broken initialiser: {error}") from error
        # Our writer turns every map to channels first, and nothing else.
        self.is_ours = model.producer_name == "tinykd"
        self.values: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.origins: dict[str, tuple[str, slice]] = {}
        self.exact: dict[str, np.ndarray] = {}
        self.arranged: dict[tuple[str, tuple[int, ...], tuple[int, ...]], str] = {}

    def graph(self) -> Graph:
        """Return the verified graph.

        Raises:
            InvalidModelError, UnsupportedModelError: see `read`.
        """
        inputs, outputs = self.walk()
        graph = Graph(self.name, self.tensors, tuple(self.ops), inputs, outputs)
        return verify(remove_dead_ops(graph))

    def walk(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Read every node; return the tensors of the graph's inputs and outputs."""
        inputs = tuple(self.input(item) for item in self.model.graph.input if item.name not in self.constants)
        for index, proto in enumerate(self.model.graph.node):
            try:
                self.read_node(Node(self, proto, index))
            except _CONTRADICTIONS as error:
                raise InvalidModelError(
                    f"'{self.name}': node {index} ({proto.op_type}, '{proto.name}'): its inputs and attributes do not "
                    f"go together ({type(error).__name__}: {error})"
                ) from error
        outputs = tuple(self.output(item.name) for item in self.model.graph.output)
        return inputs, outputs

    def read_node(self, node: Node) -> None:
        """Compute a node's outputs where they are constants, else let its handler give them their values."""
        proto = node.proto
        if proto.op_type == "Shape" and proto.input[0] in self.values:
            shape = np.array(self.values[proto.input[0]].shape, np.int64)
            self.constants[proto.output[0]] = shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
        elif all(name in self.constants for name in proto.input if name):
            self.fold(node)
        else:
            self.handle(node)

    def handle(self, node: Node) -> None:
        """Give the outputs of a node their values.

        Raises:
            UnsupportedModelError: no handler, or the handler refuses it.
        """
        # The handlers are written with `Node`, which is defined here.
        from tinykd.formats.onnx.handlers import HANDLERS, WAYS_OUT

        kind = node.proto.op_type
        if node.proto.domain not in ("", "ai.onnx") or kind not in HANDLERS:
            raise node.refusal("is not supported", WAYS_OUT.get(kind, f"Supported: {', '.join(sorted(HANDLERS))}."))
        HANDLERS[kind](node)

    def input(self, item: onnx.ValueInfoProto) -> str:
        """Define a graph input, channels last where the model reads it as maps, and return its name."""
        kind = item.type.tensor_type
        if not kind.HasField("shape") or not kind.shape.dim:
            raise UnsupportedModelError(
                f"'{self.name}': the input '{item.name}' has no shape", "Export the model with the shape of its input."
            )
        dims = [dim.dim_value for dim in kind.shape.dim]
        if any(dim < 1 for dim in dims[1:]) or dims[0] > 1:
            raise UnsupportedModelError(
                f"'{self.name}': the input '{item.name}' has shape {dims}; the batch must be 1 or free, all else fixed",
                "Export the model with a fixed input size and a batch of 1.",
            )
        shape, rank = (1, *dims[1:]), len(dims)
        readers = self._readers(item.name)
        is_map = rank == 4 and (self.is_ours or readers != {"Transpose"})
        is_sequence = rank == 3 and not self.is_ours and bool(readers & set(_CHANNELS_FIRST))
        perm = channels_last(rank) if is_map or is_sequence else tuple(range(rank))
        self.define(item.name, tuple(shape[axis] for axis in perm), dtype=self.edge_type(item))
        self.values[item.name] = value_of(item.name, shape, perm)
        return item.name

    def edge_type(self, item: onnx.ValueInfoProto) -> str:
        """Return the IR's type of a graph input."""
        if item.type.tensor_type.elem_type not in _FLOATS:
            raise UnsupportedModelError(
                f"'{self.name}': the input '{item.name}' is not float",
                "Read a quantised model with onnx_reader.read_quantised.",
            )
        return "float32"

    def _readers(self, name: str) -> set[str]:
        """Return the types of the nodes that read a value, seen through its quantisation."""
        names, found = {name}, set()
        for node in self.model.graph.node:
            if names & set(node.input):
                if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast"):
                    names.update(node.output)
                else:
                    found.add(node.op_type)
        return found

    def output(self, name: str) -> str:
        """Return the tensor of a graph output: maps channels last, unless they lie in their own order already."""
        if name not in self.values:
            raise UnsupportedModelError(f"'{self.name}': the output '{name}' is a constant")
        value = self.values[name]
        rank = len(value.shape)
        own, last = tuple(range(rank)), channels_last(rank)
        keeps = rank != 4 or (not self.is_ours and value.lies_as(own) and not value.lies_as(last))
        return self.arrange(value, own if keeps else last, name)

    def define(
        self,
        name: str,
        shape: Sequence[int],
        data: np.ndarray | None = None,
        dtype: str = "float32",
        quant: Quant | None = None,
    ) -> str:
        """Add a float tensor, or an activation of another type, and return its name."""
        if data is not None:
            data = np.ascontiguousarray(data, np.float32)
        self.tensors[name] = Tensor(name, tuple(int(dim) for dim in shape), dtype, quant, data)
        return name

    def arrange(self, value: Value, perm: Sequence[int], source: str, shape: Sequence[int] | None = None) -> str:
        """Return a tensor in which a value lies in the order of its ONNX axes `perm`, moved there if it must be.

        Args:
            value: the value.
            perm: its axes in the order wanted.
            source: the node that needs it.
            shape: of the tensor; None has one dimension for each axis.
        """
        order = value.order(perm)
        wanted = tuple(value.shape[axis] for axis in perm) if shape is None else tuple(shape)
        key = (value.name, (*value.factors, -1, *order), wanted)
        if key not in self.arranged:
            name = value.name
            if order != tuple(range(len(order))):
                blocks = sorted(runs(order))
                name = self._reshape(
                    name, (1, *(math.prod(value.factors[i] for i in block) for block in blocks)), source
                )
                places = (0, *(blocks.index(block) + 1 for block in runs(order)))
                moved = tuple(self.tensors[name].shape[place] for place in places)
                name = self._move("transpose", name, moved, source, perm=places)
            self.arranged[key] = self._reshape(name, wanted, source)
        return self.arranged[key]

    def _reshape(self, name: str, shape: tuple[int, ...], source: str) -> str:
        return name if self.tensors[name].shape == shape else self._move("reshape", name, shape, source)

    def _move(self, kind: str, name: str, shape: tuple[int, ...], source: str, **attrs: Any) -> str:
        base = f"{name}/{kind}"
        moved = next(found for i in range(len(self.tensors) + 1) if (found := f"{base}{i or ''}") not in self.tensors)
        self.define(moved, shape, dtype=self.tensors[name].dtype, quant=self.tensors[name].quant)
        self.ops.append(Op(kind, (name,), (moved,), attrs, f"{source} ({kind})"))
        return moved

    def fold(self, node: Node) -> None:
        """Compute the outputs of a node whose inputs are all constants."""
        names = [name for name in node.proto.input if name]
        grows = node.proto.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad")
        sizes = [abs(self.constants[name].astype(np.float64)) for name in names if self.constants[name].size <= 16]
        if grows and sizes and max(math.prod(size.reshape(-1).clip(1).tolist()) for size in sizes) * 8 > _FOLD_LIMIT:
            raise node.refusal("computes a constant of more than 256 MiB")
        inputs = [helper.make_tensor_value_info(name, _onnx_type(self.constants[name]), None) for name in names]
        outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.proto.output]
        graph = helper.make_graph([node.proto], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            values = ReferenceEvaluator(model).run(None, {name: self.constants[name] for name in names})
        except Exception as error:  # each of onnx's ops raises what its numpy code happens to raise
            raise node.refusal(f"cannot be computed: {error}") from error
        self.constants.update(zip(node.proto.output, (np.asarray(value) for value in values), strict=True))


class Node:
    """One node of the file, as its handler sees it."""

    def __init__(self, reader: Reader, proto: onnx.NodeProto, index: int) -> None:
        self.reader, self.proto = reader, proto
        self.where = f"'{reader.name}': node {index} ({proto.op_type}, '{proto.name}')"
        self.attrs = {item.name: helper.get_attribute_value(item) for item in proto.attribute}

    def refusal(self, message: str, next_step: str = "") -> UnsupportedModelError:
        """Return the error that names this node."""
        return UnsupportedModelError(f"{self.where}: {message}", next_step)

    def has(self, index: int) -> bool:
        """Whether the optional input `index` is given."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def is_constant(self, index: int) -> bool:
        """Whether input `index` is a constant."""
        return self.has(index) and self.proto.input[index] in self.reader.constants

    def value(self, index: int = 0) -> Value:
        """Return input `index`, an activation."""
        if not self.has(index) or self.proto.input[index] not in self.reader.values:
            raise self.refusal(f"input {index} must be an activation")
        return self.reader.values[self.proto.input[index]]

    def constant(self, index: int) -> np.ndarray:
        """Return input `index`, a constant."""
        if not self.is_constant(index):
            raise self.refusal(f"input {index} must be a constant", "Export the model with its weights as constants.")
        return self.reader.constants[self.proto.input[index]]

    def scalar(self, index: int, default: float) -> float:
        """Return the only element of the optional constant `index`."""
        if not self.has(index):
            return default
        data = self.constant(index)
        if data.size != 1:
            raise self.refusal(f"input {index} must have one element; it has {data.size}")
        return float(data.reshape(()))

    def axes(self, rank: int, index: int = 1) -> list[int] | None:
        """Return the axes that the attribute `axes` or input `index` gives, non-negative; None where there are none."""
        axes = self.attrs.get("axes")
        if axes is None and self.has(index):
            axes = self.constant(index).reshape(-1).tolist()
        return None if axes is None else [self.axis(axis, rank) for axis in axes]

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis as a number from 0 to rank - 1."""
        if not -rank <= axis < rank:
            raise self.refusal(f"axis {axis} of a value of {rank} dimensions")
        return int(axis) % rank

    def arrange(self, value: Value, perm: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """Return a tensor in which a value lies in the order of its axes `perm`."""
        return self.reader.arrange(value, perm, self.label, shape)

    def layout(self, value: Value) -> tuple[int, ...]:
        """Return the order of a value's axes in which it costs least to have each of them as a dimension."""
        rank = len(value.shape)
        # Axes of length 1 lie anywhere: an order of the others that is already there needs no transpose.
        candidates = [channels_last(rank), tuple(range(rank))]
        placed = [(axis[0], number) for number, axis in enumerate(value.axes) if axis and number]
        if sum(map(len, value.axes)) == len(placed):
            ones = [number for number, axis in enumerate(value.axes) if not axis and number]
            candidates.append((0, *ones, *(number for _, number in sorted(placed))))
        return next((perm for perm in candidates if value.lies_as(perm)), candidates[0])

    @property
    def label(self) -> str:
        """How reports name what comes from this node."""
        return self.proto.name or self.proto.output[0]

    def weights(self, part: str, data: np.ndarray, index: int | None = None, channels: slice = slice(None)) -> str:
        """Add a constant of the IR and return its name.

        Args:
            part: what it is, for its name.
            data: its elements.
            index: the node's input that it was made from; None: computed here.
            channels: the output channels that were taken.
        """
        name = self.reader.define(f"{self.proto.output[0]}/{part}", data.shape, data)
        self.reader.exact[name] = np.ascontiguousarray(data, np.float64)
        if index is not None:
            self.reader.origins[name] = (self.proto.input[index], channels)
        return name

    def op(
        self, kind: str, inputs: Sequence[str], name: str, shape: Sequence[int], dtype: str = "", **attrs: Any
    ) -> str:
        """Add an op and the tensor `name` that it writes, and return that."""
        kept = self.reader.tensors[inputs[0]]
        self.reader.define(name, shape, dtype=dtype or kept.dtype, quant=None if dtype else kept.quant)
        self.reader.ops.append(Op(kind, tuple(inputs), (name,), attrs, self.label))
        return name

    def emit(self, kind: str, inputs: Sequence[str], shape: Sequence[int], perm: Sequence[int], **attrs: Any) -> None:
        """Add the op whose output is this node's.

        Args:
            kind: of op.
            inputs: tensors.
            shape: of the output as the IR has it: dimension k is ONNX axis perm[k].
            perm: see `shape`.
            attrs: of the op.
        """
        self.op(kind, inputs, self.proto.output[0], shape, **attrs)
        self.bind(self.proto.output[0], shape, perm)

    def bind(self, name: str, shape: Sequence[int], perm: Sequence[int], output: int = 0) -> None:
        """Say that the node's output is the tensor `name`, whose dimension k is ONNX axis perm[k]."""
        onnx_shape = [0] * len(perm)
        for dim, axis in zip(shape, perm, strict=True):
            onnx_shape[axis] = dim
        if onnx_shape and onnx_shape[0] != 1:
            raise self.refusal(f"its output has shape {onnx_shape}: the first axis is the batch, which must stay 1")
        self.reader.values[self.proto.output[output]] = value_of(name, onnx_shape, perm)

    def split(self, x: str, names: Sequence[str], axis: int, sizes: Sequence[int]) -> None:
        """Cut a tensor along dimension `axis` into tensors called `names`, of these sizes."""
        tensor = self.reader.tensors[x]
        for name, size in zip(names, sizes, strict=True):
            shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
            self.reader.define(name, shape, dtype=tensor.dtype, quant=tensor.quant)
        self.reader.ops.append(Op("split", (x,), tuple(names), {"axis": axis}, self.label))

    @staticmethod
    def laid_out(shape: Sequence[int], perm: Sequence[int]) -> Value:
        """Return a value of ONNX shape `shape` that lies in the order of its axes `perm`, still without a tensor."""
        return value_of("", shape, perm)

    def pass_on(self, value: Value) -> None:
        """Say that the node's output is `value`."""
        if not value.axes or value.shape[0] != 1:
            raise self.refusal(
                f"its output has shape {list(value.shape)}: the first axis is the batch, which must stay 1",
                "Keep the batch as the first axis, for example flatten from axis 1.",
            )
        self.reader.values[self.proto.output[0]] = value

    def reshaped(self, value: Value, target: Sequence[int]) -> Value:
        """Return a value under another ONNX shape, its elements moved into ONNX's order where that is needed."""
        if math.prod(target) != math.prod(value.shape):
            raise self.refusal(f"reshapes {list(value.shape)} to {list(target)}")
        found = reshaped(value, target)
        if found is None:
            perm = tuple(range(len(value.shape)))
            plain = value_of(self.arrange(value, perm), (math.prod(value.shape),), (0,))
            found = reshaped(plain, target)
        assert found is not None
        return found


def _onnx_type(value: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(value.dtype)
