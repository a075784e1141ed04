"""Takes what was done to the pixels of a model that tinykd did not train into the graph, exactly.

The device's int8 input is `pixel - 128`: one scale and one zero point for all channels. A model whose channels were
normalised differently gets the rest of it in its first layers, or in a depthwise 1x1 convolution before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinykd.errors import ConfigError
from tinykd.export.convert import Normalization
from tinykd.ir import Graph, Op, Tensor, verify

_LAYERS = ("conv_2d", "depthwise_conv_2d", "fully_connected")
LEVELS = 255.0


@dataclass(frozen=True)
class PixelInput:
    """A graph that takes `normalization`'s numbers, and how it came to.

    Attributes:
        graph: float, after all passes.
        normalization: one line for all channels, with an integer as its mean.
        how: "as it was", "folded into the first layers", or "computed by a depthwise convolution".
    """

    graph: Graph
    normalization: Normalization
    how: str


def take_pixels(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> PixelInput:
    """Return a graph that computes from pixels what `graph` computes from `(pixel / 255 - mean) / std`.

    Args:
        graph: a float graph after all passes, of one input (1, H, W, C).
        mean, std: one number, or one for each channel, on the 0..1 scale.

    Raises:
        ConfigError: the input is no image, or the numbers do not suit it.
    """
    shape = graph.tensor(graph.inputs[0]).shape
    if len(graph.inputs) != 1 or len(shape) != 4:
        raise ConfigError(
            f"--mean and --std are for images, but the model's input is {tuple(shape)}",
            "Give --calibration-data with float numbers, as the model takes them.",
        )
    means, deviations = (_per_channel(name, values, shape[3]) for name, values in (("mean", mean), ("std", std)))
    if not (deviations > 0).all():
        raise ConfigError(f"--std {list(std)}: every number must be above 0")
    level = int(np.clip(np.rint(means.mean() * LEVELS), 0, LEVELS))
    spread = float(deviations.mean() * LEVELS)
    # The model sees factor * x + offset of the x that the device has.
    factor = spread / (deviations * LEVELS)
    offset = (level - means * LEVELS) / (deviations * LEVELS)
    normalization = Normalization(level, spread)
    if np.allclose(factor, 1.0, atol=1e-7) and np.allclose(offset, 0.0, atol=1e-7):
        return PixelInput(graph, normalization, "as it was")
    if _foldable(graph, offset):
        return PixelInput(_fold(graph, factor, offset), normalization, "folded into the first layers")
    return PixelInput(_prepend(graph, factor, offset), normalization, "computed by a depthwise convolution")


def _per_channel(name: str, values: Sequence[float], channels: int) -> np.ndarray:
    if len(values) not in (1, channels):
        raise ConfigError(f"--{name} has {len(values)} numbers, but the model's input has {channels} channels")
    return np.broadcast_to(np.asarray(values, np.float64), channels)


def _foldable(graph: Graph, offset: np.ndarray) -> bool:
    """Whether the first layers can take the whole line: where they pad, zero must stay zero."""
    name = graph.inputs[0]
    readers = [graph.ops[index] for index in graph.consumers()[name]]
    return all(
        op.kind in _LAYERS
        and op.inputs[0] == name
        and (not any(op.attrs.get("padding", ())) or np.allclose(offset, 0.0, atol=1e-7))
        and graph.tensor(op.inputs[1]).shape[-1] % len(offset) == 0
        and (op.kind != "depthwise_conv_2d" or graph.tensor(op.inputs[1]).shape[-1] == len(offset))
        for op in readers
    )


def _fold(graph: Graph, factor: np.ndarray, offset: np.ndarray) -> Graph:
    """Return the graph whose first layers read x instead of factor * x + offset."""
    tensors = dict(graph.tensors)
    for index in graph.consumers()[graph.inputs[0]]:
        op = graph.ops[index]
        weights, bias = (_value(tensors[name]) for name in op.inputs[1:3])
        by_channel = weights.reshape(*weights.shape[:-1], -1, len(factor))
        axes = range(by_channel.ndim)
        # Everything but the output channels, which in a depthwise convolution are the input channels, is summed up.
        shift = (by_channel * offset).sum(axis=tuple(axes[:-1] if op.kind == "depthwise_conv_2d" else axes[1:]))
        changed = ((op.inputs[1], (by_channel * factor).reshape(weights.shape)), (op.inputs[2], bias + shift))
        for name, value in changed:
            tensors[name] = replace(tensors[name], data=value.astype(np.float32))
    return verify(replace(graph, tensors=tensors))


def _prepend(graph: Graph, factor: np.ndarray, offset: np.ndarray) -> Graph:
    """Return the graph behind a 1x1 depthwise convolution that computes factor * x + offset."""
    name = graph.inputs[0]
    tensor = graph.tensor(name)
    names = {part: f"{name}/{part}" for part in ("normalised", "factor", "offset")}
    tensors = {
        **graph.tensors,
        names["normalised"]: replace(tensor, name=names["normalised"]),
        names["factor"]: _constant(names["factor"], factor.reshape(1, 1, 1, -1)),
        names["offset"]: _constant(names["offset"], offset),
    }
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
    first = Op(
        "depthwise_conv_2d",
        (name, names["factor"], names["offset"]),
        (names["normalised"],),
        attrs,
        f"{name} (normalisation)",
    )
    rest = [
        replace(op, inputs=tuple(names["normalised"] if part == name else part for part in op.inputs))
        for op in graph.ops
    ]
    return verify(graph.with_ops([first, *rest], tensors))


def _constant(name: str, value: np.ndarray) -> Tensor:
    return Tensor(name, value.shape, "float32", None, value.astype(np.float32))


def _value(tensor: Tensor) -> np.ndarray:
    assert tensor.data is not None
    return tensor.data.astype(np.float64)
