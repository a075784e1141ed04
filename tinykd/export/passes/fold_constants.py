"""Computes what does not depend on the input: ops on constants, and operands that have one value for every input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinykd.export.passes.evaluate import evaluate
from tinykd.export.passes.rewrite import renamed
from tinykd.export.passes.value_ranges import Bounds, value_ranges
from tinykd.ir import Graph, Op, Tensor

_TAKES_CONSTANT = ("add", "sub", "mul", "maximum", "minimum")


def fold_constants(graph: Graph) -> Graph:
    """Return the graph with constants in place of the activations that are known.

    An op whose operands are all constants is computed by the integer reference. An activation of which every element
    has one value for every input becomes a constant operand of the binary ops that read it, one value per channel where
    that says it all. The graph's outputs are computed as before.
    """
    graph = _fold_ops(graph)
    bounds = value_ranges(graph)
    names: dict[str, str] = {}
    tensors = dict(graph.tensors)
    consumers = graph.consumers()
    for op in graph.ops:
        for name in op.outputs:
            readers = [graph.ops[index] for index in consumers.get(name, [])]
            if name in graph.outputs or name not in bounds or not _is_operand(graph, name, readers, bounds):
                continue
            constant = _constant(graph.tensor(name), bounds[name])
            if constant is not None:
                names[name] = constant.name
                tensors[constant.name] = constant
    return renamed(replace(graph, tensors=tensors), names) if names else graph


def _fold_ops(graph: Graph) -> Graph:
    index = 0
    while index < len(graph.ops):
        op = graph.ops[index]
        values = None if set(op.outputs) & set(graph.outputs) else _results(graph, op)
        if values is None:
            index += 1
            continue
        tensors = dict(graph.tensors)
        for name, value in zip(op.outputs, values, strict=True):
            tensors[name] = replace(tensors[name], data=_frozen(value))
        graph = graph.with_ops([*graph.ops[:index], *graph.ops[index + 1 :]], tensors)
    return graph


def _results(graph: Graph, op: Op) -> tuple[np.ndarray, ...] | None:
    """Return the outputs of an op of which all inputs are constants; None for any other, and what is not int8."""
    operands = [graph.tensor(name) for name in op.inputs if name]
    if any(tensor.data is None for tensor in operands) or op.kind == "svdf":
        return None
    first = operands[0]
    if first.dtype != "int8" or any(graph.tensor(name).dtype != "int8" for name in op.outputs):
        return None
    return evaluate(graph, op, [first.data, *(None for _ in op.inputs[1:])])


def _is_operand(graph: Graph, name: str, readers: list[Op], bounds: dict[str, Bounds]) -> bool:
    if not readers or not bounds[name].fixed.all():
        return False
    for op in readers:
        others = [other for other in op.inputs if other != name]
        # Something has to be left that is computed: an op of constants only is folded itself, or writes an output.
        if op.kind not in _TAKES_CONSTANT or not others or bounds[others[0]].fixed.all():
            return False
        if graph.tensor(others[0]).shape != graph.tensor(op.outputs[0]).shape:
            return False
    return True


def _constant(tensor: Tensor, bounds: Bounds) -> Tensor | None:
    """Return the activation as a constant of one value per channel; None where it differs from place to place."""
    if not bounds.fixed_channels().all():
        return None
    shape = (*(1 for _ in tensor.shape[:-1]), tensor.shape[-1])
    data = bounds.low.reshape(-1, tensor.shape[-1])[0].reshape(shape)
    return Tensor(f"{tensor.name}/constant", shape, "int8", tensor.quant, _frozen(data))


def _frozen(data: np.ndarray) -> np.ndarray:
    data = np.ascontiguousarray(data)
    data.flags.writeable = False
    return data
