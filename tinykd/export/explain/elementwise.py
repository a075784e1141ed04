"""The arithmetic of ops that work element by element: sums, products, tables, requantisation, and SOFTMAX."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.export.explain.steps import (
    Explainer,
    Explanation,
    Index,
    Values,
    element,
    finished,
    operands,
    requantized,
    shaped,
)
from tinykd.ir import Graph, Op, add_params, softmax_params, tensor_quant
from tinykd.ir.fixedpoint import (
    doubling_high_mul,
    exp_on_negative_values,
    reciprocal,
    rounding_shift_right,
)
from tinykd.ir.lookup import has_table, table
from tinykd.ir.requant import (
    ADD_LEFT_SHIFT,
    QMAX,
    QMIN,
    SOFTMAX_INTEGER_BITS,
    mul_params,
    prelu_params,
    rescale_params,
)


def _add(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = add_params(graph, op)
    parts = []
    for number, value in enumerate(operands(graph, op, values, index)):
        what = f"operand {number + 1}"
        zero = constants.zero_points[number]
        shifted = (value - zero) << ADD_LEFT_SHIFT
        told.say(f"{what}: (x - zero point) * 2^{ADD_LEFT_SHIFT}", f"({value} - ({zero})) -> {shifted:,}")
        parts.append(requantized(shifted, constants.multipliers[number], constants.shifts[number], told, what))
    total = parts[0] + parts[1] if op.kind == "add" else parts[0] - parts[1]
    what = "sum" if op.kind == "add" else "difference"
    told.say(what, total)
    scaled = requantized(total, constants.output_multiplier, constants.output_shift, told, what)
    return finished(scaled, constants.output_zero_point, constants.out_min, constants.out_max, told)


def _mul(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = mul_params(graph, op)
    a, b = operands(graph, op, values, index)
    zero_a, zero_b = constants.zero_points
    product = (a - zero_a) * (b - zero_b)
    told.say("product of both less their zero points", f"({a} - ({zero_a})) * ({b} - ({zero_b})) = {product:,}")
    scaled = requantized(product, constants.multiplier, constants.shift, told)
    return finished(scaled, constants.output_zero_point, constants.out_min, constants.out_max, told)


def _extreme(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    a, b = operands(graph, op, values, index)
    told.say("operands", f"{a}, {b}")
    value = max(a, b) if op.kind == "maximum" else min(a, b)
    told.say("the larger" if op.kind == "maximum" else "the smaller", value)
    return value


def _prelu(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = prelu_params(graph, op)
    x, slope = operands(graph, op, values, index)
    centred = x - constants.input_zero_point
    told.say("x - zero point", centred)
    if centred >= 0:
        scaled = requantized(centred, constants.positive_multiplier, constants.positive_shift, told, "from zero up")
    else:
        product = centred * (slope - constants.slope_zero_point)
        told.say("times (slope - its zero point)", product)
        scaled = requantized(product, constants.negative_multiplier, constants.negative_shift, told, "below zero")
    return finished(scaled, constants.output_zero_point, QMIN, QMAX, told)


def _looked_up(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    x = int(element(graph, values, op.inputs[0], index))
    told.say("x", x)
    source, target = (tensor_quant(graph.tensor(name)) for name in (op.inputs[0], op.outputs[0]))
    told.say("as a real number", f"{source.scale:.9g} * ({x} - ({source.zero_point}))")
    value = int(table(graph, op)[x + 128])
    told.say(f"entry {x + 128} of the op's table", value)
    told.say("as a real number again", f"{target.scale * (value - target.zero_point):.9g}")
    return value


def _quantize(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    if has_table(graph, op):
        return _looked_up(graph, op, values, index, output, told)
    x = element(graph, values, op.inputs[0], index)
    quant = tensor_quant(graph.tensor(op.outputs[0]))
    limits = np.iinfo(graph.tensor(op.outputs[0]).dtype)
    if x.dtype != np.float32:
        constants = rescale_params(graph, op)
        told.say("x - zero point", int(x) - constants.input_zero_point)
        scaled = requantized(int(x) - constants.input_zero_point, constants.multiplier, constants.shift, told)
        return finished(scaled, constants.output_zero_point, limits.min, limits.max, told)
    ratio = x / np.float32(quant.scale)
    told.say("x", f"{float(x):.9g}")
    told.say("x / scale, as float32", f"{float(ratio):.9g}")
    rounded = int(np.copysign(np.floor(np.abs(np.float64(ratio)) + 0.5), ratio))
    told.say("rounded, halves away from zero", rounded)
    return finished(rounded, quant.zero_point, limits.min, limits.max, told)


def _dequantize(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> float:
    x = int(element(graph, values, op.inputs[0], index))
    quant = tensor_quant(graph.tensor(op.inputs[0]))
    value = float(np.float32(quant.scale * (x - quant.zero_point)))
    told.say("x - zero point", x - quant.zero_point)
    told.say(f"times the scale {quant.scale:.9g}, as float32", f"{value:.9g}")
    return value


def _softmax(graph: Graph, op: Op, values: Values, index: Index, output: int, told: Explanation) -> int:
    constants = softmax_params(graph, op)
    row = shaped(graph, values, op.inputs[0])[index[:-1]].astype(np.int64)
    differences = row - row.max()
    counted = differences >= constants.diff_min
    told.say("x, the row's maximum", f"{int(row[index[-1]])}, {int(row.max())}")
    told.say("difference, least one that counts", f"{int(differences[index[-1]])}, {constants.diff_min}")
    if not counted[index[-1]]:
        told.say("too small to count", QMIN)
        return QMIN
    scaled = doubling_high_mul(np.where(counted, differences, 0) << constants.left_shift, constants.multiplier)
    exponentials = exp_on_negative_values(scaled, SOFTMAX_INTEGER_BITS)
    told.say("scaled difference (Q5.26)", int(scaled[index[-1]]))
    told.say("its exponential (Q0.31)", int(exponentials[index[-1]]))
    total = np.where(counted, rounding_shift_right(exponentials, 12), 0).sum(keepdims=True)
    told.say("sum of exponentials (Q12.19)", int(total[0]))
    scale, bits = (int(part[0]) for part in reciprocal(total, 12))
    told.say("its reciprocal, bits over one", f"{scale:,}, {bits}")
    product = int(doubling_high_mul(exponentials[index[-1] : index[-1] + 1], scale)[0])
    told.say("exponential * reciprocal", product)
    probability = int(rounding_shift_right(np.array([product]), bits + 31 - 8)[0])
    told.say("as a multiple of 1/256", probability)
    return finished(probability, QMIN, QMIN, QMAX, told)


EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {
        "add": _add,
        "sub": _add,
        "mul": _mul,
        "maximum": _extreme,
        "minimum": _extreme,
        "prelu": _prelu,
        "softmax": _softmax,
        "quantize": _quantize,
        "dequantize": _dequantize,
        **dict.fromkeys(("logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu"), _looked_up),
    }
)
