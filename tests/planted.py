"""Networks with channels that carry nothing: the material that the passes' tests look for and compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from graphs import BLOCKS, Builder

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


def wide_network(seed: int) -> Builder:
    """A random network with several channels everywhere: residuals, gates, branches, pads and pools between layers."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(5, 10))
    builder = Builder(rng, (1, size, size, 3))
    builder.conv(int(rng.integers(4, 9)))
    for _ in range(int(rng.integers(2, 5))):
        same = bool(rng.integers(0, 2)) or min(builder.shape(builder.x)[1:3]) < 3
        kernel = (1, 1) if rng.integers(0, 2) else (3, 3)
        activation = str(rng.choice(["none", "relu", "relu6"]))
        kind = rng.choice(["conv", "depthwise", "residual", "pool", "pad", "block"])
        if kind == "conv":
            builder.conv(int(rng.integers(3, 9)), kernel, same=same, activation=activation)
        elif kind == "depthwise":
            builder.depthwise(int(rng.integers(1, 3)), kernel, same=same, activation=activation)
        elif kind == "residual":
            start = builder.x
            builder.conv(builder.shape(start)[3], kernel, activation=activation)
            join = builder.sub if rng.integers(0, 2) else builder.add
            join(start)
        elif kind == "pool":
            builder.pool(str(rng.choice(["average_pool_2d", "max_pool_2d"])), same=True)
        elif kind == "pad":
            builder.pad(tuple(int(p) for p in rng.integers(0, 3, 4)))
        else:
            BLOCKS[int(rng.integers(len(BLOCKS)))](builder)
    builder.conv(int(rng.integers(3, 9)), (1, 1))
    if rng.integers(0, 2):
        builder.mean()
    else:
        builder.reshape((1, builder.tensors[builder.x].num_elements))
    builder.dense(int(rng.integers(2, 6)))
    return builder


def planted(seed: int) -> Graph:
    """A random network of which about a third of the channels are constant, saturated or read by nobody."""
    builder = wide_network(seed)
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
