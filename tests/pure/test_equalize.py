"""Cross-layer equalisation: the float function stays, uneven channels become even, RELU6 stays exact."""

import numpy as np
import pytest
from floatnets import INPUT_QUANT, FloatNet, chain, scaled_channels

from tinykd.errors import DataError
from tinykd.export import float_reference
from tinykd.export.equalize import channel_peaks, equalize, find_pairs
from tinykd.export.ptq import PtqOptions, quantise_trained
from tinykd.export.simulate import Simulation, sqnr_db

RANGE = (-2.0, 2.0)


def uneven(activation="relu", seed=0):
    """A chain whose channels differ up to 64 times, and its images."""
    net = chain(activation, seed)
    graph = net.graph()
    factors = 2.0 ** np.array([0, -5, -3, 0, -6, -2, 0, -4])
    graph = scaled_channels(graph, 0, 1, factors)
    return scaled_channels(graph, 1, 2, factors[::-1]), net.images()


def output_sqnr(graph, x, *, even):
    """SQNR of the outputs with min-max ranges, with and without equalisation."""
    quantised = quantise_trained(graph, x, INPUT_QUANT, PtqOptions("minmax", bias_correction=False, equalize=even))
    simulation = Simulation(quantised.float_graph, quantised.graph)
    return sqnr_db(float_reference.run(graph, x), simulation.run(x, rounded=True))


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_float_function_stays(activation):
    """Equalised, the network computes the same to 1e-5, on images that calibration never saw, too."""
    graph, x = uneven(activation)
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    assert len(found.pairs) == 3
    other = chain().images(40, seed=9)
    wanted = float_reference.run(graph, other)
    assert np.abs(float_reference.run(found.graph, other) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_uneven_channels_become_even():
    """In front of a depthwise convolution, which has a scale for each channel, all channels get the same peak."""
    graph, x = uneven()
    before = channel_peaks(graph, x)["conv_2d0"]
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    after = channel_peaks(found.graph, x)["conv_2d0"]
    assert before.max() / before.min() > 40
    assert after.max() / after.min() < 1.05
    assert after.max() == pytest.approx(before.max(), rel=1e-4)


def test_between_layers_ranges_meet_halfway():
    """In front of a convolution, r1 = r2: channel peaks and largest weights are in one proportion (Nagel, eq. 11)."""
    graph, x = uneven()
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    peaks = channel_peaks(found.graph, x)["depthwise_conv_2d1"]
    weights = np.abs(found.graph.tensor("w2").data).max(axis=(0, 1, 2))
    ratio = peaks / weights
    assert ratio.max() / ratio.min() < 1.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_imbalance_is_mended(seed):
    """Channels that differ 64 times cost 8 bits much of their precision; equalised, most of it comes back."""
    graph, x = uneven(seed=seed)
    assert output_sqnr(graph, x, even=True) > output_sqnr(graph, x, even=False) + 6


def test_relu6_is_never_moved_to_where_it_clips():
    """Only channels that no input can drive to 6 are scaled, and not so far that they reach it."""
    net = FloatNet(3)
    net.conv(8, kernel=1, activation="relu6")
    net.depthwise(activation="relu6")
    net.mean()
    net.dense(4)
    graph = net.graph()
    # Four channels are tiny and provably so; the others are driven beyond 6.
    factors = np.array([12.0, 0.01, 15.0, 0.02, 16.0, 0.01, 14.0, 0.05])
    graph = scaled_channels(graph, 0, 1, factors)
    x = net.images(64)
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    assert found.pairs
    first = found.graph.tensor("w0").data.reshape(8, -1) / graph.tensor("w0").data.reshape(8, -1)
    assert np.allclose(first[factors > 1], 1.0)
    assert (first[factors < 1] > 1.5).all()
    # The extreme corners of the input's range, where a wrongly scaled channel would clip.
    corners = np.random.default_rng(5).choice([-2.0, 2.0], (400, 8, 8, 3)).astype(np.float32)
    wanted = float_reference.run(graph, corners)
    assert np.abs(float_reference.run(found.graph, corners) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_pairs_are_layers_with_nothing_else_between():
    """A second reader, an addition, or an output of the network ends a chain; pooling and padding do not."""
    net = FloatNet()
    first = net.conv(8)
    net.pad((1, 0, 1, 0))
    net.max_pool()
    net.conv(8, kernel=1)
    skip = net.conv(8)
    net.conv(8)
    net.add(skip)
    net.conv(4)
    net.mean()
    net.dense(3)
    pairs = [(pair.first.outputs[0], pair.second.outputs[0]) for pair in find_pairs(net.graph())]
    assert pairs == [(first, "conv_2d3"), ("conv_2d3", "conv_2d4"), ("conv_2d7", "fully_connected9")]


def test_a_relu6_between_layers_ends_the_chain():
    """A pooling that clips has a bound of its own."""
    net = FloatNet()
    net.conv(8)
    net.max_pool()
    net.ops[-1] = net.ops[-1].__class__(
        **{**net.ops[-1].__dict__, "attrs": {**net.ops[-1].attrs, "activation": "relu6"}}
    )
    net.conv(4)
    assert find_pairs(net.graph()) == []


def test_dense_layers_behind_maps_are_scaled_along_channels():
    """A dense layer that reads a whole map has each channel once for every position."""
    net = FloatNet(shape=(1, 4, 4, 2))
    net.conv(4)
    net.max_pool()
    net.dense(3)
    graph = scaled_dense(net.graph(), np.array([1.0, 1 / 32, 1 / 8, 1.0]))
    x = net.images()
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    assert len(found.pairs) == 1
    wanted = float_reference.run(graph, x)
    assert np.abs(float_reference.run(found.graph, x) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def scaled_dense(graph, factors):
    """Scale the channels of the first layer; the dense layer's weights are (Cout, H * W * C)."""
    weights = graph.tensor(graph.ops[2].inputs[1])
    tiled = np.tile(factors, weights.shape[1] // len(factors))
    return (
        scaled_channels(scaled_channels(graph, 0, 2, np.ones(1)), 0, 2, factors)
        if len(tiled) == len(factors)
        else _scaled_dense(graph, factors, tiled)
    )


def _scaled_dense(graph, factors, tiled):
    from dataclasses import replace

    tensors = dict(graph.tensors)
    for name, by in (("w0", factors.reshape(-1, 1, 1, 1)), ("b0", factors), ("w2", 1 / tiled)):
        tensors[name] = replace(tensors[name], data=(tensors[name].data * by).astype(np.float32))
    return replace(graph, tensors=tensors)


def test_dead_channels_stay_as_they_are():
    """A channel that is always 0, or that nothing uses, is no reason for infinite factors."""
    net = chain()
    graph = net.graph()
    graph.tensor("w0").data[2] = 0
    graph.tensor("b0").data[2] = -1
    graph.tensor("w1").data[..., 5] = 0
    x = net.images()
    found = equalize(graph, channel_peaks(graph, x), RANGE)
    for tensor in found.graph.tensors.values():
        assert tensor.data is None or np.isfinite(tensor.data).all()
    assert np.array_equal(found.graph.tensor("w0").data[2], graph.tensor("w0").data[2])
    assert np.array_equal(found.graph.tensor("w0").data[5], graph.tensor("w0").data[5])


def test_no_images_is_an_error():
    """Without images nobody knows how far a channel reaches."""
    net = chain()
    with pytest.raises(DataError, match="at least one image"):
        channel_peaks(net.graph(), net.images(0))
