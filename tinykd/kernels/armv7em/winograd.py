"""3x3 convolutions by Winograd's F(2x2, 3x3), in integers: four multiplications an output instead of nine.

`firmware/lib/tk_armv7em/src/tk_convolution_winograd.c` has the matrices (Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2016). Rows 1 and 2 of G are twice the usual ones, so that the weights G g G' are
integers; what makes up for it, a halving of sums that are always even, is exact. All sums are taken modulo 2^32: those
that are halved must lie within int32, which `_fits` proves from the weights; what is added up to them may leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization
from tinykd.kernels.armv7em.convolution import band_columns, window_fields
from tinykd.kernels.armv7em.rows import Factors, rows_fields
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Kernel, folded_bias, weights
from tinykd.kernels.requantize import SaturatingRounding, accumulator_range, rounding, saturating

_MAX_CHANNELS = 64
_G = np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]], np.int64)
_ORDER = (1, 2, 0, 3)
_QUAD = (0, 2, 1, 3)


def _transformed(taps: np.ndarray) -> np.ndarray:
    """Return weights (out_c, 3, 3, in_c) as int64 (out_c, 16, in_c): rows 1, 2, 0, 3, of each columns 1, 2, 0, 3."""
    products = np.einsum("ih,jw,ohwc->oijc", _G, _G, taps.astype(np.int64))
    return products[:, _ORDER][:, :, _ORDER].reshape(len(taps), 16, -1)


def _scale_bits(factors: Factors, channels: int) -> np.ndarray:
    """Return by what each channel's weights are shifted left."""
    return factors.scale_bits if isinstance(factors, SaturatingRounding) else np.ones(channels, np.int32)


def _biases(factors: Factors, folded: np.ndarray) -> np.ndarray:
    """Return the scaled biases, int64; 0 for channels whose sums do not matter."""
    biases = factors.bias if isinstance(factors, SaturatingRounding) else 2 * folded.astype(np.int64)
    return np.where(factors.multiplier == 0, 0, biases.astype(np.int64))


def _live(taps: np.ndarray, factors: Factors) -> np.ndarray:
    """Return the weights with zeros for channels whose sums do not matter."""
    return np.where((factors.multiplier == 0)[:, None, None, None], 0, taps)


def _fits(taps: np.ndarray, factors: Factors, folded: np.ndarray) -> bool:
    """Return whether weights are int16, and sums that are halved int32, whatever the inputs."""
    bits = _scale_bits(factors, len(taps)).astype(np.int64)
    largest = np.abs(_transformed(taps)).max(axis=(1, 2)) << bits
    # Halved are 2 (d1 g1 + d2 (g0 + g2)) and 2 (d1 (g0 + g2) + d2 g1): first along rows, of sums of two inputs.
    columns = np.abs(np.einsum("ih,ohwc->oiwc", _G, taps.astype(np.int64))).sum(axis=(2, 3)).max(axis=1) << bits
    rows = np.abs(taps.astype(np.int64)).sum(axis=(1, 2, 3)) << bits
    halved = np.maximum(2 * 256 * columns, 2 * 128 * rows + 2 * np.abs(_biases(factors, folded)))
    return bool(largest.max() < 1 << 15 and halved.max() < 1 << 31)


def _factors(graph: Graph, op: Op) -> Factors | None:
    """Return the fastest rounding with which the op's sums fit, or None where the kernel cannot run it."""
    taps, y = graph.tensor(op.inputs[1]), graph.tensor(op.outputs[0])
    if taps.data is None or taps.dtype != "int8" or taps.shape[1:3] != (3, 3):
        return None
    if any(value != 1 for value in (*op.attrs["stride"], *op.attrs["dilation"])):
        return None
    if taps.shape[3] % 4 or taps.shape[3] > _MAX_CHANNELS or y.shape[3] % 2:
        return None
    constants = requantization(graph, op)
    if (constants.out_min, constants.out_max) != (-128, 127):
        return None
    try:
        folded = folded_bias(graph, op, taps.data, 0, constants.input_zero_point, "")
    except UnsupportedModelError:
        return None
    low, high = accumulator_range(taps.data, 0, folded)
    for factors in (saturating(constants, low, high, folded, shared_scale=False), rounding(constants, low, high)):
        if factors is not None and _fits(_live(taps.data, factors), factors, folded):
            return factors
    return None


