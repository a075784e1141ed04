"""`tinykd lint`: what a model costs without need, with price and mend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import json_option, out_option, print_json, table_console

if TYPE_CHECKING:
    from tinykd.commands.target import Target
    from tinykd.lint import Model, Rule

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command("lint")
@click.argument("target", required=False)
@click.option("--select", metavar="RULES", help="Only these rules, separated by commas.")
@click.option("--ignore", metavar="RULES", help="All rules but these, separated by commas.")
@click.option("--sarif", "sarif_file", type=click.Path(dir_okay=False), help="Also write the findings as SARIF 2.1.0.")
@click.option("--strict", is_flag=True, help="Exit with 3 when there is an error or a warning.")
@click.option("--list-rules", is_flag=True, help="Show the rules and exit.")
@out_option
@json_option
def command(
    target: str | None,
    select: str | None,
    ignore: str | None,
    sarif_file: str | None,
    strict: bool,
    list_rules: bool,
    out: str | None,
    as_json: bool,
) -> None:
    """Look for what TARGET (a run folder or MODEL.tflite) pays for without need: memory, time, flash, accuracy.

    Each finding has its price and what to do about it. Exit code 0, also with findings; --strict changes that.
    """
    from pathlib import Path

    from tinykd.artifact import write_json
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ConfigError, DoesNotFitError
    from tinykd.lint import SEVERITIES, check, chosen
    from tinykd.lint.sarif import sarif

    rules = chosen(_names(select), _names(ignore))
    if list_rules:
        _print_rules(rules, as_json)
        return
    if target is None:
        raise ConfigError("lint: no model was named", "tinykd lint MODEL.tflite, or a run folder.")
    resolved = resolve_target(target, out)
    model = model_to_lint(resolved)
    findings = check(model, rules)
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    rows = [_row(model, finding) for finding in findings]
    if sarif_file is not None:
        path = resolved.model.resolve()
        here = Path.cwd()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        log = sarif(findings, rules, model.graph, shown, resolved.sha256(), path.stat().st_size)
        write_json(Path(sarif_file), log)
    if as_json:
        print_json(
            {
                "model": resolved.name,
                "model_sha256": resolved.sha256(),
                "findings": rows,
                **{f"{severity}s": count for severity, count in counts.items()},
                "rules": [rule.id for rule in rules],
                "sarif": sarif_file,
            }
        )
    else:
        _print(resolved.name, rows, counts)
    if strict and (counts["error"] or counts["warning"]):
        raise DoesNotFitError(
            f"lint --strict: {resolved.name} has {counts['error']} errors and {counts['warning']} warnings",
            "Mend them, or leave rules out with --ignore.",
        )


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def model_to_lint(target: Target) -> Model:
    """Read the model and hand the rules what stages can tell about it."""
    import numpy as np

    from tinykd.export import oracle
    from tinykd.export.passes.remove_channels import kept_channels
    from tinykd.export.passes.value_ranges import value_ranges
    from tinykd.formats.tflite import file as tflite_file
    from tinykd.formats.tflite import writer as tflite_writer
    from tinykd.ir import Graph, Op
    from tinykd.kernels import KERNELS, select
    from tinykd.lint import Model, Prices
    from tinykd.plan import plan_for_tflm, plan_graph, tflm_offsets

    def reach(graph: Graph) -> dict[str, tuple[int, int]]:
        return {
            name: (int(b.low.min()), int(b.high.max())) for name, b in value_ranges(graph).items() if np.size(b.low)
        }

    def kernel(graph: Graph, op: Op) -> str:
        calls = select(graph, op, op.source or op.outputs[0])
        return calls[0].function if calls else ""

    def heads(graph: Graph) -> tuple[int, int] | None:
        if not oracle.is_available():
            return None
        planned = tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph)))
        own, ours = (oracle.Oracle(model).arena().head_bytes for model in (tflite_writer.write(graph), planned))
        return own, ours

    prices = Prices(
        engine_arena=lambda graph: plan_graph(graph).arena_bytes,
        tflm_arena=lambda graph: plan_for_tflm(graph).arena_bytes,
        tflm_heads=heads,
        kernel=kernel,
        fastest=lambda kind: KERNELS[kind][0].function if kind in KERNELS else "",
        kept_channels=kept_channels,
        reach=reach,
    )
    return Model(target.graph(), tflite_file.inspect(target.model.read_bytes()), prices)


def _row(model: Model, finding: Any) -> dict[str, Any]:
    op = None if finding.op is None else model.graph.ops[finding.op]
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "op": finding.op,
        "kind": None if op is None else op.kind,
        "source": None if op is None else op.source,
        "message": finding.message,
        "mend": finding.mend,
        "price": dict(finding.price),
    }


def _print(name: str, rows: list[dict[str, Any]], counts: dict[str, int]) -> None:
    from rich import box
    from rich.table import Table

    console = table_console()
    if rows:
        table = Table("", "rule", "op", "what, and what to do", "price", box=box.SIMPLE_HEAD, header_style="bold")
        table.columns[1].no_wrap = table.columns[4].no_wrap = True
        told: set[tuple[str, str]] = set()
        for row in rows:
            colour = _COLOURS[row["severity"]]
            where = "" if row["op"] is None else f"{row['op']} {row['kind']}"
            price = "\n".join(_price(key, value) for key, value in row["price"].items() if value)
            text = f"{row['message']}."
            if (row["rule"], row["mend"]) not in told:
                told.add((row["rule"], row["mend"]))
                text += f"\n[dim]{row['mend']}[/]"
            table.add_row(f"[{colour}]{row['severity']}[/]", row["rule"], where, text, price)
        console.print(table)
    for rule, total in _sums(rows).items():
        console.print(f"  {rule} in all: {', '.join(_price(*item) for item in total.items())}", soft_wrap=True)
    found = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
    console.print(f"[bold]{name}[/]: {found}", soft_wrap=True)


def _sums(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return by rule the prices that add up, for rules that found several things; peaks of the arena do not."""
    sums: dict[str, dict[str, int]] = {}
    for rule in dict.fromkeys(row["rule"] for row in rows):
        prices = [row["price"] for row in rows if row["rule"] == rule]
        keys = [
            key for key in ("ops", "macs", "constant_bytes", "moved_bytes") if any(price.get(key) for price in prices)
        ]
        if len(prices) > 1 and keys:
            sums[rule] = {key: sum(price.get(key, 0) for price in prices) for key in keys}
    return sums


def _price(key: str, value: int) -> str:
    labels = {
        "arena_bytes": "B of arena",
        "constant_bytes": "B of flash",
        "macs": "MACs",
        "moved_bytes": "B moved",
        "ops": "op" if value == 1 else "ops",
    }
    return f"{value:,} {labels[key]}"


def _print_rules(rules: list[Rule], as_json: bool) -> None:
    from rich import box
    from rich.table import Table

    if as_json:
        print_json({"rules": [{"id": r.id, "title": r.title, "severity": r.severity, "why": r.why} for r in rules]})
        return
    table = Table("rule", "at most", "finds", box=box.SIMPLE_HEAD, header_style="bold")
    table.columns[0].no_wrap = True
    for rule in rules:
        table.add_row(rule.id, f"[{_COLOURS[rule.severity]}]{rule.severity}[/]", rule.title)
    table_console().print(table)
