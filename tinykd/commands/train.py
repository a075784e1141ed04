"""`tinykd train`: from a recipe to a trained student."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("train")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. train.epochs=3.")
@click.option("--resume/--restart", default=True, help="Continue what is there (default), or delete it first.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; runs/<recipe name> by default.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The GPU when there is one, by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
def command(
    recipe_name: str, overrides: tuple[str, ...], resume: bool, out: Path | None, device: str | None, as_json: bool
) -> None:
    """Train the student of RECIPE, and first its teacher where the recipe asks for one.

    RECIPE is a name of `tinykd list recipes` or a YAML file. A run that was stopped continues where it was.
    """
    from tinykd.config import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    run_dir = out or Path("runs") / recipe.name

    from tinykd.train import train
    from tinykd.train.loop import StopRequested
    from tinykd.train.progress import make_progress

    progress = make_progress()
    try:
        manifest = train(recipe, run_dir, resume=resume, progress=progress, device=device)
    except StopRequested as stop:
        progress.note(f"Stopped; everything is saved. Continue with the same command: it goes on in {run_dir}.")
        raise SystemExit(128 + stop.signal_number) from None
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps({"run": str(run_dir), "recipe": recipe.name, **manifest.results}, sort_keys=True))
        return
    results = manifest.results
    click.echo(f"{run_dir}/train: {results['top1_float']:.2%} of {results['num_test']} test images")
    click.echo(f"{results['params']:,} parameters, {results['macs']:,} MACs")
