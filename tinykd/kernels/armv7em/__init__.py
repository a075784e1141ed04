"""Kernels for Cortex-M4 and Cortex-M7: which ones can run an op, what each would cost, and its packed constants.

Rows are tried in no order: `tinykd.kernels.select` takes the cheapest that applies. Every kernel equals the portable
one in every output bit, so a choice never changes a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tinykd.kernels.armv7em import convolution, depthwise, elementwise, fully_connected, pointwise, pooling, winograd
from tinykd.kernels.call import Kernel


def _merged(*tables: Mapping[str, tuple[Kernel, ...]]) -> Mapping[str, tuple[Kernel, ...]]:
    merged: dict[str, tuple[Kernel, ...]] = {}
    for table in tables:
        for kind, rows in table.items():
            merged[kind] = (*merged.get(kind, ()), *rows)
    return MappingProxyType(merged)


ARMV7EM = _merged(
    pointwise.KERNELS,
    convolution.KERNELS,
    winograd.KERNELS,
    depthwise.KERNELS,
    fully_connected.KERNELS,
    elementwise.KERNELS,
    pooling.KERNELS,
)
