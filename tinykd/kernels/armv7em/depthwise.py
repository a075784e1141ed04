"""Depthwise convolutions: planes of four channels in scratch, one record of constants for each output channel.

`firmware/lib/tk_armv7em/include/tk_armv7em_depthwise.h` describes planes, bands and records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization
from tinykd.ir.requant import Requantization
from tinykd.kernels.call import SCRATCH, Argument, Call, Field, Kernel, edges, folded_bias, u16, weights
from tinykd.kernels.requantize import accumulator_range, rounding, saturating

SCRATCH_BYTES = 4096
"""What a band may take, unless one strip needs more."""
MAX_SCRATCH_BYTES = 16384
"""What one strip may take: wider maps are left to the portable kernel."""

_PLANES = 4
_FACTORS = 4
_EXPANDED_WORDS = {"tk_depthwise_5x5": 20, "tk_depthwise_7x7": 42, "tk_depthwise_5x5_s2": 15, "tk_depthwise_7x7_s2": 28}
"""Of a channel's weights, for the functions that read them as bytes and expand them in scratch memory."""
_WALKS_RUNS = ("tk_depthwise_3x3", "tk_depthwise_3x3_s2")
_BAND_INSTRUCTIONS, _STRIP_INSTRUCTIONS, _BLOCK_INSTRUCTIONS = 70, 13, 50


