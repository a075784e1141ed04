"""1x1 convolutions and dense layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tinykd.kernels.call import Kernel

KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType({})
