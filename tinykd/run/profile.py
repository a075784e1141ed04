"""Where the instructions of an inference went: by op and by function, with what they may take in cycles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tinykd.run import cycles
from tinykd.run.cycles import Cycles
from tinykd.run.transport.base import BlockCount, InstructionCounts


@dataclass(frozen=True)
class FunctionCost:
    """What one function itself took, without those that it called; `instructions` is exact."""

    function: str
    instructions: int
    cycles: Cycles

    def to_dict(self) -> dict[str, Any]:
        """Return the function as a JSON object."""
        return {"function": self.function, "instructions": self.instructions, **cycles_dict(self.cycles)}


@dataclass(frozen=True)
class Profile:
    """One inference.

    Attributes:
        total: cycles of everything, the loop around the ops included.
        per_op: cycles of each op of the generated sequence, with everything that it calls.
        by_function: every function that ran, the costliest first; their instructions sum to the inference's.
    """

    total: Cycles
    per_op: tuple[Cycles, ...]
    by_function: tuple[FunctionCost, ...]


def profile(counts: InstructionCounts, core: str) -> Profile | None:
    """Return the profile of an inference on a core ("cortex-m7"); None where the blocks that ran are not known."""
    if not counts.blocks:
        return None
    parts = [cycles.estimate(blocks, core) for blocks in counts.blocks]
    return Profile(_sum(parts), tuple(parts[:-1]), _by_function(counts.blocks, core))


def cycles_dict(value: Cycles | None) -> dict[str, int | None]:
    """Return an estimate as the members of a JSON object: `cycles_low`, `cycles_high`, and their middle."""
    if value is None:
        return dict.fromkeys(("estimated_cycles", "cycles_low", "cycles_high"))
    return {
        "estimated_cycles": round(value.middle),
        "cycles_low": round(value.low),
        "cycles_high": round(value.high),
    }


def _sum(parts: Iterable[Cycles]) -> Cycles:
    parts = list(parts)
    return Cycles(sum(part.low for part in parts), sum(part.high for part in parts))


def _by_function(parts: Iterable[Iterable[BlockCount]], core: str) -> tuple[FunctionCost, ...]:
    blocks: defaultdict[str, list[BlockCount]] = defaultdict(list)
    for part in parts:
        for block in part:
            blocks[block.function].append(block)
    costs = [
        FunctionCost(name, sum(block.instructions for block in ran), cycles.estimate(ran, core))
        for name, ran in blocks.items()
    ]
    return tuple(sorted(costs, key=lambda cost: (-cost.instructions, cost.function)))
