"""The kernels of all further ops against the integer reference, bit for bit, on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder
from hostmodel import HostModel, run_sanitized
from opmix import MODELS, NOT_ON_DEVICE, joins, kinds, memory

from tinykd.build import generate
from tinykd.errors import UnsupportedModelError
from tinykd.export import reference
from tinykd.ir import SPECS, Quant
from tinykd.kernels import KERNELS
from tinykd.plan import plan_graph

pytestmark = pytest.mark.host_compiler


def _extremes(builder, count):
    x = builder.inputs(count)
    x.reshape(count, -1)[0] = -128
    x.reshape(count, -1)[1] = 127
    return x


def _first_difference(model, graph, x):
    expected = reference.run(graph, x, keep_all=True)
    for index, sample in enumerate(x):
        model.reset()
        for name, value in model.run(sample).items():
            if not np.array_equal(value.reshape(-1), expected[name][index].reshape(-1)):
                return f"sample {index}, tensor {name}"
    return None


def test_the_models_contain_every_op_and_every_kernel():
    """Together the models have every op kind that a device runs, and use every kernel."""
    graphs = [make(0).graph() for make in MODELS.values()]
    assert set().union(*map(kinds, graphs)) == set(SPECS) - set(NOT_ON_DEVICE)
    used = {op.kernel for graph in graphs for op in generate(graph, plan_graph(graph), "00" * 32).ops}
    assert used == {kernel.function for row in KERNELS.values() for kernel in row}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_every_activation_equals_the_reference(name, seed, tmp_path):
    """Every activation of each model equals the reference's, extreme inputs included."""
    builder = MODELS[name](seed)
    graph = builder.graph()
    assert _first_difference(HostModel(graph, tmp_path), graph, _extremes(builder, 6)) is None


@pytest.mark.parametrize("seed", range(10))
def test_joins_in_place_hold_the_right_bytes(seed, tmp_path):
    """Random mixtures of joins, splits, slices and branches, most of them placed, give the reference's activations."""
    builder = joins(seed, 14)
    graph = builder.graph()
    x = _extremes(builder, 3)
    model = HostModel(graph, tmp_path)
    expected = reference.run(graph, x, keep_all=True)
    for index, sample in enumerate(x):
        found = model.run(sample)
        assert all(np.array_equal(value[0], expected[name][index]) for name, value in found.items())


@pytest.mark.parametrize("name", MODELS)
def test_sanitizers_find_nothing(name, tmp_path):
    """No kernel reads or writes out of bounds or runs into undefined behaviour."""
    builder = MODELS[name](10)
    graph = builder.graph()
    x = _extremes(builder, 5)
    assert np.array_equal(run_sanitized(graph, x, tmp_path), reference.run_output(graph, x))


def test_state_lives_from_inference_to_inference_until_it_is_reset(tmp_path):
    """Without a reset a model with memory sees a stream; with one, each input stands for itself."""
    builder = memory(4)
    graph = builder.graph()
    x = builder.inputs(7)
    model = HostModel(graph, tmp_path)
    model.run(x[0])
    model.reset()
    found = np.stack([model.run(sample)[graph.outputs[0]][0] for sample in x])
    streamed = reference.run(graph, x, stream=True)[graph.outputs[0]]
    assert np.array_equal(found, streamed.reshape(found.shape))
    assert not np.array_equal(streamed, reference.run(graph, x)[graph.outputs[0]])


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_extreme_factors(scale, tmp_path):
    """Output scales far from the inputs' give the reference's integers: shifts to the left, and vanishing factors."""
    builder = Builder(np.random.default_rng(7), (1, 3, 4, 4))
    start = builder.x
    for make in (
        lambda quant: builder.sub(start, quant=quant),
        lambda quant: builder.mul(start, quant=quant),
        lambda quant: builder.prelu(quant=quant),
        lambda quant: builder.mean(axes=(1, 3), quant=quant),
    ):
        builder.x = start
        make(Quant.per_tensor(scale, -5))
        outputs = [op.outputs[0] for op in builder.ops]
    builder.x = start
    builder.transpose_conv(3)
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(scale, -5))
    graph = builder.graph()
    assert len(outputs) == 4
    assert _first_difference(HostModel(graph, tmp_path), graph, _extremes(builder, 4)) is None


def test_equal_tables_stand_in_flash_once():
    """Two look-ups with the same scales share one table of 256 bytes."""
    builder = Builder(np.random.default_rng(1), (1, 6))
    quant = builder.tensors[builder.x].quant
    builder.unary("relu", quant)
    builder.unary("relu", quant)
    graph = builder.graph()
    assert generate(graph, plan_graph(graph), "00" * 32).files["tk_model_data.h"].count("[256]") == 1


def _with_edge(kind):
    builder = Builder(np.random.default_rng(1), (1, 6))
    if kind == "dequantize":
        builder.dequantize()
    else:
        builder.tensors["input"] = replace(builder.tensors["input"], dtype="float32", quant=None)
        builder.quantize()
    return builder.graph()


@pytest.mark.parametrize("kind", ["quantize", "dequantize"])
def test_float_edges_are_refused_with_the_way_out(kind):
    """A conversion from or to float32 is the host's work; the error names `tinykd optimize`."""
    graph = _with_edge(kind)
    with pytest.raises(UnsupportedModelError, match="tinykd optimize"):
        generate(graph, plan_graph(graph), "00" * 32)


def test_several_inputs_or_outputs_are_refused():
    """The firmware takes one input and one output; the error counts them."""
    builder = Builder(np.random.default_rng(1), (1, 6))
    builder.unary("relu")
    first = builder.x
    builder.unary("relu")
    graph = builder.graph(outputs=(first, builder.x))
    with pytest.raises(UnsupportedModelError, match="1 inputs and 2 outputs"):
        generate(graph, plan_graph(graph), "00" * 32)


def test_too_many_loops_are_refused():
    """A transposition that no five nested loops can do is refused with the number that it needs."""
    builder = Builder(np.random.default_rng(1), (1, 2, 2, 2, 2, 2, 2))
    builder.transpose((0, 6, 5, 4, 3, 2, 1))
    graph = builder.graph()
    with pytest.raises(UnsupportedModelError, match="needs 6 nested loops"):
        generate(graph, plan_graph(graph), "00" * 32)
