"""Composes the stages for the commands: makes the artefacts that a step needs when they are missing or stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinykd.artifact import draft_artifact, read_manifest, write_json
from tinykd.commands.target import Target
from tinykd.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    from tinykd.artifact import Manifest
    from tinykd.board import Board
    from tinykd.build import BuildResult
    from tinykd.ir import Graph, MemoryPlan
    from tinykd.kernels import OptimizeFor

PLAN_FILE = "plan.json"


def board_inputs(target: Target, board: Board) -> dict[str, str]:
    """Return the input hashes of everything that is made from a model for a board."""
    from tinykd.kernels.tuning import user_digest

    tuned = user_digest()
    return {"model.tflite": target.sha256(), "board": board.digest(), **({"tuned": tuned} if tuned else {})}


def goal_of(target: Target, wanted: str | None) -> OptimizeFor:
    """Return what the engine's kernels are chosen by: what the user wants, else what the run's recipe says."""
    if wanted is not None:
        return cast("OptimizeFor", wanted)
    if not target.exported:
        return "balanced"
    from tinykd.config import load_recipe

    return load_recipe(target.folder / "train" / "recipe.yaml").firmware.optimize_for


def find_fresh(
    folder: Path, stage: str, inputs: dict[str, str], config: dict[str, Any] | None = None
) -> Manifest | None:
    """Return the manifest of a finished, unharmed artefact of `stage`, if it is what the stage would make again.

    Args:
        folder: the artefact's folder.
        stage: its stage.
        inputs: hashes of what it would be made from.
        config: how it would be made; None for a stage without configuration.

    Returns:
        None when it is missing, harmed, or made from something else, otherwise, or by another version of tinykd.
    """
    import tinykd

    try:
        manifest = read_manifest(folder, stage)
    except ArtifactError:
        return None
    same = manifest.inputs == inputs and manifest.config == (config or {})
    return manifest if same and manifest.tools.get("tinykd") == tinykd.__version__ else None


def make_plan(
    target: Target, graph: Graph, board: Board, optimize_for: OptimizeFor = "balanced"
) -> tuple[MemoryPlan, dict[str, Any]]:
    """Plan a model for a board and write RUN/boards/<board>/plan/, in place of a plan for another goal.

    Args:
        graph: as the file has it: TFLite Micro is planned for that, our engine for what it computes (`for_engine`).
        optimize_for: what the engine's kernels, and so their scratch memory, are chosen by.

    Returns:
        the memory plan of our engine and the `plan` JSON object. It is returned also when the model does not fit: see
        its `fits`.
    """
    from tinykd.export.passes import for_engine
    from tinykd.kernels import engine_for
    from tinykd.plan import plan_for_tflm, plan_graph
    from tinykd.plan.summary import summarize

    engine_graph = for_engine(graph)
    plan = plan_graph(engine_graph, engine=engine_for(board.core, optimize_for))
    tflm_plan = plan_for_tflm(graph)
    result = {
        "model": target.name,
        "model_sha256": target.sha256(),
        **summarize(engine_graph, plan, board, optimize_for),
        "tflm_head_bytes": tflm_plan.arena_bytes,
        **_tflm_arenas(graph, tflm_plan),
    }
    folder = target.board_folder(board.name, "plan")
    with draft_artifact(
        folder, "plan", inputs=board_inputs(target, board), config=_plan_config(optimize_for), board=board.name
    ) as draft:
        draft.results.update(result)
        write_json(draft.path(PLAN_FILE), {**result, "plan": plan.to_dict()})
    return plan, result


def _tflm_arenas(graph: Graph, plan: MemoryPlan) -> dict[str, int | None]:
    """Measure what unmodified TFLite Micro allocates on this host, with our plan and with its own."""
    from tinykd.export import oracle
    from tinykd.formats.tflite import writer as tflite_writer
    from tinykd.plan import tflm_offsets

    if not oracle.is_available():
        return {"tflm_arena_bytes": None, "tflm_arena_online_bytes": None, "tflm_head_online_bytes": None}
    offline = oracle.Oracle(tflite_writer.write(graph, tflm_offsets(plan))).arena()
    online = oracle.Oracle(tflite_writer.write(graph)).arena()
    return {
        "tflm_arena_bytes": offline.total_bytes,
        "tflm_arena_online_bytes": online.total_bytes,
        "tflm_head_online_bytes": online.head_bytes,
    }


def ensure_plan(
    target: Target, board: Board, optimize_for: OptimizeFor = "balanced"
) -> tuple[MemoryPlan, dict[str, Any]]:
    """Return the plan of a model for a board, from its artefact when that is fresh and made for the same goal."""
    from tinykd.ir import MemoryPlan

    folder = target.board_folder(board.name, "plan")
    if find_fresh(folder, "plan", board_inputs(target, board), _plan_config(optimize_for)):
        raw = json.loads((folder / PLAN_FILE).read_text())
        return MemoryPlan.from_dict(raw.pop("plan")), raw
    return make_plan(target, target.graph(), board, optimize_for)


def _plan_config(optimize_for: OptimizeFor) -> dict[str, Any]:
    return {"optimize_for": optimize_for}


def require_fit(result: dict[str, Any]) -> None:
    """Raise DoesNotFitError when a plan's result says so."""
    if not result["fits"]:
        from tinykd.plan.summary import refusal

        raise refusal(result)


def ensure_build(
    target: Target,
    board: Board,
    engine: str = "tinykd",
    builder: str = "auto",
    optimize_for: OptimizeFor = "balanced",
) -> BuildResult:
    """Return the firmware of a model for a board, building it when it is missing, stale or made for another goal.

    Raises:
        DoesNotFitError: the plan says that it does not fit; nothing is built.
        ToolchainError: the compiler is missing or failed.
    """
    from tinykd.build import build

    plan, result = ensure_plan(target, board, optimize_for)
    require_fit(result)
    return build(
        target.engine_graph(),
        plan,
        board,
        target.board_folder(board.name, "build"),
        model_sha256=target.sha256(),
        engine=engine,
        builder=builder,
        optimize_for=optimize_for,
    )


def host_outputs(target: Target, x: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the model's int8 outputs (N, elements) on the host, and who computed them.

    The oracle is TFLite Micro's wheel where it is installed; elsewhere the NumPy reference, which equals it. It runs
    the very file, or, where that converts from and to float at its edges, the model between them.
    """
    from tinykd.export import oracle, reference
    from tinykd.export.passes import float_edges_to_host
    from tinykd.formats.tflite import writer as tflite_writer

    graph = target.graph()
    inner = float_edges_to_host(graph)
    if oracle.is_available():
        model = target.model.read_bytes() if inner is graph else tflite_writer.write(inner)
        return oracle.Oracle(model).outputs(x), "tflite-micro"
    return reference.run_output(inner, x), "numpy-reference"
