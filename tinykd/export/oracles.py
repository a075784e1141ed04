"""The links of the parity chain that compute a model's activations on this host, and which of them are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol

import numpy as np

from tinykd.errors import ToolchainError, UnsupportedModelError
from tinykd.export import oracle
from tinykd.formats.onnx import outputs as onnx_outputs
from tinykd.formats.onnx import writer as onnx_writer
from tinykd.formats.tflite import file as tflite_file
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op

Values = dict[str, np.ndarray]
"""Tensor name -> value of one inference, in the tensor's shape (batch 1)."""

ONE_STEP, ANY_STEPS = 1, 255


class Judge(Protocol):
    """Somebody else's computation of a graph's activations.

    Attributes:
        name: how results name it.
        version: of its software.
        exact: every value must be equal from the input to the output. Otherwise each op is compared by itself, on the
            judge's own inputs, so that a difference that is known does not grow through the ops behind it.
    """

    name: str
    version: str
    exact: bool

    def run(self, inputs: Values) -> Values:
        """Return the activations of one inference that it can show, graph inputs included."""
        ...

    def final(self, inputs: Values) -> Values:
        """Return outputs that were computed in a second way (the very file, with its memory plan); {} for none."""
        ...

    def reset(self) -> None:
        """Put variables back to where they start."""
        ...

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return how many steps an op may differ on its own inputs, and why; (0, "") for not at all."""
        ...


@dataclass(frozen=True)
class OracleRow:
    """A row of `ORACLES`.

    Attributes:
        module: what must be importable.
        package: whose version is told.
        install: the command that installs it.
        note: what its agreement means, one line.
        make: builds the judge from the graph and the bytes of the `.tflite`.
    """

    module: str
    package: str
    install: str
    note: str
    make: Callable[[Graph, bytes], Judge]

    @property
    def is_available(self) -> bool:
        """Whether it can be imported here."""
        return importlib.util.find_spec(self.module) is not None


class TflmJudge:
    """TFLite Micro's own wheel: the judge. All activations of the very file, and its outputs under its memory plan."""

    name, exact = "tflite-micro", True

    def __init__(self, graph: Graph, model: bytes) -> None:
        self.version = _version("tflite-micro")
        self._graph = graph
        plain, self._indices = _with_indices(graph, model)
        self._keeper = oracle.Oracle(plain, keep_all=True)
        self._original = oracle.Oracle(model)

    def reset(self) -> None:
        """Put variables back to where they start."""
        self._keeper.reset()
        self._original.reset()

    def run(self, inputs: Values) -> Values:
        """Return every activation."""
        graph = self._graph
        outputs = self._keeper.invoke_many([inputs[name] for name in graph.inputs], len(graph.outputs))
        values = {name: self._keeper.tensor(index) for name, index in self._indices.items()}
        return {**values, **inputs, **dict(zip(graph.outputs, outputs, strict=True))}

    def final(self, inputs: Values) -> Values:
        """Return the outputs of the file as it is."""
        graph = self._graph
        outputs = self._original.invoke_many([inputs[name] for name in graph.inputs], len(graph.outputs))
        return dict(zip(graph.outputs, outputs, strict=True))

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return (0, ""): nothing may differ."""
        return 0, ""


class LiteJudge:
    """LiteRT or TensorFlow Lite with reference kernels: exact but for what `allowed` tells."""

    exact = False

    def __init__(self, name: str, package: str, module: Any, graph: Graph, model: bytes) -> None:
        self.name, self.version = name, _version(package)
        self._graph = graph

        def make(data: bytes) -> Any:
            interpreter = module.Interpreter(
                model_content=data,
                experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
                experimental_preserve_all_tensors=True,
            )
            interpreter.allocate_tensors()
            return interpreter

        data, self._indices = _with_indices(graph, model)
        try:
            self._interpreter = make(data)
        except (ValueError, RuntimeError):
            # Stricter than TFLite Micro about what it does not use (the axis of a bias): try the graph as we write it.
            data, self._indices = _with_indices(graph, tflite_writer.write(graph))
            try:
                self._interpreter = make(data)
            except (ValueError, RuntimeError) as error:
                raise UnsupportedModelError(f"{name} refuses the model: {error}") from error
        self._inputs = [detail["index"] for detail in self._interpreter.get_input_details()]

    def reset(self) -> None:
        """Put variables back to where they start."""
        self._interpreter.reset_all_variables()

    def run(self, inputs: Values) -> Values:
        """Return every activation."""
        for index, name in zip(self._inputs, self._graph.inputs, strict=True):
            self._interpreter.set_tensor(index, np.ascontiguousarray(inputs[name]))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise UnsupportedModelError(f"{self.name} cannot run the model: {error}") from error
        return {**{name: self._interpreter.get_tensor(i) for name, i in self._indices.items()}, **inputs}

    def final(self, inputs: Values) -> Values:
        """Return {}: there is one computation only."""
        return {}

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return how far the ops may differ whose kernels are known to compute something else than TFLite Micro's."""
        if op.kind == "fully_connected":
            return ONE_STEP, "LiteRT's kernel rounds once where TFLite Micro's rounds twice"
        x, y = self._graph.tensor(op.inputs[0]), self._graph.tensor(op.outputs[0])
        if op.kind == "relu6" and x.quant != y.quant:
            return ANY_STEPS, "TFLite Micro's RELU6 keeps the input's scale, LiteRT's goes to the output's"
        return 0, ""


