"""Convolutions with a window on Cortex-M4 and Cortex-M7, and their C forms on the host, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder
from hostmodel import run_sanitized
from sim.fakeboard import needs_unicorn
from variants import forced

from tinykd.build.bare import build_bare
from tinykd.export import reference
from tinykd.ir import Graph, Quant
from tinykd.kernels import candidates, scratch_bytes
from tinykd.kernels.armv7em import convolution, winograd
from tinykd.plan import plan_graph
from tinykd.run.bare import BareModel

ROWS = (*convolution.KERNELS["conv_2d"], *winograd.KERNELS["conv_2d"])
VARIANTS = tuple(kernel.variant for kernel in ROWS)

# Input (H, W, C), output channels, kernel, stride, dilation, SAME, activation. Kernel rows of 1 to 4 bytes and of every
# remainder by 4; one, two and many output positions; windows larger than the map; odd channels.
SHAPES = (
    ((9, 10, 3), 5, (3, 3), (1, 1), (1, 1), True, "relu"),
    ((9, 10, 3), 8, (3, 3), (2, 2), (1, 1), True, "relu6"),
    ((12, 7, 1), 4, (10, 4), (2, 2), (1, 1), True, "relu"),
    ((6, 5, 1), 3, (3, 3), (1, 1), (1, 1), False, "none"),
    ((5, 7, 2), 2, (5, 1), (1, 1), (1, 1), False, "none"),
    ((4, 6, 1), 1, (2, 1), (1, 1), (1, 1), False, "relu"),
    ((7, 6, 8), 6, (3, 3), (1, 1), (1, 1), True, "none"),
    ((6, 8, 4), 9, (3, 3), (1, 1), (2, 3), True, "relu_n1_to_1"),
    ((8, 5, 3), 7, (2, 3), (1, 2), (3, 1), False, "relu"),
    ((3, 3, 5), 11, (7, 7), (1, 1), (1, 1), True, "none"),
    ((5, 5, 6), 4, (5, 5), (1, 1), (1, 1), False, "none"),
    ((1, 20, 13), 16, (1, 5), (1, 3), (1, 1), True, "relu"),
    ((20, 1, 40), 12, (3, 1), (2, 1), (1, 1), True, "none"),
)
# The same for Winograd's tiles: maps of every remainder by 4, smaller than a tile, with and without padding.
TILED = (
    ((8, 8, 16), 4, True),
    ((5, 9, 4), 2, True),
    ((7, 6, 8), 6, False),
    ((6, 10, 12), 8, False),
    ((1, 2, 20), 2, True),
    ((4, 7, 64), 4, True),
    ((3, 3, 4), 4, False),
)
# Columns do not depend on the form of the weights: packed ones have a few cases only.
CASES = [
    *(("widened", index) for index in range(len(SHAPES))),
    *(("packed", index) for index in range(0, len(SHAPES), 4)),
    *(("winograd", index) for index in range(len(TILED))),
]


def layer(variant: str, index: int) -> Builder:
    """One convolution; its seed decides zero points, scales and clamps."""
    if variant == "winograd":
        shape, channels, same = TILED[index]
        builder = Builder(np.random.default_rng(index), (1, *shape))
        builder.conv(channels, same=same, activation="relu" if index % 2 else "none", bias=index % 3 != 0)
        # A ReLU whose clamp is int8's own, with scales for either form of rounding.
        quant = Quant.per_tensor((0.03, 0.3)[index % 4 // 2], -128 if index % 2 else 5)
        builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=quant)
        return builder
    shape, channels, kernel, stride, dilation, same, activation = SHAPES[index]
    builder = Builder(np.random.default_rng(index), (1, *shape))
    builder.conv(channels, kernel, stride, dilation, same, activation, per_channel=index % 3 != 0, bias=index % 4 != 0)
    return builder


def samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(4)
    x[0], x[1] = -128, 127
    return x


@pytest.mark.host_compiler
@pytest.mark.parametrize(("variant", "index"), CASES)
def test_c_forms_equal_the_reference(variant, index, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but input, output and scratch memory."""
    builder = layer(variant, index)
    graph, x = builder.graph(), samples(builder)
    assert np.array_equal(
        run_sanitized(graph, x, tmp_path, forced(graph, variant, everywhere=False)), reference.run_output(graph, x)
    )


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize(("variant", "index"), CASES)
def test_cores_equal_the_reference(variant, index, tmp_path, kernels):
    """Every output on the M4 and on the M7, whatever scratch memory holds before."""
    builder = layer(variant, index)
    graph, x = builder.graph(), samples(builder)
    engine, expected = forced(graph, variant, everywhere=False), reference.run_output(graph, x)
    plan = plan_graph(graph, engine=engine)
    core = ("cortex-m4", "cortex-m7")[index % 2]
    model = BareModel(build_bare(graph, plan, core, tmp_path, engine, kernels=kernels(core)), core, 1)
    for sample, wanted in zip(x, expected, strict=True):
        model.machine.write(model._arena + plan.scratch_offset(0), b"\x80" * scratch_bytes(graph, engine)[0])
        assert np.frombuffer(model.run(sample, wanted.size), np.int8).tolist() == wanted.ravel().tolist()


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_near_what_the_emulator_counts(variant, tmp_path, kernels):
    """Estimates of instructions within 10 % for common layers: a choice by cost is one by speed."""
    layers = [((16, 16, 16), 16, (3, 3), (1, 1)), ((8, 8, 32), 32, (3, 3), (1, 1))]
    if variant != "winograd":
        layers += [((16, 16, 3), 16, (3, 3), (1, 1)), ((25, 10, 1), 64, (10, 4), (2, 2))]
    for shape, channels, window, stride in layers:
        builder = Builder(np.random.default_rng(3), (1, *shape))
        builder.conv(channels, window, stride)
        graph = builder.graph()
        engine = forced(graph, variant, everywhere=False)
        elf = build_bare(
            graph, plan_graph(graph, engine=engine), "cortex-m7", tmp_path, engine, kernels=kernels("cortex-m7")
        )
        model = BareModel(elf, "cortex-m7", 1)
        model.load(builder.inputs(1))
        kernel = candidates(graph, graph.ops[0], engine)[0]
        cost = kernel.cost(graph, graph.ops[0])
        assert 0.9 < cost.instructions / model.run_op(0).instructions < 1.1, (shape, channels)
        assert cost.constant_bytes == sum(
            a.nbytes for c in kernel.calls(graph, graph.ops[0], "") for a in c.arrays.values()
        )


