"""Drives the compiler over a firmware project: through PlatformIO where it is installed, else with the same flags."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tinykd.build.project import Project, include_folders, ini_flags, machine_flags
from tinykd.errors import ConfigError, DoesNotFitError, InternalError, ToolchainError, nearest

COMPILER = "arm-none-eabi-gcc"
LINKER_SCRIPT = "ld/tk_firmware.ld"
BUILDERS = ("auto", "pio", "gcc")
TIMEOUT_S = 600
_INSTALL = (
    "Install it with: sudo apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi\n"
    "`tinykd doctor` lists everything that is missing."
)


@dataclass(frozen=True)
class Compiled:
    """What a builder leaves behind: the linked image, its map, and the call graphs (`.ci`) of all objects."""

    elf: Path
    map_file: Path
    call_graphs: tuple[Path, ...]


def compiler_version() -> str:
    """Return the first line of the compiler's `--version`.

    Raises:
        ToolchainError: it is missing, or does not run.
    """
    return _compiler_version(_compiler())


def platformio_version() -> str | None:
    """Return PlatformIO's version, or None when it (or its SCons) is not installed beside tinykd."""
    if importlib.util.find_spec("platformio") is None or importlib.util.find_spec("SCons") is None:
        return None
    from importlib.metadata import version

    return version("platformio")


def choose_builder(wanted: str | None) -> str:
    """Return "pio" or "gcc" for the builder that the user asked for ("auto" or None: PlatformIO where it is installed).

    Raises:
        ConfigError: no such builder.
        ToolchainError: PlatformIO was asked for and is not installed.
    """
    wanted = wanted or "auto"
    if wanted not in BUILDERS:
        raise ConfigError(
            f"unknown builder '{wanted}'.{nearest(wanted, BUILDERS)}", f"Builders: {', '.join(BUILDERS)}."
        )
    if wanted == "auto":
        return "pio" if platformio_version() else "gcc"
    if wanted == "pio" and platformio_version() is None:
        raise ToolchainError(
            "PlatformIO is not installed beside tinykd (the Python packages platformio and SCons)",
            'Install it with: pip install "tinykd[build]", or build with --builder gcc.',
        )
    return wanted


def compile_project(project: Project, folder: Path, work: Path, builder: str, shared: Path | None = None) -> Compiled:
    """Compile and link a project.

    Args:
        project: what to build.
        folder: where its files stand already.
        work: a folder for objects, outside `folder`; empty, or from the same project with another memory script:
            then only the link is repeated.
        builder: "pio" or "gcc".
        shared: a folder for the objects of all files but the generated ones, for several builds of the same firmware
            for the same board; "gcc" only.

    Raises:
        ToolchainError: the compiler is missing or reports an error; carries its first lines.
        DoesNotFitError: the linker ran out of flash or SRAM.
    """
    work.mkdir(parents=True, exist_ok=True)
    if builder == "pio":
        return _run_platformio(project, folder, work)
    return _run_gcc(project, folder, work, shared or work)


def _compiler() -> str:
    path = shutil.which(COMPILER)
    if path is None:
        raise ToolchainError(f"the compiler {COMPILER} is not on PATH", _INSTALL)
    return path


@lru_cache(maxsize=4)
def _compiler_version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"{path} does not run: {error}", _INSTALL) from error
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"


