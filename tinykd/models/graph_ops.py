"""The ops of a float graph in torch, differentiable: activations (N, C, H, W) inside, the graph's own meaning outside.

`tests/ml/test_qat.py` holds them to the NumPy reference in `tinykd/export/float_reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Op, spatial_padding

Shape = tuple[int, ...]
Kernel = Callable[[Op, Shape, Sequence[torch.Tensor]], torch.Tensor]
"""Takes the op, the output's shape in the graph, and the inputs; weights lie as torch wants them. No activation."""


def _conv_2d(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, weight, bias = inputs
    x, padding = _padded(x, op.attrs["padding"])
    groups = x.shape[1] if op.kind == "depthwise_conv_2d" else 1
    return F.conv2d(x, weight, bias, op.attrs["stride"], padding, op.attrs["dilation"], groups)


def _fully_connected(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    x, weight, bias = inputs
    return _with_shape(F.linear(_in_graph_order(x).flatten(1), weight, bias), shape)


def _add(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return inputs[0] + inputs[1]


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
    return inputs[0].mean((2, 3), keepdim=op.attrs["keep_dims"])


def _pad(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    padding = spatial_padding(op)
    if padding is None:
        raise UnsupportedModelError(f"{op.source}: only padding of height and width with 0 can be trained")
    return _filled(inputs[0], padding)


def _reshape(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return _with_shape(_in_graph_order(inputs[0]), shape)


def _softmax(op: Op, shape: Shape, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.softmax(inputs[0] * op.attrs["beta"], dim=1)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "conv_2d": _conv_2d,
        "depthwise_conv_2d": _conv_2d,
        "fully_connected": _fully_connected,
        "add": _add,
        "average_pool_2d": _average_pool_2d,
        "max_pool_2d": _max_pool_2d,
        "mean": _mean,
        "pad": _pad,
        "reshape": _reshape,
        "softmax": _softmax,
    }
)


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return `x` after a fused activation: "none", "relu" or "relu6"."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else x.clamp(0.0, 6.0)


# From the graph's weights, (Cout, kH, kW, Cin) and depthwise (1, kH, kW, C), to torch's: (Cout, Cin / groups, kH, kW).
_ORDER = {"conv_2d": (0, 3, 1, 2), "depthwise_conv_2d": (3, 0, 1, 2)}


def weights_to_torch(kind: str, value: np.ndarray) -> torch.Tensor:
    """Return weights of an op of this kind, or a bias for any other `kind`, as torch wants them: a float32 copy."""
    return torch.from_numpy(np.array(np.transpose(value, _ORDER.get(kind)) if kind in _ORDER else value, np.float32))


def weights_to_graph(kind: str, value: torch.Tensor) -> np.ndarray:
    """Undo `weights_to_torch`: float32, contiguous, on the host."""
    array = value.detach().cpu().numpy()
    return np.ascontiguousarray(np.transpose(array, np.argsort(_ORDER[kind])) if kind in _ORDER else array).copy()


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
