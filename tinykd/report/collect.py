"""Reads what the stages of a run left behind: nothing that a record could say is computed here, nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import MANIFEST, Manifest, read_manifest, sha256_file
from tinykd.board import Board, load_board
from tinykd.errors import ArtifactError, ConfigError, TinykdError
from tinykd.ir import MemoryPlan, op_macs

if TYPE_CHECKING:
    from tinykd.ir import Graph

STAGES = ("train", "export", "plan", "build", "bench")
MODEL_FILE = "model.tflite"


@dataclass(frozen=True)
class StageState:
    """Whether a stage was run.

    Attributes:
        name: one of `STAGES`.
        status: "done", "not run", or "out of date" (made from another model than the one reported, or from what another
            stage has replaced since; its numbers are left out).
        seconds: how long it took, where the record says so.
        manifest: its manifest; None unless done.
        folder: where it is.
    """

    name: str
    status: str
    folder: Path
    seconds: float | None = None
    manifest: Manifest | None = None

    @property
    def results(self) -> dict[str, Any]:
        """The results of the manifest; empty unless done."""
        return self.manifest.results if self.manifest else {}


@dataclass(frozen=True)
class Layer:
    """One op of the model, with what the benchmark said about it.

    `instructions` and `cycles` are per inference, None where they were not measured; `estimated_cycles` is the middle
    of the range that an emulator's instructions are believed to take. `kernel` is the C function, "" where none runs.
    """

    index: int
    kind: str
    source: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    instructions: float | None = None
    cycles: float | None = None
    kernel: str = ""
    estimated_cycles: float | None = None
    cycles_low: float | None = None
    cycles_high: float | None = None

    @property
    def cost(self) -> float | None:
        """Instructions (emulator) or cycles (board) of the op; None where it was not measured."""
        return self.instructions if self.instructions is not None else self.cycles

    @property
    def cost_per_mac(self) -> float | None:
        """Instructions or cycles for each multiply-accumulate; None without MACs or measurement."""
        return self.cost / self.macs if self.cost is not None and self.macs else None


@dataclass(frozen=True)
class WrongImage:
    """A test image that the device got wrong: uint8 (H, W, C), and class indices."""

    pixels: np.ndarray
    label: int
    predicted: int


@dataclass(frozen=True)
class BoardRecords:
    """What is known about the model on one board.

    Attributes:
        name, board: the board; `board` is None when its file is gone.
        plan, build, bench: the stages.
        memory_plan: the arena, or None when `plan` was not run.
        layers: every op of the model.
        confusion: int64 (K, K), rows are labels, columns predictions; None without labelled outputs.
        wrong: a few images that were classified wrongly.
    """

    name: str
    board: Board | None
    plan: StageState
    build: StageState
    bench: StageState
    memory_plan: MemoryPlan | None = None
    layers: list[Layer] = field(default_factory=list)
    confusion: np.ndarray | None = None
    wrong: list[WrongImage] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecords:
    """Everything a run's folder says.

    Attributes:
        name: of the run.
        folder: RUN.
        model: the `.tflite`, or None before export.
        model_sha256: of that file, or "".
        third_party: whether somebody else trained the model.
        train, export: the stages.
        student_metrics, teacher_metrics: one row per epoch, as training wrote them.
        boards: one entry per board.
        graph: of the model, or None before export.
    """

    name: str
    folder: Path
    model: Path | None
    model_sha256: str
    third_party: bool
    train: StageState
    export: StageState
    student_metrics: list[dict[str, Any]]
    teacher_metrics: list[dict[str, Any]]
    boards: list[BoardRecords]
    graph: Graph | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty when the run does not know them."""
        return [str(name) for name in self.train.results.get("classes", [])]


