"""What TFLite Micro's int8 kernels take for granted, and what tinykd holds to be sane: checked once, by the reader.

What passes here is safe for reference, planner and code generator: sizes are bounded, scales are finite and within a
range whose products float64 holds, weights are symmetric, and integers are only compared or moved under one scale.
"""

from __future__ import annotations

import math
from typing import NoReturn

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.formats.tflite.codec import Codec, Types
from tinykd.formats.tflite.refusals import dynamic_advice, type_advice
from tinykd.formats.tflite.source import RawTensor
from tinykd.ir import DTYPES, Graph, Op, Quant, Tensor, op_macs
from tinykd.ir.requant import check_defined

MAX_TENSOR_BYTES = 1 << 26
"""Far beyond any microcontroller: a larger tensor is corrupt, or would only exhaust the host. Padded maps count too."""
MAX_MACS = 1 << 33
"""Of one op. MobileNetV2 at 224 x 224 has 2**28 in all."""
MAX_GRAPH_BYTES = 1 << 28
"""Of all activations together."""
SCALE_RANGE = (2.0**-100, 2.0**100)
BIAS_SCALE_TOLERANCE = 0.02
"""TFLite's limit on |input scale * weight scale - bias scale| / output scale, for one scale per tensor."""
SVDF_BIAS_SCALE_TOLERANCE = 1e-5
"""TFLite Micro's limit on |bias scale - state scale * time weights' scale|."""

_ZERO_POINTS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
_WEIGHTS_AXIS = {"conv_2d": 0, "depthwise_conv_2d": 3, "transpose_conv": 0, "fully_connected": 0}
_BINARY = ("add", "sub", "mul", "maximum", "minimum")


def check_tensor(raw: RawTensor, model: str) -> None:
    """Raise when a tensor that an op uses has an absurd shape."""
    num_bytes = DTYPES[raw.dtype].itemsize if raw.dtype in DTYPES else 1
    for dim in raw.shape:
        num_bytes *= max(dim, 1)
    if num_bytes > MAX_TENSOR_BYTES:
        raise InvalidModelError(
            f"'{model}': tensor '{raw.name}' has shape {list(raw.shape)}; the limit is {MAX_TENSOR_BYTES} B"
        )
    if any(dim < 1 for dim in raw.shape):
        raise UnsupportedModelError(
            f"'{model}': tensor '{raw.name}' has shape {list(raw.shape)}: every dimension must be at least 1",
            dynamic_advice(),
        )


def check_type(raw: RawTensor, allowed: Types, kind: str, where: str) -> None:
    """Raise when an operand has a type that the op does not take.

    Args:
        allowed: dtypes that it may have.
        kind: the op's kind.
        where: how messages name the op.
    """
    if raw.dtype in allowed:
        return
    hint = ""
    if raw.dtype == "float32":
        hint = " (this looks like a float model, or one that is quantised in part or in its weights alone)"
    raise UnsupportedModelError(
        f"{where}: '{raw.name}' is {raw.dtype}{hint}; {kind} takes {' or '.join(allowed)} there",
        type_advice(raw.dtype),
    )


def check_size(graph: Graph) -> None:
    """Raise when the activations of a graph are too large together."""
    total = sum(tensor.num_bytes for tensor in graph.tensors.values() if not tensor.is_constant)
    if total > MAX_GRAPH_BYTES:
        raise InvalidModelError(f"'{graph.name}': its activations take {total} B; the limit is {MAX_GRAPH_BYTES} B")


