"""The NumPy integer reference against TFLite Micro, bit for bit."""

import time
from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network

from tinykd.errors import InternalError, UnsupportedModelError
from tinykd.export import oracle, parity, reference
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer


def _assert_equal(builder, count=6):
    graph = builder.graph()
    x = builder.inputs(count)
    x.reshape(count, -1)[0] = -128
    x.reshape(count, -1)[1] = 127
    result = parity.compare(graph, tflite_writer.write(graph), x)
    assert result.first_mismatch is None, result.first_mismatch.describe()
    assert result.values_checked > 0


CASES = {
    "conv 3x3 same": lambda b: b.conv(5),
    "conv 1x1 relu6": lambda b: b.conv(8, (1, 1), activation="relu6"),
    "conv stride 2": lambda b: b.conv(3, (3, 3), (2, 2), activation="relu"),
    "conv valid uneven": lambda b: b.conv(4, (2, 5), (1, 3), same=False),
    "conv dilated": lambda b: b.conv(4, (3, 3), (1, 1), (2, 2)),
    "depthwise": lambda b: b.depthwise(),
    "depthwise 5x5 stride 2 relu": lambda b: b.depthwise(1, (5, 5), (2, 2), activation="relu"),
    "depthwise multiplier": lambda b: b.depthwise(3, activation="relu6"),
    "depthwise dilated": lambda b: b.depthwise(1, (3, 3), (1, 1), (2, 2), same=False),
    "dense per tensor": lambda b: b.dense(7),
    "dense per channel": lambda b: b.dense(7, per_channel=True, activation="relu"),
    "add": lambda b: (b.conv(4), b.add("input")),
    "add relu": lambda b: (b.conv(4), b.add("input", "relu")),
    "average pool": lambda b: b.pool("average_pool_2d"),
    "average pool same": lambda b: b.pool("average_pool_2d", (3, 3), (2, 2), same=True, activation="relu"),
    "max pool same": lambda b: b.pool("max_pool_2d", (3, 3), (2, 2), same=True),
    "mean": lambda b: b.mean(),
    "mean keep dims": lambda b: b.mean(keep_dims=True),
    "pad": lambda b: b.pad((1, 2, 0, 3)),
    "softmax": lambda b: (b.reshape((1, 9 * 8 * 4)), b.softmax()),
    "softmax beta": lambda b: (b.dense(12), b.softmax(2.5)),
}


@needs_oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_each_op_equals_tflite_micro(case, seed):
    """Every supported op gives TFLite Micro's integers for random scales, zero points and extreme inputs."""
    builder = Builder(np.random.default_rng(seed), (1, 9, 8, 4))
    CASES[case](builder)
    _assert_equal(builder)


@needs_oracle
@pytest.mark.parametrize("seed", range(40))
def test_random_networks_equal_tflite_micro(seed):
    """Every activation of a random network equals TFLite Micro's."""
    _assert_equal(random_network(seed), count=3)


@needs_oracle
@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_equal_tflite_micro(path):
    """Every activation of the public models equals TFLite Micro's, for 50 extreme and random inputs."""
    graph = tflite.read(path)
    result = parity.compare(graph, path.read_bytes(), parity.sample_inputs(graph, 50, seed=0))
    assert result.first_mismatch is None, result.first_mismatch.describe()
    assert (result.samples, result.ops_checked) == (50, len(graph.ops))


@needs_public_models
def test_a_thousand_images_take_less_than_a_minute():
    """MLPerf Tiny's ResNet-8 on 100 images takes less than 6 s, a tenth of a minute."""
    paths = [path for path in public_models() if "Resnet" in path.name]
    assert paths
    graph = tflite.read(paths[0])
    x = parity.test_inputs(graph, 100, seed=0)
    started = time.perf_counter()
    outputs = reference.run_output(graph, x)
    assert time.perf_counter() - started < 6.0
    assert outputs.shape == (100, 10)


def test_batches_do_not_change_the_result():
    """The reference gives the same integers whatever the batch size, on one thread or several."""
    builder = random_network(3)
    graph, x = builder.graph(), builder.inputs(9)
    whole = reference.run_output(graph, x, batch=64)
    assert np.array_equal(whole, reference.run_output(graph, x, batch=2))
    assert len(np.unique(whole)) > 1


