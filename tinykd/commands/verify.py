"""`tinykd verify`: the parity chain, layer by layer."""

from __future__ import annotations

import click

from tinykd.commands.output import json_option, out_option, print_json, seed_option


@click.command("verify")
@click.argument("target")
@click.option("--samples", default=20, show_default=True, type=click.IntRange(1), help="Inputs to compare.")
@seed_option
@out_option
@json_option
def command(target: str, samples: int, seed: int, out: str | None, as_json: bool) -> None:
    """Compare every activation of TARGET (a run folder or MODEL.tflite) with TFLite Micro's, bit for bit.

    Inputs: all -128, all 127, a checkerboard, then seeded noise. Exit code 7 when a value differs; the first layer
    and element that differ are named.
    """
    from tinykd.commands.target import resolve_target
    from tinykd.errors import ParityError
    from tinykd.export import parity

    resolved = resolve_target(target, out)
    graph = resolved.graph()
    result = parity.compare(graph, resolved.model.read_bytes(), parity.test_inputs(graph, samples, seed))
    if as_json:
        print_json({"model": resolved.name, "model_sha256": resolved.sha256(), "seed": seed, **result.to_dict()})
    else:
        click.echo(
            f"{resolved.name}: {result.values_checked:,} values of {result.ops_checked} ops on {result.samples} inputs "
            f"compared with {parity.ORACLE_NAME}: {result.mismatches} differ"
        )
    if result.first_mismatch is not None:
        raise ParityError(
            f"{resolved.name} differs from {parity.ORACLE_NAME} first at {result.first_mismatch.describe()}",
            "Please report it with the model: this is a bug of tinykd's.",
        )
