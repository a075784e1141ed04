"""`tinykd export`: the trained student as float ONNX, QDQ ONNX and a bit-exact int8 `.tflite`."""

from __future__ import annotations

from pathlib import Path

import click

from tinykd.commands.output import json_option, print_json


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--board", metavar="B", help="Also plan the model for this board; exit code 3 when it does not fit.")
@click.option(
    "--qat/--ptq",
    default=None,
    help="Weights and scales of quantisation-aware training (default where the run has it), or calibration.",
)
@click.option(
    "--calibration",
    type=click.Choice(["minmax", "percentile"]),
    help="How activation ranges are found without quantisation-aware training [default: minmax].",
)
@click.option("--again", is_flag=True, help="Export anew even when nothing has changed.")
@json_option
def command(
    run: Path, board: str | None, qat: bool | None, calibration: str | None, again: bool, as_json: bool
) -> None:
    """Export the student of the run folder RUN.

    Writes RUN/export/model.tflite (int8 in, int8 out, with its memory plan for stock TFLite Micro), model.float.onnx
    and model.qdq.onnx, and measures float and int8 accuracy on the test images. Early exits that training made are
    exported in the same way, as exits/exit1.tflite and so on.
    """
    from tinykd.commands.export_stage import ensure_export
    from tinykd.commands.target import RUNS

    the_board = None
    if board is not None:
        from tinykd.board import load_board

        the_board = load_board(board)
    folder = run if run.is_dir() or not (RUNS / run).is_dir() else RUNS / run
    manifest = ensure_export(folder, method=calibration, qat=qat, again=again)
    results = manifest.results
    exported = folder / "export"
    result = {
        **results,
        "run": str(folder),
        "model_tflite": str(exported / results["model_tflite"]),
        "model_onnx": str(exported / results["model_onnx"]),
    }
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{result['model_tflite']}: {results['tflite_bytes']:,} B, {results['macs']:,} MACs\n"
            f"top-1 on {results['samples']:,} test images: float {results['top1_float']:.2%}, "
            f"int8 {results['top1_int8']:.2%} ({results['agree']:.2%} of the answers agree)"
        )
        for part in results["exits"]:
            click.echo(
                f"{exported / part['model_tflite']}: {part['tflite_bytes']:,} B, {part['macs']:,} MACs, "
                f"float {part['top1_float']:.2%}, int8 {part['top1_int8']:.2%}"
            )
        if results["parity_values_checked"]:
            click.echo(f"{results['parity_values_checked']:,} values equal TFLite Micro's, bit for bit")
    if the_board is not None:
        from tinykd.commands.pipeline import ensure_plan, require_fit
        from tinykd.commands.target import resolve_target

        require_fit(ensure_plan(resolve_target(folder), the_board)[1])
