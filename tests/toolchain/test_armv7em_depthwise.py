"""Depthwise convolutions on Cortex-M4 and Cortex-M7, and their C forms on the host, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fuzzing.device import Device, expected_of
from graphs import Builder
from hostmodel import run_sanitized
from sim.fakeboard import needs_unicorn

from tinykd.export import reference
from tinykd.ir import Graph, Quant
from tinykd.kernels import engine_for, select
from tinykd.kernels.armv7em.depthwise import FUNCTIONS, MAX_SCRATCH_BYTES, SCRATCH_BYTES

ENGINE = engine_for("cortex-m7")

# Function, input (H, W, C), multiplier, kernel, stride, SAME, activation, output (scale, zero point). Sizes odd and even
# in both directions, fewer channels than a word has, groups of channels that overlap, padding on every side, several
# bands, one and several output channels of an input channel, all ways of rounding and both clamps.
LAYERS = (
    ("3x3", (6, 6, 8), 1, (3, 3), (1, 1), True, "relu6", (0.02, -128)),
    ("3x3", (7, 5, 6), 1, (3, 3), (1, 1), True, "relu", (0.05, -128)),
    ("3x3", (5, 4, 3), 1, (3, 3), (1, 1), False, "none", (0.04, 17)),
    ("3x3", (3, 3, 13), 1, (3, 3), (1, 1), True, "relu_n1_to_1", (0.02, -3)),
    ("3x3", (26, 41, 5), 1, (3, 3), (1, 1), True, "relu", (0.03, -128)),
    ("3x3", (4, 9, 4), 3, (3, 3), (1, 1), True, "none", (0.05, 127)),
    ("5x5", (9, 8, 4), 1, (5, 5), (1, 1), True, "relu6", (0.02, -128)),
    ("5x5", (2, 3, 7), 1, (5, 5), (1, 1), True, "none", (0.05, 0)),
    ("5x5", (12, 7, 2), 1, (5, 5), (1, 1), False, "relu", (0.03, -128)),
    ("7x7", (11, 11, 4), 1, (7, 7), (1, 1), True, "relu6", (0.02, -128)),
    ("7x7", (3, 2, 1), 2, (7, 7), (1, 1), True, "none", (0.05, -3)),
    ("3x3_s2", (12, 12, 8), 1, (3, 3), (2, 2), True, "relu6", (0.02, -128)),
    ("3x3_s2", (9, 7, 5), 1, (3, 3), (2, 2), True, "none", (0.05, 17)),
    ("3x3_s2", (26, 31, 1), 8, (3, 3), (2, 2), True, "relu", (0.03, -128)),
    ("5x5_s2", (10, 10, 4), 1, (5, 5), (2, 2), True, "relu6", (0.02, -128)),
    ("5x5_s2", (13, 9, 6), 1, (5, 5), (2, 2), False, "none", (0.05, 0)),
    ("7x7_s2", (14, 14, 4), 1, (7, 7), (2, 2), True, "relu", (0.02, -128)),
    ("7x7_s2", (9, 6, 5), 1, (7, 7), (2, 2), True, "none", (0.05, 0)),
    ("any", (11, 13, 6), 1, (5, 3), (1, 2), True, "relu", (0.03, -128)),
    ("any", (8, 12, 3), 2, (2, 4), (2, 1), False, "none", (0.05, 17)),
    ("any", (10, 10, 4), 1, (4, 4), (3, 3), True, "relu6", (0.05, -128)),
    ("any", (9, 3, 1), 1, (1, 1), (1, 1), True, "none", (0.05, -128)),
    ("any", (20, 2, 5), 1, (10, 1), (2, 1), True, "relu", (0.03, -128)),
)


def layer(index: int) -> Builder:
    """One depthwise convolution; its seed decides weights and the input's zero point."""
    _, shape, multiplier, kernel, stride, same, activation, output = LAYERS[index]
    builder = Builder(np.random.default_rng(index), (1, *shape))
    builder.depthwise(multiplier, kernel, stride, (1, 1), same, activation, bias=index % 4 != 3)
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(*output))
    return builder


def samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(4)
    x[0], x[1] = -128, 127
    return x


def call_of(graph: Graph):
    """The call of the graph's only op."""
    (call,) = select(graph, graph.ops[0], "op 0", ENGINE)
    return call


@pytest.mark.host_compiler
@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_c_forms_equal_the_reference(index, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but input, output and scratch memory."""
    builder = layer(index)
    graph, x = builder.graph(), samples(builder)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, ENGINE), reference.run_output(graph, x))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_cores_equal_the_reference(index, tmp_path_factory):
    """Every output on the M4 or the M7, whatever memory holds before, and no access beyond the op's own memory."""
    builder = layer(index)
    graph, x = builder.graph(), samples(builder)
    core = ("cortex-m4", "cortex-m7")[index % 2]
    folder = tmp_path_factory.getbasetemp() / "depthwise"
    inputs = {graph.inputs[0]: x}
    device = Device(graph, core, engine_for(core), folder)
    assert device.first_fault(inputs, expected_of(graph, inputs)) is None


def test_each_layer_has_the_kernel_that_it_is_for():
    """Every function, each way of rounding within and across words of a stream, and bands of one and several strips."""
    calls = [call_of(layer(index).graph()) for index in range(len(LAYERS))]
    assert [call.function for call in calls] == [f"tk_depthwise_{name}" for name, *_ in LAYERS]
    assert {call.function for call in calls} == set(FUNCTIONS)
    shifts = [call.arrays["stream"][:, 3] for call in calls]
    assert any(not shift.any() for shift in shifts)
    assert any(shift.all() for shift in shifts)
    bands = [-(-call.fields["out_h"] // 2) / call.fields["strips"] for call in calls]
    assert max(bands) > 2
    assert min(bands) == 1


def test_what_rounds_fast_does_so_where_a_neighbour_does_not():
    """One channel whose factor is too large for two instructions costs its own four channels only."""
    builder = Builder(np.random.default_rng(5), (1, 6, 6, 12))
    builder.depthwise(1, activation="relu")
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(0.02, -128))
    weights = builder.tensors["w0"]
    scales = np.full(12, 0.002)
    scales[5] = 0.7 * 0.02 / builder.scale("input") / 2
    builder.tensors["w0"] = replace(weights, quant=replace(weights.quant, scales=tuple(map(float, scales))))
    shifts = call_of(builder.graph()).arrays["stream"][:, 3]
    assert (shifts == 0).tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_bands_fit_their_memory():
    """Small maps take one band; a large one takes bands of equal height; maps too wide for a strip go elsewhere."""

    def graph(height, width, channels):
        builder = Builder(np.random.default_rng(0), (1, height, width, channels))
        builder.depthwise(1, activation="relu")
        return builder.graph()

    assert call_of(graph(12, 12, 64)).scratch_bytes == 7 * 4 * 14 * 4
    large = call_of(graph(96, 96, 8))
    assert large.scratch_bytes <= SCRATCH_BYTES
    wide = call_of(graph(8, 300, 8))
    assert SCRATCH_BYTES < wide.scratch_bytes == 2 * 4 * 302 * 4 <= MAX_SCRATCH_BYTES
    assert call_of(graph(8, 600, 8)).function == "tk_depthwise_conv_2d_m1"
    assert call_of(graph(8, 600, 1)).function == "tk_depthwise_3x3"
