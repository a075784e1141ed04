"""Networks with channels that carry nothing: the material that the passes' tests look for and compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from graphs import Builder, random_network

from tinykd.export import reference
from tinykd.ir import Graph, verify

WAYS = ("zero", "zero point", "low", "high", "unread")


def edit(builder: Builder, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a constant of a network in place of the old one."""
    data = np.array(builder.tensors[name].data)
    change(data)
    builder.tensors[name] = replace(builder.tensors[name], data=data)


def silence(builder: Builder, index: int, channels: list[int], bias: int) -> None:
    """Give output channels of op `index` no weights, so that only `bias` decides their value."""
    depthwise = builder.ops[index].kind == "depthwise_conv_2d"

    def no_weights(data: np.ndarray) -> None:
        data[(..., channels) if depthwise else channels] = 0

    def own_bias(data: np.ndarray) -> None:
        data[channels] = bias

    edit(builder, f"w{index}", no_weights)
    edit(builder, f"b{index}", own_bias)


def unread(builder: Builder, index: int, channels: list[int]) -> None:
    """Give op `index` no weights for some of its input channels."""
    count = builder.shape(builder.ops[index].inputs[0])[-1]

    def no_weights(data: np.ndarray) -> None:
        data.reshape(len(data), -1, count)[:, :, channels] = 0

    edit(builder, f"w{index}", no_weights)


def planted(seed: int) -> Graph:
    """A random network of which about a third of the channels are constant, saturated or read by nobody."""
    builder = random_network(seed)
    rng = np.random.default_rng(seed + 1)
    for index, op in enumerate(builder.ops):
        if len(op.inputs) != 3:
            continue
        count = builder.shape(op.outputs[0])[-1]
        for channel in np.flatnonzero(rng.random(count) < 0.4):
            way = str(rng.choice(WAYS))
            if way == "zero":
                silence(builder, index, [channel], int(rng.integers(-3000, 3000)))
            elif way == "zero point":
                silence(builder, index, [channel], 0)
            elif way in ("low", "high"):
                size = (1 << 26) * (1 if way == "high" else -1)
                edit(builder, f"b{index}", lambda data, at=channel, size=size: data.__setitem__(at, size))
        if op.kind != "depthwise_conv_2d" and rng.random() < 0.5:
            inputs = builder.shape(op.inputs[0])[-1]
            unread(builder, index, list(np.flatnonzero(rng.random(inputs) < 0.3)))
    return verify(builder.graph())


def run_all(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every activation of the reference."""
    return reference.run(graph, x, keep_all=True)
