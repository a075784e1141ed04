"""Depthwise convolutions on Cortex-M4 and Cortex-M7, and their C forms on the host, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fuzzing.device import Device, expected_of
from graphs import Builder
from hostmodel import run_sanitized
from sim.fakeboard import needs_unicorn

from tinykd.build.bare import build_bare, build_kernels
from tinykd.export import reference
from tinykd.ir import Graph, Quant
from tinykd.kernels import Call, engine_for, select
from tinykd.kernels.armv7em.depthwise import FUNCTIONS, MAX_SCRATCH_BYTES, SCRATCH_BYTES
from tinykd.plan import plan_graph
from tinykd.run.bare import BareModel

ENGINE = engine_for("cortex-m7")

# Input (H, W, C), then layer by layer: kernel, stride, multiplier, SAME, activation, the output's zero point. Sizes odd
# and even in both directions, fewer channels than a word has, groups of channels that overlap, padding on every side,
# several bands, one and several output channels of an input channel, all ways of rounding, wide and narrow clamps.
CHAINS = (
    (
        (7, 5, 6),
        ((3, 3), (1, 1), 1, True, "relu", -128),
        ((5, 5), (1, 1), 1, True, "none", 0),
        ((7, 7), (1, 1), 1, True, "relu6", -128),
        ((3, 3), (1, 1), 1, False, "none", 17),
        ((5, 3), (1, 2), 1, True, "relu", -128),
    ),
    (
        (26, 41, 5),
        ((3, 3), (1, 1), 1, True, "relu6", -128),
        ((3, 3), (2, 2), 1, True, "none", 17),
        ((5, 5), (2, 2), 1, False, "relu", -128),
        ((5, 5), (1, 1), 1, False, "relu", -128),
    ),
    (
        (26, 31, 1),
        ((3, 3), (2, 2), 8, True, "relu", -128),
        ((7, 7), (2, 2), 1, True, "relu6", -128),
        ((7, 7), (1, 1), 1, True, "none", -3),
        ((3, 3), (2, 2), 1, True, "relu", -128),
        ((3, 3), (1, 1), 1, True, "relu6", -128),
    ),
    (
        (12, 12, 3),
        ((3, 3), (1, 1), 1, True, "none", 127),
        ((2, 4), (2, 1), 2, False, "relu_n1_to_1", -3),
        ((5, 5), (2, 2), 2, True, "none", 0),
        ((3, 3), (1, 1), 3, True, "relu", 17),
        ((1, 1), (1, 1), 1, True, "none", -128),
    ),
    (
        (14, 9, 13),
        ((7, 7), (2, 2), 1, True, "none", 0),
        ((5, 5), (2, 2), 1, True, "relu6", -128),
        ((7, 7), (1, 1), 1, True, "relu", -128),
        ((3, 3), (2, 2), 1, True, "relu", -128),
        ((3, 3), (1, 1), 1, True, "relu_n1_to_1", 0),
    ),
    (
        (20, 10, 2),
        ((5, 5), (1, 1), 1, False, "relu", -128),
        ((4, 4), (3, 3), 1, True, "relu6", -128),
        ((3, 3), (1, 1), 2, True, "none", -3),
        ((10, 1), (2, 1), 1, True, "relu", -128),
    ),
    ((3, 2, 1), ((7, 7), (1, 1), 2, True, "none", -3), ((5, 5), (1, 1), 1, True, "relu", -128)),
)


def chain(index: int) -> Builder:
    """Depthwise convolutions in a row; the seed decides weights and the input's zero point."""
    shape, *layers = CHAINS[index]
    builder = Builder(np.random.default_rng(index), (1, *shape))
    for number, (kernel, stride, multiplier, same, activation, zero_point) in enumerate(layers):
        builder.depthwise(multiplier, kernel, stride, (1, 1), same, activation, bias=number != 1)
        quant = Quant.per_tensor(6 / 255 if activation == "relu6" else 0.03, zero_point)
        builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=quant)
    return builder


def samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(4)
    x[0], x[1] = -128, 127
    return x


def calls_of(graph: Graph) -> list[Call]:
    """The calls of all ops."""
    return [call for op in graph.ops for call in select(graph, op, op.source, ENGINE)]


