"""Dense layers over one row on Cortex-M4 and Cortex-M7, their C forms on the host, and the packing of int8 weights."""

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
from tinykd.ir import Graph, Quant
from tinykd.kernels import Engine, candidates, select, signature
from tinykd.kernels.armv7em import fully_connected, packed

VARIANTS = tuple(kernel.variant for kernel in fully_connected.KERNELS["fully_connected"])
CORES = ("cortex-m4", "cortex-m7")


def add_dense(builder: Builder, channels: int, activation: str = "none", zero_point: int | None = None, **options):
    """Add a dense layer over one row, its output's zero point if it is not to be random."""
    builder.dense(channels, activation=activation, **options)
    if zero_point is not None:
        tensor = builder.tensors[builder.x]
        builder.tensors[builder.x] = replace(tensor, quant=Quant.per_tensor(builder.scale(builder.x), zero_point))


def network(seed: int) -> Builder:
    """Rows of less than a quad, of an odd quad, of one block of steps, of more; every rest of four channels."""
    builder = Builder(np.random.default_rng(seed), (1, 1))
    add_dense(builder, 3, per_channel=True)
    add_dense(builder, 4, "relu", 17)
    add_dense(builder, 8, "relu", -128, per_channel=True)
    add_dense(builder, 64, bias=False)
    add_dense(builder, 131, "relu_n1_to_1", 0)
    add_dense(builder, 201, "relu", -128, per_channel=True)
    add_dense(builder, 72, "none", -128)
    add_dense(builder, 13, "relu6", 0, per_channel=True)
    add_dense(builder, 2, "none", 127)
    add_dense(builder, 1)
    return builder


def samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(4)
    x[0], x[1] = -128, 127
    return x


