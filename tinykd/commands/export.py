"""`tinykd export`: a trained student, or anybody's ONNX model, as a bit-exact int8 `.tflite` and QDQ ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import json_option, print_json

if TYPE_CHECKING:
    from tinykd.artifact import Manifest
    from tinykd.commands.export_stage import PtqWishes
    from tinykd.export.ptq import Tick

# As in tinykd.export.ranges, which needs NumPy; a test holds them together.
METHODS = ("minmax", "percentile", "mse", "entropy")


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a number, or several with commas between them") from None


@click.command("export")
@click.argument("run", metavar="RUN|MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--board", metavar="B", help="Also plan the model for this board; exit code 3 when it does not fit.")
@click.option(
    "--qat/--ptq",
    default=None,
    help="Weights and scales of quantisation-aware training (default where the run has it), or calibration.",
)
@click.option(
    "--calibration",
    type=click.Choice(METHODS),
    help="How the ranges of activations are found without quantisation-aware training [default: mse].",
)
@click.option(
    "--bias-correction/--no-bias-correction",
    default=None,
    help="Take mean errors out of the biases, where that helps [default: on].",
)
@click.option("--equalize/--no-equalize", default=None, help="Even out channels between layers first [default: off].")
@click.option("--search", is_flag=True, help="Find the best range of each activation, and equalise where that helps.")
@click.option("--sensitivity", is_flag=True, help="Tell what each layer's rounding costs, and which ones hurt.")
@click.option(
    "--calibration-data",
    type=click.Path(path_type=Path, exists=True),
    metavar="FOLDER|FILE",
    help="MODEL.onnx only: images, or a .npy or .npz file with inputs; not the test set.",
)
@click.option("--mean", callback=_numbers, metavar="M[,M,M]", help="Pixels only: the model takes (p / 255 - M) / S.")
@click.option("--std", callback=_numbers, metavar="S[,S,S]", help="One number, or one for each channel.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="MODEL.onnx only: RUN [default: runs/MODEL]."
)
@click.option("--again", is_flag=True, help="Export anew even when nothing has changed.")
@json_option
def command(
    run: Path,
    board: str | None,
    qat: bool | None,
    calibration: str | None,
    bias_correction: bool | None,
    equalize: bool | None,
    search: bool,
    sensitivity: bool,
    calibration_data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    out: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Export the student of the run folder RUN, or a float or QDQ MODEL.onnx.

    Writes RUN/export/model.tflite (int8 in, int8 out, with its memory plan for stock TFLite Micro), model.float.onnx
    and model.qdq.onnx, and measures float and int8 accuracy on the test images. Early exits that training made are
    exported in the same way, as exits/exit1.tflite and so on. A MODEL.onnx gets a RUN of the same shape, and is
    compared with itself in float on the calibration data.
    """
    from tinykd.commands.export_files import SENSITIVITY, print_sensitivity
    from tinykd.commands.export_stage import PtqWishes
    from tinykd.errors import ConfigError

    the_board = None
    if board is not None:
        from tinykd.board import load_board

        the_board = load_board(board)
    if search and calibration is not None:
        raise ConfigError(
            f"--search picks the method of each activation, and --calibration {calibration} picks one for all",
            "Leave one of them out.",
        )
    wishes = PtqWishes(calibration, bias_correction, equalize, search or None)
    with _progress() as tick:
        if run.suffix.lower() == ".onnx":
            if qat is not None:
                raise ConfigError("--qat and --ptq are for runs; an ONNX model brings its scales, or has none")
            folder, manifest = _export_model(run, out, wishes, (calibration_data, mean, std), sensitivity, again, tick)
        else:
            given = {"--calibration-data": calibration_data, "--mean": mean, "--std": std, "--out": out}
            if wrong := [name for name, value in given.items() if value is not None]:
                raise ConfigError(f"{', '.join(wrong)}: only for a MODEL.onnx; '{run}' is not one")
            folder, manifest = _export_run(run, wishes, qat, sensitivity, again, tick)
    results = manifest.results
    exported = folder / "export"
    result = {
        **results,
        "run": str(folder),
        "model_tflite": str(exported / results["model_tflite"]),
        "model_onnx": str(exported / results["model_onnx"]),
        "sensitivity": str(exported / SENSITIVITY) if SENSITIVITY in manifest.outputs else None,
    }
    if as_json:
        print_json(result)
    else:
        if sensitivity:
            print_sensitivity(exported / SENSITIVITY)
        _print(result, exported)
    if the_board is not None:
        from tinykd.commands.pipeline import ensure_plan, require_fit
        from tinykd.commands.target import resolve_target

        require_fit(ensure_plan(resolve_target(folder), the_board)[1])


