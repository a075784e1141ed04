"""Reads ONNX nodes that move values, choose some, join them, or work along one axis; and dense layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tinykd.formats.onnx.layout import Value, transposed, value_of
from tinykd.formats.onnx.reader import Node


def reshape(node: Node) -> None:
    """Reshape."""
    value = node.value()
    target = node.constant(1).reshape(-1).astype(int).tolist()
    if not node.attrs.get("allowzero", 0):
        target = [value.shape[i] if dim == 0 and i < len(value.shape) else dim for i, dim in enumerate(target)]
    count = math.prod(value.shape)
    if target.count(-1) == 1:
        known = math.prod(dim for dim in target if dim != -1)
        target[target.index(-1)] = count // known if known > 0 else 0
    if min(target, default=1) < 1 or math.prod(target) != count:
        raise node.refusal(f"reshapes {list(value.shape)} to {node.constant(1).reshape(-1).tolist()}")
    node.pass_on(node.reshaped(value, target))


def flatten(node: Node) -> None:
    """Flatten."""
    value = node.value()
    rank = len(value.shape)
    axis = node.attrs.get("axis", 1)
    axis = rank if axis == rank else node.axis(axis, rank)
    node.pass_on(node.reshaped(value, (math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))))


def squeeze(node: Node) -> None:
    """Squeeze."""
    value = node.value()
    axes = node.axes(len(value.shape))
    if axes is None:
        axes = [axis for axis, dim in enumerate(value.shape) if dim == 1 and axis]
    if any(value.shape[axis] != 1 for axis in axes):
        raise node.refusal(f"drops axes {axes} of {list(value.shape)}: they must have length 1")
    node.pass_on(replace(value, axes=tuple(factors for axis, factors in enumerate(value.axes) if axis not in axes)))


def unsqueeze(node: Node) -> None:
    """Unsqueeze."""
    value = node.value()
    count = node.constant(1).size
    axes = node.axes(len(value.shape) + count) or []
    rest = iter(value.axes)
    node.pass_on(
        replace(value, axes=tuple(() if axis in axes else next(rest) for axis in range(len(value.shape) + count)))
    )


def transpose(node: Node) -> None:
    """Transpose."""
    value = node.value()
    rank = len(value.shape)
    perm = list(node.attrs.get("perm", range(rank)[::-1]))
    if sorted(perm) != list(range(rank)):
        raise node.refusal(f"perm {perm} of a value of {rank} dimensions")
    node.pass_on(transposed(value, perm))


def depth_to_space(node: Node) -> None:
    """DepthToSpace, as reshapes and a transpose."""
    value, block = node.value(), node.attrs["blocksize"]
    _, channels, height, width = value.shape
    deep = channels // (block * block)
    if node.attrs.get("mode", b"DCR") == b"CRD":
        parts, perm = (1, deep, block, block, height, width), (0, 1, 4, 2, 5, 3)
    else:
        parts, perm = (1, block, block, deep, height, width), (0, 3, 4, 1, 5, 2)
    moved = transposed(node.reshaped(value, parts), perm)
    node.pass_on(node.reshaped(moved, (1, deep, height * block, width * block)))


def space_to_depth(node: Node) -> None:
    """SpaceToDepth, as reshapes and a transpose."""
    value, block = node.value(), node.attrs["blocksize"]
    _, channels, height, width = value.shape
    if height % block or width % block:
        raise node.refusal(f"blocks of {block} do not cover {height}x{width}")
    split = node.reshaped(value, (1, channels, height // block, block, width // block, block))
    moved = transposed(split, (0, 3, 5, 1, 2, 4))
    node.pass_on(node.reshaped(moved, (1, channels * block * block, height // block, width // block)))


def concat(node: Node) -> None:
    """Concat of activations and constants."""
    names = node.proto.input
    first = next(i for i in range(len(names)) if not node.is_constant(i))
    shapes = [tuple((node.constant(i) if node.is_constant(i) else node.value(i)).shape) for i in range(len(names))]
    rank = len(shapes[0])
    axis = node.axis(node.attrs["axis"], rank)
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rests) != 1 or any(len(shape) != rank for shape in shapes):
        raise node.refusal(f"joins shapes {[list(shape) for shape in shapes]} along axis {axis}")
    perm = node.layout(node.value(first))
    inputs = [
        node.weights(f"operand{i}", node.constant(i).transpose(perm), i)
        if node.is_constant(i)
        else node.arrange(node.value(i), perm)
        for i in range(len(names))
    ]
    shape = [*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]]
    node.emit("concatenation", inputs, [shape[a] for a in perm], perm, axis=perm.index(axis))


def split(node: Node) -> None:
    """Split."""
    value = node.value()
    axis = node.axis(node.attrs.get("axis", 0), len(value.shape))
    outputs, size = list(node.proto.output), value.shape[axis]
    if node.has(1):
        sizes = node.constant(1).reshape(-1).astype(int).tolist()
    else:
        part = -(-size // len(outputs))
        sizes = [min(part, size - part * i) for i in range(len(outputs))]
    if sum(sizes) != size or min(sizes) < 1 or len(sizes) != len(outputs):
        raise node.refusal(f"cuts axis {axis} of {list(value.shape)} into {sizes}")
    perm = node.layout(value)
    node.split(node.arrange(value, perm), outputs, perm.index(axis), sizes)
    for index, name in enumerate(outputs):
        node.bind(name, node.reader.tensors[name].shape, perm, index)


def slice_(node: Node) -> None:
    """Slice with constant bounds."""
    value = node.value()
    rank = len(value.shape)
    starts, ends = (node.constant(index).reshape(-1).tolist() for index in (1, 2))
    axes = node.axes(rank, 3) or list(range(len(starts)))
    steps = node.constant(4).reshape(-1).tolist() if node.has(4) else [1] * len(starts)
    cuts = {axis: slice(*cut) for axis, *cut in zip(axes, starts, ends, steps, strict=True)}
    _cut(node, value, cuts)


def gather(node: Node) -> None:
    """Gather of one element, or of evenly spaced ones, along an axis."""
    value, indices = node.value(), node.constant(1)
    axis = node.axis(node.attrs.get("axis", 0), len(value.shape))
    size = value.shape[axis]
    taken = [int(index) % size if -size <= index < size else size for index in indices.reshape(-1)]
    steps = {b - a for a, b in zip(taken, taken[1:], strict=False)}
    if not taken or size in taken or len(steps) > 1 or 0 in steps or indices.ndim > 1:
        raise node.refusal("gathers elements that are not evenly spaced", "Slice instead, or reorder weights.")
    step = next(iter(steps), 1)
    end = taken[-1] + (1 if step > 0 else -1)
    _cut(node, value, {axis: slice(taken[0], None if end < 0 else end, step)})
    if indices.ndim == 0:
        cut = node.reader.values[node.proto.output[0]]
        node.pass_on(replace(cut, axes=cut.axes[:axis] + cut.axes[axis + 1 :]))


def _cut(node: Node, value: Value, cuts: dict[int, slice]) -> None:
    """Say that the node's output is `value` cut along some axes."""
    if any(cut.step == 0 for cut in cuts.values()):
        raise node.refusal("has a step of 0")
    triples = [cuts.get(axis, slice(None)).indices(dim) for axis, dim in enumerate(value.shape)]
    sizes = [len(range(*triple)) for triple in triples]
    if min(sizes) < 1:
        raise node.refusal(f"leaves nothing of {list(value.shape)}")
    if all(triple == (0, dim, 1) for triple, dim in zip(triples, value.shape, strict=True)):
        node.pass_on(value)
        return
    perm = node.layout(value)
    begin, end, strides = (tuple(triples[axis][part] for axis in perm) for part in range(3))
    shape = tuple(sizes[axis] for axis in perm)
    x = node.arrange(value, perm)
    node.emit("strided_slice", (x,), shape, perm, begin=begin, end=end, strides=strides, shrink_axes=())


