"""Predicts what the firmware of a model takes on a board, before anything is compiled.

The arena and the model's constants are exact. The code comes from `footprint.toml`, which was measured with the
compiler that it names; a test holds the prediction within 2 % of what a build takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tinykd.board import Board
from tinykd.errors import ConfigError, InternalError
from tinykd.ir import Graph, MemoryPlan
from tinykd.kernels import SCRATCH, Call, OptimizeFor, engine_for, planned_calls, unique_arrays
from tinykd.toml import tomllib

CYCLE_COUNTER_BYTES = 4
_TABLE = Path(__file__).with_name("footprint.toml")


def predict(
    graph: Graph,
    board: Board,
    plan: MemoryPlan,
    optimize_for: OptimizeFor = "balanced",
    calls: Sequence[tuple[Call, ...]] | None = None,
) -> dict[str, int]:
    """Return the bytes that the firmware with engine `tinykd` will take.

    Args:
        plan: made for the board's core and the same goal.
        calls: the `planned_calls` of that plan, where they are known already.

    Returns:
        arena_bytes: as planned.
        model_bytes: weights, biases, multipliers, parameter blocks; part of flash.
        code_bytes: code of the whole firmware; part of flash.
        flash_bytes: everything that is programmed.
        stack_bytes: worst case.
        sram_static_bytes: variables, the arena included.
        sram_bytes: sram_static_bytes + stack_bytes.

    Raises:
        UnsupportedModelError: an op has no kernel.
        ConfigError: the table has no row for the board's core.
    """
    table = _load_table()
    if board.core not in table:
        raise ConfigError(
            f"the footprint of core '{board.core}' was never measured",
            "Add a board with that core to REFERENCE_BOARDS and run: python -m tinykd.build.footprint",
        )
    row = table[board.core]
    text, rodata, model, stack = row["text"], row["rodata"], row["model"], row["stack"]
    used: set[str] = set()
    shared: set[str] = set()
    num_ops = 0
    arrays: list[tuple[str, np.ndarray]] = []
    if calls is None:
        calls = planned_calls(graph, plan, engine_for(board.core, optimize_for))
    for index, of_op in enumerate(calls):
        if not of_op:
            continue
        num_ops += 1
        facts = _facts(row, of_op[0].function)
        text += facts["text_per_op"] + row["text_per_call"] * (len(of_op) - 1)
        model += _aligned(facts["params"]) * len(of_op)
        stack = max(stack, facts["stack"])
        for call in of_op:
            arrays += [(f"{index} {key}", array) for key, array in call.arrays.items()]
            for tensor in (graph.tensor(item.tensor) for item in call.arguments if item.tensor != SCRATCH.tensor):
                if tensor.data is not None:
                    arrays.append((tensor.name, tensor.data))
        if of_op[0].function not in used:
            used.add(of_op[0].function)
            text += facts["text"]
            rodata += facts["rodata"]
            shared.update(facts["shares"])
    # A kernel that other kernels call is counted once, whether an op uses it or not.
    text += sum(row["shared"][name] for name in shared - used)
    model += sum(_aligned(array.nbytes) for array in unique_arrays(arrays)[0].values())
    # The table's bss holds the cycle counter of one op, which a model without ops has too.
    bss = row["bss"] + plan.arena_bytes + CYCLE_COUNTER_BYTES * max(num_ops - 1, 0)
    static = row["data"] + bss
    return {
        "arena_bytes": plan.arena_bytes,
        "model_bytes": model,
        "code_bytes": text,
        "flash_bytes": text + rodata + model + row["data"],
        "stack_bytes": stack,
        "sram_static_bytes": static,
        "sram_bytes": static + stack,
    }


def _facts(row: dict[str, Any], function: str) -> dict[str, Any]:
    if function not in row["kernels"]:
        raise InternalError(
            f"the footprint of the kernel {function} was never measured", "Run: python -m tinykd.build.footprint"
        )
    return row["kernels"][function]


@lru_cache(maxsize=1)
def _load_table() -> dict[str, Any]:
    return tomllib.loads(_TABLE.read_text())


def _aligned(size: int) -> int:
    """Round up to 4 bytes, the alignment of every generated array."""
    return (size + 3) // 4 * 4
