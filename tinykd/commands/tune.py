"""`tinykd tune`: measures every kernel that could run an op, and keeps what the estimates got wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinykd.commands.output import json_option, print_json, table_console

if TYPE_CHECKING:
    from tinykd.ir import Graph, Op
    from tinykd.kernels import Kernel

OFF = 0.10
"""Estimates that are further from the measurement than this are marked."""


@dataclass(frozen=True)
class Measured:
    """One kernel on all ops of one signature in a model.

    Attributes:
        signature: of the ops; `count` of them are in the model.
        instructions: what they retired together.
        constant_bytes: what the arrays of their calls take together.
        estimated_instructions, estimated_bytes: the same as the kernel's `cost` says; None without one.
        loaded_words: what wide loads bring beyond one cycle, of the kernel's `cost`.
    """

    signature: str
    kind: str
    count: int
    function: str
    variant: str
    instructions: int
    constant_bytes: int
    estimated_instructions: float | None
    estimated_bytes: int | None
    loaded_words: float = 0

    @property
    def is_off(self) -> bool:
        """Whether the estimate of instructions is more than `OFF` away from the truth, or that of bytes not exact."""
        if self.estimated_instructions is None:
            return False
        far = abs(self.estimated_instructions - self.instructions) > OFF * self.instructions
        return far or self.estimated_bytes != self.constant_bytes


@click.command("tune")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--board", metavar="B", help="Board name (tinykd list boards) or a .toml file: measure for its core.")
@click.option("--core", metavar="C", help="Instead of a board: cortex-m4 or cortex-m7.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where choices are kept [default: TINYKD_TUNED, or tuned.toml in tinykd's cache folder].",
)
@json_option
def command(targets: tuple[str, ...], board: str | None, core: str | None, out: Path | None, as_json: bool) -> None:
    """Measure in the emulator every kernel that could run each op of TARGET (run folders or .tflite files).

    The choices that the estimates got wrong are kept and used by plan and build from then on. They change what an
    inference takes, never what it computes. Exit code 7 when a kernel does.
    """
    import tempfile

    from tinykd.board import load_board
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ConfigError
    from tinykd.kernels import engine_for
    from tinykd.kernels.tuning import user_file

    if (board is None) == (core is None):
        raise ConfigError("tune: name a board or a core", "tinykd tune MODEL.tflite --core cortex-m7")
    core = core if core is not None else load_board(board or "").core
    if engine_for(core).isa == "portable":
        raise ConfigError(f"tune: every op has one kernel on '{core}'", "There are choices on cortex-m4 and cortex-m7.")
    path = out or user_file()
    if path is None:
        raise ConfigError("tune: TINYKD_TUNED is empty, so there is no file to keep choices in", "Name one with --out.")
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            rows += measure_variants(resolve_target(target).engine_graph(), core, Path(folder))
    kept = keep_choices(rows, path)
    if as_json:
        print_json({"core": core, "file": str(path), "choices": kept, "measured": [asdict(row) for row in rows]})
    else:
        print_rows(rows, kept, path)


def measure_variants(graph: Graph, core: str, folder: Path, kernels: Path | None = None) -> list[Measured]:
    """Return what each kernel of the core's instruction set takes for the ops of a model.

    The whole model is built once for each turn: in turn n every op takes its kernel number n. Its neighbours stay what
    they are, so it gets real activations, and outputs of all turns must be the same.

    Args:
        graph: what the firmware computes.
        folder: where to build.
        kernels: see `build_bare`.

    Raises:
        ParityError: a kernel computes something else than the reference.
    """
    import numpy as np

    from tinykd.commands.bare_stage import run_bare
    from tinykd.errors import ParityError
    from tinykd.export import reference
    from tinykd.kernels import Engine, engine_for

    x = np.random.default_rng(0).integers(-128, 128, graph.tensor(graph.inputs[0]).shape, dtype=np.int8)
    expected = dict(reference.run(graph, x, keep_all=True))
    variants = variants_of(graph)
    counts: dict[tuple[str, str], dict[int, int]] = {}
    for turn in range(max((len(found) for found in variants.values()), default=0)):
        choices = {key: found[turn % len(found)].variant for key, found in variants.items()}
        engine = Engine(engine_for(core).isa, "balanced", choices)
        run = run_bare(graph, core, engine, folder, x, expected, kernels)
        if run.wrong:
            raise ParityError(
                f"tune: with other kernels '{run.wrong[0]}' is not what the reference computes: {choices}"
            )
        for item in run.ops:
            key = _signature(graph, graph.ops[item.graph_op])
            if key in choices:
                counts.setdefault((key, choices[key]), {})[item.graph_op] = item.instructions
    return [
        _measured(graph, key, kernel, counts[key, kernel.variant])
        for key, found in variants.items()
        for kernel in found
        if (key, kernel.variant) in counts
    ]


def variants_of(graph: Graph) -> dict[str, list[Kernel]]:
    """Return the kernels for Armv7E-M that can run all ops of a signature, by signature; most have one or two.

    Raises:
        InternalError: two kernels for the same op have the same name of variant, so no choice could tell them apart.
    """
    from tinykd.errors import InternalError
    from tinykd.kernels import ARMV7EM

    found: dict[str, list[Kernel]] = {}
    for op in graph.ops:
        able = [kernel for kernel in ARMV7EM.get(op.kind, ()) if kernel.applies(graph, op)]
        key = _signature(graph, op)
        found[key] = [kernel for kernel in found.get(key, able) if kernel in able]
        if len({kernel.variant for kernel in able}) < len(able):
            names = ", ".join(f"{kernel.function} '{kernel.variant}'" for kernel in able)
            raise InternalError(f"tune: kernels for {op.kind} share the name of a variant: {names}")
    return {key: kernels for key, kernels in found.items() if kernels}


def winners(rows: Iterable[Measured], goal: str) -> dict[str, tuple[Measured, Measured]]:
    """Return by signature (what takes least, what the estimates would take) for a goal; signatures with a choice only.

    What is compared is `candidates`' own price, cycles (`Cost.cycles`, with the instructions as measured) plus the
    goal's price of the constants' bytes, summed over all models that have the signature.
    """
    from tinykd.kernels import CYCLES_PER_BYTE

    price = CYCLES_PER_BYTE[goal]
    groups: dict[str, dict[str, list[Measured]]] = {}
    for row in rows:
        groups.setdefault(row.signature, {}).setdefault(row.variant, []).append(row)

    def estimated(same: list[Measured]) -> float:
        # Kernels between which there is a choice have an estimate: `candidates` sorts by it.
        return sum(
            (row.estimated_instructions or 0) + row.loaded_words + price * (row.estimated_bytes or 0) for row in same
        )

    def measured(same: list[Measured]) -> float:
        return sum(row.instructions + row.loaded_words + price * row.constant_bytes for row in same)

    found = {}
    for key, group in groups.items():
        if len(group) > 1:
            ranked = sorted(group.values(), key=estimated)
            found[key] = (min(ranked, key=measured)[0], ranked[0][0])
    return found


def keep_choices(rows: list[Measured], path: Path) -> dict[str, dict[str, str]]:
    """Write to `path` where the estimates were wrong, and return that by goal; other models' choices stay."""
    from tinykd.kernels import CYCLES_PER_BYTE
    from tinykd.kernels.tuning import read_choices, write_choices

    known = read_choices(path)
    kept: dict[str, dict[str, str]] = {}
    for goal in CYCLES_PER_BYTE:
        found = winners(rows, goal)
        kept[goal] = {key: best.variant for key, (best, guess) in found.items() if best.variant != guess.variant}
        measured = {row.signature for row in rows}
        others = {key: variant for key, variant in known.get(goal, {}).items() if key not in measured}
        known[goal] = {**others, **kept[goal]}
    write_choices(path, {goal: table for goal, table in known.items() if table})
    return kept


