"""`tinykd run`: the whole road in one command, from a recipe to a report; what is done already is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tinykd.commands.output import board_option, goal_option, json_option, kilobytes, print_json

if TYPE_CHECKING:
    from tinykd.board import Board
    from tinykd.config import Recipe
    from tinykd.kernels import OptimizeFor

_STEPS = 6


@click.command("run")
@click.argument("recipe_name", metavar="RECIPE")
@board_option
@goal_option
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. train.epochs=3.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [default: runs/<recipe name>].")
@click.option("--samples", type=click.IntRange(1), help="Test images to run on the device [default: all].")
@click.option("--port", help="Serial port of a real board instead of the emulator.")
@click.option("--sim", default="unicorn", show_default=True, help="Emulator: unicorn, qemu or renode.")
@click.option("--restart", is_flag=True, help="Train anew instead of continuing what is there.")
@json_option
def command(
    recipe_name: str,
    board: str,
    optimize_for: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    samples: int | None,
    port: str | None,
    sim: str,
    restart: bool,
    as_json: bool,
) -> None:
    """Train, export, plan, build, run on the emulated (or real) board and report, as RECIPE says.

    Steps that are finished and unchanged are kept, and an interrupted training goes on where it was. Whether the
    student fits the board is checked before the training starts.
    """
    from tinykd.board import load_board
    from tinykd.config import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    the_board = load_board(board)
    folder = out or Path("runs") / recipe.name
    goal = cast("OptimizeFor", optimize_for or recipe.firmware.optimize_for)
    road = _Road()
    results: dict[str, Any] = {"run": str(folder), "recipe": recipe.name, "board": the_board.name}
    results["train"] = _train(road, recipe, folder, the_board, goal, restart)
    results.update(_carry(road, folder, the_board, goal, samples, port, sim))
    if as_json:
        print_json(results)


class _Road:
    """Prints one line for each finished step on stderr; stdout stays free for --json."""

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step; the block calls what it is given with the step's outcome, once."""
        self.number += 1
        prefix = f"[{self.number}/{_STEPS}] {name:<7}"
        started = time.perf_counter()
        outcome: list[str] = []
        yield outcome.append
        seconds = time.perf_counter() - started
        click.echo(f"{click.style(prefix, bold=True)} {outcome[0]}  ({_duration(seconds)})", err=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _train(road: _Road, recipe: Recipe, folder: Path, board: Board, goal: OptimizeFor, restart: bool) -> dict[str, Any]:
    from tinykd.artifact import MANIFEST
    from tinykd.commands.train import train_with_progress

    with road.step("train") as done:
        if restart or not (folder / "train" / MANIFEST).is_file():
            _require_student_fits(recipe, board, goal)
        results = train_with_progress(recipe, folder, resume=not restart).results
        teacher = results.get("teacher_top1")
        done(
            f"{recipe.student.model}: {results['top1_float']:.2%} float on {results['num_test']:,} test images"
            + (f", {results['top1_fake_quant']:.2%} with int8 in the loop" if "qat" in results else "")
            + (f", teacher {teacher:.2%}" if teacher is not None else "")
            + f"; {results['params']:,} parameters, {results['macs'] / 1e6:.2f} M MACs"
        )
    return results


def _require_student_fits(recipe: Recipe, board: Board, goal: OptimizeFor) -> None:
    """Plan the student with untrained weights: a model that cannot fit is refused before hours of training.

    Raises:
        DoesNotFitError: as `tinykd plan` would after the training.
    """
    from tinykd.train import limit_spinning

    limit_spinning()
    import numpy as np
    import torch

    from tinykd.commands.pipeline import require_fit
    from tinykd.data import load_dataset
    from tinykd.export import convert
    from tinykd.formats.onnx import torch as onnx_torch
    from tinykd.kernels import engine_for
    from tinykd.models import build_model
    from tinykd.plan import plan_graph
    from tinykd.plan.summary import summarize

    dataset = load_dataset(recipe.data)
    with torch.random.fork_rng(devices=[]):
        model = build_model(
            recipe.student.model, len(dataset.classes), dataset.resolution, dataset.channels, **recipe.student.args
        )
    float_onnx = onnx_torch.export_torch(model, (dataset.channels, dataset.resolution, dataset.resolution))
    images: np.ndarray = dataset.train.images[:2]
    normalization = convert.Normalization(dataset.mean_level, dataset.std_level)
    _, graph = convert.convert(float_onnx, images, normalization, name=recipe.name)
    require_fit(summarize(graph, plan_graph(graph, engine=engine_for(board.core, goal)), board, goal))


def _carry(
    road: _Road, folder: Path, board: Board, goal: OptimizeFor, samples: int | None, port: str | None, sim: str
) -> dict[str, dict[str, Any] | str]:
    """Take a trained run through the remaining steps and return their results."""
    from tinykd.commands.bench import progress
    from tinykd.commands.bench_stage import BenchOptions, ensure_bench, require_parity
    from tinykd.commands.export_stage import ensure_export
    from tinykd.commands.pipeline import ensure_build, ensure_plan, require_fit
    from tinykd.commands.report import write_report
    from tinykd.commands.target import resolve_target

    with road.step("export") as done:
        exported = ensure_export(folder).results
        proof = exported["parity_values_checked"]
        done(
            f"{exported['top1_int8']:.2%} int8 on the host; model.tflite {kilobytes(exported['tflite_bytes'])}"
            + (f"; {proof:,} values equal TFLite Micro's" if proof else "; the tflite-micro wheel is not installed")
        )
    target = resolve_target(folder)
    with road.step("plan") as done:
        _, plan = ensure_plan(target, board, goal)
        require_fit(plan)
        optimal = "optimal" if plan["gap_bytes"] == 0 else f"{plan['gap_bytes']} B above the bound"
        done(
            f"arena {plan['arena_bytes']:,} B ({optimal}); SRAM {kilobytes(plan['sram_total_bytes'])} of "
            f"{kilobytes(plan['sram_budget_bytes'])}, flash {kilobytes(plan['flash_total_bytes'])} of "
            f"{kilobytes(plan['flash_budget_bytes'])}"
        )
    with road.step("build") as done:
        built = ensure_build(target, board, optimize_for=goal).to_dict()
        done(f"{built['elf']}: {kilobytes(built['flash_bytes'])} flash, stack {built['stack_bytes_max']:,} B at most")
    with road.step("bench") as done:
        options = BenchOptions(sim=None if port else sim, port=port, samples=samples)
        with progress() as on_start:
            bench = ensure_bench(target, board, options, optimize_for=goal, on_start=on_start)
        equal = "all equal the host's" if bench["outputs_equal"] else "NOT all equal to the host's"
        top1 = "" if bench["top1"] is None else f"{bench['top1']:.2%} on "
        done(
            f"{top1}{board.name} ({bench['transport']}): {bench['samples']:,} outputs, {equal}; "
            + (f"{bench['instructions_per_inference']:,} instructions, " if bench["instructions_per_inference"] else "")
            + f"{bench['latency_us'] / 1000:.2f} ms {bench['latency_kind']}"
        )
    with road.step("report") as done:
        page, _ = write_report(folder)
        done(str(page))
    require_parity(bench)
    return {"export": exported, "plan": plan, "build": built, "bench": bench, "report": str(page)}