@pytest.mark.host_compiler
@pytest.mark.parametrize("index", range(len(CHAINS)))
def test_c_forms_equal_the_reference(index, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but input, output and scratch memory."""
    builder = chain(index)
    graph, x = builder.graph(), samples(builder)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, ENGINE), reference.run_output(graph, x))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("index", range(len(CHAINS)))
def test_cores_equal_the_reference(index, tmp_path_factory):
    """Every activation on the M4 or the M7, whatever memory holds before, and no access beyond an op's own memory."""
    builder = chain(index)
    graph, x = builder.graph(), samples(builder)
    core = ("cortex-m4", "cortex-m7")[index % 2]
    folder = tmp_path_factory.getbasetemp() / "depthwise"
    inputs = {graph.inputs[0]: x}
    device = Device(graph, core, engine_for(core), folder)
    assert device.first_fault(inputs, expected_of(graph, inputs)) is None


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize(("shape", "kernel"), [((26, 41, 6), (3, 3)), ((21, 40, 5), (7, 7)), ((30, 50, 4), (4, 2))])
def test_a_map_may_become_its_output_in_place(shape, kernel, tmp_path_factory):
    """With stride 1 and equal sizes the output may lie on the input, in several bands as well."""
    builder = Builder(np.random.default_rng(6), (1, *shape))
    builder.depthwise(1, kernel)
    graph, x = builder.graph(), builder.inputs(2)
    assert -(-shape[0] // 2) > calls_of(graph)[0].fields["strips"]
    folder = tmp_path_factory.getbasetemp() / "depthwise"
    plan = plan_graph(graph, engine=ENGINE)
    there = plan.offset(graph.inputs[0])
    plan = replace(plan, placements=tuple(replace(item, offset=there) for item in plan.placements))
    kernels = build_kernels("cortex-m7", folder / "kernels-cortex-m7")
    elf = build_bare(graph, plan, "cortex-m7", folder / "in-place", ENGINE, kernels=kernels)
    model = BareModel(elf, "cortex-m7", 1)
    for sample, wanted in zip(x, reference.run_output(graph, x), strict=True):
        assert model.run(sample, wanted.size) == wanted.tobytes()


def test_chains_contain_every_case():
    """Every function, each way of rounding, sums with and without a lower half, one band and several."""
    calls = [call for index in range(len(CHAINS)) for call in calls_of(chain(index).graph())]
    assert {call.function for call in calls} == set(FUNCTIONS)
    for function in FUNCTIONS:
        shifts = [call.arrays["stream"][:, 3] & 0xFF for call in calls if call.function == function]
        assert any(not shift.any() for shift in shifts), function
        assert any(shift.all() for shift in shifts), function
    bands = [-(-call.fields["out_h"] // 2) / call.fields["strips"] for call in calls]
    assert max(bands) > 2
    assert min(bands) == 1


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("kernel", [3, 5])
def test_what_rounds_fast_does_so_beside_what_does_not(kernel, tmp_path_factory):
    """A channel whose factor is too large for two instructions costs itself only; the 3x3 kernel reads runs."""
    builder = Builder(np.random.default_rng(5), (1, 6, 6, 12))
    builder.depthwise(1, (kernel, kernel), activation="relu")
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(0.02, -128))
    weights = builder.tensors["w0"]
    scales = np.full(12, 0.002)
    scales[5] = 0.7 * 0.02 / builder.scale("input") / 2
    builder.tensors["w0"] = replace(weights, quant=replace(weights.quant, scales=tuple(map(float, scales))))
    graph, x = builder.graph(), samples(builder)
    words = calls_of(graph)[0].arrays["stream"][:, 3]
    assert np.flatnonzero(words & 0xFF).tolist() == [5]
    if kernel == 3:
        assert (words >> 8).tolist() == [4, 3, 2, 1, 1, 1, 2, 1, 4, 3, 2, 1]
    inputs = {graph.inputs[0]: x}
    device = Device(graph, "cortex-m7", ENGINE, tmp_path_factory.getbasetemp() / "depthwise")
    assert device.first_fault(inputs, expected_of(graph, inputs)) is None


def test_bands_fit_their_memory():
    """Small maps take one band; a large one takes bands of equal height; maps too wide for a strip go elsewhere.

    Larger kernels expand their weights, which are bytes in flash, where the records of four input channels fit.
    """

    def call(height, width, channels, kernel=3, multiplier=1):
        builder = Builder(np.random.default_rng(0), (1, height, width, channels))
        builder.depthwise(multiplier, (kernel, kernel), activation="relu")
        return calls_of(builder.graph())[0]

    assert call(12, 12, 64).scratch_bytes == 7 * 4 * 14 * 4
    large = call(96, 96, 8)
    assert large.scratch_bytes <= SCRATCH_BYTES
    wide = call(8, 300, 8)
    assert SCRATCH_BYTES < wide.scratch_bytes == 2 * 4 * 302 * 4 <= MAX_SCRATCH_BYTES
    assert call(8, 600, 8).function == "tk_depthwise_conv_2d_m1"
    assert call(8, 600, 1).function == "tk_depthwise_3x3"
    expanding = call(6, 6, 9, 7, 2)
    assert expanding.arrays["stream"].nbytes == 18 * (16 + 52)
    assert expanding.scratch_bytes == 4 * (6 * 4 * 12 + 8 * (4 + 42))
    assert call(6, 6, 4, 7, 24).function == "tk_depthwise_any"
