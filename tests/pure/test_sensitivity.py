"""Sensitivity and search: the layer that was broken is named, with the mend; the search beats single methods."""

from dataclasses import replace

import numpy as np
import pytest
from floatnets import INPUT_QUANT, FloatNet, chain, scaled_channels

from tinykd.errors import InternalError
from tinykd.export import calibrate, float_reference, reference, sensitivity
from tinykd.export.ptq import PtqOptions, quantise_trained
from tinykd.export.quantize import quantize, to_int8
from tinykd.export.ranges import METHODS
from tinykd.export.search import search
from tinykd.export.simulate import (
    Simulation,
    dequantised,
    mean_squared_error,
    peak_elements,
    round_to_grid,
    sqnr_db,
    take_images,
)
from tinykd.ir import Quant, Tensor


def measured(graph, x, method="minmax", int8=None):
    """The sensitivity of a graph quantised with one method."""
    histograms = calibrate.observe(graph, x)
    int8 = int8 or quantize(graph, calibrate.choose(histograms, method), INPUT_QUANT)
    return sensitivity.measure(graph, int8, x, histograms)


def by_output(report):
    """Layers by where they come from."""
    return {layer.source.removeprefix("source of "): layer for layer in report.layers}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulation_is_the_integers(seed):
    """Fake quantisation gives what the integer reference gives, to a step of the output."""
    net = chain("relu6", seed)
    graph, x = net.graph(), net.images(16)
    int8 = quantize(graph, calibrate.calibrate(graph, x), INPUT_QUANT)
    simulated = Simulation(graph, int8).run(x, rounded=True)
    output = int8.tensor(int8.outputs[0]).quant
    integers = reference.run_output(int8, to_int8(x, INPUT_QUANT)).astype(float)
    steps = np.abs(simulated / output.scale - (integers - output.zero_point))
    assert steps.max() <= 2.01
    assert steps.mean() < 0.3
    assert np.allclose(Simulation(graph, int8).run(x, rounded=False), float_reference.run(graph, x), atol=1e-5)


def test_rounding_is_the_grid():
    """Values go to the nearest of 256 levels and stop at the ends."""
    quant = Quant.per_tensor(0.5, -100)
    assert round_to_grid(np.array([-20.0, 0.2, 0.3, 200.0], np.float32), quant).tolist() == [-14.0, 0.0, 0.5, 113.5]
    weights = Tensor("w", (2, 2), "int8", Quant((0.5, 2.0), (0, 0), 1), np.array([[1, 1], [-3, 4]], np.int8))
    assert dequantised(weights).tolist() == [[0.5, 2.0], [-1.5, 8.0]]
    with pytest.raises(InternalError):
        dequantised(Tensor("x", (1,), "int8"))


def test_sqnr_is_decibels():
    """A hundredth of the power is 20 dB; exact copies and silence have finite numbers."""
    signal = np.full(100, 3.0)
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20.0)
    assert sqnr_db(signal, signal) == 200
    assert sqnr_db(signal * 0, signal) == -200


def test_memory_bounds_the_images(monkeypatch):
    """Large networks are looked at with fewer images, evenly spread, at least eight."""
    net = chain()
    graph, x = net.graph(), net.images(60)
    # The input and the first output are alive together, then two maps of 8 channels.
    assert peak_elements(graph) == 2 * 8 * 8 * 8
    assert len(take_images(graph, x)) == 60
    monkeypatch.setattr("tinykd.export.simulate._BUDGET_BYTES", 4 * 3 * 1024 * 20)
    taken = take_images(graph, x)
    assert len(taken) == 20
    assert np.array_equal(taken, x[::3])
    monkeypatch.setattr("tinykd.export.simulate._BUDGET_BYTES", 1)
    assert len(take_images(graph, x)) == 8


def test_layers_that_are_exact_cost_nothing():
    """The share of a layer is its own part of the errors: with one layer rounded coarsely, nearly all of them."""
    net = chain()
    graph, x = net.graph(), net.images()
    ranges = calibrate.calibrate(graph, x, "minmax")
    low, high = ranges["depthwise_conv_2d1"]
    int8 = quantize(graph, {**ranges, "depthwise_conv_2d1": (40 * low, 40 * high)}, INPUT_QUANT)
    report = measured(graph, x, int8=int8)
    layer = by_output(report)["depthwise_conv_2d1"]
    assert layer.hurts
    assert layer.share > 0.8
    assert sum(item.share for item in report.layers) == pytest.approx(1.0)
    assert [item.op for item in report.layers if item.hurts] == [layer.op]
    assert layer.sqnr_alone_db == pytest.approx(report.sqnr_db, abs=2)


def test_alone_means_alone():
    """SQNR alone is that of the outputs with one layer's weights and output rounded, and no others."""
    net = chain()
    graph, x = net.graph(), net.images(20)
    int8 = quantize(graph, calibrate.calibrate(graph, x, "minmax"), INPUT_QUANT)
    report = by_output(measured(graph, x, int8=int8))
    tensors = dict(graph.tensors)
    for name in ("w2", "b2"):
        tensors[name] = replace(tensors[name], data=dequantised(int8.tensor(name)))
    simulation = Simulation(replace(graph, tensors=tensors), int8)
    values = simulation.start(x, rounded=False)
    for index in range(3):
        values = simulation.step(values, index, rounded=False)
    name = graph.ops[2].outputs[0]
    values[name] = round_to_grid(values[name], int8.tensor(name).quant)
    outputs = simulation.finish(values, 3, rounded=False)
    assert report[name].sqnr_alone_db == pytest.approx(sqnr_db(float_reference.run(graph, x), outputs), abs=1e-3)
    assert report[name].sqnr_weights_db == pytest.approx(sqnr_db(graph.tensor("w2").data, tensors["w2"].data))
    assert report["mean3"].sqnr_weights_db is None


