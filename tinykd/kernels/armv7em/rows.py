"""Constants of the dense inner loops: the parameter block `tk_rows_t` and the stream that it points to.

`firmware/lib/tk_armv7em/include/tk_armv7em_rows.h` describes columns and streams.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, requantization
from tinykd.ir.requant import Requantization
from tinykd.kernels.armv7em.packed import packed_factors, packed_stream
from tinykd.kernels.call import Cost, Field, folded_bias, within
from tinykd.kernels.requantize import Rounding, SaturatingRounding, accumulator_range, rounding, saturating

Factors = Rounding | SaturatingRounding

BLOCK = 2
"""Channels of one block of the widened stream."""

_QUAD = (0, 2, 1, 3)
_PASS = {True: 144, False: 144}
_LAST = np.int32(-(1 << 31))


def quads(count: int) -> int:
    """Return how many quads hold so many inputs."""
    return -(-count // 4)


def rows_factors(graph: Graph, op: Op, taps: np.ndarray, *, widened: bool) -> Factors | None:
    """Return the fastest rounding of a dense op that is proven for each of its sums, or None where there is none.

    Args:
        taps: int8 weights, output channels first.
        widened: int16 weights, else packed int8.
    """
    constants = requantization(graph, op)
    try:
        folded = folded_bias(graph, op, taps, 0, constants.input_zero_point, "")
    except UnsupportedModelError:
        return None
    return _proven(constants, taps.tobytes(), taps.shape, folded.tobytes(), widened)


@lru_cache(maxsize=128)
def _proven(
    constants: Requantization, taps_bytes: bytes, shape: tuple[int, ...], folded_bytes: bytes, widened: bool
) -> Factors | None:
    """Return the rounding; an op is asked about it by each candidate and each goal, and the proofs take a while."""
    taps = np.frombuffer(taps_bytes, np.int8).reshape(shape)
    folded = np.frombuffer(folded_bytes, np.int32)
    low, high = accumulator_range(taps, 0, folded)
    if not widened:
        return packed_factors(constants, taps, low, high, folded)
    return saturating(constants, low, high, folded, shared_scale=False) or rounding(constants, low, high)


def rows_fields(
    prefix: str,
    taps: np.ndarray,
    folded: np.ndarray,
    factors: Factors,
    constants: Requantization,
    *,
    widened: bool,
    where: str,
) -> tuple[dict[str, Field], dict[str, np.ndarray]]:
    """Return the fields of a member `tk_rows_t` and its array.

    Args:
        prefix: the member's name in the parameter block.
        taps: int8 (out_c, depth), depth a multiple of 4: a column's order, weights of excess inputs 0.
        folded: int32 (out_c,), biases with the input's zero point folded in.
        factors: of `rows_factors`.
        constants: of the op.
        widened: int16 weights, else packed int8.
        where: how errors name the op.

    Raises:
        UnsupportedModelError: a size exceeds its field.
    """
    stream = widened_stream if widened else packed_stream
    fields: dict[str, Field] = {
        "stream": f"{prefix}_stream",
        "depth": within(taps.shape[1], 4, 0xFFFC, "the depth of its columns", where),
        "out_c": within(taps.shape[0], 1, 0xFFFF, "out_c", where),
        "out_min": constants.out_min,
        "out_max": constants.out_max,
        "form": _form(factors),
    }
    return {f"{prefix}.{name}": field for name, field in fields.items()}, {
        f"{prefix}_stream": stream(taps, folded, factors)
    }


def rows_cost(out_c: int, depth: int, columns: int, factors: Factors, *, widened: bool, group: int = 1) -> Cost:
    """Return what all channels of so many columns take, and the bytes of the stream.

    Args:
        group: pairs of columns that one call takes.
    """
    blocks, form, num_quads = -(-out_c // BLOCK), _form(factors), depth // 4
    passes = -(-depth // _PASS[widened])
    loaded = (8 if widened else 6) * num_quads
    if widened:
        per_block = 10 * num_quads + (29, 26, 21)[form]
        words = BLOCK + depth + (6, 6, 5)[form]
    else:
        per_block = 23 * (num_quads // 2) + 20 * (num_quads % 2) + (35, 31, 25)[form]
        words = BLOCK + depth // 2 + 6
    per_pair = 14 + 60 / group + blocks * (per_block + (4 * passes + 1) * (passes > 1))
    return Cost(columns / 2 * per_pair, 4 * blocks * words, columns / 2 * blocks * loaded)


def _form(factors: Factors) -> int:
    """Return TK_ROWS_TWO_SIDED, TK_ROWS_ONE_SIDED or TK_ROWS_SATURATING."""
    return 2 if isinstance(factors, SaturatingRounding) else int(factors.one_sided)


def widened_stream(taps: np.ndarray, folded: np.ndarray, factors: Factors) -> np.ndarray:
    """Return the widened stream as int32 words: blocks of biases, int16 weights quad by quad, and factors."""
    channels, depth = taps.shape
    blocks = -(-channels // BLOCK)
    if isinstance(factors, SaturatingRounding):
        scale_bits, biases = factors.scale_bits, factors.bias
        ends = _filled(np.stack([factors.multiplier, factors.addend], axis=1), blocks).reshape(blocks, -1)
        ends = np.pad(ends, ((0, 0), (0, 1)))
    else:
        scale_bits, biases = np.ones(channels, np.int32), folded * 2
        ends = np.stack([factors.multiplier, factors.addend, factors.shift], axis=1)
        ends = _filled(ends, blocks).reshape(blocks, -1)
    whole = channels // BLOCK
    ends[[block for block in (whole - 1, blocks - 1) if block >= 0], -1] |= _LAST
    scaled = (taps.astype(np.int32) << scale_bits[:, None]).astype("<i2")
    quadrupled = _filled(scaled, blocks).reshape(blocks, BLOCK, depth // 4, 4)[..., _QUAD]
    # (block, channel, quad, word, half) -> (block, quad, word, channel, half)
    ordered = quadrupled.reshape(blocks, BLOCK, depth // 4, 2, 2).transpose(0, 2, 3, 1, 4)
    words = np.ascontiguousarray(ordered).view("<i4").reshape(blocks, -1)
    return np.concatenate([_filled(biases, blocks).reshape(blocks, BLOCK), words, ends], axis=1).astype(np.int32)


def _filled(rows: np.ndarray, blocks: int) -> np.ndarray:
    """Return the rows with rows of 0 behind them up to whole blocks."""
    return np.concatenate([rows, np.zeros((blocks * BLOCK - len(rows), *rows.shape[1:]), rows.dtype)])