def print_rows(rows: list[Measured], kept: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Print the measurements beside the estimates, and what came of them."""
    from rich import box
    from rich.table import Table

    best = {goal: winners(rows, goal) for goal in kept}
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("op", "kernel", "variant"):
        table.add_column(title, no_wrap=True)
    for title in ("ops", "instructions", "estimate", "off", "constants B", "estimate B"):
        table.add_column(title, justify="right")
    table.add_column("taken for")
    for row in rows:
        key = row.signature
        taken = [goal for goal, found in best.items() if key in found and found[key][0].variant == row.variant]
        guess = row.estimated_instructions
        table.add_row(
            row.signature,
            row.function,
            row.variant,
            str(row.count),
            f"{row.instructions:,}",
            "" if guess is None else f"{guess:,.0f}",
            f"{guess / row.instructions - 1:+.0%}" if guess is not None and row.is_off else "",
            f"{row.constant_bytes:,}",
            "" if row.estimated_bytes in (None, row.constant_bytes) else f"{row.estimated_bytes:,}",
            ", ".join(taken),
        )
    console = table_console(220)
    console.print(table)
    count = sum(len(table) for table in kept.values())
    console.print(f"{count} choices that the estimates got wrong are kept in {path}", soft_wrap=True)


def _signature(graph: Graph, op: Op) -> str:
    from tinykd.kernels import signature

    return signature(graph, op)


def _measured(graph: Graph, key: str, kernel: Kernel, counts: Mapping[int, int]) -> Measured:
    ops = [graph.ops[index] for index in counts]
    costs = [kernel.cost(graph, op) for op in ops] if kernel.cost is not None else None
    return Measured(
        signature=key,
        kind=ops[0].kind,
        count=len(ops),
        function=kernel.function,
        variant=kernel.variant,
        instructions=sum(counts.values()),
        constant_bytes=sum(_array_bytes(graph, op, kernel) for op in ops),
        estimated_instructions=None if costs is None else sum(cost.instructions for cost in costs),
        estimated_bytes=None if costs is None else sum(cost.constant_bytes for cost in costs),
        loaded_words=0 if costs is None else sum(cost.loaded_words for cost in costs),
    )


def _array_bytes(graph: Graph, op: Op, kernel: Kernel) -> int:
    return sum(array.nbytes for call in kernel.calls(graph, op, op.kind) for array in call.arrays.values())