@pytest.mark.host_compiler
@pytest.mark.parametrize("variant", VARIANTS)
def test_c_forms_equal_the_reference(variant, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but inputs, outputs and scratch memory."""
    builder = network(1)
    graph, x = builder.graph(), samples(builder)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, forced(graph, variant)), reference.run_output(graph, x))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cores_equal_the_reference(variant, core, tmp_path, kernels):
    """Every activation of extreme and random inputs, and the stack within its proof."""
    builder = network(len(core) + len(variant))
    graph = builder.graph()
    for index, x in enumerate(samples(builder)):
        expected = reference.run(graph, x[None], keep_all=True)
        run = run_bare(graph, core, forced(graph, variant), tmp_path, x[None], expected, kernels(core))
        assert (index, run.wrong) == (index, ())
        assert run.stack_bytes <= run.sizes.stack_bytes


@pytest.mark.arm_compiler
@needs_unicorn
def test_turns_of_packed_columns(tmp_path, kernels):
    """Columns of one whole turn of the packed loops, of a quad or a step more, of several; a pair and a single one."""
    builder = Builder(np.random.default_rng(4), (1, 1, 3, 64))
    for index, channels in enumerate((68, 72, 144, 148, 152, 288, 576, 5)):
        builder.conv(channels, (1, 1), activation="relu" if index % 2 else "none")
    graph, x = builder.graph(), builder.inputs(1)
    engine, expected = forced(graph, "packed"), reference.run(graph, x, keep_all=True)
    run = run_bare(graph, "cortex-m7", engine, tmp_path, x, expected, kernels("cortex-m7"))
    assert run.wrong == ()


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_near_what_the_emulator_counts(variant, tmp_path, kernels):
    """Estimates within 10 % for layers of common sizes, and the exact bytes of the constants."""
    builder = Builder(np.random.default_rng(3), (1, 640))
    for channels in (128, 8, 128, 64, 10):
        add_dense(builder, channels, per_channel=channels == 64)
    graph, x = builder.graph(), builder.inputs(1)
    engine, expected = forced(graph, variant), reference.run(graph, x, keep_all=True)
    run = run_bare(graph, "cortex-m7", engine, tmp_path, x, expected, kernels("cortex-m7"))
    for op, measured in zip(graph.ops, run.ops, strict=True):
        kernel = candidates(graph, op, engine)[0]
        cost = kernel.cost(graph, op)
        arrays = kernel.calls(graph, op, "")[0].arrays.values()
        assert cost.constant_bytes == sum(array.nbytes for array in arrays)
        assert 0.9 < cost.instructions / measured.instructions < 1.1, signature(graph, op)


@pytest.mark.parametrize(("goal", "least"), [("speed", "cycles"), ("size", "constant_bytes")])
def test_goals_choose(goal, least):
    """Speed takes the fewest cycles, size the fewest bytes, which are those of weights that share words."""
    graph = network(1).graph()
    for op in graph.ops:
        first, *others = candidates(graph, op, Engine("armv7em", goal))
        costs = [getattr(kernel.cost(graph, op), least) for kernel in others if kernel.cost is not None]
        assert costs and getattr(first.cost(graph, op), least) <= min(costs)
        assert goal == "speed" or first.variant == "packed"


def test_one_factor_is_stored_once():
    """Layers with one weight scale keep their factors beside the stream, those with many behind each four channels."""
    builder = Builder(np.random.default_rng(5), (1, 16))
    add_dense(builder, 8)
    add_dense(builder, 8, per_channel=True)
    graph = builder.graph()
    shared, own = (select(graph, op, "", forced(graph, "packed"))[0] for op in graph.ops)
    assert (shared.fields["has_shared_factors"], own.fields["has_shared_factors"]) == (1, 0)
    assert shared.arrays["stream"].nbytes == 2 * (16 + 4 * 16)
    assert own.arrays["stream"].nbytes == 2 * (16 + 4 * 8 + 4 * 12)


@pytest.mark.host_compiler
@pytest.mark.parametrize("variant", VARIANTS)
def test_constant_channels(variant, tmp_path):
    """A channel that saturates whatever comes in does not take the common factor away, unless its sum is too large."""
    builder = Builder(np.random.default_rng(6), (1, 9))
    biases = (-4_000_000, 4_000_000, 1 << 30)
    for index, bias in enumerate(biases):
        add_dense(builder, 6)
        name = builder.ops[index].inputs[2]
        data = builder.tensors[name].data.copy()
        data[3] = bias
        builder.tensors[name] = replace(builder.tensors[name], data=data)
    graph, x = builder.graph(), samples(builder)
    engine = forced(graph, variant)
    shared = [select(graph, op, "", engine)[0].fields["has_shared_factors"] for op in graph.ops]
    assert shared == [bias < packed.REACH for bias in biases]
    assert np.array_equal(run_sanitized(graph, x, tmp_path, engine), reference.run_output(graph, x))


def with_weights(taps: np.ndarray) -> Graph:
    """A dense layer with these weights."""
    builder = Builder(np.random.default_rng(1), (1, taps.shape[1]))
    add_dense(builder, len(taps))
    name = builder.ops[0].inputs[1]
    builder.tensors[name] = replace(builder.tensors[name], data=taps)
    return builder.graph()


@pytest.mark.parametrize(("even", "odd", "fits"), [(-1, -128, False), (0, -128, True), (-128, -127, True)])
def test_weights_that_do_not_share_a_word(even, odd, fits):
    """256 * -128 less anything leaves int16: such a layer is not packed, its widened form still is exact."""
    graph = with_weights(np.array([[even, 3], [odd, 5]], np.int8))
    variants = [kernel.variant for kernel in candidates(graph, graph.ops[0], Engine("armv7em"))]
    assert ("packed" in variants, "widened" in variants) == (fits, True)


@pytest.mark.parametrize(("inputs", "fits"), [(515, True), (517, False)])
@pytest.mark.parametrize("channel", [0, 1])
def test_sums_beyond_24_bits(channel, inputs, fits):
    """Only the channel in the high byte must stay within 24 bits."""
    taps = np.zeros((2, inputs), np.int8)
    taps[channel] = 127
    low, high = -128 * taps.astype(np.int64).sum(axis=1), 127 * taps.astype(np.int64).sum(axis=1)
    assert packed.fits(taps, low, high, np.ones(2, np.int32)) == (fits or channel == 0)
    assert packed.fits(taps, low, high, np.zeros(2, np.int32))


def test_packed_words_come_apart():
    """SXTB16 leaves the even channel, what remains is 256 times the odd one; the order is that of columns."""
    taps = np.random.default_rng(0).integers(-127, 128, (6, 8)).astype(np.int8)
    halves = packed.packed_words(taps).view("<i2").reshape(3, 8).astype(np.int64)
    low = (halves & 0xFF).astype(np.uint8).view(np.int8).reshape(3, 8)
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(low, taps[::2][:, order])
    assert np.array_equal((halves - low) // 256, taps[1::2][:, order])
