"""`tinykd train`: from a recipe to a trained student."""

from __future__ import annotations

import os
import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinykd.commands.output import json_option, print_json

if TYPE_CHECKING:
    from tinykd.artifact import Manifest
    from tinykd.config import Recipe


def train_with_progress(recipe: Recipe, run_dir: Path, *, resume: bool = True, device: str | None = None) -> Manifest:
    """Train into `run_dir` with the terminal's progress display, and tell what it cost.

    An interruption ends the process, resumably.

    Raises:
        SystemExit: SIGINT or SIGTERM, after everything was saved; 128 + the signal's number.
    """
    from tinykd.artifact import MANIFEST
    from tinykd.commands.lowering import lower_student
    from tinykd.train import StopRequested, train
    from tinykd.train.progress import Progress, make_progress

    progress = make_progress() if leads() else Progress()
    known = resume and (run_dir / "train" / MANIFEST).is_file()
    try:
        manifest = train(recipe, run_dir, resume=resume, progress=progress, device=device, lower=lower_student)
        if not known:
            progress.note(describe_cost(manifest.results))
        return manifest
    except StopRequested as stop:
        progress.note(f"Stopped; everything is saved. Continue with the same command: it goes on in {run_dir}.")
        raise SystemExit(128 + stop.signal_number) from None
    finally:
        progress.close()


def leads() -> bool:
    """Return whether this process is the one that talks: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def describe_cost(results: dict[str, Any]) -> str:
    """Return what the training cost as a small table: speed, where a step's time goes, memory, wall time."""
    cost = results["cost"]
    shares = ", ".join(
        f"{name} {cost[f'{name}_share']:.0%}"
        for name in ("teacher", "student", "augmented", "data", "update")
        if cost[f"{name}_share"] >= 0.005
    )
    overhead = cost["augmented_overhead"]
    rows = [
        ("speed", f"{results['steps_per_s']:.1f} steps/s on {results['device']}"),
        ("a step is", shares),
        ("NetAug", f"a step takes {overhead:.2f} times as long as without" if overhead else ""),
        ("peak memory", f"{cost['peak_memory_mib']:,.0f} MiB"),
        ("student trained", f"in {results['seconds']:,.0f} s"),
    ]
    return "\n".join(f"  {name:<16} {text}" for name, text in rows if text)


@click.command("train")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. train.epochs=3.")
@click.option("--resume/--restart", default=True, help="Continue what is there (default), or delete it first.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; runs/<recipe name> by default.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The GPU when there is one, by default.")
@click.option("--seeds", type=click.IntRange(2), help="Train this many students, seeds 0, 1, ..., in RUN/seed-<n>.")
@json_option
def command(
    recipe_name: str,
    overrides: tuple[str, ...],
    resume: bool,
    out: Path | None,
    device: str | None,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Train the student of RECIPE, and first its teacher where the recipe asks for one.

    RECIPE is a name of `tinykd list recipes` or a YAML file. A run that was stopped continues where it was.
    """
    from tinykd.config import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    run_dir = out or Path("runs") / recipe.name
    if seeds is not None:
        _train_seeds(recipe, run_dir, seeds, resume=resume, device=device, as_json=as_json)
        return
    manifest = train_with_progress(recipe, run_dir, resume=resume, device=device)
    if not leads():
        return
    if as_json:
        print_json({"run": str(run_dir), "recipe": recipe.name, **manifest.results})
        return
    results = manifest.results
    click.echo(f"{run_dir}/train: {results['top1_float']:.2%} of {results['num_test']} test images")
    if "qat" in results:
        spent = f"{results['qat']['epochs']} epochs, {results['qat']['seconds']:,.0f} s"
        click.echo(f"with rounding to int8 in the loop {results['top1_fake_quant']:.2%} ({spent})")
    click.echo(f"{results['params']:,} parameters, {results['macs']:,} MACs")


def _train_seeds(recipe: Recipe, run_dir: Path, seeds: int, *, resume: bool, device: str | None, as_json: bool) -> None:
    """Train one student per seed, all from one teacher, and print mean and standard deviation."""
    folders = [run_dir / f"seed-{seed}" for seed in range(seeds)]
    results = []
    for seed, folder in enumerate(folders):
        if seed:
            _share_teacher(folders[0], folder, fresh=not resume)
        own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        results.append(train_with_progress(own, folder, resume=resume or seed > 0, device=device).results)
    if not leads():
        return
    accuracies = [result["top1_float"] for result in results]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    if as_json:
        runs = [{"run": str(folder), **result} for folder, result in zip(folders, results, strict=True)]
        print_json({"recipe": recipe.name, "top1_mean": mean, "top1_stdev": deviation, "runs": runs})
        return
    for folder, accuracy in zip(folders, accuracies, strict=True):
        click.echo(f"{folder}: {accuracy:.2%}")
    click.echo(f"{recipe.name}: {mean:.2%} ± {deviation:.2%} (standard deviation of {seeds} seeds)")


def _share_teacher(source: Path, target: Path, *, fresh: bool) -> None:
    """Copy a trained teacher to a run that is about to start; with `fresh`, delete that run first."""
    if not leads():
        return
    if fresh:
        shutil.rmtree(target / "train", ignore_errors=True)
    teacher = source / "train" / "teacher"
    if teacher.is_dir() and not (target / "train").exists():
        shutil.copytree(teacher, target / "train" / "teacher")