def _export_run(
    run: Path, wishes: PtqWishes, qat: bool | None, sensitivity: bool, again: bool, tick: Tick
) -> tuple[Path, Manifest]:
    from tinykd.commands.export_stage import ensure_export
    from tinykd.commands.target import RUNS

    folder = run if run.is_dir() or not (RUNS / run).is_dir() else RUNS / run
    return folder, ensure_export(folder, wishes, qat=qat, sensitivity=sensitivity, again=again, tick=tick)


def _export_model(
    model: Path,
    out: Path | None,
    wishes: PtqWishes,
    data: tuple[Path | None, tuple[float, ...] | None, tuple[float, ...] | None],
    sensitivity: bool,
    again: bool,
    tick: Tick,
) -> tuple[Path, Manifest]:
    from dataclasses import asdict

    from tinykd.commands.export_model import Calibration, ensure_model_export
    from tinykd.commands.target import default_run
    from tinykd.errors import ConfigError
    from tinykd.export.ptq import PtqOptions

    if not model.is_file():
        raise ConfigError(f"there is no file '{model}'")
    path, mean, std = data
    if path is None and (mean is not None or std is not None):
        raise ConfigError("--mean and --std say how --calibration-data is fed, which is not given")
    calibration = None if path is None else Calibration(path, mean, std)
    options = PtqOptions(**{name: value for name, value in asdict(wishes).items() if value is not None})
    folder = out or default_run(model)
    return folder, ensure_model_export(
        model, folder, calibration, options, sensitivity=sensitivity, again=again, tick=tick
    )


def _print(result: dict[str, Any], exported: Path) -> None:
    """Print what an export came to."""
    lines = [f"{result['model_tflite']}: {result['tflite_bytes']:,} B, {result['macs']:,} MACs"]
    if result["top1_float"] is not None:
        lines.append(
            f"top-1 on {result['samples']:,} test images: float {result['top1_float']:.2%}, "
            f"int8 {result['top1_int8']:.2%} ({result['agree']:.2%} of the answers agree, {result['sqnr_db']:.1f} dB)"
        )
    elif result["samples"]:
        agree = "" if result["agree"] is None else f"{result['agree']:.2%} of the answers agree, "
        lines.append(
            f"int8 against float on {result['samples']:,} calibration inputs: {agree}{result['sqnr_db']:.1f} dB"
        )
        lines.append(f"input: {result['input']}")
    if result["calibration"]:
        corrected = f", {result['biases_corrected']} biases corrected" if result["bias_correction"] else ""
        evened = f", {result['equalized']} pairs of layers equalised" if result["equalized"] else ""
        lines.append(f"ranges: {result['calibration']}{corrected}{evened}")
    lines += [
        f"{exported / part['model_tflite']}: {part['tflite_bytes']:,} B, {part['macs']:,} MACs, "
        f"float {part['top1_float']:.2%}, int8 {part['top1_int8']:.2%}"
        for part in result["exits"]
    ]
    if result["parity_values_checked"]:
        lines.append(f"{result['parity_values_checked']:,} values equal TFLite Micro's, bit for bit")
    click.echo("\n".join(lines))


@contextmanager
def _progress() -> Iterator[Tick]:
    """Give a progress bar for each part of the quantisation that takes its time; on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def tick(title: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(title, total=steps)
            return lambda: progress.advance(task)

        yield tick