@dataclass(frozen=True)
class _Shape:
    """Sizes of an op, in elements; `multiplier` output channels for each input channel."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    multiplier: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int

    @classmethod
    def of(cls, graph: Graph, op: Op) -> _Shape:
        """Return the sizes of a depthwise convolution."""
        _, in_h, in_w, in_c = graph.tensor(op.inputs[0]).shape
        _, out_h, out_w, out_c = graph.tensor(op.outputs[0]).shape
        _, kernel_h, kernel_w, _ = graph.tensor(op.inputs[1]).shape
        top, _, left, _ = op.attrs["padding"]
        stride_h, stride_w = op.attrs["stride"]
        return cls(in_h, in_w, in_c, out_h, out_w, out_c // in_c, kernel_h, kernel_w, stride_h, stride_w, top, left)

    @property
    def columns(self) -> int:
        """Columns of the padded map, those included that no window reads."""
        return max((self.out_w - 1) * self.stride_w + self.kernel_w, self.pad_left + self.in_w)

    @property
    def kernel_pairs(self) -> int:
        """Row pairs that a strip reads."""
        return (self.kernel_h + self.stride_h + 1) // 2

    def band_bytes(self, strips: int) -> int:
        """Return the scratch memory of a band's planes."""
        pairs = (strips - 1) * self.stride_h + self.kernel_pairs
        return 4 * pairs * min(self.in_c, _PLANES) * self.columns

    @property
    def strips(self) -> int:
        """Strips of a band: as few as make its overhead small, at most what `SCRATCH_BYTES` hold; bands alike."""
        total = -(-self.out_h // 2)
        strip = _STRIP_INSTRUCTIONS + -(-self.out_w // 2) * _BLOCK_INSTRUCTIONS
        enough = max(1, -(-_BAND_INSTRUCTIONS * 32 // strip))
        most = max([n for n in range(1, total + 1) if self.band_bytes(n) <= SCRATCH_BYTES], default=1)
        return -(-total // -(-total // min(most, enough, total)))


def _scratch_bytes(shape: _Shape, function: str, strips: int) -> int:
    """Return the scratch memory of a band and, where the function expands weights, of the records of its planes."""
    expanded = _EXPANDED_WORDS.get(function, 0)
    channels = min(shape.in_c, _PLANES) * shape.multiplier
    return shape.band_bytes(strips) + (4 * channels * (_FACTORS + expanded) if expanded else 0)


def _function(shape: _Shape) -> str:
    """Return the C function for a shape."""
    sizes = (shape.kernel_h, shape.kernel_w, shape.stride_h, shape.stride_w)
    own = {
        (3, 3, 1, 1): "tk_depthwise_3x3",
        (5, 5, 1, 1): "tk_depthwise_5x5",
        (7, 7, 1, 1): "tk_depthwise_7x7",
        (3, 3, 2, 2): "tk_depthwise_3x3_s2",
        (5, 5, 2, 2): "tk_depthwise_5x5_s2",
        (7, 7, 2, 2): "tk_depthwise_7x7_s2",
    }.get(sizes, "tk_depthwise_any")
    return own if _scratch_bytes(shape, own, 1) <= MAX_SCRATCH_BYTES else "tk_depthwise_any"


def _applies(graph: Graph, op: Op, *, function: str) -> bool:
    """No dilation, two output columns or more, a band within the scratch memory, sums that a fast rounding takes."""
    taps = graph.tensor(op.inputs[1])
    shape = _Shape.of(graph, op)
    if taps.data is None or taps.dtype != "int8" or tuple(op.attrs["dilation"]) != (1, 1):
        return False
    if shape.out_w < 2 or shape.kernel_pairs < shape.stride_h or shape.band_bytes(1) > MAX_SCRATCH_BYTES:
        return False
    return _function(shape) == function and _factors(graph, op, taps.data, "") is not None


@dataclass(frozen=True)
class _Factors:
    """Of each channel: what its weights are shifted left by; bias, multiplier, addend, shift: (channels, 4) int32."""

    scale_bits: np.ndarray
    words: np.ndarray


def _factors(graph: Graph, op: Op, taps: np.ndarray, where: str) -> _Factors | None:
    """Return factors that are proven for each sum, of two instructions where possible, or None where there are none."""
    constants = requantization(graph, op)
    try:
        folded = folded_bias(graph, op, taps, 3, constants.input_zero_point, where)
    except UnsupportedModelError:
        return None
    low, high = accumulator_range(taps, 3, folded)
    fast = _saturating(constants, low, high, folded)
    if fast is not None:
        return fast
    plain = rounding(constants, low, high)
    if plain is None:
        return None
    scale_bits = np.ones(len(folded), np.int32)
    words = np.stack([2 * folded, plain.multiplier, plain.addend, plain.shift], axis=1)

    def improve(part: slice) -> None:
        """Use the fast form in channels that have it, together or else one by one."""
        some = replace(constants, multipliers=constants.multipliers[part], shifts=constants.shifts[part])
        found = _saturating(some, low[part], high[part], folded[part])
        if found is not None:
            scale_bits[part], words[part] = found.scale_bits, found.words
        elif part.stop - part.start > 1:
            for channel in range(part.start, part.stop):
                improve(slice(channel, channel + 1))

    if plain.one_sided and plain.saturates:
        for start in range(0, len(folded), _PLANES):
            improve(slice(start, min(start + _PLANES, len(folded))))
    return _Factors(scale_bits, words)


def _above_shift(words: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return factors with a value per channel above the lowest 8 bits of their shifts."""
    return np.concatenate([words[:, :3], words[:, 3:] | values[:, None] << 8], axis=1)


def _with_runs(words: np.ndarray, group: int) -> np.ndarray:
    """Return factors whose shifts tell above 8 bits how many channels of the group round alike from each one on."""
    runs = np.ones(len(words), np.int32)
    is_fast = words[:, 3] == 0
    for channel in range(len(words) - 2, -1, -1):
        if (channel + 1) % group and is_fast[channel] == is_fast[channel + 1]:
            runs[channel] += runs[channel + 1]
    return _above_shift(words, runs)


def _saturating(constants: Requantization, low: np.ndarray, high: np.ndarray, folded: np.ndarray) -> _Factors | None:
    found = saturating(constants, low, high, folded, shared_scale=False)
    if found is None:
        return None
    shift = np.zeros_like(found.bias)
    return _Factors(found.scale_bits, np.stack([found.bias, found.multiplier, found.addend, shift], axis=1))


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return words (first, second) of int16 arrays of one shape, (..., 1) each, as int32."""
    return np.ascontiguousarray(np.stack([first, second], axis=-1).astype("<i2")).view("<i4")


def _odd_words(taps: np.ndarray) -> np.ndarray:
    """Return the weights (C, 3, 3) for stride 1 as words (C, 6), the last column first."""
    rows = np.moveaxis(taps, 1, 0)[..., ::-1]
    return np.concatenate([_pairs(rows[0], rows[1]), _pairs(rows[1], rows[2])], axis=-1).reshape(len(taps), -1)


def _strided_words(taps: np.ndarray) -> np.ndarray:
    """Return the weights (C, 3, 3) for stride 2 as words (C, 5): two rows of each column, then the third row."""
    upper = _pairs(taps[:, 0], taps[:, 1])[..., 0]
    third = np.pad(taps[:, 2], ((0, 0), (0, 1)))
    return np.concatenate([upper, _pairs(third[:, ::2], third[:, 1::2])[..., 0]], axis=1)


def _any_words(taps: np.ndarray, pairs: int, stride: int) -> np.ndarray:
    """Return the weights (C, H, W) as words (C, pairs * W * 2): those of the first and of the second output row."""
    rows = np.zeros((len(taps), 2, 2 * pairs, taps.shape[2]), taps.dtype)
    rows[:, 0, : taps.shape[1]] = taps
    rows[:, 1, stride : stride + taps.shape[1]] = taps
    # (C, output row, pair, half, W) -> (C, pair, W, output row, half)
    words = rows.reshape(len(taps), 2, pairs, 2, -1).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(words.astype("<i2")).view("<i4").reshape(len(taps), -1)


def _bytes(shape: _Shape, taps: np.ndarray) -> np.ndarray:
    """Return the weights (C, H, W) as words of bytes, column by column, for stride 1 the last one first."""
    columns = taps[..., ::-1] if shape.stride_w == 1 else taps
    in_order = columns.transpose(0, 2, 1).reshape(len(taps), -1).astype(np.int8)
    return np.pad(in_order, ((0, 0), (0, -in_order.shape[1] % 4))).view("<i4")


def _stream(shape: _Shape, taps: np.ndarray, factors: _Factors) -> np.ndarray:
    """Return the records of all channels, of weights (C, H, W), as the function of the shape reads them."""
    function = _function(shape)
    if function in _EXPANDED_WORDS:
        words = _above_shift(factors.words, factors.scale_bits)
        return np.concatenate([words, _bytes(shape, taps)], axis=1).astype(np.int32)
    orders: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "tk_depthwise_any": partial(_any_words, pairs=shape.kernel_pairs, stride=shape.stride_h),
        "tk_depthwise_3x3_s2": _strided_words,
        "tk_depthwise_3x3": _odd_words,
    }
    group = shape.multiplier if shape.multiplier > 1 else _PLANES
    words = _with_runs(factors.words, group) if function in _WALKS_RUNS else factors.words
    scaled = taps.astype(np.int32) << factors.scale_bits[:, None, None]
    return np.concatenate([words, orders[function](scaled)], axis=1).astype(np.int32)


def _calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    edges(graph, op, where)
    taps = weights(graph, op.inputs[1], where)
    constants = requantization(graph, op)
    shape = _Shape.of(graph, op)
    factors = _factors(graph, op, taps, where)
    assert factors is not None
    stream = _stream(shape, taps[0].transpose(2, 0, 1), factors)
    sizes = {
        "in_h": shape.in_h,
        "in_w": shape.in_w,
        "in_c": shape.in_c,
        "out_h": shape.out_h,
        "out_w": shape.out_w,
        "multiplier": shape.multiplier,
        "stride_h": shape.stride_h,
        "stride_w": shape.stride_w,
        "pad_top": shape.pad_top,
        "pad_left": shape.pad_left,
        "columns": shape.columns,
        "kernel_pairs": shape.kernel_pairs,
        "kernel_w": shape.kernel_w,
        "strips": shape.strips,
        "weight_words": stream.shape[1] - _FACTORS,
    }
    fields: dict[str, Field] = {
        **u16(sizes, where),
        "in_zero": constants.input_zero_point,
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        "stream": "stream",
    }
    return (
        Call(
            _function(shape),
            "tk_depthwise_t",
            fields,
            (Argument(op.inputs[0]), Argument(op.outputs[0]), SCRATCH),
            {"stream": stream},
            scratch_bytes=_scratch_bytes(shape, _function(shape), shape.strips),
        ),
    )


FUNCTIONS = tuple(f"tk_depthwise_{name}" for name in ("3x3", "5x5", "7x7", "3x3_s2", "5x5_s2", "7x7_s2", "any"))

KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "depthwise_conv_2d": tuple(
            Kernel(function, partial(_applies, function=function), _calls) for function in FUNCTIONS
        )
    }
)
