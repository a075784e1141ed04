"""`tinykd show`: the graph as a table, one op in full, and a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import goal_option, json_option, out_option, print_json, table_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinykd.report.graph_table import OpRow

_BESIDE_THE_RUN = ""
_LEAST_WANTED = ("from", "kernel", "scale, zero", "input", "details", "constants B")
_NUMBERS = ("op", "MACs", "constants B", "arena B")


@click.command("show")
@click.argument("target")
@click.option("--op", "number", type=click.IntRange(0), help="Show everything about one op.")
@click.option("--board", metavar="B", help="Also show which kernel runs each op on this board.")
@goal_option
@click.option(
    "--svg",
    metavar="[FILE]",
    is_flag=False,
    flag_value=_BESIDE_THE_RUN,
    default=None,
    help="Also draw the graph; without FILE as graph.svg in the run's folder. Give TARGET first.",
)
@out_option
@json_option
def command(
    target: str,
    number: int | None,
    board: str | None,
    optimize_for: str | None,
    svg: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Show TARGET (a run folder or MODEL.tflite) op by op: shapes, scales, MACs, bytes.

    Bytes in use are those of our engine's arena while the op runs; with --board they include the kernels' scratch
    memory.
    """
    from tinykd.artifact import write_bytes
    from tinykd.board import load_board
    from tinykd.commands.pipeline import goal_of
    from tinykd.commands.target import resolve_target
    from tinykd.kernels import PORTABLE, engine_for, planned_calls
    from tinykd.plan import ENGINE_ALIGNMENT_BYTES, find_buffers, live_bytes, plan_for_tflm, plan_graph
    from tinykd.report import graph_details, graph_svg, graph_table

    resolved = resolve_target(target, out)
    graph = resolved.graph()
    engine = resolved.engine_graph()
    isa = PORTABLE if board is None else engine_for(load_board(board).core, goal_of(resolved, optimize_for))
    plan = plan_graph(engine, engine=isa)
    # Ops that the engine leaves out (a pad that became part of a convolution) have no bytes of their own.
    scratch = {part.op: part.num_bytes for part in plan.scratch}
    buffers = find_buffers(engine, ENGINE_ALIGNMENT_BYTES, alias=True, scratch=scratch)
    live = live_bytes(buffers, len(engine.ops), ENGINE_ALIGNMENT_BYTES)
    by_output = {op.outputs[0]: count for op, count in zip(engine.ops, live, strict=True)}
    kernels = {}
    if board is not None:
        every = zip(engine.ops, planned_calls(engine, plan, isa), strict=True)
        kernels = {op.outputs[0]: calls[0].function for op, calls in every if calls}
    outputs = [op.outputs[0] for op in graph.ops]
    table = graph_table.rows(graph, list(map(by_output.get, outputs)), list(map(kernels.get, outputs)))
    one = None if number is None else graph_details.details(graph, table, number)
    sums = {
        **graph_table.totals(graph, table),
        "file_bytes": resolved.model.stat().st_size,
        "arena_bytes": plan.arena_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "peak_op": graph.producers()[engine.ops[plan.peak_op].outputs[0]],
        "tflm_head_bytes": plan_for_tflm(graph).arena_bytes,
    }
    drawing = None
    if svg is not None:
        drawing = resolved.folder / "graph.svg" if svg == _BESIDE_THE_RUN else Path(svg)
        write_bytes(drawing, graph_svg.graph_svg(graph, table, resolved.name).encode())
    if as_json:
        result = {
            "model": resolved.name,
            "model_sha256": resolved.sha256(),
            "board": board,
            "optimize_for": None if board is None else isa.optimize_for,
            **sums,
            "ops": [r.to_dict() for r in table],
        }
        print_json({**result, "op": one, "svg": None if drawing is None else str(drawing)})
        return
    if one is not None:
        _print_op(one)
    else:
        _print(resolved.name, table, sums)
    if drawing is not None:
        click.echo(f"drawn in {drawing}")


