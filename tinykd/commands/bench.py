"""`tinykd bench`: real inputs through the real firmware, on an emulated or a real board."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import board_option, goal_option, json_option, out_option, print_json, table_console

if TYPE_CHECKING:
    from rich.table import Table

_TOP_FUNCTIONS = 12
_CYCLE_TITLES = ("cycles, about", "at least", "at most")


@click.command("bench")
@click.argument("target")
@board_option
@goal_option
@click.option("--sim", metavar="EMULATOR", help="unicorn (the default), qemu or renode.")
@click.option("--port", metavar="P", help="Serial port of a real board; 'auto' finds it by its USB ids.")
@click.option("--samples", type=click.IntRange(1), help="Inputs to run [default: 1000 of a data set, 20 random ones].")
@click.option("--data", type=click.Path(dir_okay=False), help=".npy or .npz with inputs (and labels) instead.")
@click.option("--seed", default=0, show_default=True, help="Seed of random inputs and of the choice of images.")
@click.option("--profile", is_flag=True, help="Show kernels, cycles and functions, too.")
@click.option(
    "--profile-samples", default=3, show_default=True, type=click.IntRange(1), help="Inputs for which ops are measured."
)
@click.option("--engine", type=click.Choice(["tinykd", "tflm"]), default="tinykd", show_default=True)
@out_option
@json_option
def command(
    target: str,
    board: str,
    optimize_for: str | None,
    sim: str | None,
    port: str | None,
    samples: int | None,
    data: str | None,
    seed: int,
    profile: bool,
    profile_samples: int,
    engine: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Run TARGET (a run folder or MODEL.tflite) on a board and compare each output with the host's.

    An emulator gives exact instruction counts and an estimated latency, a real board a measured one. Exit code 6 when
    the device fails, 7 when an output differs.
    """
    from tinykd.board import load_board
    from tinykd.commands.bench_stage import BenchOptions, ensure_bench, require_parity
    from tinykd.commands.pipeline import goal_of
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ConfigError
    from tinykd.run.transport import EMULATORS, open_emulator

    if sim is not None and port is not None:
        raise ConfigError("--sim and --port exclude each other", "A bench runs on an emulator or on a board.")
    the_board = load_board(board)
    if sim is not None and sim not in EMULATORS:
        open_emulator(sim, None, the_board)  # type: ignore[arg-type]  # raises, before anything is built
    options = BenchOptions(
        sim=None if port is not None else sim or "unicorn",
        port=None if port == "auto" else port,
        samples=samples,
        seed=seed,
        data=data,
        profile_samples=profile_samples,
    )
    resolved = resolve_target(target, out)
    goal = goal_of(resolved, optimize_for)
    with progress() as on_start:
        result = ensure_bench(
            resolved, the_board, options, engine=engine, optimize_for=goal, again=True, on_start=on_start
        )
    if as_json:
        print_json(result)
    else:
        _print(result, profile)
    require_parity(result)