def check_op(graph: Graph, op: Op, codec: Codec, where: str) -> None:
    """Raise when an op of a verified graph breaks a rule of this module.

    Args:
        codec: the row that read it.
        where: how messages name it.

    Raises:
        UnsupportedModelError, InvalidModelError: name the op, the tensor and the rule.
    """
    if problem := beyond_limits(graph, op, codec):
        _refuse(where, problem, "Split it into several ops, or reshape around it so that it has fewer dimensions.")
    inputs = [(position, graph.tensor(name)) for position, name in enumerate(op.inputs) if name]
    outputs = [graph.tensor(name) for name in op.outputs]
    for position, tensor in inputs:
        _check_role(op, position, tensor, codec, where)
    if op.kind in _BINARY and all(tensor.is_constant for _, tensor in inputs):
        _refuse(where, "computes from constants only", "Let the converter fold constants.")
    for tensor in (*(tensor for _, tensor in inputs), *outputs):
        _check_quant(op, tensor, where)
    if codec.one_quantisation:
        _check_one_quantisation([*(tensor for _, tensor in inputs), *outputs], where)
    if codec.output_quant is not None:
        _check_output_quant(outputs[0], codec.output_quant, where)
    if op.kind in _WEIGHTS_AXIS:
        _check_weights(graph, op, where)
    if op.kind == "svdf":
        _check_svdf(graph, op, where)
    _check_work(graph, op, where)
    try:
        check_defined(graph, op)
    except InvalidModelError as error:
        _refuse(where, error.message, "Convert the model again: such scales come from ranges that are not sane.")


def beyond_limits(graph: Graph, op: Op, codec: Codec) -> str:
    """Return what TFLite Micro does not take about an op's number of inputs and dimensions, or "" when it takes it."""
    rank = max(len(graph.tensor(name).shape) for name in (*op.inputs, *op.outputs) if name)
    if rank > codec.max_rank:
        return f"{rank} dimensions; TFLite Micro takes up to {codec.max_rank} there"
    if len(op.inputs) > codec.max_inputs:
        return f"{len(op.inputs)} inputs; TFLite Micro takes up to {codec.max_inputs}"
    return ""


def _refuse(where: str, problem: str, next_step: str = "") -> NoReturn:
    raise UnsupportedModelError(f"{where}: {problem}", next_step)


def _check_role(op: Op, position: int, tensor: Tensor, codec: Codec, where: str) -> None:
    if position in codec.constants and not tensor.is_constant:
        _refuse(
            where,
            f"'{tensor.name}' is computed; {op.kind} takes a constant there",
            "Freeze the model's variables before conversion; a product of two activations is MUL.",
        )
    if tensor.variable and (op.kind, position) != ("svdf", 4):
        _refuse(where, f"'{tensor.name}' is a variable", "Only the state of an SVDF is a variable.")
    if tensor.is_constant and position == 0 and op.kind not in (*_BINARY, "concatenation"):
        _refuse(where, f"'{tensor.name}' is a constant, not an activation", "Let the converter fold constants.")


def _check_quant(op: Op, tensor: Tensor, where: str) -> None:
    if tensor.dtype == "float32" or tensor.dtype == "int32" and tensor.quant is None:
        return
    if tensor.quant is None:
        _refuse(where, f"'{tensor.name}' is {tensor.dtype} without quantisation parameters", type_advice(tensor.dtype))
    low, high = _ZERO_POINTS.get(tensor.dtype, (-(1 << 31), (1 << 31) - 1))
    for scale in tensor.quant.scales:
        # A bias carries the product of two scales, and producers write 0 or nonsense where nothing reads it.
        if tensor.dtype != "int32" and not SCALE_RANGE[0] <= scale <= SCALE_RANGE[1]:
            raise InvalidModelError(f"{where}: '{tensor.name}' has the scale {scale}, outside 2**-100 to 2**100")
    for zero in tensor.quant.zero_points:
        if not low <= zero <= high:
            raise InvalidModelError(f"{where}: '{tensor.name}' has the zero point {zero}, outside {low} to {high}")
    if tensor.quant.axis is not None and not (tensor.is_constant and op.kind in _WEIGHTS_AXIS):
        _refuse(
            where,
            f"'{tensor.name}' has one scale per channel",
            "Quantise it per tensor: only weights and biases of convolutions and FULLY_CONNECTED can have several.",
        )


def _same_quant(first: Quant | None, second: Quant | None) -> bool:
    return first is second or (first is not None and first == second)


def _check_one_quantisation(tensors: list[Tensor], where: str) -> None:
    first = tensors[0]
    for other in tensors[1:]:
        if not _same_quant(first.quant, other.quant) and first.dtype == other.dtype == "int8":
            _refuse(
                where,
                f"it moves integers from '{first.name}' to '{other.name}' or compares them, yet their scales or zero "
                f"points differ ({_label(first.quant)} and {_label(other.quant)}): TFLite Micro would compute nonsense",
                "Convert the model again, or put a QUANTIZE between them.",
            )


