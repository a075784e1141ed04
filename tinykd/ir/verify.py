"""`verify(graph)`: every invariant of the IR, checked after each pass and after each reader."""

from __future__ import annotations

from tinykd.errors import InvalidModelError
from tinykd.ir.graph import DTYPES, Graph, Op
from tinykd.ir.ops import ACTIVATIONS, SPECS, conv_output_size
from tinykd.ir.quant import Quant

_TAKES_MAPS = ("conv_2d", "depthwise_conv_2d", "average_pool_2d", "max_pool_2d", "mean", "pad")


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
        where = f"op {index} ({op.kind}, {op.source or op.outputs[0]})"
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
            if name not in written and not graph.tensors[name].is_constant:
                raise InvalidModelError(f"{where}: reads '{name}' before anything writes it")
        if len(op.outputs) != 1:
            raise InvalidModelError(f"{where}: {len(op.outputs)} outputs; it has exactly 1")
        for name in op.outputs:
            if name not in graph.tensors:
                raise InvalidModelError(f"{where}: output '{name}' is not in the tensor table")
            if name in written or graph.tensors[name].is_constant:
                raise InvalidModelError(f"{where}: writes '{name}', which already has a value")
            written.add(name)
        _check_shapes(graph, op, where)
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


def _check_shapes(graph: Graph, op: Op, where: str) -> None:
    inputs = [graph.tensors[name] if name else None for name in op.inputs]
    x = inputs[0]
    y = graph.tensors[op.outputs[0]]
    if x is None:
        raise InvalidModelError(f"{where}: its first input is missing")

    def expect(shape: tuple[int, ...], found: tuple[int, ...], what: str) -> None:
        if shape != found:
            raise InvalidModelError(f"{where}: {what} has shape {list(found)} instead of {list(shape)}")

    if op.attrs.get("activation", "none") not in ACTIVATIONS:
        raise InvalidModelError(f"{where}: unknown activation '{op.attrs['activation']}'")
    if op.kind in _TAKES_MAPS and (len(x.shape) != 4 or x.shape[0] != 1):
        raise InvalidModelError(f"{where}: its input has shape {list(x.shape)}; it takes (1, H, W, C)")
    if op.kind in ("conv_2d", "depthwise_conv_2d"):
        weights = inputs[1]
        if weights is None or len(weights.shape) != 4:
            raise InvalidModelError(f"{where}: its weights must have 4 dimensions")
        out, kernel_h, kernel_w, channels = weights.shape
        if op.kind == "conv_2d":
            expect((out, kernel_h, kernel_w, x.shape[3]), weights.shape, "the weight tensor")
        elif out != 1 or channels % x.shape[3]:
            raise InvalidModelError(f"{where}: weights {list(weights.shape)} do not suit {x.shape[3]} input channels")
        count = out if op.kind == "conv_2d" else channels
        expect(_window_shape(x.shape, (kernel_h, kernel_w), op, count), y.shape, "the output")
        _check_bias(inputs, count, where)
    elif op.kind in ("average_pool_2d", "max_pool_2d"):
        expect(_window_shape(x.shape, op.attrs["kernel"], op, x.shape[3]), y.shape, "the output")
    elif op.kind == "fully_connected":
        weights = inputs[1]
        if weights is None or len(weights.shape) != 2 or x.num_elements != weights.shape[1]:
            raise InvalidModelError(
                f"{where}: {x.num_elements} inputs but weights {list(weights.shape) if weights else None}"
            )
        if y.num_elements != weights.shape[0]:
            raise InvalidModelError(f"{where}: {y.num_elements} outputs but weights {list(weights.shape)}")
        _check_bias(inputs, weights.shape[0], where)
    elif op.kind == "add":
        assert inputs[1] is not None
        expect(x.shape, inputs[1].shape, "the second input")
        expect(x.shape, y.shape, "the output")
    elif op.kind == "mean":
        expect((1, 1, 1, x.shape[3]) if op.attrs["keep_dims"] else (1, x.shape[3]), y.shape, "the output")
    elif op.kind == "pad":
        top, bottom, left, right = op.attrs["padding"]
        expect((1, x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3]), y.shape, "the output")
    elif op.kind == "reshape":
        if x.num_elements != y.num_elements:
            raise InvalidModelError(f"{where}: {x.num_elements} elements cannot become {list(y.shape)}")
    else:
        expect(x.shape, y.shape, "the output")


def _check_bias(inputs: list, count: int, where: str) -> None:
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].shape != (count,):
        raise InvalidModelError(f"{where}: the bias has shape {list(inputs[2].shape)} instead of [{count}]")


def _window_shape(shape: tuple[int, ...], kernel: tuple[int, int], op: Op, channels: int) -> tuple[int, ...]:
    top, bottom, left, right = op.attrs["padding"]
    dilation_h, dilation_w = op.attrs.get("dilation", (1, 1))
    height = conv_output_size(shape[1], kernel[0], op.attrs["stride"][0], (top, bottom), dilation_h)
    width = conv_output_size(shape[2], kernel[1], op.attrs["stride"][1], (left, right), dilation_w)
    return (shape[0], height, width, channels)
