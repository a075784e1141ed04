"""`verify(graph)`: every invariant of the IR, checked after each pass and after each reader."""

from __future__ import annotations

from tinykd.errors import InvalidModelError
from tinykd.ir.graph import DTYPES, Graph, Op
from tinykd.ir.ops import ACTIVATIONS, SPECS, op_label
from tinykd.ir.quant import Quant
from tinykd.ir.shapes import output_shapes


def verify(graph: Graph) -> Graph:
    """Check the graph and return it.

    Raises:
        InvalidModelError: names the op or tensor and the rule that it breaks.
    """
    written = set(graph.inputs)
    for name in (*graph.inputs, *graph.outputs):
        if name not in graph.tensors:
            raise InvalidModelError(f"graph '{graph.name}': the edge '{name}' is not in the tensor table")
    if not graph.inputs or not graph.outputs:
        raise InvalidModelError(f"graph '{graph.name}' has no inputs or no outputs")
    for name, tensor in graph.tensors.items():
        if name != tensor.name:
            raise InvalidModelError(f"tensor '{tensor.name}' is filed under '{name}'")
        if tensor.dtype not in DTYPES:
            raise InvalidModelError(f"tensor '{name}' has unknown dtype '{tensor.dtype}'")
        if any(dim < 1 for dim in tensor.shape):
            raise InvalidModelError(
                f"tensor '{name}' has shape {list(tensor.shape)}: every dimension must be at least 1"
            )
        if tensor.data is not None and (tensor.data.shape != tensor.shape or tensor.data.dtype != DTYPES[tensor.dtype]):
            raise InvalidModelError(
                f"tensor '{name}' claims {tensor.dtype}{list(tensor.shape)} "
                f"but holds {tensor.data.dtype}{list(tensor.data.shape)}"
            )
        if tensor.quant is not None:
            _check_quant(name, tensor.shape, tensor.quant)
    for index, op in enumerate(graph.ops):
        where = op_label(index, op) if op.outputs else f"op {index} ({op.kind})"
        spec = SPECS.get(op.kind)
        if spec is None:
            raise InvalidModelError(f"{where}: unknown kind")
        if not spec.inputs[0] <= len(op.inputs) <= spec.inputs[1]:
            raise InvalidModelError(f"{where}: {len(op.inputs)} inputs; it takes {spec.inputs[0]} to {spec.inputs[1]}")
        if set(op.attrs) != set(spec.attrs):
            raise InvalidModelError(f"{where}: attributes {sorted(op.attrs)}; it takes {sorted(spec.attrs)}")
        for name in op.inputs:
            if not name:
                continue
            if name not in graph.tensors:
                raise InvalidModelError(f"{where}: input '{name}' is not in the tensor table")
            tensor = graph.tensors[name]
            if name not in written and not tensor.is_constant and not tensor.variable:
                raise InvalidModelError(f"{where}: reads '{name}' before anything writes it")
        if not spec.outputs[0] <= len(op.outputs) <= spec.outputs[1]:
            raise InvalidModelError(
                f"{where}: {len(op.outputs)} outputs; it has {spec.outputs[0]} to {spec.outputs[1]}"
            )
        for name in op.outputs:
            if name not in graph.tensors:
                raise InvalidModelError(f"{where}: output '{name}' is not in the tensor table")
            if name in written or graph.tensors[name].is_constant or graph.tensors[name].variable:
                raise InvalidModelError(f"{where}: writes '{name}', which already has a value")
            written.add(name)
        _check_outputs(graph, op, where)
    for name in graph.outputs:
        if name not in written:
            raise InvalidModelError(f"graph '{graph.name}': nothing writes the output '{name}'")
    return graph


def _check_quant(name: str, shape: tuple[int, ...], quant: Quant) -> None:
    if len(quant.scales) != len(quant.zero_points) or not quant.scales:
        raise InvalidModelError(f"tensor '{name}': {len(quant.scales)} scales, {len(quant.zero_points)} zero points")
    if any(not 0.0 < scale < float("inf") for scale in quant.scales):
        raise InvalidModelError(f"tensor '{name}': every scale must be positive and finite")
    if quant.axis is None and len(quant.scales) != 1:
        raise InvalidModelError(f"tensor '{name}': {len(quant.scales)} scales but no axis")
    if quant.axis is not None and (not 0 <= quant.axis < len(shape) or shape[quant.axis] != len(quant.scales)):
        raise InvalidModelError(f"tensor '{name}': {len(quant.scales)} scales along axis {quant.axis} of {list(shape)}")


def _check_outputs(graph: Graph, op: Op, where: str) -> None:
    if op.attrs.get("activation", "none") not in ACTIVATIONS:
        raise InvalidModelError(f"{where}: unknown activation '{op.attrs['activation']}'")
    try:
        expected = output_shapes(graph, op)
    except InvalidModelError as error:
        raise InvalidModelError(f"{where}: {error.message}", error.next_step) from error
    for name, shape in zip(op.outputs, expected, strict=True):
        found = graph.tensors[name].shape
        if found != shape:
            raise InvalidModelError(f"{where}: the output '{name}' has shape {list(found)} instead of {list(shape)}")
