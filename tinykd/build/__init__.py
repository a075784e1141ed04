"""Building: from an int8 graph and its memory plan to the firmware of one board, its sizes read, its stack proven."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tinykd.artifact import Manifest, draft_artifact, read_manifest, write_json
from tinykd.board import Board
from tinykd.build.codegen import GeneratedModel, GeneratedOp, generate
from tinykd.build.project import Project, make_project
from tinykd.build.size import Sizes, read_sizes
from tinykd.build.stack import StackBound, bound, read_call_graphs
from tinykd.build.toolchain import (
    Compiled,
    choose_builder,
    compile_project,
    compiler_version,
    platformio_version,
)
from tinykd.errors import ArtifactError, ConfigError, DoesNotFitError, InternalError, UnsupportedModelError, nearest
from tinykd.ir import Graph, MemoryPlan
from tinykd.kernels import Engine, OptimizeFor, engine_for

STAGE = "build"
ENGINES = ("tinykd", "tflm")
ELF_FILE = "firmware.elf"
MAP_FILE = "firmware.map"
JSON_FILE = "build.json"
PROJECT_FOLDER = "project"

__all__ = [
    "ENGINES",
    "BuildResult",
    "GeneratedModel",
    "GeneratedOp",
    "Project",
    "Sizes",
    "StackBound",
    "build",
    "generate",
    "make_project",
]


@dataclass(frozen=True)
class BuildResult:
    """A firmware image and what it takes. `to_dict` is build.json.

    Attributes:
        folder: the artefact folder; `elf` and `map_file` lie in it.
        engine: "tinykd".
        model_sha256: of the `.tflite`.
        builder: "pio" or "gcc".
        compiler: first line of its `--version`.
        flash_bytes: code, constants and the image of initialised variables.
        sram_static_bytes: all variables, the arena included.
        arena_bytes: the arena alone, as the ELF file has it.
        stack_bytes_max: proven worst case; `stack_path` is the path that reaches it.
        sram_total_bytes: sram_static_bytes + stack_bytes_max.
        code_bytes: code of the whole firmware, the vector table included.
        model_bytes: constants of the model: weights, biases, multipliers, parameter blocks.
        fits: whether sram_total_bytes and flash_bytes are within the board's budgets.
        ops: the generated sequence; per-op profiles refer to it.
        optimize_for: what the kernels were chosen by.
        reused: whether the artefact stood there already and was returned as it is.
    """

    folder: Path
    board: str
    engine: str
    model_sha256: str
    builder: str
    compiler: str
    flash_bytes: int
    flash_budget_bytes: int
    text_bytes: int
    rodata_bytes: int
    data_bytes: int
    bss_bytes: int
    sram_static_bytes: int
    sram_total_bytes: int
    sram_budget_bytes: int
    arena_bytes: int
    stack_bytes_max: int
    stack_path: tuple[tuple[str, int], ...]
    code_bytes: int
    model_code_bytes: int
    model_bytes: int
    fits: bool
    ops: tuple[GeneratedOp, ...]
    optimize_for: OptimizeFor = "balanced"
    reused: bool = False

    @property
    def elf(self) -> Path:
        """The image that the board and the emulator run."""
        return self.folder / ELF_FILE

    @property
    def map_file(self) -> Path:
        """The linker's map."""
        return self.folder / MAP_FILE

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `tinykd build --json`."""
        return {"elf": str(self.elf), **self._record(), "reused": self.reused}

    def _record(self) -> dict[str, Any]:
        """What build.json holds: everything that does not depend on where the folder is."""
        raw = asdict(self)
        del raw["folder"], raw["reused"]
        raw["stack_path"] = [{"function": name, "bytes": size} for name, size in self.stack_path]
        raw["ops"] = [op.to_dict() for op in self.ops]
        return raw

    @staticmethod
    def from_record(folder: Path, record: Mapping[str, Any], *, reused: bool) -> BuildResult:
        """Read a result back from the contents of build.json."""
        known = {item.name for item in fields(BuildResult)}
        raw = {key: value for key, value in record.items() if key in known}
        raw["stack_path"] = tuple((item["function"], item["bytes"]) for item in record["stack_path"])
        raw["ops"] = tuple(GeneratedOp(**item) for item in record["ops"])
        return BuildResult(**{**raw, "folder": folder, "reused": reused})


def build(
    graph: Graph,
    plan: MemoryPlan,
    board: Board,
    out_dir: Path,
    *,
    model_sha256: str,
    engine: str = "tinykd",
    builder: str | None = None,
    optimize_for: OptimizeFor = "balanced",
    kernels: Engine | None = None,
    shared_objects: Path | None = None,
    inputs: Mapping[str, str] | None = None,
) -> BuildResult:
    """Build the firmware of a model for a board into the artefact folder `out_dir`.

    The folder holds `firmware.elf`, `firmware.map`, `build.json` and `project/`, a complete PlatformIO project with the
    generated C. When it stands there already, made from the same files with the same compiler, it is returned as it is.

    Args:
        graph: int8, one input, one output.
        plan: where each activation lies in the arena; made for the board's core and the same goal.
        model_sha256: of the `.tflite`; the firmware announces it to the host.
        engine: "tinykd"; "tflm" is refused for now.
        builder: "pio", "gcc", or "auto" (the default): PlatformIO where it is installed. Both use the same flags.
        optimize_for: "speed", "balanced" or "size".
        kernels: a choice of kernels other than the one for the board's core and this goal.
        shared_objects: see `compile_project`.
        inputs: further input hashes for the manifest.

    Raises:
        UnsupportedModelError: an op has no kernel, or the engine is not available.
        DoesNotFitError: the firmware exceeds the board's flash or SRAM.
        ToolchainError: the compiler is missing or failed.
        ConfigError: unknown engine, builder or HAL.
        ArtifactError: `out_dir` cannot be written.
    """
    _check_engine(engine)
    model = generate(graph, plan, model_sha256, kernels or engine_for(board.core, optimize_for))
    project = make_project(board, model)
    builder = choose_builder(builder)
    compiler = compiler_version()
    tools = {"compiler": compiler}
    if builder == "pio":
        tools["platformio"] = platformio_version() or ""
    hashes = {
        "model.tflite": model_sha256,
        "board": board.digest(),
        "plan": hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest(),
        "project": project.sha256,
        **(inputs or {}),
    }
    config = {"engine": engine, "builder": builder, "optimize_for": optimize_for}
    if (found := _reusable(out_dir, hashes, config, tools)) is not None:
        return found
    with draft_artifact(out_dir, STAGE, inputs=hashes, config=config, board=board.name, tools=tools) as draft:
        project_folder = draft.path(PROJECT_FOLDER)
        with tempfile.TemporaryDirectory(prefix="tinykd-build-") as temporary:
            compiled, stack = _compile_and_prove(board, model, project_folder, Path(temporary), builder, shared_objects)
            shutil.copyfile(compiled.elf, draft.path(ELF_FILE))
            shutil.copyfile(compiled.map_file, draft.path(MAP_FILE))
        sizes = read_sizes(draft.path(ELF_FILE))
        result = _result(out_dir, board, model, sizes, stack, engine, model_sha256, builder, compiler)
        result = replace(result, optimize_for=optimize_for)
        _check_result(result, plan, board)
        write_json(draft.path(JSON_FILE), result._record())
        draft.results.update(result._record())
    return result


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'.{nearest(engine, ENGINES)}", f"Engines: {', '.join(ENGINES)}.")
    if engine == "tflm":
        raise UnsupportedModelError(
            "build: the engine 'tflm' is not available in this version of tinykd",
            "Build with --engine tinykd, whose outputs equal TFLite Micro's bit for bit.",
        )


def _reusable(
    folder: Path, inputs: Mapping[str, str], config: Mapping[str, Any], tools: Mapping[str, str]
) -> BuildResult | None:
    """Return the result that stands in `folder` when it was made from the same things by the same tools."""
    try:
        manifest = read_manifest(folder, STAGE)
        expected = Manifest(stage=STAGE, tools=dict(tools))
        same = (
            manifest.inputs == inputs
            and manifest.config == config
            and {name: manifest.tools.get(name) for name in expected.tools} == expected.tools
        )
        if not same:
            return None
        return BuildResult.from_record(folder, json.loads((folder / JSON_FILE).read_text()), reused=True)
    except (ArtifactError, OSError, ValueError, KeyError, TypeError):
        return None


def _compile_and_prove(
    board: Board, model: GeneratedModel, folder: Path, work: Path, builder: str, shared: Path | None
) -> tuple[Compiled, StackBound]:
    """Compile, prove the stack, and link again with that much room kept free."""
    draft = make_project(board, model)
    draft.write(folder)
    compiled = compile_project(draft, folder, work, builder, shared)
    stack = bound(read_call_graphs(compiled.call_graphs))
    final = make_project(board, model, stack.total_bytes)
    final.write(folder)
    return compile_project(final, folder, work, builder, shared), stack


def _result(
    folder: Path,
    board: Board,
    model: GeneratedModel,
    sizes: Sizes,
    stack: StackBound,
    engine: str,
    model_sha256: str,
    builder: str,
    compiler: str,
) -> BuildResult:
    sram_total = sizes.sram_static_bytes + stack.total_bytes
    return BuildResult(
        folder=folder,
        board=board.name,
        engine=engine,
        model_sha256=model_sha256,
        builder=builder,
        compiler=compiler,
        flash_bytes=sizes.flash_bytes,
        flash_budget_bytes=board.flash_budget_bytes,
        text_bytes=sizes.text_bytes,
        rodata_bytes=sizes.rodata_bytes,
        data_bytes=sizes.data_bytes,
        bss_bytes=sizes.bss_bytes,
        sram_static_bytes=sizes.sram_static_bytes,
        sram_total_bytes=sram_total,
        sram_budget_bytes=board.sram_budget_bytes,
        arena_bytes=sizes.arena_bytes,
        stack_bytes_max=stack.total_bytes,
        stack_path=stack.path,
        code_bytes=sizes.text_bytes,
        model_code_bytes=sizes.model_code_bytes,
        model_bytes=sizes.model_bytes,
        fits=sram_total <= board.sram_budget_bytes and sizes.flash_bytes <= board.flash_budget_bytes,
        ops=model.ops,
    )


def _check_result(result: BuildResult, plan: MemoryPlan, board: Board) -> None:
    if result.arena_bytes != max(plan.arena_bytes, 1):
        raise InternalError(
            f"the arena has {result.arena_bytes} B in the ELF file but {plan.arena_bytes} B in the plan"
        )
    if not result.fits:
        raise DoesNotFitError(
            f"build: the firmware needs {result.sram_total_bytes} B of SRAM and {result.flash_bytes} B of flash, but "
            f"{board.name} leaves {board.sram_budget_bytes} B and {board.flash_budget_bytes} B",
            "Try a smaller width or input, or a board with more memory (tinykd list boards).",
        )
