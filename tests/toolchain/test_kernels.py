"""The C kernels against the integer reference and TFLite Micro, bit for bit, on the host."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from hostmodel import HostModel, run_sanitized

from tinykd.errors import UnsupportedModelError
from tinykd.export import oracle, reference
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Quant
from tinykd.resources import find_resource

pytestmark = pytest.mark.host_compiler


def _every_kernel(seed):
    """A graph in which every kernel runs, over awkward sizes: odd channels, uneven padding, dilation, strides."""
    builder = Builder(np.random.default_rng(seed), (1, 13, 11, 3))
    builder.pool("average_pool_2d", (3, 2), (1, 1), same=True)
    builder.conv(7, (3, 5), (1, 1), activation="relu")
    builder.conv(5, (2, 3), (1, 1), (2, 3))
    builder.depthwise(1, (5, 3), (1, 2), activation="relu6")
    builder.depthwise(2, (3, 3), (1, 1), (2, 1))
    builder.depthwise(1, (3, 3), (1, 1), (3, 2))
    builder.conv(9, (1, 1))
    start = builder.x
    builder.conv(9, (1, 1), activation="relu6")
    builder.add(start, "relu")
    builder.pad((1, 2, 0, 3))
    builder.pool("max_pool_2d", (3, 2), (2, 1), same=True, activation="relu6")
    builder.pool("average_pool_2d", (2, 3), (1, 2), same=True)
    builder.conv(6, (1, 1), (2, 2), same=False)
    builder.mean(keep_dims=True)
    builder.reshape((1, 6))
    builder.dense(11, per_channel=True, activation="relu")
    builder.dense(13)
    builder.softmax(1.5)
    return builder


def _inputs(builder, count):
    x = builder.inputs(count)
    x.reshape(count, -1)[0] = -128
    x.reshape(count, -1)[1] = 127
    return x


def _first_difference(model: HostModel, graph: Graph, x: np.ndarray) -> str | None:
    expected = reference.run(graph, x, keep_all=True)
    for index, sample in enumerate(x):
        for name, value in model.run(sample).items():
            if not np.array_equal(value.reshape(-1), expected[name][index].reshape(-1)):
                return f"sample {index}, tensor {name}"
    return None


@pytest.mark.parametrize("seed", range(4))
def test_every_activation_equals_the_reference(seed, tmp_path):
    """Every activation of a graph with every kernel equals the reference's, extreme inputs included."""
    builder = _every_kernel(seed)
    graph = builder.graph()
    assert _first_difference(HostModel(graph, tmp_path), graph, _inputs(builder, 6)) is None


@pytest.mark.parametrize("seed", range(100, 110))
def test_random_networks_equal_the_reference(seed, tmp_path):
    """Every activation of a random network equals the reference's."""
    builder = random_network(seed)
    graph = builder.graph()
    assert _first_difference(HostModel(graph, tmp_path), graph, _inputs(builder, 4)) is None


@needs_oracle
def test_outputs_equal_tflite_micro(tmp_path):
    """The C and TFLite Micro agree directly, without the reference between them."""
    builder = _every_kernel(11)
    graph = builder.graph()
    x = _inputs(builder, 8)
    model = HostModel(graph, tmp_path)
    found = np.stack([model.run(sample)[graph.outputs[0]].reshape(-1) for sample in x])
    assert np.array_equal(found, oracle.Oracle(tflite_writer.write(graph)).outputs(x))


@needs_oracle
@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_equal_tflite_micro(path, tmp_path):
    """The generated C of a public model gives TFLite Micro's outputs on 20 random inputs."""
    graph = tflite.read(path)
    shape = graph.tensor(graph.inputs[0]).shape
    x = np.random.default_rng(1).integers(-128, 128, (20, *shape[1:])).astype(np.int8)
    model = HostModel(graph, tmp_path)
    found = np.stack([model.run(sample)[graph.outputs[0]].reshape(-1) for sample in x])
    assert np.array_equal(found, oracle.Oracle(path.read_bytes()).outputs(x))


@pytest.mark.parametrize("seed", range(2))
def test_sanitizers_find_nothing(seed, tmp_path):
    """No kernel reads or writes out of bounds or runs into undefined behaviour."""
    builder = _every_kernel(20 + seed)
    graph = builder.graph()
    x = _inputs(builder, 5)
    assert np.array_equal(run_sanitized(graph, x, tmp_path), reference.run_output(graph, x))


@pytest.mark.parametrize("channels", [511, 512, 513, 1024, 4095])
def test_softmax_of_many_equal_classes(channels, tmp_path):
    """From 512 equal classes on each has less than half a step: 0. TFLite Micro's own shift is not defined there."""
    builder = Builder(np.random.default_rng(0), (1, channels))
    builder.softmax()
    x = np.full((3, channels), -128, np.int8)
    x[1, 5], x[2, 7:9] = -125, 127
    found = run_sanitized(builder.graph(), x, tmp_path)
    assert np.array_equal(found, reference.run_output(builder.graph(), x))
    assert set(found[0]) == {-128 + (channels < 512)}


@pytest.mark.parametrize("output_scale", [1e-4, 0.01, 30.0, 1e6])
def test_extreme_factors(output_scale, tmp_path):
    """Factors above 1 (a shift to the left), tiny ones and ones that vanish give the reference's integers."""
    builder = Builder(np.random.default_rng(7), (1, 6, 5, 4))
    builder.conv(5)
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(output_scale, -5))
    graph = builder.graph()
    assert _first_difference(HostModel(graph, tmp_path), graph, _inputs(builder, 4)) is None


def test_sums_beyond_int32_are_refused(tmp_path):
    """A bias with which an accumulator could leave int32 is refused with the channel's number."""
    builder = Builder(np.random.default_rng(7), (1, 6, 5, 4))
    builder.conv(5)
    bias = builder.ops[0].inputs[2]
    data = builder.tensors[bias].data.copy()
    data[3] = 2**31 - 1
    builder.tensors[bias] = replace(builder.tensors[bias], data=data)
    with pytest.raises(UnsupportedModelError, match="output channel 3 can sum up to"):
        HostModel(builder.graph(), tmp_path)


MUTANTS = {
    "the multiplication does not round": ("include/tk_requantize.h", "product + ((int64_t)1 << 30)", "product"),
    "the shift does not round": ("include/tk_requantize.h", "exponent) & 1)", "exponent) & 0)"),
    "halves round upwards": ("include/tk_requantize.h", "x + ((x >> 31) & -exponent >> 31)", "x"),
    "padding is 0 in conv": ("src/tk_conv_2d.c", "tk_sum_2(w0, w1, p->in_zero, before", "tk_sum_2(w0, w1, 0, before"),
    "padding is 0 in depthwise": ("src/tk_depthwise_conv_2d_m1.c", "line, step, p->in_zero", "line, step, 0"),
    "the average truncates": ("src/tk_pool_2d.c", "sum + count / 2", "sum"),
    "softmax stops Newton early": ("src/tk_softmax.c", "step < 3", "step < 1"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant, tmp_path):
    """The comparison with the reference notices a planted error: it is able to fail."""
    kernels = tmp_path / "kernels"
    shutil.copytree(find_resource("firmware") / "lib" / "tk_kernels", kernels)
    name, old, new = MUTANTS[mutant]
    text = (kernels / name).read_text()
    assert old in text
    (kernels / name).write_text(text.replace(old, new))
    builder = _every_kernel(2)
    graph = builder.graph()
    assert _first_difference(HostModel(graph, tmp_path / "build", kernels), graph, _inputs(builder, 12)) is not None
