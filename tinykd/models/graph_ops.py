"""The ops of a float graph in torch, differentiable: activations (N, C, H, W) inside, the graph's own meaning outside.

`tests/ml/test_qat.py` holds them to the NumPy reference in `tinykd/export/float_reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F

from tinykd.ir import Op, spatial_padding
from tinykd.ir.resize import nearest_positions

Shape = tuple[int, ...]
Kernel = Callable[[Op, Shape, Sequence[torch.Tensor]], torch.Tensor]
"""Takes the op, the output's shape in the graph, and the inputs; weights and constants lie as torch wants them. No
activation."""
# What a padding with the smallest number there is fills with: still a number after the division by a scale.
_LOWEST = -1e9


def _conv_2d(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, weight, bias = inputs
    x, padding = _padded(x, op.attrs["padding"])
    groups = x.shape[1] if op.kind == "depthwise_conv_2d" else 1
    return F.conv2d(x, weight, bias, op.attrs["stride"], padding, op.attrs["dilation"], groups)


def _transpose_conv(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, weight, bias = inputs
    full = F.conv_transpose2d(x, weight.transpose(0, 1), None, op.attrs["stride"])
    top, bottom, left, right = op.attrs["padding"]
    return F.pad(full, (-left, -right, -top, -bottom)) + bias[:, None, None]


def _fully_connected(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, weight, bias = inputs
    rows = _in_graph_order(x).reshape(len(x), -1, weight.shape[1])
    return _with_shape(F.linear(rows, weight, bias), shape)


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Kernel:
    return lambda op, shape, inputs: function(*(_raised(x, len(shape)) for x in inputs))


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Kernel:
    return lambda op, shape, inputs: function(inputs[0])


def _leaky_relu(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.leaky_relu(inputs[0], op.attrs["alpha"])


def _prelu(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, x * slopes)


def _average_pool_2d(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, kernel, stride = inputs[0], op.attrs["kernel"], op.attrs["stride"]
    if not any(op.attrs["padding"]):
        return F.avg_pool2d(x, kernel, stride)
    # Padded positions do not count.
    covered = _filled(torch.ones_like(x[:1, :1]), op.attrs["padding"])
    return F.avg_pool2d(_filled(x, op.attrs["padding"]), kernel, stride) / F.avg_pool2d(covered, kernel, stride)


def _max_pool_2d(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.max_pool2d(_filled(inputs[0], op.attrs["padding"], -torch.inf), op.attrs["kernel"], op.attrs["stride"])


def _mean(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return _with_shape(_in_graph_order(inputs[0]).mean(op.attrs["axes"], keepdim=op.attrs["keep_dims"]), shape)


def _pad(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    padding = spatial_padding(op)
    if padding is not None:
        return _filled(inputs[0], padding)
    value = op.attrs["value"]
    sides = [side for pair in reversed(op.attrs["paddings"]) for side in pair]
    filled = F.pad(_in_graph_order(inputs[0]), sides, value=0.0 if value is None else max(value, _LOWEST))
    return _with_shape(filled, shape)


def _reshape(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return _with_shape(_in_graph_order(inputs[0]), shape)


def _transpose(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return _with_shape(_in_graph_order(inputs[0]).permute(op.attrs["perm"]), shape)


def _concatenation(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    count = max(len(x) for x in inputs)
    return torch.cat([x.expand(count, *x.shape[1:]) for x in inputs], dim=_axis(op.attrs["axis"], len(shape)))


def split(op: Op, shapes: Sequence[Shape], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the parts of `x` that a split op cuts it into; `shapes` are those of its outputs in the graph."""
    axis = op.attrs["axis"]
    return x.split([shape[axis] for shape in shapes], dim=_axis(axis, len(shapes[0])))


