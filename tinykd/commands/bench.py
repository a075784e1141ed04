"""`tinykd bench`: real inputs through the real firmware, on an emulated or a real board."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from tinykd.commands.output import board_option, json_option, out_option, print_json


@click.command("bench")
@click.argument("target")
@board_option
@click.option("--sim", metavar="EMULATOR", help="unicorn (the default), qemu or renode.")
@click.option("--port", metavar="P", help="Serial port of a real board; 'auto' finds it by its USB ids.")
@click.option("--samples", type=click.IntRange(1), help="Inputs to run [default: 1000 of a data set, 20 random ones].")
@click.option("--data", type=click.Path(dir_okay=False), help=".npy or .npz with inputs (and labels) instead.")
@click.option("--seed", default=0, show_default=True, help="Seed of random inputs and of the choice of images.")
@click.option(
    "--profile-samples", default=3, show_default=True, type=click.IntRange(1), help="Inputs for which ops are measured."
)
@click.option("--engine", type=click.Choice(["tinykd", "tflm"]), default="tinykd", show_default=True)
@out_option
@json_option
def command(
    target: str,
    board: str,
    sim: str | None,
    port: str | None,
    samples: int | None,
    data: str | None,
    seed: int,
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
    with progress() as on_start:
        result = ensure_bench(
            resolve_target(target, out), the_board, options, engine=engine, again=True, on_start=on_start
        )
    if as_json:
        print_json(result)
    else:
        _print(result)
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


def _print(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    measured = result["latency_kind"] == "measured"
    unit = "cycles" if measured else "instructions"
    table = Table("op", "kind", "MACs", unit, f"{unit}/MAC", "share", box=box.SIMPLE_HEAD, header_style="bold")
    for column in (0, 2, 3, 4, 5):
        table.columns[column].justify = "right"
    total = sum(row[unit] or 0 for row in result["per_op"])
    for row in result["per_op"]:
        cost = row[unit]
        each = f"{cost / row['macs']:.2f}" if cost and row["macs"] else ""
        share = f"{cost / total:.1%}" if cost and total else ""
        table.add_row(str(row["op"]), row["kind"], f"{row['macs']:,}", f"{cost or 0:,}", each, share)
    console.print(table)
    console.print(
        f"[bold]{result['model']}[/] on [bold]{result['board']}[/] ({result['transport']}, engine {result['engine']}): "
        f"{result['samples']} samples, {result['inputs']}, {result['seconds']:.1f} s",
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
            f"({result['instructions_min']:,} .. {result['instructions_max']:,}), {result['macs']:,} MACs"
        )
    console.print(
        f"  latency   {result['latency_us'] / 1e3:,.2f} ms [bold]{result['latency_kind']}[/] "
        f"at {result['clock_hz'] / 1e6:g} MHz"
    )
    if "stack_bytes_measured" in result:
        console.print(f"  stack     {result['stack_bytes_measured']} B used, {result['stack_bytes_max']} B proven")