class OnnxJudge:
    """onnxruntime on the exported QDQ model: float arithmetic between integers, so a step may differ in each op."""

    name, exact = "onnxruntime", False

    def __init__(self, graph: Graph, model: bytes) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        self.version = _version("onnxruntime")
        self._graph = graph
        options = onnxruntime.SessionOptions()
        # Fused integer kernels saturate on CPUs without VNNI; as it is written the model computes in float.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._names = [name for op in graph.ops for name in op.outputs if graph.tensor(name).dtype == "int8"]
        if not self._names:
            raise UnsupportedModelError("none of its activations is int8")
        try:
            qdq = onnx_outputs.expose(onnx_writer.write_qdq(graph), [f"{name}/q" for name in self._names])
            self._session = onnxruntime.InferenceSession(qdq, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the errors of onnx and onnxruntime have no base of their own
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedModelError(f"the model has no QDQ ONNX that onnxruntime runs: {reason}") from error
        feeds = {item.name for item in self._session.get_inputs()}
        if feeds != {f"{name}/float" for name in graph.inputs}:
            raise UnsupportedModelError(f"the QDQ model has the inputs {sorted(feeds)}")

    def reset(self) -> None:
        """Do nothing: QDQ models have no variables."""

    def run(self, inputs: Values) -> Values:
        """Return every int8 activation, in the graph's layout."""
        feeds = {}
        for name, value in inputs.items():
            quant = self._graph.tensor(name).quant
            if quant is None or value.dtype != np.int8:
                raise UnsupportedModelError(f"its input '{name}' is {value.dtype}; the QDQ model takes int8 inputs")
            real = (value.astype(np.float32) - quant.zero_point) * np.float32(quant.scale)
            feeds[f"{name}/float"] = real.transpose(0, 3, 1, 2) if real.ndim == 4 else real
        results = self._session.run([f"{name}/q" for name in self._names], feeds)
        values = dict(inputs)
        for name, value in zip(self._names, results, strict=True):
            shape = self._graph.tensor(name).shape
            values[name] = (value.transpose(0, 2, 3, 1) if len(shape) == 4 else value).reshape(shape)
        return values

    def final(self, inputs: Values) -> Values:
        """Return {}: there is one computation only."""
        return {}

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return one step: the op's sum is rounded from float."""
        return ONE_STEP, "computed in float and rounded once"


def _make_litert(graph: Graph, model: bytes) -> Judge:
    return LiteJudge("litert", "ai-edge-litert", importlib.import_module("ai_edge_litert.interpreter"), graph, model)


def _make_tensorflow(graph: Graph, model: bytes) -> Judge:
    lite = importlib.import_module("tensorflow").lite
    names = SimpleNamespace(Interpreter=lite.Interpreter, OpResolverType=lite.experimental.OpResolverType)
    return LiteJudge("tensorflow", "tensorflow", names, graph, model)


ORACLES: Mapping[str, OracleRow] = MappingProxyType(
    {
        "tflite-micro": OracleRow(
            "tflite_micro",
            "tflite-micro",
            "pip install tflite-micro",
            "TFLite Micro on this host, the judge: every activation is equal",
            TflmJudge,
        ),
        "litert": OracleRow(
            "ai_edge_litert",
            "ai-edge-litert",
            "pip install ai-edge-litert",
            "LiteRT with reference kernels: each op is equal, FULLY_CONNECTED within one step",
            _make_litert,
        ),
        "tensorflow": OracleRow(
            "tensorflow",
            "tensorflow",
            "pip install tensorflow",
            "TensorFlow Lite with reference kernels: as litert",
            _make_tensorflow,
        ),
        "onnxruntime": OracleRow(
            "onnxruntime",
            "onnxruntime",
            "pip install onnxruntime",
            "the exported QDQ ONNX in float: each op is within one step",
            OnnxJudge,
        ),
    }
)


def make(name: str, graph: Graph, model: bytes) -> Judge:
    """Return the judge called `name`.

    Raises:
        ToolchainError: it is not installed.
        UnsupportedModelError: it cannot run this model.
    """
    row = ORACLES[name]
    if not row.is_available:
        raise ToolchainError(f"the oracle '{name}' is not installed", f"Install it with: {row.install}")
    return row.make(graph, model)


def _with_indices(graph: Graph, model: bytes) -> tuple[bytes, dict[str, int]]:
    """Return a model whose activations can all be kept, and the tensor number of each.

    It is the very file without its memory plan: kept tensors need places of their own. Where the reader gave tensors
    other names than the file has (it resolved something), the graph is written again.
    """
    activations = [name for op in graph.ops for name in op.outputs]
    indices = tflite_file.tensor_indices(model)
    if not set(activations) <= indices.keys():
        model = tflite_writer.write(graph)
        indices = tflite_file.tensor_indices(model)
    return tflite_file.without_plan(model), {name: indices[name] for name in activations}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
