"""`tinykd optimize`: a smaller `.tflite` that computes the same, bit for bit, and the certificate that says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import json_option, print_json, seed_option

if TYPE_CHECKING:
    from tinykd.ir import Graph


@click.command("optimize")
@click.argument("target")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The smaller .tflite to write.")
@click.option("--samples", default=100, show_default=True, type=click.IntRange(1), help="Inputs to compare.")
@click.option("--int8-edges", is_flag=True, help="Leave QUANTIZE and DEQUANTIZE at the edges to the host.")
@seed_option
@json_option
def command(target: str, output: str, samples: int, int8_edges: bool, seed: int, as_json: bool) -> None:
    """Write TARGET (a run folder or MODEL.tflite) as a smaller .tflite that computes the same, bit for bit.

    Both files run in TFLite Micro (in the NumPy reference where that is not installed) on extremes and seeded noise.
    Where a single value differs nothing is written, and the exit code is 7. OUT.json beside the file is the
    certificate. A file that would not be smaller is copied as it is.
    """
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ConfigError

    resolved = resolve_target(target)
    path = Path(output)
    if path.suffix != ".tflite":
        raise ConfigError(f"-o {path}: the file is a .tflite, and its certificate the .json beside it")
    if path.exists() and path.samefile(resolved.model):
        raise ConfigError(
            f"-o {path} is the model itself", "Name another file; the original is the proof's other half."
        )
    model, certificate = make_smaller(resolved.model.read_bytes(), resolved.name, samples, seed, int8_edges)
    _write(path, model, certificate)
    if as_json:
        print_json({"output": str(path), **certificate})
    else:
        _print(path, certificate)


def make_smaller(model: bytes, name: str, samples: int, seed: int, int8_edges: bool) -> tuple[bytes, dict[str, Any]]:
    """Return the smaller `.tflite` and its certificate.

    Raises:
        ParityError: an output value differs.
    """
    import hashlib

    import tinykd
    from tinykd.errors import ParityError
    from tinykd.export.optimize import optimize
    from tinykd.export.passes import float_edges_to_host
    from tinykd.export.proof import prove, proving_inputs
    from tinykd.formats import tflite
    from tinykd.formats.tflite import writer as tflite_writer
    from tinykd.ir import verify
    from tinykd.plan import plan_for_tflm, tflm_offsets

    original = tflite.read_bytes(model, name)
    start = verify(float_edges_to_host(original)) if int8_edges else original
    baseline = model if start is original else tflite_writer.write(start)
    graph, steps = optimize(start)
    smaller = tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph)))
    proof = prove(baseline, smaller, proving_inputs(start, samples, seed))
    if proof.mismatches:
        raise ParityError(
            f"{proof.mismatches} of {proof.values} values of {name} differ in {proof.oracle} after the passes; "
            f"{proof.first_mismatch}",
            "Nothing was written. Please report it with the model: this is a bug of tinykd's.",
        )
    kept = len(smaller) >= len(model) and start is original
    if kept:
        graph, steps, smaller = original, [], model
    certificate = {
        "tinykd": tinykd.__version__,
        "model": name,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "output_sha256": hashlib.sha256(smaller).hexdigest(),
        "unchanged": kept,
        "int8_edges": int8_edges,
        "before": _cost(original, model),
        "after": _cost(graph, smaller),
        "passes": [step.to_dict() for step in steps],
        "oracle": proof.oracle,
        "samples": proof.samples,
        "seed": seed,
        "values_compared": proof.values,
        "mismatches": proof.mismatches,
    }
    return smaller, certificate


def _cost(graph: Graph, model: bytes) -> dict[str, int | None]:
    """Return what a model costs; the arena as planned by us, and all of it as TFLite Micro takes it on this host."""
    from tinykd.errors import UnsupportedModelError
    from tinykd.export import oracle
    from tinykd.export.optimize import size_of
    from tinykd.plan import plan_for_tflm

    size = size_of(graph)
    measured = None
    if oracle.is_available():
        try:
            measured = oracle.Oracle(model).arena()
        except UnsupportedModelError:
            measured = None
    return {
        "file_bytes": len(model),
        "ops": size.ops,
        "macs": size.macs,
        "constant_bytes": size.constant_bytes,
        "arena_bytes": plan_for_tflm(graph).arena_bytes,
        "tflm_head_bytes": measured.head_bytes if measured else None,
        "tflm_arena_bytes": measured.total_bytes if measured else None,
    }


def _write(path: Path, model: bytes, certificate: dict[str, Any]) -> None:
    from tinykd.artifact import write_bytes, write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, model)
    write_json(path.with_suffix(".json"), certificate)


def _print(path: Path, certificate: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    done = [step for step in certificate["passes"] if step["ops"] or step["macs"] or step["constant_bytes"]]
    if done:
        table = Table("pass", "ops", "MACs", "constants B", box=box.SIMPLE_HEAD, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for step in done:
            table.add_row(step["pass"], *(f"{-step[key]:+,}" for key in ("ops", "macs", "constant_bytes")))
        console.print(table)
    before, after = certificate["before"], certificate["after"]
    state = "not smaller: copied as it is" if certificate["unchanged"] else "written"
    console.print(f"[bold]{path}[/] ({state})", soft_wrap=True)
    for label, key, unit in (
        ("MACs", "macs", ""),
        ("file", "file_bytes", " B"),
        ("arena", "arena_bytes", " B"),
        ("ops", "ops", ""),
    ):
        old, new = before[key], after[key]
        share = f"{(new - old) / old:+.1%}" if old else ""
        console.print(f"  {label:<6} {old:>11,}{unit} -> {new:>11,}{unit}   {share}")
    console.print(
        f"  proof  {certificate['values_compared']:,} values on {certificate['samples']} inputs compared in "
        f"{certificate['oracle']}: {certificate['mismatches']} differ"
    )