def _print(name: str, table: Sequence[OpRow], sums: dict[str, int]) -> None:
    from rich import box
    from rich.table import Table

    console = table_console(width=250)
    columns = _columns(table)
    # A narrow terminal shows less; a file or a pipe gets everything.
    for title in _LEAST_WANTED:
        if not console.is_terminal or sum(len(max(cells, key=len)) + 3 for cells in columns.values()) <= console.width:
            break
        columns.pop(title, None)
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in columns:
        shown.add_column(title, justify="right" if title in _NUMBERS else "left", no_wrap=True)
    for index, cells in enumerate(zip(*columns.values(), strict=True)):
        shown.add_row(*cells, style="bold" if index == sums["peak_op"] else "")
    console.print(shown)
    console.print(
        f"[bold]{name}[/]: {sums['num_ops']} ops, {sums['macs']:,} MACs, {sums['parameters']:,} parameters in "
        f"{sums['weight_bytes']:,} B, file {sums['file_bytes']:,} B",
        soft_wrap=True,
    )
    console.print(
        f"arena {sums['arena_bytes']:,} B (bound {sums['lower_bound_bytes']:,} B), fullest at op {sums['peak_op']}; "
        f"TFLite Micro can do with {sums['tflm_head_bytes']:,} B for activations",
        soft_wrap=True,
    )


def _columns(table: Sequence[OpRow]) -> dict[str, list[str]]:
    """Return the cells of the table by column."""
    from tinykd.report.render import short_source

    kernels = {"kernel": [row.kernel or "" for row in table]} if any(row.kernel for row in table) else {}
    return {
        "op": [str(row.op) for row in table],
        "kind": [row.kind for row in table],
        **kernels,
        "from": [short_source(row.source) for row in table],
        "input": [", ".join(value.shape_text() for value in row.inputs) for row in table],
        "output": [", ".join(value.shape_text() for value in row.outputs) for row in table],
        "scale, zero": [", ".join(value.quant_text() for value in row.outputs) for row in table],
        "details": [" ".join(filter(None, (row.detail, row.activation))) for row in table],
        "MACs": [f"{row.macs:,}" if row.macs else "" for row in table],
        "constants B": [f"{row.weight_bytes:,}" if row.weight_bytes else "" for row in table],
        "arena B": ["" if row.live_bytes is None else f"{row.live_bytes:,}" for row in table],
    }


def _print_op(one: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    console = table_console()
    console.print(f"[bold]op {one['op']}: {one['kind']}[/] from {one['source']}", soft_wrap=True)
    for label in ("inputs", "outputs"):
        for value in one[label]:
            text = f"{value['dtype']} {list(value['shape'])}"
            if value["scale"] is not None:
                text += f", scale {value['scale']:.9g}, zero point {value['zero_point']}"
            console.print(f"  {label[:-1]:<7} {value['tensor']}: {text}", soft_wrap=True)
    attrs = ", ".join(f"{key} {value}" for key, value in one["attrs"].items())
    if attrs:
        console.print(f"  {attrs}", soft_wrap=True)
    console.print(
        f"  {one['macs']:,} MACs, {one['weight_bytes']:,} B of constants, {one['live_bytes']:,} B of the arena"
    )
    for constant in one["constants"]:
        console.print(
            f"\n[bold]{constant['tensor']}[/]: {constant['dtype']} {constant['shape']}, {constant['num_bytes']:,} B, "
            f"values {constant['min']} to {constant['max']}"
            + (
                f", {len(constant['scales'])} scales along axis {constant['axis']}"
                if constant["axis"] is not None
                else ""
            ),
            soft_wrap=True,
        )
        most = max(constant["histogram"], default=0)
        for number, count in enumerate(constant["histogram"]):
            low = -128 + number * 256 // len(constant["histogram"])
            bar = "█" * round(count / most * 40) if most else ""
            console.print(f"  {low:>5} {bar:<40} {count:,}")
    if one["channels"]:
        names = ("channel", "weight_scale", "largest_weight", "bias", "multiplier", "shift")
        table = Table(*[name.replace("_", " ") for name in names], box=box.SIMPLE_HEAD, header_style="bold")
        for column in table.columns:
            column.justify = "right"
        for row in one["channels"]:
            scale = f"{row['weight_scale']:.6g}"
            table.add_row(str(row["channel"]), scale, *(f"{row[name]:,}" for name in names[2:]))
        console.print(table)