def expand(node: Node) -> None:
    """Expand that repeats nothing."""
    value = node.value()
    shape = np.broadcast_shapes(value.shape, tuple(node.constant(1).reshape(-1).astype(int).tolist()))
    if math.prod(shape) != math.prod(value.shape):
        raise node.refusal(f"repeats elements of {list(value.shape)} to {list(shape)}", "Let the next op broadcast.")
    node.pass_on(node.reshaped(value, shape))


def _ending_in(node: Node, value: Value, axis: int) -> Value:
    """Return a value whose tensor has the ONNX axis `axis` as its last dimension."""
    own, count = value.axes[axis], len(value.factors)
    dims = node.reader.tensors[value.name].shape
    if own == tuple(range(count - len(own), count)) and dims[-1] == value.shape[axis]:
        return value
    perm = node.layout(value)
    if perm[-1] != axis:
        perm = (*(other for other in perm if other != axis), axis)
    return value_of(node.arrange(value, perm), value.shape, perm)


def softmax(node: Node) -> None:
    """Softmax along any axis."""
    value = node.value()
    lying = _ending_in(node, value, node.axis(node.attrs.get("axis", -1), len(value.shape)))
    shape = node.reader.tensors[lying.name].shape
    node.pass_on(replace(lying, name=node.op("softmax", (lying.name,), node.proto.output[0], shape, beta=1.0)))


