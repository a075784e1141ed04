"""Reads ONNX's elementwise nodes: activations, and arithmetic with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinykd.formats.onnx.layout import Value
from tinykd.formats.onnx.reader import Node

Operand = Value | np.ndarray
HARD_SIGMOID_RAMP = "/hard sigmoid times 6"
"""How the name of a hard-sigmoid's only inner value with known bounds, 0 and 6, ends."""
_MOST_DIMENSIONS = 4


def unary(kind: str) -> Callable[[Node], None]:
    """Return the handler of a node with one input that becomes one op without attributes."""

    def handler(node: Node) -> None:
        node.pass_on(apply(node, kind, node.value(), node.proto.output[0]))

    return handler


def apply(node: Node, kind: str, value: Value, name: str, **attrs: Any) -> Value:
    """Add an elementwise op that writes the tensor `name`, its elements in the order of its input's."""
    shape = node.reader.tensors[value.name].shape
    return replace(value, name=node.op(kind, (value.name,), name, shape, **attrs))


def leaky_relu(node: Node) -> None:
    """LeakyRelu."""
    alpha = float(node.attrs.get("alpha", 0.01))
    node.pass_on(apply(node, "leaky_relu", node.value(), node.proto.output[0], alpha=alpha))


def clip(node: Node) -> None:
    """Clip: relu or relu6, or the larger and the smaller of the input and a constant."""
    value, out = node.value(), node.proto.output[0]
    low, high = node.scalar(1, -np.inf), node.scalar(2, np.inf)
    if low > high:
        raise node.refusal(f"clips to [{low:g}, {high:g}]")
    if low == 0.0 and high in (6.0, np.inf):
        node.pass_on(apply(node, "relu6" if high == 6.0 else "relu", value, out))
        return
    for kind, bound, last in (("maximum", low, high == np.inf), ("minimum", high, True)):
        if np.isfinite(bound):
            value = binary(
                node, kind, [value, np.array([bound])], out if last else f"{out}/{kind}", part=f"{kind}_bound"
            )
    node.pass_on(value)


def hard_sigmoid(node: Node) -> None:
    """min(max(alpha x + beta, 0), 1) as relu6(6 alpha x + 6 beta) / 6."""
    value, out = node.value(), node.proto.output[0]
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    factor = np.float32(6 * alpha)
    if abs(factor - 1) > 1e-6:
        value = binary(node, "mul", [value, np.array([factor])], f"{out}/scaled", part="factor")
    value = binary(node, "add", [value, np.array([6 * beta])], f"{out}/shifted", part="offset")
    value = apply(node, "relu6", value, f"{out}{HARD_SIGMOID_RAMP}")
    node.pass_on(binary(node, "mul", [value, np.array([1 / 6])], out, part="sixth"))


def prelu(node: Node) -> None:
    """PRelu with constant slopes."""
    node.pass_on(binary(node, "prelu", [node.value(), node.constant(1)], node.proto.output[0], indices=(0, 1)))


def arithmetic(kind: str) -> Callable[[Node], None]:
    """Return the handler of Add, Sub, Mul, Max or Min, of any number of inputs."""

    def handler(node: Node) -> None:
        count, out = len(node.proto.input), node.proto.output[0]
        found: Operand = _operand(node, 0)
        for index in range(1, count):
            name = out if index == count - 1 else f"{out}/{index}"
            indices = (0 if index == 1 else -1, index)
            found = binary(node, kind, [found, _operand(node, index)], name, indices=indices)
        assert isinstance(found, Value)
        node.pass_on(found)

    return handler


def divide(node: Node) -> None:
    """Div by a constant: a product with its reciprocal."""
    if not node.is_constant(1):
        raise node.refusal("divides by an activation", "Multiply with the reciprocal of a constant instead.")
    with np.errstate(divide="ignore"):
        factor = 1.0 / node.constant(1).astype(np.float64)
    if not np.isfinite(factor).all():
        raise node.refusal("divides by zero")
    node.pass_on(binary(node, "mul", [node.value(), factor], node.proto.output[0]))


def negate(node: Node) -> None:
    """Neg: a product with -1."""
    node.pass_on(binary(node, "mul", [node.value(), np.array([-1.0])], node.proto.output[0]))


def _operand(node: Node, index: int) -> Operand:
    return node.constant(index) if node.is_constant(index) else node.value(index)


def binary(
    node: Node, kind: str, operands: Sequence[Operand], name: str, indices: Sequence[int] = (-1, -1), part: str = ""
) -> Value:
    """Add an op of two operands, activations or constants, which broadcast as ONNX's do.

    Args:
        node: where they come from.
        kind: of op.
        operands: both.
        name: of the tensor that the op writes.
        indices: which of the node's inputs they are; -1 for others.
        part: sets constants that are none of the node's inputs apart.
    """
    shapes = [operand.shape for operand in operands]
    try:
        shape = tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise node.refusal(f"shapes {[list(found) for found in shapes]} do not broadcast") from None
    activations = [operand for operand in operands if isinstance(operand, Value)]
    first = next((value for value in activations if value.shape == shape), None)
    tensors = node.reader.tensors
    same = first is not None and all(
        replace(value, name="") == replace(first, name="") and tensors[value.name].shape == tensors[first.name].shape
        for value in activations
    )
    constants = [operand for operand in operands if not isinstance(operand, Value)]
    if first is not None and same and all(constant.size == 1 for constant in constants):
        return _emit(node, kind, [(x, None) for x in operands], name, indices, part, first, tensors[first.name].shape)
    if len(shape) > _MOST_DIMENSIONS:
        raise node.refusal(f"broadcasts to {len(shape)} dimensions; at most {_MOST_DIMENSIONS} are supported")
    raised = [
        node.reshaped(x, (1,) * (len(shape) - len(x.shape)) + x.shape) if isinstance(x, Value) else x for x in operands
    ]
    largest = max((x for x in raised if isinstance(x, Value)), key=lambda x: (x.shape == shape, len(x.factors)))
    perm = node.layout(largest)
    result = node.laid_out(shape, perm)
    dims = tuple(shape[axis] for axis in perm)
    return _emit(node, kind, [(x, perm) for x in raised], name, indices, part, result, dims)


def _emit(
    node: Node,
    kind: str,
    operands: Sequence[tuple[Operand, tuple[int, ...] | None]],
    name: str,
    indices: Sequence[int],
    part: str,
    result: Value,
    shape: tuple[int, ...],
) -> Value:
    inputs = []
    for number, (operand, perm) in enumerate(operands):
        if isinstance(operand, Value):
            inputs.append(operand.name if perm is None else node.arrange(operand, perm))
            continue
        if perm is None or operand.size == 1:
            data = operand.reshape(1)
        else:
            data = operand.reshape((1,) * (len(perm) - operand.ndim) + operand.shape).transpose(perm)
            while data.ndim > 1 and data.shape[0] == 1:
                data = data[0]
        if indices[number] >= 0:
            inputs.append(node.weights(f"operand{indices[number]}", data, indices[number]))
        else:
            inputs.append(node.weights(part or "operand", data))
    attrs = {"activation": "none"} if kind in ("add", "sub", "mul") else {}
    node.op(kind, inputs, name, shape, **attrs)
    return replace(result, name=name)