def test_uneven_channels_are_named():
    """A layer that hurts because its channels differ gets the hint to equalise them, and that helps."""
    net = chain()
    graph = scaled_channels(net.graph(), 0, 1, 2.0 ** np.array([0, -6, -7, -6, -7, -6, -7, -6]))
    x = net.images()
    layer = by_output(measured(graph, x))["conv_2d0"]
    assert layer.hurts
    assert "--equalize" in layer.hint
    assert layer.channel_ratio > 8
    even = quantise_trained(graph, x, INPUT_QUANT, PtqOptions("minmax", equalize=True, bias_correction=False))
    assert by_output(measured(even.float_graph, x))["conv_2d0"].share < layer.share / 2


def test_outliers_are_named():
    """A layer whose range is decided by rare values gets the hint to cut them off."""
    net = chain(seed=1)
    graph, x = net.graph(), net.images(64)
    x[0, 0, 0] = 400.0
    layer = by_output(measured(graph, x))["conv_2d0"]
    assert layer.hurts
    assert "rare values" in layer.hint
    assert "--calibration mse" in layer.hint


def test_clipping_is_named():
    """A layer whose range is far too small is told from one whose range is too large."""
    net = chain(seed=2)
    graph, x = net.graph(), net.images()
    ranges = calibrate.calibrate(graph, x, "minmax")
    int8 = quantize(graph, {**ranges, "conv_2d2": (0.0, ranges["conv_2d2"][1] / 20)}, INPUT_QUANT)
    layer = by_output(measured(graph, x, int8=int8))["conv_2d2"]
    assert layer.hurts
    assert layer.clipped > 0.05
    assert "clipped" in layer.hint


def test_a_report_survives_json():
    """What is written is what is read."""
    import json

    net = chain()
    report = measured(net.graph(), net.images(10))
    assert sensitivity.load(json.loads(json.dumps(report.to_dict()))) == report


def test_the_search_is_at_least_as_good_as_any_method():
    """On the images that judge, what is found is not worse than the best method for all; the record says so."""
    net = FloatNet(5)
    net.conv(8)
    skip = net.conv(8)
    net.conv(8)
    net.add(skip, "relu")
    net.conv(6)
    net.mean()
    net.dense(5)
    graph, x = net.graph(), net.images(64)
    # Rare bright spots: what may be clipped differs from layer to layer.
    x[::7, 3, 3] *= 6
    histograms = calibrate.observe(graph, x)
    steps = []
    found = search(graph, x, histograms, INPUT_QUANT, tick=lambda: steps.append(1))
    assert len(steps) == len(graph.ops)
    assert found.error_found <= found.error_start
    assert set(found.methods.values()) <= set(METHODS)
    judge = take_images(graph, x)[1::2]

    def error(ranges, judge=judge):
        wanted = float_reference.run(graph, judge)
        return mean_squared_error(
            wanted, Simulation(graph, quantize(graph, ranges, INPUT_QUANT)).run(judge, rounded=True)
        )

    assert error(found.ranges) == pytest.approx(found.error_found, rel=1e-3)
    assert error(calibrate.choose(histograms, found.start)) == pytest.approx(found.error_start, rel=1e-3)
    learn, start = take_images(graph, x)[::2], calibrate.choose(histograms, found.start)
    assert error(found.ranges, learn) < error(start, learn)
    for name, method in found.methods.items():
        assert found.ranges[name] == calibrate.choose(histograms, method)[name]
    assert search(graph, x, histograms, INPUT_QUANT) == found
    assert found.improves


def test_the_search_keeps_to_its_budget():
    """It stops at so many evaluations; with none to spare it is the best single method."""
    net = chain()
    graph, x = net.graph(), net.images(16)
    histograms = calibrate.observe(graph, x)
    assert search(graph, x, histograms, INPUT_QUANT, evaluations=7).evaluations == 7
    found = search(graph, x, histograms, INPUT_QUANT, evaluations=len(METHODS))
    assert not found.improves
    learn = take_images(graph, x)[::2]
    wanted = float_reference.run(graph, learn)
    errors = {}
    for method in METHODS:
        int8 = quantize(graph, calibrate.choose(histograms, method), INPUT_QUANT)
        errors[method] = mean_squared_error(wanted, Simulation(graph, int8).run(learn, rounded=True))
    assert found.start == min(errors, key=errors.get)


def test_a_search_equalises_where_that_helps():
    """Uneven channels are evened out by the search without being asked; even ones are left alone."""
    net = chain()
    uneven = scaled_channels(net.graph(), 0, 1, 2.0 ** np.array([0, -6, -7, -6, -7, -6, -7, -6]))
    x = net.images()
    searched = quantise_trained(uneven, x, INPUT_QUANT, PtqOptions(search=True, evaluations=20))
    assert searched.equalized
    assert searched.found is not None
    plain = quantise_trained(uneven, x, INPUT_QUANT)
    wanted = float_reference.run(uneven, x)

    def quality(quantised):
        simulation = Simulation(quantised.float_graph, quantised.graph)
        return sqnr_db(wanted, simulation.run(x, rounded=True))

    assert quality(searched) > quality(plain) + 3
