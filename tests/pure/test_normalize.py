"""Per-channel normalisation of pixels: folded exactly, computed exactly, or refused."""

import numpy as np
import pytest
from floatnets import FloatNet

from tinykd.errors import ConfigError
from tinykd.export import float_reference
from tinykd.export.normalize import take_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)


def wanted(graph, mean, std):
    """What the model computes of pixels that are normalised as they were in training."""
    x = (PIXELS / 255.0 - np.array(mean)) / np.array(std)
    return float_reference.run(graph, x.astype(np.float32))


def found(taken):
    """What the graph that takes pixels computes of the same ones."""
    return float_reference.run(taken.graph, taken.normalization.to_float(PIXELS))


def net(first="conv", padded=False):
    """A network whose first layer is given."""
    built = FloatNet(shape=(1, 8, 8, 3))
    if first == "conv":
        built.conv(5, kernel=3 if padded else 1)
    elif first == "depthwise":
        built.depthwise(kernel=3 if padded else 1)
    elif first == "pool":
        built.max_pool()
    if first != "dense":
        built.mean()
    built.dense(4)
    return built.graph()


@pytest.mark.parametrize(
    ("first", "padded", "mean", "std", "how"),
    [
        ("conv", True, (128 / 255,), (0.25,), "as it was"),
        ("conv", True, (0.0,), (1.0,), "as it was"),
        ("conv", True, (100 / 255,) * 3, STD, "folded into the first layers"),
        ("conv", False, MEAN, STD, "folded into the first layers"),
        ("depthwise", False, MEAN, STD, "folded into the first layers"),
        ("dense", False, MEAN, STD, "folded into the first layers"),
        ("conv", True, MEAN, STD, "computed by a depthwise convolution"),
        ("conv", True, (0.5,), (0.5,), "computed by a depthwise convolution"),
        ("depthwise", True, MEAN, STD, "computed by a depthwise convolution"),
        ("pool", False, MEAN, STD, "computed by a depthwise convolution"),
    ],
)
def test_the_function_of_pixels_stays(first, padded, mean, std, how):
    """However the normalisation gets into the graph, the outputs are those of normalised pixels."""
    graph = net(first, padded)
    taken = take_pixels(graph, mean, std)
    assert taken.how == how
    expected = wanted(graph, mean, std)
    assert np.abs(found(taken) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_device_sees_pixel_minus_128():
    """Whatever the normalisation, the int8 input stands for pixel - 128."""
    from tinykd.export.convert import to_device
    from tinykd.export.quantize import to_int8

    normalization = take_pixels(net("conv", False), MEAN, STD).normalization
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_int8(normalization.to_float(levels), normalization.input_quant()), to_device(levels))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (1.0,), "--mean has 2 numbers, but the model's input has 3 channels"),
        ((0.5,), (1.0, 1.0, 0.0), "above 0"),
        ((0.5,), (1.0, 1.0), "--std has 2 numbers"),
    ],
)
def test_numbers_that_do_not_suit_are_refused(mean, std, message):
    """As many numbers as channels, or one; no division by zero."""
    with pytest.raises(ConfigError, match=message):
        take_pixels(net(), mean, std)


def test_vectors_are_no_images():
    """A model of vectors has no channels to normalise."""
    built = FloatNet(shape=(1, 7))
    built.dense(3)
    with pytest.raises(ConfigError, match=r"the model's input is \(1, 7\)"):
        take_pixels(built.graph(), (0.5,), (0.5,))