def _strided_slice(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x = _in_graph_order(inputs[0])
    # torch has no negative steps: positions are gathered, axis by axis.
    cuts = zip(op.attrs["begin"], op.attrs["end"], op.attrs["strides"], strict=True)
    for axis, cut in enumerate(cuts):
        positions = range(*cut)
        if axis and positions != range(x.shape[axis]):
            x = x.index_select(axis, torch.tensor(positions, device=x.device))
    return _with_shape(x, shape)


def _resize_nearest_neighbor(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x = inputs[0]
    for axis in (2, 3):
        positions = nearest_positions(x.shape[axis], shape[axis - 1], **op.attrs)
        x = x.index_select(axis, torch.from_numpy(positions).to(x.device))
    return x


def _softmax(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.softmax(inputs[0] * op.attrs["beta"], dim=_axis(len(shape) - 1, len(shape)))


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _conv_2d,
        "transpose_conv": _transpose_conv,
        "fully_connected": _fully_connected,
        "add": _binary(torch.add),
        "sub": _binary(torch.sub),
        "mul": _binary(torch.mul),
        "maximum": _binary(torch.maximum),
        "minimum": _binary(torch.minimum),
        "prelu": _binary(_prelu),
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "transpose": _transpose,
        "concatenation": _concatenation,
        "strided_slice": _strided_slice,
        "resize_nearest_neighbor": _resize_nearest_neighbor,
        "softmax": _softmax,
        "logistic": _unary(torch.sigmoid),
        "tanh": _unary(torch.tanh),
        "hard_swish": _unary(F.hardswish),
        "relu": _unary(F.relu),
        "relu6": _unary(F.relu6),
        "leaky_relu": _leaky_relu,
        # Only the grid changes, and rounding to it is the caller's.
        "quantize": _unary(lambda x: x),
    }
)


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return `x` after a fused activation, one of `tinykd.ir.ops.ACTIVATIONS`."""
    if activation == "none":
        return x
    if activation == "relu":
        return F.relu(x)
    return x.clamp(0.0, 6.0) if activation == "relu6" else x.clamp(-1.0, 1.0)


# From the graph's weights, (Cout, kH, kW, Cin) and depthwise (1, kH, kW, C), to (Cout, Cin / groups, kH, kW).
_ORDER = {"conv_2d": (0, 3, 1, 2), "depthwise_conv_2d": (3, 0, 1, 2), "transpose_conv": (0, 3, 1, 2)}


def weights_to_torch(kind: str, value: np.ndarray) -> torch.Tensor:
    """Return weights of an op of this kind, or a bias for any other `kind`, as torch wants them: a float32 copy."""
    return torch.from_numpy(np.array(np.transpose(value, _ORDER.get(kind)) if kind in _ORDER else value, np.float32))


def weights_to_graph(kind: str, value: torch.Tensor) -> np.ndarray:
    """Undo `weights_to_torch`: float32, contiguous, on the host."""
    array = value.detach().cpu().numpy()
    return np.ascontiguousarray(np.transpose(array, np.argsort(_ORDER[kind])) if kind in _ORDER else array).copy()


def constant_to_torch(value: np.ndarray, rank: int) -> torch.Tensor:
    """Return a constant operand of an op of `rank` dimensions as torch wants it, with as many: a float32 copy."""
    raised = np.array(value, np.float32).reshape((1,) * (rank - value.ndim) + value.shape)
    return torch.from_numpy(np.ascontiguousarray(raised.transpose(0, 3, 1, 2) if rank == 4 else raised))


def _axis(axis: int, rank: int) -> int:
    """Return where torch has a dimension of the graph."""
    return (0, 2, 3, 1)[axis] if rank == 4 else axis


def _raised(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Return `x` with `rank` dimensions, those that it lacks behind the batch."""
    if x.ndim == rank:
        return x
    shape = (1, *[1] * (rank - x.ndim), *_in_graph_order(x).shape[1:])
    return _with_shape(_in_graph_order(x), shape)


def _padded(x: torch.Tensor, padding: tuple[int, int, int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return `x` padded with zeros where it must be, and what is left to the op itself: (height, width) each side."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, (top, left)
    return _filled(x, padding), (0, 0)


def _filled(x: torch.Tensor, padding: tuple[int, int, int, int], value: float = 0.0) -> torch.Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _in_graph_order(x: torch.Tensor) -> torch.Tensor:
    """Return (N, H, W, C) of (N, C, H, W): the order in which the graph counts elements."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _with_shape(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Give `x`, which is in the graph's order, the shape of a tensor of the graph, channels first."""
    x = x.reshape(-1, *shape[1:])
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x