def test_batches_of_a_stream_do_not_change_the_result():
    """Consecutive inferences carry the state over the borders of batches; without a stream nothing is carried."""
    builder = Builder(np.random.default_rng(8), (1, 12))
    builder.svdf(5, memory=4)
    graph, x = builder.graph(), builder.inputs(23)
    whole = reference.run(graph, x, keep_all=True, stream=True)
    cut = reference.run(graph, x, keep_all=True, stream=True, batch=2)
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)
    apart = reference.run(graph, x, keep_all=True)
    assert np.array_equal(apart[builder.x], reference.run(graph, x, batch=2)[builder.x])
    assert np.array_equal(apart[builder.x][0], whole[builder.x][0])
    assert not np.array_equal(apart[builder.x][1:], whole[builder.x][1:])
    state = graph.variables()[0]
    assert whole[state].shape == (23, 20)
    assert np.array_equal(whole[state].reshape(23, 5, 4)[1:, :, :-1], whole[state].reshape(23, 5, 4)[:-1, :, 1:])


def test_activations_have_their_batch_dimension_in_front():
    """Values are (N, *shape without the batch); a first dimension that is no batch stays behind N."""
    builder = Builder(np.random.default_rng(0), (1, 6, 4))
    rows = builder.reshape((6, 4))
    builder.mean(axes=(1,))
    values = reference.run(builder.graph(), builder.inputs(3), keep_all=True)
    assert values["input"].shape == (3, 6, 4)
    assert values[rows].shape == (3, 6, 4)
    assert values[builder.x].shape == (3, 6)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ({"wrong": np.zeros((1, 4), np.int8)}, "inputs ['wrong'] given"),
        (np.zeros((1, 4), np.int16), "is int16 [1, 4]; it takes int8"),
        (np.zeros((1, 5), np.int8), "is int8 [1, 5]; it takes int8 samples of [1, 4]"),
        (np.zeros((0, 4), np.int8), "is int8 [0, 4]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, told):
    """A wrong name, type or size of an input is a bug of the caller, and told with both sides."""
    builder = Builder(np.random.default_rng(0), (1, 4))
    builder.unary("relu")
    with pytest.raises(InternalError) as error:
        reference.run(builder.graph(), x)
    assert told in str(error.value)


def test_inputs_of_different_lengths_are_refused():
    """Each input has as many samples as the others."""
    builder = Builder(np.random.default_rng(0), (1, 4))
    builder.add(builder.input("other", (1, 4)))
    with pytest.raises(InternalError, match="different numbers of samples"):
        reference.run(builder.graph(), {"input": np.zeros((2, 4), np.int8), "other": np.zeros((3, 4), np.int8)})


def test_an_op_without_integer_form_is_refused():
    """A batch normalisation belongs to float graphs only."""
    builder = Builder(np.random.default_rng(0), (1, 4))
    builder.unary("relu")
    graph = builder.graph()
    other = replace(graph, ops=(replace(graph.ops[0], kind="batch_norm"),))
    with pytest.raises(UnsupportedModelError, match="no integer reference"):
        reference.run(other, builder.inputs(1))


@needs_oracle
def test_parity_names_the_first_difference():
    """A planted difference is reported with op, sample and element, not just counted."""
    builder = Builder(np.random.default_rng(0), (1, 6, 6, 3))
    builder.conv(4)
    builder.dense(5)
    graph, x = builder.graph(), builder.inputs(2)
    bias = graph.tensor("b0")
    shifted = bias.data.copy()
    shifted[1] += 100
    other = replace(graph, tensors={**graph.tensors, "b0": replace(bias, data=shifted)})
    result = parity.compare(graph, tflite_writer.write(other), x)
    assert result.first_mismatch is not None
    assert (result.first_mismatch.op, result.first_mismatch.index[-1]) == (0, 1)


@needs_oracle
def test_single_rounding_would_be_caught(monkeypatch):
    """The oracle tests are sharp enough to tell double from single rounding (LiteRT's dense layer)."""
    builder = Builder(np.random.default_rng(5), (1, 4, 4, 8))
    builder.dense(64)
    graph, x = builder.graph(), builder.inputs(64)

    def single(acc, multiplier, shift):
        total = 31 - np.asarray(shift, np.int64)
        return (acc.astype(np.int64) * multiplier + (np.int64(1) << (total - 1))) >> total

    monkeypatch.setattr("tinykd.export.reference.values.multiply_by_quantized_multiplier", single)
    assert not np.array_equal(reference.run_output(graph, x), oracle.Oracle(tflite_writer.write(graph)).outputs(x))
