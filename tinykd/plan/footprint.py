"""Predicts what the firmware of a model takes on a board, before anything is compiled.

The arena and the model's constants are exact. The code comes from `footprint.toml`, which was measured with the
compiler that it names; a test holds the prediction within 2 % of what a build takes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tinykd.board import Board
from tinykd.errors import ConfigError
from tinykd.ir import Graph, MemoryPlan, op_label
from tinykd.kernels import select
from tinykd.toml import tomllib

CYCLE_COUNTER_BYTES = 4
_TABLE = Path(__file__).with_name("footprint.toml")


def predict(graph: Graph, board: Board, plan: MemoryPlan) -> dict[str, int]:
    """Return the bytes that the firmware with engine `tinykd` will take.

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
    constants: dict[str, int] = {}
    num_ops = 0
    for index, op in enumerate(graph.ops):
        if op.kind == "reshape":
            continue
        num_ops += 1
        call = select(graph, op, op_label(index, op))
        facts = row["kernels"][call.function]
        text += facts["text_per_op"]
        model += _aligned(facts["params"]) + sum(_aligned(array.nbytes) for array in call.arrays.values())
        constants.update({name: graph.tensor(name).num_bytes for name in call.inputs if graph.tensor(name).is_constant})
        stack = max(stack, facts["stack"])
        if call.function not in used:
            used.add(call.function)
            text += facts["text"]
            rodata += facts["rodata"]
    model += sum(_aligned(size) for size in constants.values())
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


@lru_cache(maxsize=1)
def _load_table() -> dict[str, Any]:
    return tomllib.loads(_TABLE.read_text())


def _aligned(size: int) -> int:
    """Round up to 4 bytes, the alignment of every generated array."""
    return (size + 3) // 4 * 4
