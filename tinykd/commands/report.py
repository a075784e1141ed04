"""`tinykd report`: one page that shows what a run's records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tinykd.commands.output import json_option, out_option, print_json

PAGE = "index.html"


def write_report(folder: Path, model: Path | None = None, board: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Write RUN/report/index.html.

    Args:
        folder: RUN.
        model: a third party's `.tflite` whose artefacts are in `folder`; None for a run of tinykd's own.
        board: show this board only; None shows every board that has records.

    Returns:
        the page and the `report` JSON object.
    """
    from tinykd.artifact import draft_artifact
    from tinykd.export.passes import for_engine
    from tinykd.report import collect_records, render_page

    records = collect_records(folder, model, board, lower=for_engine)
    page = render_page(records)
    inputs = {"model.tflite": records.model_sha256} if records.model_sha256 else {}
    with draft_artifact(folder / "report", "report", inputs=inputs, board=board) as draft:
        draft.path(PAGE).write_text(page, encoding="utf-8")
        stages = {stage.name: stage.status for stage in (records.train, records.export)}
        boards = {
            item.name: {stage.name: stage.status for stage in (item.plan, item.build, item.bench)}
            for item in records.boards
        }
        result = {"run": records.name, "page_bytes": len(page.encode()), "stages": stages, "boards": boards}
        draft.results.update(result)
    path = folder / "report" / PAGE
    return path, {**result, "page": str(path)}


def _find(target: str, out: str | None) -> tuple[Path, Path | None]:
    """Return (RUN, third party's model or None). A run that was not exported yet can be reported on, too."""
    from tinykd.artifact import MANIFEST
    from tinykd.commands.target import RUNS, resolve_target

    path = Path(target)
    if not path.is_file():
        folder = path if path.is_dir() else RUNS / path
        if folder.is_dir() and not (folder / "export" / MANIFEST).is_file():
            return folder, None
    resolved = resolve_target(target, out)
    return resolved.folder, None if resolved.exported else resolved.model


@click.command("report")
@click.argument("target")
@click.option("--board", metavar="B", help="Show this board only; by default every board that has records.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@out_option
@json_option
def command(target: str, board: str | None, open_page: bool, out: str | None, as_json: bool) -> None:
    """Write one self-contained HTML page about TARGET (a run folder or MODEL.tflite).

    It shows what the finished stages recorded; a stage that was not run is shown as such.
    """
    folder, model = _find(target, out)
    path, result = write_report(folder, model, board)
    if as_json:
        print_json(result)
    else:
        click.echo(f"report: {path} ({result['page_bytes'] / 1024:,.0f} kB)")
    if open_page:
        click.launch(path.resolve().as_uri())
