"""Bias correction: planted shifts are found, chance is left alone, and nothing is taken that does not help."""

from dataclasses import replace

import numpy as np
import pytest
from floatnets import INPUT_QUANT, FloatNet, chain

from tinykd.export import calibrate, reference
from tinykd.export.bias_correction import correct_biases, real_bias
from tinykd.export.quantize import quantize, to_int8
from tinykd.export.simulate import Simulation, sqnr_db


def quantised(net, x):
    """The float graph and its int8 twin with min-max ranges."""
    graph = net.graph()
    return graph, quantize(graph, calibrate.calibrate(graph, x, "minmax"), INPUT_QUANT)


def with_bias(graph, name, change):
    """The int8 graph with an int32 bias changed."""
    tensor = graph.tensor(name)
    return replace(graph, tensors={**graph.tensors, name: replace(tensor, data=change(tensor.data.copy()))})


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_a_planted_shift_is_taken_back(activation):
    """A bias that is off by a tenth of the layer's output comes back to where it was, channel by channel."""
    net = chain(activation)
    x = net.images(64)
    graph, int8 = quantised(net, x)
    honest = real_bias(int8, "b1")
    shift = np.array([0.3, -0.2, 0.0, 0.4, 0.0, -0.5, 0.25, 0.0])
    steps = np.rint(shift / np.array(int8.tensor("b1").quant.scales)).astype(np.int32)
    broken = with_bias(int8, "b1", lambda data: data + steps)
    mended = correct_biases(graph, broken, x)
    assert mended.applied
    assert mended.channels >= np.count_nonzero(shift)
    assert np.abs(real_bias(mended.graph, "b1") - honest).max() < 0.02
    assert mended.sqnr_after_db > mended.sqnr_before_db + 10


def test_the_integers_gain_as_the_simulation_says():
    """The int8 network itself, run with the integer reference, is nearer to the float one."""
    net = chain(seed=4)
    x = net.images(64)
    graph, int8 = quantised(net, x)
    broken = with_bias(
        int8, "b0", lambda data: data + (0.1 / np.array(int8.tensor("b0").quant.scales)).astype(np.int32)
    )
    mended = correct_biases(graph, broken, x)
    wanted = Simulation(graph, int8).run(x, rounded=False)

    def measured(model):
        output = model.tensor(model.outputs[0]).quant
        integers = reference.run_output(model, to_int8(x, INPUT_QUANT))
        return sqnr_db(wanted, (integers.astype(float) - output.zero_point) * output.scale)

    assert measured(mended.graph) > measured(broken) + 5
    assert measured(mended.graph) == pytest.approx(mended.sqnr_after_db, abs=2.5)


def test_later_layers_are_corrected_for_what_is_left():
    """The second layer's correction is measured behind the corrected first one: it is not paid for twice."""
    net = FloatNet(2)
    net.conv(6, activation="none")
    net.conv(6, kernel=1, activation="none")
    net.mean()
    net.dense(4)
    x = net.images(64)
    graph, int8 = quantised(net, x)
    steps = np.rint(0.5 / np.array(int8.tensor("b0").quant.scales)).astype(np.int32)
    mended = correct_biases(graph, with_bias(int8, "b0", lambda data: data + steps), x)
    assert np.abs(real_bias(mended.graph, "b0") - real_bias(int8, "b0")).max() < 0.02
    assert np.abs(real_bias(mended.graph, "b1") - real_bias(int8, "b1")).max() < 0.02


def test_nothing_is_taken_that_does_not_help():
    """A correction that makes other images worse is not applied; the graph stays the same object."""
    net = chain()
    x = net.images(32)
    graph, int8 = quantised(net, x)
    # What the means are taken from is far beyond the ranges, and tells nothing about the images that judge.
    x[::2] *= 30.0
    result = correct_biases(graph, int8, x)
    assert result.sqnr_after_db < result.sqnr_before_db
    assert not result.applied
    assert result.graph is int8


def test_chance_is_left_alone():
    """Errors whose mean is within three standard errors of 0 change no bias."""
    from tinykd.export.bias_correction import _significant_mean

    rng = np.random.default_rng(0)
    error = rng.normal(0, 1, (40, 5, 5, 200)).astype(np.float32)
    error[..., :10] += 0.5
    found = _significant_mean(error)
    assert np.allclose(found[:10], 0.5, atol=0.15)
    assert np.count_nonzero(found[10:]) <= 4
    # Errors that are the same within an image are one observation each, not 25.
    alike = np.broadcast_to(rng.normal(0, 1, (40, 1, 1, 200)), (40, 5, 5, 200))
    assert np.count_nonzero(_significant_mean(alike)) <= 4


def test_biases_stay_int32():
    """A correction at the end of the int32 range does not wrap."""
    from tinykd.export.bias_correction import _shift_bias

    net = chain()
    _, int8 = quantised(net, net.images(8))
    full = with_bias(int8, "b0", lambda data: np.full_like(data, np.iinfo(np.int32).max - 1))
    moved, changed = _shift_bias(full, "b0", np.full(8, 1.0))
    assert (moved.tensor("b0").data == np.iinfo(np.int32).max).all()
    assert changed == 8
