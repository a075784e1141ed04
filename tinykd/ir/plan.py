"""The memory plan of a graph: which byte of the arena each activation occupies. A record that stages share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Placement:
    """Where one activation lives.

    Attributes:
        tensor: its name in the graph.
        offset: bytes from the start of the arena.
        num_bytes: its size, without alignment.
        first_op, last_op: the live range, both ends included. -1 is the time before the first op (graph inputs).
        alias_of: the activation whose bytes it shares on purpose (a RESHAPE), or None.
    """

    tensor: str
    offset: int
    num_bytes: int
    first_op: int
    last_op: int
    alias_of: str | None = None


@dataclass(frozen=True)
class Scratch:
    """Where an op's scratch memory lies while it runs: `num_bytes` at `offset` of the arena."""

    op: int
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets of every activation, with the certificate of how good they are.

    Attributes:
        placements: one per activation, in tensor order.
        arena_bytes: size of the arena, a multiple of `alignment_bytes`.
        lower_bound_bytes: no plan for the same live ranges and alignment can be smaller.
        alignment_bytes: alignment of every offset.
        peak_op: index of the op during which most bytes are live.
        scratch: one for each op whose kernel needs some.
    """

    placements: tuple[Placement, ...]
    arena_bytes: int
    lower_bound_bytes: int
    alignment_bytes: int
    peak_op: int
    scratch: tuple[Scratch, ...] = ()

    @property
    def gap_bytes(self) -> int:
        """Bytes above the lower bound; 0 means that the plan is proven optimal."""
        return self.arena_bytes - self.lower_bound_bytes

    def offset(self, tensor: str) -> int:
        """Return the arena offset of an activation; KeyError when the plan has none."""
        for placement in self.placements:
            if placement.tensor == tensor:
                return placement.offset
        raise KeyError(tensor)

    def scratch_offset(self, op: int) -> int:
        """Return the arena offset of an op's scratch memory; KeyError when the plan has none for it."""
        for item in self.scratch:
            if item.op == op:
                return item.offset
        raise KeyError(op)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> MemoryPlan:
        """Read the plan back from `to_dict`'s form."""
        placements = tuple(Placement(**item) for item in raw["placements"])
        scratch = tuple(Scratch(**item) for item in raw.get("scratch", ()))
        return MemoryPlan(**{**raw, "placements": placements, "scratch": scratch})
