"""Int8 models that together contain every op of the compiler, with awkward shapes: for the kernels and the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from graphs import Builder

from tinykd.ir import Graph


def elementwise(seed: int) -> Builder:
    """Every op on single elements: equal shapes, rows, planes and scalars that repeat, constants on either side."""
    builder = Builder(np.random.default_rng(seed), (1, 5, 4, 6))
    builder.conv(6, activation="relu_n1_to_1")
    start = builder.x
    builder.mean(keep_dims=True)
    row = builder.x
    builder.x = start
    builder.add(builder.constant((6,)), "relu")
    builder.add(start, "relu6")
    builder.sub(start)
    builder.sub(row, "relu")
    builder._emit("sub", (builder.constant((4, 1)), builder.x), activation="none")
    builder.mul(row)
    builder.mul(builder.constant((1, 5, 1, 1)), "relu")
    builder.mul(builder.constant((1,)))
    builder._emit("add", (row, builder.x), activation="none")
    for kind, shape in (("maximum", (4, 1)), ("minimum", (6,)), ("maximum", (1, 5, 1, 6)), ("minimum", (1, 5, 4, 6))):
        builder.extreme(kind, builder.constant(shape, builder.tensors[builder.x].quant))
    builder.prelu()
    builder.prelu((5, 1, 1))
    builder.unary("relu")
    builder.unary("leaky_relu", alpha=-0.3)
    builder.unary("hard_swish")
    builder.unary("quantize")
    builder.unary("relu6", builder.tensors[builder.x].quant)
    builder.unary("tanh")
    builder.unary("leaky_relu", alpha=0.1)
    builder.unary("logistic")
    return builder


def layout(seed: int) -> Builder:
    """Every op that moves: parts that lie in one piece and parts that do not, negative strides, any axis."""
    builder = Builder(np.random.default_rng(seed), (1, 6, 5, 4))
    builder.conv(4)
    top, bottom = builder.split((2, 4), 1)
    left, right = builder.split((1, 3), 3)
    builder.x = right
    builder.concatenate((left, right, right), 3)
    builder.conv(4, activation="relu")
    quant = builder.tensors[builder.x].quant
    first = builder.x
    builder.x = bottom
    builder.conv(4)
    builder.unary("quantize", quant)
    builder.concatenate((first,), 1)
    builder.transpose((0, 2, 1, 3))
    builder.transpose((0, 3, 1, 2))
    builder.strided_slice((0, 3, 1, 5), (1, -1, 5, 0), (1, -1, 2, -2))
    builder.pad(((0, 0), (1, 0), (0, 2), (3, 1)), value=-7)
    builder.pad(((0, 0), (0, 0), (0, 0), (1, 2)))
    builder.pad((1, 0, 2, 1))
    for size, align_corners, half_pixel_centers in (
        ((9, 3), False, False),
        ((4, 7), True, False),
        ((5, 9), False, True),
        ((8, 6), True, True),
    ):
        builder.resize(size, align_corners, half_pixel_centers)
    builder.strided_slice((0, 2, 0, 1), (1, 3, 6, 9), (1, 1, 1, 1), (1,))
    channels = builder.shape(builder.x)[2]
    builder.reshape((1, 2, 3, 1, channels))
    builder.transpose((0, 4, 2, 1, 3))
    return builder


def reductions(seed: int) -> Builder:
    """Windows, dense layers over one row and several, means over any axes, softmax, and an arg_max at the end."""
    builder = Builder(np.random.default_rng(seed), (1, 4, 3, 5))
    builder.transpose_conv(3, (3, 2), (2, 1))
    builder.transpose_conv(4, (2, 3), (3, 2), same=False, activation="relu", grow=2)
    builder.depthwise(1, (3, 3), (2, 2))
    builder.depthwise(2, (2, 3), (3, 1))
    builder.conv(6, (1, 1))
    builder.pool("average_pool_2d", (2, 2), (1, 1), same=True)
    builder.pool("max_pool_2d", (2, 1), (2, 1))
    start = builder.x
    for axes in ((3,), (1,), (1, 3), (2, 3)):
        builder.x = start
        builder.mean(axes=axes)
    builder.mean(axes=(1,), keep_dims=True)
    builder.x = start
    builder.dense(7, rows=builder.tensors[start].num_elements // 6, per_channel=True)
    builder.dense(5, rows=builder.tensors[builder.x].num_elements // 7, activation="relu6")
    builder.softmax(2.0)
    builder.mean(axes=(2,))
    builder.reshape((1, builder.tensors[builder.x].num_elements))
    builder.dense(11)
    builder.arg_max()
    return builder


def memory(seed: int) -> Builder:
    """Two SVDF layers, full-range time weights in the second, and a classifier."""
    builder = Builder(np.random.default_rng(seed), (1, 9))
    builder.svdf(6, rank=2, memory=4)
    builder.svdf(5, memory=1, time_limit=32767)
    builder.dense(4, per_channel=True)
    return builder


def heads(seed: int) -> Builder:
    """Detection heads: maps of three sizes, reshaped to rows and joined in place; the last one is too odd for it."""
    builder = Builder(np.random.default_rng(seed), (1, 8, 8, 3))
    builder.conv(8, activation="relu6")
    quant, rows = builder.quant(0.05), []
    for stride in ((2, 2), (2, 1), (1, 1)):
        builder.conv(8, (3, 3), stride, activation="relu6")
        trunk = builder.x
        builder.conv(5, (1, 1))
        builder.unary("quantize", quant)
        builder.reshape((1, builder.tensors[builder.x].num_elements // 5, 5))
        rows.append(builder.x)
        builder.x = trunk
    builder.x = rows[0]
    builder.concatenate(rows[1:], 1)
    return builder


def joins(seed: int, num_ops: int) -> Builder:
    """A random graph of splits, joins, slices and reshapes along any axis, with branches, reuse and computed parts."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng, (1, int(rng.integers(1, 7)), int(rng.integers(1, 7)), int(rng.choice([1, 3, 4, 8]))))
    quant = builder.tensors["input"].quant
    pool = ["input"]
    for _ in range(num_ops):
        builder.x = str(rng.choice(pool))
        shape = builder.shape(builder.x)
        axis = int(rng.integers(1, 4))
        kind = rng.choice(["compute", "split", "join", "join", "slice", "reshape", "transpose"])
        if kind == "compute":
            pool.append(builder.unary("relu", quant))
        elif kind == "split" and shape[axis] > 1:
            first = int(rng.integers(1, shape[axis]))
            pool += builder.split((first, shape[axis] - first), axis)
        elif kind == "join":
            rest = (*shape[:axis], *shape[axis + 1 :])
            fitting = [n for n in pool if (*builder.shape(n)[:axis], *builder.shape(n)[axis + 1 :]) == rest]
            others = [str(name) for name in rng.choice(fitting, int(rng.integers(1, 3)))]
            if builder.tensors[builder.x].num_elements < 600:
                pool.append(builder.concatenate(others, axis))
        elif kind == "slice":
            first = int(rng.integers(0, shape[axis]))
            begin = tuple(first if index == axis else 0 for index in range(4))
            pool.append(builder.strided_slice(begin, shape, (1, 1, 1, 1)))
        elif kind == "reshape":
            pool.append(builder.reshape((1, shape[2], shape[1], shape[3])))
        else:
            pool.append(builder.transpose((0, 2, 1, 3)))
    builder.x = pool[-1]
    builder.unary("relu", quant)
    return builder


MODELS: Mapping[str, Callable[[int], Builder]] = MappingProxyType(
    {model.__name__: model for model in (elementwise, layout, reductions, memory, heads)}
)
NOT_ON_DEVICE = ("batch_norm", "dequantize")
"""Kinds that the firmware never sees: folded away, or done by the host."""


def kinds(graph: Graph) -> set[str]:
    """Return the kinds of ops in a graph."""
    return {op.kind for op in graph.ops}