def collect_records(
    folder: Path,
    model: Path | None = None,
    board: str | None = None,
    max_wrong: int = 24,
    lower: Callable[[Graph], Graph] = lambda graph: graph,
) -> RunRecords:
    """Read the records of a run.

    Args:
        folder: RUN.
        model: a third party's `.tflite` whose artefacts are in `folder`; None for a run of tinykd's own.
        board: report on this board only; None takes every board that has records.
        max_wrong: how many wrong images to keep.
        lower: what the engine makes of the model's graph before it plans it: plans and measurements speak of that.

    Raises:
        ArtifactError: a record is broken or differs from its manifest.
        ConfigError: the folder holds no record at all, or none for `board`.
    """
    folder = Path(folder)
    third_party = model is not None
    train = _stage(folder / "train", "train")
    export = _stage(folder / "export", "export")
    if model is None and export.status == "done":
        model = folder / "export" / MODEL_FILE
    model_sha256 = sha256_file(model) if model is not None else ""
    graph = _read_graph(model)
    names = _board_names(folder, board)
    planned = None if graph is None else lower(graph)
    boards = [_collect_board(folder / "boards" / name, name, planned, model_sha256, max_wrong) for name in names]
    known = [train, export, *(stage for item in boards for stage in (item.plan, item.build, item.bench))]
    metrics = _read_metrics(folder / "train" / "metrics.jsonl")
    if all(stage.status == "not run" for stage in known) and not metrics:
        raise ConfigError(f"{folder} holds no records of tinykd", "Start with: tinykd run RECIPE --board B.")
    return RunRecords(
        name=model.stem if third_party and model is not None else folder.resolve().name,
        folder=folder,
        model=model,
        model_sha256=model_sha256,
        third_party=third_party,
        train=train,
        export=export,
        student_metrics=metrics,
        teacher_metrics=_read_metrics(folder / "train" / "teacher" / "metrics.jsonl"),
        boards=boards,
        graph=graph,
    )


def _board_names(folder: Path, board: str | None) -> list[str]:
    places = folder / "boards"
    # A dot begins the name of what a writer is still working on.
    folders = places.iterdir() if places.is_dir() else []
    found = sorted(path.name for path in folders if path.is_dir() and not path.name.startswith("."))
    if board is None:
        return found
    if board not in found:
        here = f"It has: {', '.join(found)}." if found else "It has none for any board yet."
        raise ConfigError(f"{folder} has no records for board '{board}'", here)
    return [board]


def _stage(folder: Path, name: str, model_sha256: str | None = None) -> StageState:
    """Read a stage's manifest; with `model_sha256`, a stage that was made from another model is out of date."""
    if not (folder / MANIFEST).is_file():
        return StageState(name, "not run", folder)
    manifest = read_manifest(folder, name)
    if model_sha256 is not None and model_sha256 not in manifest.inputs.values():
        return StageState(name, "out of date", folder)
    seconds = manifest.results.get("seconds")
    return StageState(name, "done", folder, float(seconds) if seconds is not None else None, manifest)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "Run that step again.") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object", "Run that step again.")
    return value


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; a training under way may be writing the last line, so a torn one is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows.append(row)
    return rows


def _read_graph(model: Path | None) -> Graph | None:
    if model is None:
        return None
    from tinykd.formats import tflite

    return tflite.read(model)


def _collect_board(folder: Path, name: str, graph: Graph | None, model_sha256: str, max_wrong: int) -> BoardRecords:
    plan, build, bench = _matching(
        *(_stage(folder / stage, stage, model_sha256) for stage in ("plan", "build", "bench"))
    )
    try:
        board = load_board(name)
    except TinykdError:
        board = None
    memory_plan = None
    if plan.status == "done":
        memory_plan = MemoryPlan.from_dict(_read_json(plan.folder / "plan.json")["plan"])
    bench_results: Mapping[str, Any] = {}
    confusion, wrong = None, []
    if bench.status == "done":
        bench_results = _read_json(bench.folder / "bench.json")
        confusion = _confusion(bench.folder / "outputs.npz")
        wrong = _wrong_images(bench.folder / "wrong.npz", max_wrong)
    return BoardRecords(
        name=name,
        board=board,
        plan=_with_results(plan, plan.folder / "plan.json"),
        build=_with_results(build, build.folder / "build.json"),
        bench=_with_results(bench, bench.folder / "bench.json"),
        memory_plan=memory_plan,
        layers=_layers(graph, bench_results.get("per_op") or []),
        confusion=confusion,
        wrong=wrong,
    )


