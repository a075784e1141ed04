"""`tinykd verify`: the parity chain, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import goal_option, json_option, out_option, print_json, seed_option, table_console

if TYPE_CHECKING:
    from tinykd.commands.target import Target
    from tinykd.export.parity import Parity
    from tinykd.ir import Graph

_NAMES = ("tflite-micro", "litert", "tensorflow", "onnxruntime", "fake-quant", "firmware")


@click.command("verify")
@click.argument("target")
@click.option(
    "--oracle",
    "names",
    multiple=True,
    type=click.Choice(_NAMES),
    help="Whom to compare with; can be given several times [default: everything that is installed].",
)
@click.option("--board", metavar="B", help="Also build the firmware for this board and compare what it computes.")
@goal_option
@click.option("--sim", metavar="EMULATOR", default="unicorn", show_default=True, help="Emulator for --board.")
@click.option("--port", metavar="P", help="Serial port of a real board instead; 'auto' finds it by its USB ids.")
@click.option("--samples", default=20, show_default=True, type=click.IntRange(1), help="Inputs to compare.")
@click.option("--stream", is_flag=True, help="The inputs are consecutive inferences: state goes on between them.")
@seed_option
@out_option
@json_option
def command(
    target: str,
    names: tuple[str, ...],
    board: str | None,
    optimize_for: str | None,
    sim: str,
    port: str | None,
    samples: int,
    stream: bool,
    seed: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Compare every activation of TARGET (a run folder or MODEL.tflite) with everybody else's, bit for bit.

    TFLite Micro is the judge; LiteRT, TensorFlow, onnxruntime, training's fake quantisation and the firmware on an
    emulated board are asked where they are there. Inputs: all -128, all 127, a checkerboard, then seeded noise. Exit
    code 7 when a value differs: the first layer and element, both values, and the arithmetic that led to ours.
    """
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ConfigError, ParityError, ToolchainError
    from tinykd.export import parity

    if (port is not None or "firmware" in names) and board is None:
        raise ConfigError("verify: the firmware is built for a board", "Name it with --board B (tinykd list boards).")
    resolved = resolve_target(target, out)
    graph = resolved.graph()
    x = parity.sample_inputs(graph, samples, seed)
    rows: list[dict[str, Any]] = []
    results: list[Parity] = []
    for name in _chosen(names, resolved, board):
        required = name in names
        answer = _ask(name, resolved, graph, x, seed, stream, board, optimize_for, sim, port, required=required)
        if isinstance(answer, dict):
            rows.append(answer)
        else:
            results.append(answer)
            rows.append(answer.to_dict())
    if not results:
        hints = "; ".join(f"{row['oracle']}: {row.get('install') or row.get('reason')}" for row in rows)
        raise ToolchainError(f"verify: nobody is there to compare {resolved.name} with", hints)
    worst = next((result for result in results if result.mismatches), results[0])
    if as_json:
        summary = {**worst.to_dict(), "oracles": rows}
        print_json({"model": resolved.name, "model_sha256": resolved.sha256(), "seed": seed, **summary})
    else:
        _print(resolved.name, rows)
    if worst.first_mismatch is not None:
        steps = "\n".join(f"  {quantity}: {text}" for quantity, text in worst.first_mismatch.arithmetic)
        raise ParityError(
            f"{resolved.name} differs from {worst.oracle} first at {worst.first_mismatch.describe(worst.oracle)}"
            + (f"\nOur value came from:\n{steps}" if steps else ""),
            "Please report it with the model: this is a bug of tinykd's.",
        )


def _chosen(names: tuple[str, ...], target: Target, board: str | None) -> list[str]:
    """Return whom to ask, in the order of the chain."""
    from tinykd.commands.verify_links import FAKE_QUANT, FIRMWARE, has_fake_quant
    from tinykd.export.oracles import ORACLES

    wanted = set(names) or set(ORACLES) | ({FAKE_QUANT} if has_fake_quant(target) else set())
    if board is not None:
        wanted.add(FIRMWARE)
    return [name for name in _NAMES if name in wanted]


def _ask(
    name: str,
    target: Target,
    graph: Graph,
    x: dict[str, Any],
    seed: int,
    stream: bool,
    board: str | None,
    optimize_for: str | None,
    sim: str,
    port: str | None,
    *,
    required: bool,
) -> Parity | dict[str, Any]:
    """Return the comparison with one oracle, or why there is none: missing, or it refuses the model."""
    from tinykd.board import load_board
    from tinykd.commands.verify_links import FAKE_QUANT, FIRMWARE, device_judge, fake_quant_judge, has_fake_quant
    from tinykd.errors import ArtifactError, InternalError, UnsupportedModelError
    from tinykd.export import oracles, parity

    if name == FIRMWARE:
        assert board is not None
        # The firmware computes the graph between the conversions at its edges, with its pads folded.
        engine = target.engine_graph()
        inner = parity.sample_inputs(engine, len(next(iter(x.values()))), seed)
        with device_judge(target, engine, load_board(board), sim, port, optimize_for) as judge:
            return parity.compare_judge(engine, judge, inner, stream=stream)
    if name in oracles.ORACLES and not oracles.ORACLES[name].is_available and not required:
        return {"oracle": name, "status": "missing", "install": oracles.ORACLES[name].install}
    try:
        if name == FAKE_QUANT:
            if not has_fake_quant(target):
                raise ArtifactError(
                    f"verify: {target.name} was not exported from training with rounding in the loop",
                    "Leave --oracle fake-quant out.",
                )
            return parity.compare_judge(graph, fake_quant_judge(target, graph), x, stream=stream)
        made = oracles.make(name, graph, target.model.read_bytes())
        return parity.compare_judge(graph, made, x, stream=stream)
    except (UnsupportedModelError, InternalError) as error:
        # The judge's refusal is a finding about the model; anybody else's only about themselves.
        if required or name == parity.ORACLE_NAME:
            raise
        return {"oracle": name, "status": "refused", "reason": error.message}


def _print(model: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    console = table_console()
    table = Table("compared with", "ops", "values", "differ", "", box=box.SIMPLE_HEAD, header_style="bold")
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    colours = {"equal": "green", "explained": "green", "differs": "red"}
    for row in rows:
        status = row["status"]
        if status in colours:
            name = f"{row['oracle']} {row['version']}".strip()
            counts = (f"{row['ops_checked']}", f"{row['values_checked']:,}", f"{row['mismatches']:,}")
            table.add_row(name, *counts, f"[{colours[status]}]{_verdict(row)}[/]")
        else:
            table.add_row(row["oracle"], "", "", "", f"[dim]{status}: {row.get('install') or row.get('reason')}[/]")
    console.print(f"[bold]{model}[/]: the NumPy reference against")
    console.print(table)


def _verdict(row: dict[str, Any]) -> str:
    if row["status"] == "equal":
        return "equal, bit for bit" if row["exact"] else "equal, op by op"
    steps = ", ".join(f"{kind} by up to {value:g}" for kind, value in row["max_steps"].items())
    if row["status"] == "explained":
        reasons = "; ".join(dict.fromkeys(row["reasons"].values()))
        return f"{row['explained']:,} values as they are known to: {steps} ({reasons})"
    return steps