def with_constants(builder: Builder, weights: np.ndarray, bias: int, output: Quant) -> Graph:
    """The graph of one convolution with other constants."""
    op = builder.ops[0]
    values = {op.inputs[1]: weights, op.inputs[2]: np.full(len(weights), bias)}
    for name, data in values.items():
        tensor = builder.tensors[name]
        builder.tensors[name] = replace(tensor, data=data.astype(tensor.data.dtype))
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=output)
    return builder.graph()


def test_winograd_takes_only_what_fits():
    """Weights that scaling would take beyond int16 get the other rounding; sums whose halves may wrap are declined."""
    kernel = winograd.KERNELS["conv_2d"][0]
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 4))
    builder.conv(2, activation="relu", per_channel=False)
    factor = builder.scale("input") * builder.scale("w0")
    forms = []
    for size in (3, 127):
        taps = np.tile([size, -size], (2, 3, 3, 2))
        graph = with_constants(builder, taps, 0, Quant.per_tensor(factor / 0.09, -128))
        forms.append(kernel.calls(graph, graph.ops[0], "")[0].fields["rows.form"])
    assert forms == [2, 1]

    builder = Builder(np.random.default_rng(0), (1, 4, 4, 64))
    builder.conv(2, per_channel=False)
    factor = builder.scale("input") * builder.scale("w0")
    applies = []
    for bias in (1 << 28, (1 << 29) + (1 << 26)):
        output = Quant.per_tensor(factor * 3e6, -128)
        graph = with_constants(builder, np.full((2, 3, 3, 64), 127), bias, output)
        applies.append(kernel.applies(graph, graph.ops[0]))
    assert applies == [True, False]