def _label(quant: Quant | None) -> str:
    return "none" if quant is None else f"{quant.scale:.9g}, {quant.zero_point}"


def _check_output_quant(tensor: Tensor, expected: tuple[float, int], where: str) -> None:
    quant = tensor.quant
    if quant is None or quant.zero_point != expected[1] or abs(quant.scale - expected[0]) > 1e-6 * expected[0]:
        _refuse(
            where,
            f"its output has scale and zero point {_label(quant)}; the int8 op has {expected[0]:.9g}, {expected[1]}",
            "Convert the model again with TensorFlow 2: its int8 quantiser fixes these.",
        )


def _check_weights(graph: Graph, op: Op, where: str) -> None:
    weights = graph.tensor(op.inputs[1])
    quant, x, y = weights.quant, graph.tensor(op.inputs[0]).quant, graph.tensor(op.outputs[0]).quant
    if quant is None or x is None or y is None:
        raise InvalidModelError(f"{where}: operands without quantisation parameters")
    if any(quant.zero_points):
        _refuse(
            where,
            f"its weights '{weights.name}' have the zero point {max(quant.zero_points, key=abs)}",
            "Quantise weights symmetrically: int8 kernels take a zero point of 0.",
        )
    if quant.axis is not None and quant.axis != _WEIGHTS_AXIS[op.kind]:
        _refuse(
            where,
            f"its weights have one scale per slice of axis {quant.axis}; {op.kind} has them along axis "
            f"{_WEIGHTS_AXIS[op.kind]}",
            "Quantise weights per output channel.",
        )
    bias = graph.tensor(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else None
    if bias is not None and op.kind == "fully_connected" and quant.axis is None:
        scale = bias.quant.scale if bias.quant is not None else 0.0
        if abs(x.scale * quant.scale - scale) / y.scale > BIAS_SCALE_TOLERANCE:
            _refuse(
                where,
                f"its bias '{bias.name}' has the scale {scale:.9g} instead of {x.scale * quant.scale:.9g}, input times "
                "weights: TFLite refuses it too",
                "Convert the model again.",
            )


def _check_svdf(graph: Graph, op: Op, where: str) -> None:
    feature, time, bias, state = (graph.tensor(name) for name in op.inputs[1:])
    for tensor in (feature, time, state):
        if tensor.quant is not None and tensor.quant.zero_point != 0:
            _refuse(
                where,
                f"'{tensor.name}' has the zero point {tensor.quant.zero_point}",
                "Quantise the weights and the state of an SVDF symmetrically.",
            )
    expected = (1, feature.shape[0] * time.shape[1])
    if state.shape != expected:
        _refuse(where, f"its state has shape {list(state.shape)} instead of {list(expected)}", "Convert it again.")
    product = state.quant.scale * time.quant.scale if state.quant and time.quant else 0.0
    scale = bias.quant.scale if bias.quant is not None else 0.0
    if abs(scale - product) >= SVDF_BIAS_SCALE_TOLERANCE:
        _refuse(
            where,
            f"its bias '{bias.name}' has the scale {scale:.9g} instead of {product:.9g}, state times time weights: "
            "TFLite Micro refuses it too",
            "Convert the model again.",
        )


def _check_work(graph: Graph, op: Op, where: str) -> None:
    work = op_macs(graph, op)
    if "kernel" in op.attrs:
        work = graph.tensor(op.outputs[0]).num_elements * math.prod(op.attrs["kernel"])
    if work > MAX_MACS:
        raise InvalidModelError(f"{where}: {work} multiplications or additions; the limit is {MAX_MACS}")
    padding = op.attrs.get("padding")
    if padding is None:
        return
    # A TRANSPOSE_CONV computes its full output before it cuts, and may grow it where only the bias reaches.
    shape = graph.tensor(op.outputs[0] if op.kind == "transpose_conv" else op.inputs[0]).shape
    rows = max(shape[1], shape[1] + padding[0] + padding[1])
    columns = max(shape[2], shape[2] + padding[2] + padding[3])
    if rows * columns * shape[3] > MAX_TENSOR_BYTES:
        raise InvalidModelError(
            f"{where}: {list(shape)} padded by {padding} is larger than the limit of {MAX_TENSOR_BYTES} B"
        )
