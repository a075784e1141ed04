"""1x1 convolutions and dense layers over rows on Cortex-M4 and Cortex-M7, and their C forms on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder
from hostmodel import run_sanitized
from sim.fakeboard import needs_unicorn
from variants import forced

from tinykd.commands.bare_stage import run_bare
from tinykd.export import reference
from tinykd.ir import Quant
from tinykd.kernels import select
from tinykd.kernels.armv7em import pointwise

VARIANTS = tuple(kernel.variant for kernel in pointwise.KERNELS["conv_2d"])
FORMS = {"two-sided": 0, "one-sided": 1, "saturating": 2}


def add_conv(builder: Builder, channels: int, activation: str, zero_point: int | None = None, stride=(1, 1)) -> None:
    """Add a 1x1 convolution; a zero point of -128 with relu makes it saturate."""
    builder.conv(channels, (1, 1), stride, activation=activation, same=False, per_channel=channels % 3 != 0)
    if zero_point is not None:
        tensor = builder.tensors[builder.x]
        builder.tensors[builder.x] = replace(tensor, quant=Quant.per_tensor(builder.scale(builder.x), zero_point))


def short_columns(seed: int) -> Builder:
    """Channels of every remainder by 4, odd and even numbers of pixels, groups of pairs that do not fill up."""
    builder = Builder(np.random.default_rng(seed), (1, 7, 5, 3))
    add_conv(builder, 5, "relu", -128)
    add_conv(builder, 8, "none")
    add_conv(builder, 1, "relu6", -128)
    add_conv(builder, 2, "relu", 17)
    add_conv(builder, 39, "relu_n1_to_1", 0)
    add_conv(builder, 16, "relu", -128, stride=(2, 1))
    add_conv(builder, 33, "none", 127, stride=(1, 2))
    add_conv(builder, 6, "relu", -128, stride=(3, 2))
    return builder


def long_columns(seed: int) -> Builder:
    """Columns of one pass of the inner loop, of one quad more, of several passes; a single pixel at the end."""
    builder = Builder(np.random.default_rng(seed), (1, 1, 5, 12))
    add_conv(builder, 144, "relu", -128)
    add_conv(builder, 147, "none")
    add_conv(builder, 64, "relu", -128)
    add_conv(builder, 292, "relu", 0)
    add_conv(builder, 7, "none", stride=(1, 2))
    add_conv(builder, 12, "relu", -128, stride=(1, 3))
    add_conv(builder, 9, "none")
    return builder


def dense_rows(seed: int) -> Builder:
    """Dense layers over several rows."""
    builder = Builder(np.random.default_rng(seed), (1, 6, 3, 10))
    builder.dense(7, rows=18, per_channel=True, activation="relu")
    builder.dense(22, rows=18)
    return builder


GRAPHS = (short_columns, long_columns, dense_rows)


def samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(3)
    x[0], x[1] = -128, 127
    return x


@pytest.mark.host_compiler
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", GRAPHS)
def test_c_forms_equal_the_reference(make, variant, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but inputs, outputs and scratch memory."""
    builder = make(1)
    graph, x = builder.graph(), samples(builder)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, forced(graph, variant)), reference.run_output(graph, x))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", GRAPHS)
def test_cores_equal_the_reference(make, variant, core, tmp_path, kernels):
    """Every activation of a random input, the outputs of extreme ones, and the stack within its proof."""
    builder = make(len(core) + len(variant))
    graph = builder.graph()
    *extremes, x = samples(builder)
    expected = reference.run(graph, x[None], keep_all=True)
    run = run_bare(graph, core, forced(graph, variant), tmp_path, x[None], expected, kernels(core))
    assert run.wrong == ()
    assert run.stack_bytes <= run.sizes.stack_bytes
    for x in extremes:
        wanted = reference.run_output(graph, x[None]).tobytes()
        assert run.model.run(x, len(wanted)) == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_rounding_is_taken(variant):
    """The graphs above reach every form of requantisation, clamps included."""
    calls = []
    for make in GRAPHS:
        graph = make(1).graph()
        calls += [select(graph, op, "", forced(graph, variant))[0] for op in graph.ops]
    assert {call.fields["rows.form"] for call in calls} == set(FORMS.values())
    assert any(call.fields["rows.out_min"] > -128 for call in calls)
    assert any(call.fields["rows.out_max"] < 127 for call in calls)


@pytest.mark.parametrize("variant", VARIANTS)
def test_estimates(variant):
    """The bytes of the constants are exact."""
    graph = short_columns(1).graph()
    kernel = next(kernel for kernel in pointwise.KERNELS["conv_2d"] if kernel.variant == variant)
    for op in graph.ops:
        arrays = kernel.calls(graph, op, "")[0].arrays.values()
        assert kernel.cost(graph, op).constant_bytes == sum(array.nbytes for array in arrays)
