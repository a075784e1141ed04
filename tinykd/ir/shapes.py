"""The rule of each op's output shapes: what its inputs, weights and attributes determine.

`output_shapes` serves builders and passes; `verify` compares its answer with the graph. A rule that is broken raises
InvalidModelError without naming the op: the caller does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from tinykd.errors import InvalidModelError
from tinykd.ir.graph import Graph, Op, Tensor
from tinykd.ir.ops import BINARY, UNARY, conv_output_size

Shape = tuple[int, ...]


def output_shapes(graph: Graph, op: Op) -> tuple[Shape, ...]:
    """Return the shapes that an op's outputs must have.

    Where the inputs leave them open (RESHAPE, the size of a resized map, the parts of a SPLIT), the graph's own output
    tensors are read, checked, and returned.

    Raises:
        InvalidModelError: inputs, weights or attributes do not go together.
    """
    rule = _RULES[op.kind]
    return rule(graph, op)


def _input(graph: Graph, op: Op, index: int = 0) -> Tensor:
    name = op.inputs[index]
    if not name:
        raise InvalidModelError(f"its input {index} is missing")
    return graph.tensor(name)


def _map(graph: Graph, op: Op) -> Shape:
    shape = _input(graph, op).shape
    if len(shape) != 4 or shape[0] != 1:
        raise InvalidModelError(f"its input has shape {list(shape)}; it takes (1, H, W, C)")
    return shape


def _weights(graph: Graph, op: Op, rank: int) -> Shape:
    shape = _input(graph, op, 1).shape
    if len(shape) != rank:
        raise InvalidModelError(f"its weights have shape {list(shape)}; it takes {rank} dimensions")
    return shape


def _check_bias(graph: Graph, op: Op, count: int) -> None:
    if len(op.inputs) > 2 and op.inputs[2]:
        shape = graph.tensor(op.inputs[2]).shape
        if shape != (count,):
            raise InvalidModelError(f"the bias has shape {list(shape)} instead of [{count}]")


def _window(x: Shape, kernel: Sequence[int], op: Op) -> tuple[int, int]:
    top, bottom, left, right = op.attrs["padding"]
    dilation_h, dilation_w = op.attrs.get("dilation", (1, 1))
    stride_h, stride_w = op.attrs["stride"]
    if min(stride_h, stride_w, dilation_h, dilation_w, *kernel) < 1 or min(op.attrs["padding"]) < 0:
        raise InvalidModelError(
            f"kernel {tuple(kernel)}, stride {op.attrs['stride']}, dilation {(dilation_h, dilation_w)}, padding "
            f"{tuple(op.attrs['padding'])}: each must be at least 1, paddings at least 0"
        )
    return (
        conv_output_size(x[1], kernel[0], stride_h, (top, bottom), dilation_h),
        conv_output_size(x[2], kernel[1], stride_w, (left, right), dilation_w),
    )


def _conv_2d(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, weights = _map(graph, op), _weights(graph, op, 4)
    if weights[3] != x[3]:
        raise InvalidModelError(f"its weights {list(weights)} do not suit {x[3]} input channels")
    _check_bias(graph, op, weights[0])
    return ((1, *_window(x, weights[1:3], op), weights[0]),)


def _depthwise_conv_2d(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, weights = _map(graph, op), _weights(graph, op, 4)
    if weights[0] != 1 or weights[3] % x[3]:
        raise InvalidModelError(f"its weights {list(weights)} do not suit {x[3]} input channels")
    _check_bias(graph, op, weights[3])
    return ((1, *_window(x, weights[1:3], op), weights[3]),)


def _transpose_conv(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, weights = _map(graph, op), _weights(graph, op, 4)
    if weights[3] != x[3]:
        raise InvalidModelError(f"its weights {list(weights)} do not suit {x[3]} input channels")
    _check_bias(graph, op, weights[0])
    if min(op.attrs["stride"]) < 1:
        raise InvalidModelError(f"stride {op.attrs['stride']}: each must be at least 1")
    top, bottom, left, right = op.attrs["padding"]
    height = (x[1] - 1) * op.attrs["stride"][0] + weights[1] - top - bottom
    width = (x[2] - 1) * op.attrs["stride"][1] + weights[2] - left - right
    return ((1, height, width, weights[0]),)


def _fully_connected(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, weights, y = _input(graph, op), _weights(graph, op, 2), graph.tensor(op.outputs[0])
    if x.num_elements % weights[1]:
        raise InvalidModelError(f"{x.num_elements} inputs are no rows of {weights[1]}: its weights are {list(weights)}")
    _check_bias(graph, op, weights[0])
    rows = x.num_elements // weights[1]
    if y.num_elements != rows * weights[0] or y.shape[-1:] != weights[:1]:
        raise InvalidModelError(f"its output has shape {list(y.shape)} instead of [{rows}, {weights[0]}]")
    return (y.shape,)


def _svdf(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, feature, time = _input(graph, op).shape, _weights(graph, op, 2), _input(graph, op, 2).shape
    state, rank = _input(graph, op, 4), op.attrs["rank"]
    if len(x) != 2 or x[0] != 1 or feature[1] != x[1] or len(time) != 2 or time[0] != feature[0]:
        raise InvalidModelError(f"input {list(x)}, feature weights {list(feature)}, time weights {list(time)}")
    if rank < 1 or feature[0] % rank or state.num_elements != feature[0] * time[1] or not state.variable:
        raise InvalidModelError(f"rank {rank}, {feature[0]} filters, state {list(state.shape)}")
    if op.inputs[3] and graph.tensor(op.inputs[3]).shape != (feature[0] // rank,):
        raise InvalidModelError(f"the bias has shape {list(graph.tensor(op.inputs[3]).shape)}")
    return ((1, feature[0] // rank),)


def _binary(graph: Graph, op: Op) -> tuple[Shape, ...]:
    first, second = _input(graph, op).shape, _input(graph, op, 1).shape
    try:
        return (tuple(np.broadcast_shapes(first, second)),)
    except ValueError:
        raise InvalidModelError(f"shapes {list(first)} and {list(second)} do not broadcast") from None


def _pool(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x = _map(graph, op)
    return ((1, *_window(x, op.attrs["kernel"], op), x[3]),)


def _mean(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, axes = _input(graph, op).shape, op.attrs["axes"]
    if not axes or list(axes) != sorted(set(axes)) or axes[0] < 1 or axes[-1] >= len(x):
        raise InvalidModelError(f"mean over axes {list(axes)} of {list(x)}: they must be sorted, and not the batch")
    if op.attrs["keep_dims"]:
        return (tuple(1 if axis in axes else dim for axis, dim in enumerate(x)),)
    return (tuple(dim for axis, dim in enumerate(x) if axis not in axes),)


def _pad(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, paddings = _input(graph, op).shape, op.attrs["paddings"]
    if len(paddings) != len(x) or any(min(pair) < 0 for pair in paddings):
        raise InvalidModelError(f"paddings {paddings} for {list(x)}: one pair per axis, none negative")
    return (tuple(dim + before + after for dim, (before, after) in zip(x, paddings, strict=True)),)


def _reshape(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, y = _input(graph, op), graph.tensor(op.outputs[0])
    if x.num_elements != y.num_elements:
        raise InvalidModelError(f"{x.num_elements} elements cannot become {list(y.shape)}")
    return (y.shape,)


def _transpose(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, perm = _input(graph, op).shape, op.attrs["perm"]
    if sorted(perm) != list(range(len(x))):
        raise InvalidModelError(f"{list(perm)} is no permutation of the axes of {list(x)}")
    return (tuple(x[axis] for axis in perm),)


def _concatenation(graph: Graph, op: Op) -> tuple[Shape, ...]:
    shapes, axis = [_input(graph, op, index).shape for index in range(len(op.inputs))], op.attrs["axis"]
    first = shapes[0]
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if not 0 <= axis < len(first) or len(rests) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise InvalidModelError(f"shapes {[list(shape) for shape in shapes]} cannot be joined along axis {axis}")
    return ((*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :]),)


def _split(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, axis = _input(graph, op).shape, op.attrs["axis"]
    shapes = tuple(graph.tensor(name).shape for name in op.outputs)
    if not 0 <= axis < len(x) or any(len(shape) != len(x) for shape in shapes):
        raise InvalidModelError(f"{list(x)} cannot be cut along axis {axis} into {[list(shape) for shape in shapes]}")
    if sum(shape[axis] for shape in shapes) != x[axis]:
        raise InvalidModelError(f"the parts {[shape[axis] for shape in shapes]} do not add up to {x[axis]}")
    return tuple((*x[:axis], shape[axis], *x[axis + 1 :]) for shape in shapes)


def _strided_slice(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x = _input(graph, op).shape
    begin, end, strides, shrink = (op.attrs[key] for key in ("begin", "end", "strides", "shrink_axes"))
    if not len(begin) == len(end) == len(strides) == len(x):
        raise InvalidModelError(f"begin {begin}, end {end}, strides {strides} for {list(x)}: one of each per axis")
    sizes = []
    for dim, first, last, step in zip(x, begin, end, strides, strict=True):
        if step == 0 or not 0 <= first < dim or not -1 <= last <= dim:
            raise InvalidModelError(f"begin {begin}, end {end}, strides {strides} leave the input {list(x)}")
        sizes.append(len(range(first, last, step)))
    if any(not 0 <= axis < len(x) or sizes[axis] != 1 for axis in shrink):
        raise InvalidModelError(f"axes {list(shrink)} of {sizes} cannot be dropped: they must have length 1")
    return (tuple(size for axis, size in enumerate(sizes) if axis not in shrink),)


def _resize(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, y = _map(graph, op), graph.tensor(op.outputs[0]).shape
    if len(y) != 4 or (y[0], y[3]) != (x[0], x[3]):
        raise InvalidModelError(f"{list(x)} cannot be resized to {list(y)}")
    return (y,)


def _arg_max(graph: Graph, op: Op) -> tuple[Shape, ...]:
    x, axis = _input(graph, op).shape, op.attrs["axis"]
    if not 0 <= axis < len(x):
        raise InvalidModelError(f"axis {axis} of {list(x)}")
    return ((*x[:axis], *x[axis + 1 :]),)


def _same(graph: Graph, op: Op) -> tuple[Shape, ...]:
    return (_input(graph, op).shape,)


_RULES: Mapping[str, Callable[[Graph, Op], tuple[Shape, ...]]] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _depthwise_conv_2d,
        "transpose_conv": _transpose_conv,
        "fully_connected": _fully_connected,
        "svdf": _svdf,
        "average_pool_2d": _pool,
        "max_pool_2d": _pool,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "transpose": _transpose,
        "concatenation": _concatenation,
        "split": _split,
        "strided_slice": _strided_slice,
        "resize_nearest_neighbor": _resize,
        "arg_max": _arg_max,
        "batch_norm": _same,
        **dict.fromkeys(BINARY, _binary),
        **dict.fromkeys(UNARY, _same),
    }
)