@contextmanager
def progress() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Show a progress bar on stderr when that is a terminal; gives the `on_start` of `ensure_bench`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("bench"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def on_start(total: int) -> Callable[[int], None]:
            task = bar.add_task("bench", total=total)
            return lambda done: bar.update(task, completed=done)

        yield on_start


def _print(result: dict[str, Any], profile: bool) -> None:
    console = table_console(width=190)
    measured = result["latency_kind"] == "measured"
    if profile:
        console.print(_profile_table(result, measured, console.width))
        if result["by_function"] is not None:
            console.print(_functions_table(result))
    else:
        console.print(_ops_table(result, "cycles" if measured else "instructions"))
    console.print(
        f"[bold]{result['model']}[/] on [bold]{result['board']}[/] ({result['transport']}, engine {result['engine']}, "
        f"for {result['optimize_for']}): {result['samples']} samples, {result['inputs']}, {result['seconds']:.1f} s",
        soft_wrap=True,
    )
    if result["top1"] is not None:
        console.print(f"  top-1     {result['top1']:.2%} on the device, {result['top1_host']:.2%} on the host")
    equal = "[green]all equal[/]" if result["outputs_equal"] else f"[red]{result['samples_different']} differ[/]"
    console.print(f"  outputs   {equal} to {result['host']}'s, bit for bit")
    if measured:
        console.print(f"  cycles    {result['cycles_per_inference']:,} an inference, {result['macs']:,} MACs")
    else:
        console.print(
            f"  cost      {result['instructions_per_inference']:,} instructions an inference "
            f"({result['instructions_min']:,} .. {result['instructions_max']:,}), {result['macs']:,} MACs",
            soft_wrap=True,
        )
        console.print(
            f"  cycles    {result['estimated_cycles']:,} [bold]estimated[/], {result['cycles_low']:,} .. "
            f"{result['cycles_high']:,}; flash and caches are not modelled",
            soft_wrap=True,
        )
    console.print(
        f"  latency   {result['latency_us'] / 1e3:,.2f} ms [bold]{result['latency_kind']}[/] "
        f"at {result['clock_hz'] / 1e6:g} MHz"
    )
    if "stack_bytes_measured" in result:
        console.print(f"  stack     {result['stack_bytes_measured']} B used, {result['stack_bytes_max']} B proven")


def _ops_table(result: dict[str, Any], unit: str) -> Table:
    table = _table("op", "kind", "MACs", unit, f"{unit}/MAC", "share", left=("kind",))
    total = sum(row[unit] or 0 for row in result["per_op"])
    for row in result["per_op"]:
        table.add_row(str(row["op"]), row["kind"], f"{row['macs']:,}", *_cost_cells(row, unit, total))
    return table


def _profile_table(result: dict[str, Any], measured: bool, width: int) -> Table:
    """Return the table of --profile, at most `width` characters wide: counts of an emulator with what they may take in
    cycles, or what a board measured."""
    from tinykd.report.render import short_source

    unit = "cycles" if measured else "instructions"
    total = sum(row[unit] or 0 for row in result["per_op"])
    titles = ["op", "kind", "source", "kernel", "MACs", unit, "per MAC", "share"]
    titles += [] if measured else _CYCLE_TITLES
    rows = []
    for row in result["per_op"]:
        names = (row["kind"], short_source(row["source"], 24), row["kernel"])
        cells = (str(row["op"]), *names, f"{row['macs']:,}", *_cost_cells(row, unit, total))
        rows.append(dict(zip(titles, cells if measured else (*cells, *_cycle_cells(row)), strict=True)))
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in titles}
    shown = titles.copy()
    for title in ("source", "at most", "at least"):  # a narrow terminal shows less
        if title in shown and sum(widths[name] + 3 for name in shown) > width:
            shown.remove(title)
    table = _table(*shown, left=("kind", "source", "kernel"))
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _functions_table(result: dict[str, Any]) -> Table:
    table = _table("function", "instructions", "share", *_CYCLE_TITLES, left=("function",))
    total = result["instructions_per_inference"]
    for row in result["by_function"][:_TOP_FUNCTIONS]:
        share = f"{row['instructions'] / total:.1%}"
        table.add_row(row["function"], f"{row['instructions']:,}", share, *_cycle_cells(row))
    rest = result["by_function"][_TOP_FUNCTIONS:]
    if rest:
        others = sum(row["instructions"] for row in rest)
        table.add_row(f"{len(rest)} others", f"{others:,}", f"{others / total:.1%}", "", "", "", style="dim")
    return table


def _table(*titles: str, left: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return table


def _cost_cells(row: dict[str, Any], unit: str, total: int) -> tuple[str, str, str]:
    cost = row[unit]
    each = f"{cost / row['macs']:.2f}" if cost and row["macs"] else ""
    return f"{cost or 0:,}", each, f"{cost / total:.1%}" if cost and total else ""


def _cycle_cells(row: dict[str, Any]) -> tuple[str, ...]:
    keys = ("estimated_cycles", "cycles_low", "cycles_high")
    return tuple("" if row[key] is None else f"{row[key]:,}" for key in keys)