def _applies(graph: Graph, op: Op) -> bool:
    """Kernel 3x3, stride 1, no dilation, in_c a multiple of 4 up to 64, out_c even, int8's clamp, and sums that fit."""
    return _factors(graph, op) is not None


def _stream(taps: np.ndarray, folded: np.ndarray, factors: Factors) -> np.ndarray:
    """Return the stream of tk_convolution_winograd as int32 words."""
    channels, in_c = len(taps), taps.shape[3]
    live = _transformed(_live(taps, factors)) << _scale_bits(factors, channels).astype(np.int64)[:, None, None]
    quads = live.reshape(channels // 2, 2, 16, in_c // 4, 4)[..., _QUAD].reshape(channels // 2, 2, 16, in_c // 4, 2, 2)
    # (pair, channel, component, quad, word, half) -> (pair, component, quad, word, channel, half)
    ordered = np.ascontiguousarray(quads.transpose(0, 2, 3, 4, 1, 5).astype("<i2"))
    words = ordered.view("<i4").reshape(channels // 2, -1)
    shift = np.zeros(channels, np.int32) if isinstance(factors, SaturatingRounding) else factors.shift
    ends = np.stack([factors.multiplier, factors.addend, shift], axis=1).reshape(channels // 2, 6)
    biases = 2 * _biases(factors, folded).reshape(channels // 2, 2)
    return np.concatenate([words, biases, ends], axis=1).astype(np.int32)


def _calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, where)
    factors = _factors(graph, op)
    assert factors is not None
    out_c, _, _, in_c = taps.shape
    rows, _ = rows_fields("rows", taps.reshape(out_c, -1), folded, factors, constants, widened=True, where=where)
    band = {"band_rows": 2, **_band(graph, op)}
    return (
        Call(
            "tk_convolution_winograd",
            "tk_convolution_t",
            {**window_fields(graph, op, band, where), **rows},
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            {"rows_stream": _stream(taps, folded, factors)},
            scratch_bytes=64 * in_c + 392 + 8 * out_c + 8 + 4 * _width(graph, op) * in_c,
        ),
    )


def _band(graph: Graph, op: Op) -> dict[str, int]:
    """Return the columns of a band for whole pairs of tiles."""
    return band_columns(graph, op, -(-graph.tensor(op.outputs[0]).shape[2] // 4) * 4)


def _width(graph: Graph, op: Op) -> int:
    return sum(_band(graph, op).values())


def _cost(graph: Graph, op: Op) -> Cost:
    _, out_h, out_w, out_c = graph.tensor(op.outputs[0]).shape
    in_c = graph.tensor(op.inputs[0]).shape[3]
    bands = -(-out_h // 2)
    band = 60 + 4 * (35 + 0.9 * _width(graph, op) * in_c)
    channels = 16 * (7 + 10 * in_c // 4) + 290
    tiles = 110 + 310 * in_c // 4 + out_c // 2 * channels
    constant_bytes = out_c // 2 * (4 * 16 * in_c + 32)
    # Of each transform about 100 words for four channels, of each product 8 for a quad.
    loaded = bands * -(-out_w // 4) * in_c // 4 * (100 + out_c // 2 * 16 * 8)
    return Cost(bands * (band + -(-out_w // 4) * tiles), constant_bytes, loaded)


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {"conv_2d": (Kernel("tk_convolution_winograd", _applies, _calls, "winograd", _cost),)}
)