def _run(command: Sequence[str], folder: Path, what: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{what} did not end within {TIMEOUT_S} s", "Look at the load of this machine.") from error
    except OSError as error:
        raise ToolchainError(f"{what} could not be started: {error}", _INSTALL) from error
    if done.returncode != 0:
        _raise_failure(done.stdout + done.stderr, done.returncode, what)
    return done.stdout


def _raise_failure(output: str, code: int, what: str) -> None:
    """Raise the error that the compiler's or linker's words stand for."""
    overflow = re.findall(r"region [`'](\w+)' overflowed by (\d+) bytes", output)
    if overflow:
        lines = ", ".join(f"{region} by {size} B" for region, size in overflow)
        raise DoesNotFitError(
            f"build: the firmware exceeds the board's memory: {lines}",
            "Try a smaller width or input, or a board with more memory (tinykd list boards).",
        )
    if "less SRAM than the stack needs" in output:
        raise DoesNotFitError(
            "build: static data and the proven worst-case stack exceed the board's SRAM",
            "Try a smaller width or input, or a board with more SRAM (tinykd list boards).",
        )
    if "No space left on device" in output:
        raise ToolchainError(f"{what} failed: no space left on the disk", "Free disk space and try again.")
    errors = [line.strip() for line in output.splitlines() if re.search(r"\b(error|undefined reference|Error)\b", line)]
    shown = errors[:5] or [line for line in output.splitlines() if line.strip()][-5:]
    raise ToolchainError(
        f"{what} failed with exit code {code}:\n" + "\n".join(f"  {line}" for line in shown),
        "If the firmware is unchanged this is a bug of tinykd's: please report it with these lines and the output of "
        "`tinykd doctor`.",
    )


def _expand(flags: Sequence[str], folder: Path, work: Path) -> list[str]:
    return [flag.replace("$PROJECT_DIR", str(folder)).replace("$BUILD_DIR", str(work)) for flag in flags]


def _run_gcc(project: Project, folder: Path, work: Path, shared: Path) -> Compiled:
    folder, work = folder.resolve(), work.resolve()
    machine = machine_flags(project.board)
    compile_flags = _expand(ini_flags(project, "compile_flags"), folder, work)
    includes = [f"-I{name}" for name in include_folders(project.files)]
    flags = [*compile_flags, *machine, *includes]
    own = [name for name in project.sources if name.startswith("generated/")]
    common = [name for name in project.sources if name not in own]
    # In the order of `sources`, "generated/" before "lib/" and "src/".
    objects = _compile(own, folder, work, flags) + _compile(common, folder, shared.resolve(), flags)
    elf = work / "firmware.elf"
    link_flags = _expand(ini_flags(project, "link_flags"), folder, work)
    _run(
        [_compiler(), *machine, *link_flags, "-T", LINKER_SCRIPT, *map(str, objects), "-o", str(elf)],
        folder,
        "linking the firmware",
    )
    return Compiled(elf, work / "firmware.map", tuple(path.with_suffix(".ci") for path in objects))


def compile_objects(
    sources: Sequence[str], folder: Path, flags: Sequence[str], inputs: Iterable[Path] = ()
) -> list[Path]:
    """Compile C files that stand below `folder`; return the objects, below `folder`/objects with their call graphs.

    An object is used again when it is newer than its source and than every file of `inputs` (headers, say).

    Raises:
        ToolchainError: the compiler is missing or reports an error.
    """
    folder = folder.resolve()
    work = folder / "objects"
    newest = max((path.stat().st_mtime_ns for path in inputs), default=0)
    for source in sources:
        made = (work / source).with_suffix(".o")
        if made.exists() and made.stat().st_mtime_ns <= max(newest, (folder / source).stat().st_mtime_ns):
            made.unlink()
    return _compile(sources, folder, work, flags)


def link_objects(objects: Sequence[Path], folder: Path, flags: Sequence[str]) -> Path:
    """Link objects in `folder`, where relative names in `flags` count from; return the ELF, `folder`/firmware.elf.

    Raises:
        ToolchainError: the linker is missing or reports an error.
    """
    elf = folder.resolve() / "firmware.elf"
    _run([_compiler(), *flags, *map(str, objects), "-o", str(elf)], folder.resolve(), "linking")
    return elf


def _compile(sources: Sequence[str], folder: Path, work: Path, flags: Sequence[str]) -> list[Path]:
    """Compile files of `folder` to objects in `work`; objects that are there stay."""
    compiler = _compiler()

    def compile_one(source: str) -> Path:
        target = work / Path(source).with_suffix(".o")
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        _run([compiler, *flags, "-c", source, "-o", str(target)], folder, f"compiling {source}")
        return target

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_one, sources))


def _run_platformio(project: Project, folder: Path, work: Path) -> Compiled:
    _compiler()
    folder, work = folder.resolve(), work.resolve()
    core = work / "core"
    _provide_scons(core)
    environment = {
        **os.environ,
        "PLATFORMIO_CORE_DIR": str(core),
        "PLATFORMIO_WORKSPACE_DIR": str(work / "pio"),
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no",
        "PLATFORMIO_DISABLE_UPGRADE_CHECK": "true",
        "PLATFORMIO_NO_ANSI": "true",
        "PYTHONWARNINGS": "ignore",
    }
    for name in ("PLATFORMIO_BUILD_FLAGS", "PLATFORMIO_SRC_DIR", "PLATFORMIO_BUILD_DIR", "PLATFORMIO_DEFAULT_ENVS"):
        environment.pop(name, None)
    build = work / "pio" / "build" / project.board.name
    # PlatformIO does not see that the linker script includes a generated one.
    (build / "firmware.elf").unlink(missing_ok=True)
    command = [sys.executable, "-m", "platformio", "run", "--project-dir", str(folder), "-e", project.board.name]
    _run(command, folder, "`pio run`", environment)
    graphs = tuple(sorted(build.rglob("*.ci")))
    if not (build / "firmware.elf").is_file() or not graphs:
        raise InternalError(f"`pio run` ended well but left no firmware.elf and call graphs in {build}")
    return Compiled(build / "firmware.elf", build / "firmware.map", graphs)


def _provide_scons(core: Path) -> None:
    """Put the installed SCons where PlatformIO looks for its package `tool-scons`, so that it downloads nothing."""
    from platformio.dependencies import get_core_dependencies

    folder = core / "packages" / "tool-scons"
    if (folder / ".piopm").is_file():
        return
    requirement = get_core_dependencies()["tool-scons"]
    numbers = re.findall(r"\d+", requirement)
    version = ".".join((numbers + ["0", "0", "0"])[:3])
    spec = importlib.util.find_spec("SCons")
    if spec is None or spec.origin is None:
        raise ToolchainError(
            "the Python package SCons is not installed", 'Install it with: pip install "tinykd[build]".'
        )
    site = str(Path(spec.origin).resolve().parent.parent)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scons.py").write_text(
        f"import sys\n\nsys.path.insert(0, {site!r})\nfrom SCons.Script import main\n\nsys.exit(main())\n"
    )
    (folder / "package.json").write_text(json.dumps({"name": "tool-scons", "version": version, "description": "SCons"}))
    (folder / ".piopm").write_text(
        json.dumps(
            {
                "type": "tool",
                "name": "tool-scons",
                "version": version,
                "spec": {"owner": "platformio", "id": None, "name": "tool-scons", "requirements": None, "uri": None},
            }
        )
    )
