"""Makes `firmware/` itself a complete PlatformIO project: `python -m tinykd.build.bringup BOARD`.

For work on the firmware and on new boards, where a checkout's own files must be compiled and no model is at hand. It
writes `firmware/generated/` for a model that returns its 16 input bytes: what the host receives is what it sent.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tinykd.board import load_board
from tinykd.build.codegen import generate
from tinykd.build.project import Project, make_project
from tinykd.errors import TinykdError
from tinykd.ir import Graph, MemoryPlan, Op, Placement, Quant, Tensor, verify
from tinykd.resources import find_resource

NUM_BYTES = 16
# More than any firmware without a large model needs; `tinykd build` proves the exact number.
STACK_BYTES = 2048


def identity() -> tuple[Graph, MemoryPlan]:
    """Return a model whose output is its input: a maximum over windows of one element."""
    shape, quant = (1, 1, 1, NUM_BYTES), Quant.per_tensor(1.0, 0)
    tensors = {name: Tensor(name, shape, "int8", quant) for name in ("x", "y")}
    attrs = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
    graph = verify(Graph("identity", tensors, (Op("max_pool_2d", ("x",), ("y",), attrs, "identity"),), ("x",), ("y",)))
    placements = (Placement("x", 0, NUM_BYTES, -1, 0), Placement("y", NUM_BYTES, NUM_BYTES, 0, 0))
    return graph, MemoryPlan(placements, 2 * NUM_BYTES, 2 * NUM_BYTES, 4, 0)


def bringup_project(board: str) -> Project:
    """Return the project of the identity model for a board (a name, or a .toml file)."""
    return make_project(load_board(board), generate(*identity(), "00" * 32), STACK_BYTES)


def main(arguments: list[str]) -> int:
    """Write `firmware/generated/` and say what to run."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tinykd.build.bringup BOARD\n")
        return 2
    try:
        project = bringup_project(arguments[0])
    except TinykdError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    root: Path = find_resource("firmware")
    (root / "generated").mkdir(exist_ok=True)
    for old in (root / "generated").iterdir():
        old.unlink()
    for name, data in project.files.items():
        if name.startswith("generated/"):
            (root / name).write_bytes(data)
    sys.stdout.write(f"wrote {root / 'generated'}; now: pio run -d {root} -e {project.board.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
