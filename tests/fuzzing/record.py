"""A graph as JSON text, and the text that keeps a graph which once broke a property.

The format belongs to the tests: no reader or writer that is under test takes part in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykd.ir import DTYPES, Graph, Op, Quant, Tensor, verify

Values = dict[str, np.ndarray]


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """Return everything about a graph as JSON values."""
    return {
        "name": graph.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "tensors": [_tensor_to_dict(tensor) for tensor in graph.tensors.values()],
        "ops": [_op_to_dict(op) for op in graph.ops],
    }


def graph_from_dict(raw: Mapping[str, Any]) -> Graph:
    """Return the verified graph that `graph_to_dict` described."""
    tensors = [_tensor_from_dict(item) for item in raw["tensors"]]
    ops = tuple(
        Op(
            item["kind"],
            tuple(item["inputs"]),
            tuple(item["outputs"]),
            {key: _tuples(value) for key, value in item["attrs"].items()},
            item["source"],
        )
        for item in raw["ops"]
    )
    table = {tensor.name: tensor for tensor in tensors}
    return verify(Graph(raw["name"], table, ops, tuple(raw["inputs"]), tuple(raw["outputs"])))


def _op_to_dict(op: Op) -> dict[str, Any]:
    return {
        "kind": op.kind,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "attrs": dict(op.attrs),
        "source": op.source,
    }


def _tensor_to_dict(tensor: Tensor) -> dict[str, Any]:
    raw: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
    if tensor.quant is not None:
        quant = tensor.quant
        raw["quant"] = {"scales": list(quant.scales), "zero_points": list(quant.zero_points), "axis": quant.axis}
    if tensor.data is not None:
        raw["data"] = tensor.data.reshape(-1).tolist()
    if tensor.variable:
        raw["variable"] = True
    return raw


def _tensor_from_dict(raw: Mapping[str, Any]) -> Tensor:
    quant = raw.get("quant")
    shape = tuple(raw["shape"])
    data = None
    if "data" in raw:
        data = np.array(raw["data"], DTYPES[raw["dtype"]]).reshape(shape)
        data.flags.writeable = False
    return Tensor(
        raw["name"],
        shape,
        raw["dtype"],
        None if quant is None else Quant(tuple(quant["scales"]), tuple(quant["zero_points"]), quant["axis"]),
        data,
        bool(raw.get("variable", False)),
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Failure:
    """A graph that broke a property.

    Attributes:
        rule: which property, a key of `check.RULES`.
        problem: what was seen then, one sentence.
        graph: the graph, shrunk.
        inputs: input name -> values (N, ...) that show it, or None where the property needs none.
        found: the command and the versions that found it.
    """

    rule: str
    problem: str
    graph: Graph
    inputs: Values | None
    found: str


def dumps(failure: Failure) -> str:
    """Return a failure as text."""
    inputs = None
    if failure.inputs is not None:
        inputs = {
            name: {"dtype": str(value.dtype), "shape": list(value.shape), "data": value.reshape(-1).tolist()}
            for name, value in failure.inputs.items()
        }
    graph = graph_to_dict(failure.graph)
    # One line for each tensor and op: a person reads it, and a difference of two files shows.
    lines = [
        f' "found": {json.dumps(failure.found)}',
        f' "rule": {json.dumps(failure.rule)}',
        f' "problem": {json.dumps(failure.problem)}',
        f' "inputs": {json.dumps(inputs)}',
        ' "graph": {\n'
        + ",\n".join(f'  "{key}": {json.dumps(graph[key])}' for key in ("name", "inputs", "outputs"))
        + "".join(
            f',\n  "{key}": [\n' + ",\n".join(f"   {json.dumps(item)}" for item in graph[key]) + "\n  ]"
            for key in ("tensors", "ops")
        )
        + "\n }",
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def loads(text: str) -> Failure:
    """Read what `dumps` returned."""
    raw = json.loads(text)
    inputs = raw["inputs"]
    if inputs is not None:
        inputs = {
            name: np.array(value["data"], value["dtype"]).reshape(value["shape"]) for name, value in inputs.items()
        }
    return Failure(raw["rule"], raw["problem"], graph_from_dict(raw["graph"]), inputs, raw["found"])