def _matching(plan: StageState, build: StageState, bench: StageState) -> tuple[StageState, StageState, StageState]:
    """Return a board's stages; what was made for another goal than the plan, or ran another ELF, is out of date."""
    if plan.manifest and build.manifest and _goal(plan) != _goal(build):
        build = StageState(build.name, "out of date", build.folder)
    if bench.manifest:
        elf = bench.manifest.inputs.get("firmware.elf")
        built = build.manifest.outputs.get("firmware.elf") if build.manifest else None
        other = build.status == "out of date" or (plan.manifest is not None and _goal(plan) != _goal(bench))
        if other or (elf and built and elf != built):
            bench = StageState(bench.name, "out of date", bench.folder)
    return plan, build, bench


def _goal(stage: StageState) -> str:
    return str(stage.manifest.config.get("optimize_for", "balanced")) if stage.manifest else ""


def _with_results(stage: StageState, path: Path) -> StageState:
    """Return the stage with the object of its JSON file added to the manifest's results."""
    if stage.manifest is None:
        return stage
    raw = {key: value for key, value in _read_json(path).items() if key != "plan"}
    results = {**stage.manifest.results, **raw}
    manifest = Manifest(**{**stage.manifest.to_dict(), "results": results})
    seconds = results.get("seconds")
    return StageState(stage.name, stage.status, stage.folder, float(seconds) if seconds is not None else None, manifest)


def _layers(graph: Graph | None, per_op: list[dict[str, Any]]) -> list[Layer]:
    """Join the model's ops with the measured ones, which come in the same order; ops that move nothing have none."""
    if graph is None:
        return []
    measured: dict[int, dict[str, Any]] = {}
    left = list(per_op)
    for index, op in enumerate(graph.ops):
        if left and (left[0].get("kind"), left[0].get("source")) == (op.kind, op.source):
            measured[index] = left.pop(0)
    if left:
        measured = {}
    layers = []
    for index, op in enumerate(graph.ops):
        row = measured.get(index, {})
        layers.append(
            Layer(
                index=index,
                kind=op.kind,
                source=op.source or op.outputs[0],
                input_shape=graph.tensor(op.inputs[0]).shape,
                output_shape=graph.tensor(op.outputs[0]).shape,
                macs=op_macs(graph, op),
                instructions=row.get("instructions"),
                cycles=row.get("cycles"),
                kernel=row.get("kernel") or "",
                **{key: row.get(key) for key in ("estimated_cycles", "cycles_low", "cycles_high")},
            )
        )
    return layers


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "Run the 'bench' step again.") from error


def _confusion(path: Path) -> np.ndarray | None:
    """Return counts (K, K) from int8 `outputs` (N, K) and `labels` (N,).

    None where the inputs had no labels, and where the model names the class itself (int32): its K is unknown.
    """
    arrays = _load_npz(path)
    if "labels" not in arrays or "outputs" not in arrays or not len(arrays["labels"]):
        return None
    outputs = arrays["outputs"].reshape(len(arrays["outputs"]), -1)
    if outputs.dtype == np.int32:
        return None
    num_classes = outputs.shape[1]
    labels = arrays["labels"].astype(np.int64)
    if len(labels) != len(outputs) or labels.min() < 0 or labels.max() >= num_classes:
        raise ArtifactError(
            f"{path}: {len(labels)} labels do not suit outputs {list(outputs.shape)}", "Run 'bench' again."
        )
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, outputs.argmax(1)), 1)
    return counts


def _wrong_images(path: Path, limit: int) -> list[WrongImage]:
    """Return the first wrong images from `images` uint8 (N, H, W, C), `labels` and `predictions` (N,)."""
    arrays = _load_npz(path)
    if not {"images", "labels", "predictions"} <= arrays.keys():
        return []
    rows = zip(arrays["images"][:limit], arrays["labels"][:limit], arrays["predictions"][:limit], strict=True)
    return [WrongImage(pixels, int(label), int(predicted)) for pixels, label, predicted in rows]
