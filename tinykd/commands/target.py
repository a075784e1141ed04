"""What a command works on: a RUN folder of tinykd's, or anybody's `.tflite`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinykd.artifact import read_manifest, sha256_file
from tinykd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tinykd.ir import Graph

RUNS = Path("runs")
MODEL_FILE = "model.tflite"


@dataclass(frozen=True)
class Target:
    """A model and the folder where its artefacts live.

    Attributes:
        model: the `.tflite`.
        name: for people, file names and the firmware. That of the recipe, not of the folder: the same recipe gives the
            same C wherever it runs.
        folder: RUN; its stages are `train/`, `export/`, `boards/<board>/{plan,build,bench}/` and `report/`.
        exported: whether tinykd trained and exported the model (then RUN knows its data set), or it is a third party's.
    """

    name: str
    model: Path
    folder: Path
    exported: bool

    def sha256(self) -> str:
        """Return the SHA-256 of the `.tflite`, 64 hex digits."""
        return sha256_file(self.model)

    def graph(self) -> Graph:
        """Read the `.tflite`; see `tinykd.formats.tflite.read` for the errors."""
        from tinykd.formats import tflite

        return tflite.read(self.model, self.name)

    def engine_graph(self) -> Graph:
        """Return what the firmware computes of `graph`: int8 from edge to edge, pads folded into convolutions."""
        from tinykd.export.passes import for_engine

        return for_engine(self.graph())

    def board_folder(self, board: str, stage: str) -> Path:
        """Return the folder of a stage that depends on the board: "plan", "build" or "bench"."""
        return self.folder / "boards" / board / stage


def resolve_target(path: str | Path, out: str | Path | None = None) -> Target:
    """Return the target that a user names.

    Args:
        path: a RUN folder, the name of one below `runs/`, or a `.tflite` file.
        out: RUN folder for a third party's model; None takes `runs/<stem>`.

    Raises:
        ConfigError: there is no such thing.
        ArtifactError: the RUN was not exported yet, or its model differs from its manifest.
    """
    path = Path(path)
    if path.is_file():
        return Target(path.stem, path, Path(out) if out else default_run(path), exported=False)
    folder = path if path.is_dir() else RUNS / path
    if not folder.is_dir():
        known = [run.name for run in RUNS.iterdir() if run.is_dir()] if RUNS.is_dir() else []
        raise ConfigError(
            f"'{path}' is neither a .tflite file nor a run folder.{nearest(path.name, known)}",
            f"Runs here: {', '.join(sorted(known))}." if known else "There are no runs here yet: tinykd run RECIPE.",
        )
    exported = read_manifest(folder / "export", "export")
    # What was made from somebody's ONNX has no data set, either.
    trained = (folder / "train").is_dir()
    return Target(exported.results["name"], folder / "export" / MODEL_FILE, folder, exported=trained)


def default_run(model: Path) -> Path:
    """Return the RUN folder of a model that tinykd did not train, unless the user names one."""
    return RUNS / _safe(model.stem)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name) or "model"
