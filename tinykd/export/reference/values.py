"""What the kernels of the integer reference share: values of many samples, constants, the final rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinykd.ir import Graph, Op, Tensor
from tinykd.ir.fixedpoint import multiply_by_quantized_multiplier

Values = dict[str, np.ndarray]
"""Tensor name -> (N, *shape of the tensor)."""
Kernel = Callable[[Graph, Op, Values], "np.ndarray | tuple[np.ndarray, ...]"]
"""An op's only output, or a tuple of its outputs, given its input activations."""


def to_public(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    """Return (N, *shape) without the batch dimension of 1."""
    return value.reshape(len(value), *tensor.shape[1:]) if tensor.shape[:1] == (1,) else value


def feature_map(op: Op, values: Values) -> np.ndarray:
    """Return an op's first input of shape (1, H, W, C) as (N, H, W, C)."""
    return values[op.inputs[0]][:, 0]


def operand(graph: Graph, op: Op, index: int, values: Values) -> np.ndarray:
    """Return an input (N, *shape) or constant (1, *shape), with axes of 1 inserted up to the rank of the output."""
    tensor = graph.tensor(op.inputs[index])
    value = tensor.data[None] if tensor.data is not None else values[tensor.name]
    missing = len(graph.tensor(op.outputs[0]).shape) - len(tensor.shape)
    return value.reshape(len(value), *(1,) * missing, *tensor.shape)


def requantized(
    acc: np.ndarray,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    zero_point: int,
    limits: tuple[int, int] = (-128, 127),
) -> np.ndarray:
    """Return int32 sums as int8: times the factor, plus the output's zero point, clamped."""
    scaled = multiply_by_quantized_multiplier(acc, multiplier, shift)
    scaled += zero_point
    return np.clip(scaled, *limits, out=scaled).astype(np.int8)
