"""Runs a model bare in the emulator and measures it: for the tuner, and for `benchmarks/engine`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tinykd.build.bare import BareSizes
    from tinykd.ir import Graph
    from tinykd.kernels import Engine
    from tinykd.run.bare import BareModel, Profile


@dataclass(frozen=True)
class BareOp:
    """One op of the generated sequence: its index in the graph, its kernel and what it retired."""

    graph_op: int
    kind: str
    kernel: str
    macs: int
    instructions: int


@dataclass(frozen=True)
class BareRun:
    """What one inference took.

    Attributes:
        instructions: of all ops and their dispatch.
        ops: those that the firmware runs, in order.
        arena_bytes: activations and scratch memory.
        stack_bytes: measured by painting the stack; `sizes.stack_bytes` is what is proven.
        wrong: outputs of ops that differ from the reference.
        model: in the emulator, for more inputs.
    """

    instructions: int
    ops: tuple[BareOp, ...]
    arena_bytes: int
    stack_bytes: int
    sizes: BareSizes
    wrong: tuple[str, ...]
    model: BareModel


def run_bare(
    graph: Graph,
    core: str,
    engine: Engine,
    folder: Path,
    x: np.ndarray,
    expected: dict[str, np.ndarray],
    kernels: Path | None = None,
) -> BareRun:
    """Build a model for a core, run one input and compare each activation.

    Args:
        graph: what the firmware computes (`for_engine`).
        engine: whose kernels.
        folder: where to build.
        x: one input, int8, (1, ...).
        expected: activation -> its value for `x`, as the reference gives them; those that are not there are not
            compared.
        kernels: see `build_bare`.
    """
    import numpy as np

    from tinykd.build.bare import bare_sizes, build_bare
    from tinykd.build.codegen import generate
    from tinykd.plan import plan_graph
    from tinykd.run.bare import BareModel

    plan = plan_graph(graph, engine=engine)
    elf = build_bare(graph, plan, core, folder, engine, kernels=kernels)
    sequence = generate(graph, plan, "00" * 32, engine).ops
    model = BareModel(elf, core, len(sequence))
    model.machine.paint_stack()
    ops: list[BareOp] = []
    wrong: list[str] = []

    def after_op(number: int, profile: Profile) -> None:
        item = sequence[number]
        dispatch = profile.by_function.get("tk_model_run_op", 0)
        ops.append(BareOp(item.graph_op, item.kind, item.kernel, item.macs, profile.instructions - dispatch))
        for name in graph.ops[item.graph_op].outputs:
            if name in expected:
                found = np.frombuffer(model.arena(plan.offset(name), graph.tensor(name).num_bytes), np.int8)
                if not np.array_equal(found, expected[name].reshape(-1).view(np.int8)):
                    wrong.append(name)

    instructions = model.infer(x, after_op)
    return BareRun(
        instructions,
        tuple(ops),
        plan.arena_bytes,
        model.machine.stack_bytes(),
        bare_sizes(elf, kernels),
        tuple(wrong),
        model,
    )