def arg_max(node: Node) -> None:
    """ArgMax, int32."""
    value = node.value()
    axis = node.axis(node.attrs.get("axis", 0), len(value.shape))
    if axis == 0 or node.attrs.get("select_last_index", 0):
        raise node.refusal("only the first largest index along an axis that is not the batch is supported")
    perm = node.layout(value)
    x = node.arrange(value, perm)
    left = [other for other in perm if other != axis]
    shape = tuple(value.shape[other] for other in left)
    node.op("arg_max", (x,), node.proto.output[0], shape, "int32", axis=perm.index(axis))
    ranks = sorted(left)
    node.bind(node.proto.output[0], shape, [ranks.index(other) for other in left])
    if node.attrs.get("keepdims", 1):
        found = node.reader.values[node.proto.output[0]]
        node.pass_on(replace(found, axes=(*found.axes[:axis], (), *found.axes[axis:])))


def batch_norm(node: Node) -> None:
    """BatchNormalization in eval mode."""
    if node.attrs.get("training_mode", 0):
        raise node.refusal("is in training mode", "Export the model in eval mode.")
    value = node.value()
    if len(value.shape) < 2:
        raise node.refusal("has no channels")
    lying = _ending_in(node, value, 1)
    parts = [node.weights(part, node.constant(i + 1)) for i, part in enumerate(("gamma", "beta", "mean", "variance"))]
    shape = node.reader.tensors[lying.name].shape
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    name = node.op("batch_norm", (lying.name, *parts), node.proto.output[0], shape, epsilon=epsilon)
    node.pass_on(replace(lying, name=name))


def gemm(node: Node) -> None:
    """Gemm with constant weights."""
    weights = node.constant(1)
    if node.attrs.get("transA", 0):
        raise node.refusal("a transposed activation is not supported")
    weights = weights if node.attrs.get("transB", 0) else weights.T
    bias = node.constant(2) if node.has(2) else np.zeros(len(weights), np.float32)
    if bias.size not in (1, len(weights)):
        raise node.refusal(f"a bias of {bias.size} values for {len(weights)} outputs")
    bias = np.broadcast_to(bias.reshape(-1), (len(weights),))
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    weights = weights if alpha == 1.0 else weights * np.float32(alpha)
    bias = bias if beta == 1.0 else bias * np.float32(beta)
    _dense(node, weights, bias, 2 if node.has(2) else None)


def matmul(node: Node) -> None:
    """MatMul with a constant matrix."""
    if not node.is_constant(1):
        raise node.refusal(
            "multiplies with a matrix that is no constant", "Attention and outer products have no int8 op here."
        )
    weights = node.constant(1)
    if weights.ndim != 2:
        raise node.refusal(f"multiplies with {weights.ndim} dimensions of weights; only matrices are supported")
    _dense(node, weights.T, np.zeros(weights.shape[1], np.float32), None)


def _dense(node: Node, weights: np.ndarray, bias: np.ndarray, bias_index: int | None) -> None:
    """Emit x @ weights.T + bias, with weights (Cout, Cin), for the rows of x's last axis."""
    value = node.value()
    axis = len(value.shape) - 1
    if axis < 1 or weights.ndim != 2 or value.shape[axis] != weights.shape[1]:
        raise node.refusal(f"weights {list(weights.shape)} for an input of shape {list(value.shape)}")
    if axis == 1:
        # The columns go where the elements of a flattened map lie: cheaper than moving the map.
        own = value.axes[1]
        places = sorted(range(len(own)), key=own.__getitem__)
        columns = weights.reshape(len(weights), *(value.factors[index] for index in own))
        weights = columns.transpose(0, *(place + 1 for place in places)).reshape(weights.shape)
        value = replace(value, axes=((), tuple(sorted(own))))
        lying = value_of(node.arrange(value, (0, 1)), value.shape, (0, 1))
    else:
        lying = _ending_in(node, value, axis)
    parts = node.weights("weights", weights, 1), node.weights("bias", bias, bias_index)
    shape = (*node.reader.tensors[lying.name].shape[:-1], len(weights))
    name = node.op("fully_connected", (lying.name, *parts), node.proto.output[0], shape, activation="none")
    kept = len(lying.factors) - len(lying.axes[axis])
    plain = Value(name, (*lying.factors[:kept], len(weights)), (*lying.axes[:axis], (kept,)))
    if len(weights) == 1:
        plain = Value(name, plain.factors[:-1], (*lying.axes[:axis], ()))
    node.pass_on(plain)


def free(node: Node) -> None:
    """Nodes that change nothing in inference."""
    node.pass_on(node.value())


def cast(node: Node) -> None:
    """Cast within floats or within integers."""
    dtype = node.reader.tensors[node.value().name].dtype
    integer = node.attrs.get("to") in (2, 3, 4, 5, 6, 7, 12, 13)
    if integer != dtype.startswith(("int", "uint")):
        raise node.refusal(f"turns {dtype} values into another kind", "Cast outside of the model.")
    node.pass_on(node.value())
