"""The shape of the code that design decisions rest on: data flows one way, and only one place knows each thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinykd
from tinykd.board import list_boards

PACKAGE = Path(tinykd.__file__).parent
ROOT = PACKAGE.parent
STAGES = ("train", "export", "plan", "build", "run", "report")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_resources" not in path.parts)


def name_of(path: Path) -> str:
    """Return a file's place in the package, for test ids."""
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (module, line) for every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_there_are_modules_to_look_at() -> None:
    """The walk below is not empty: every stage has code."""
    for stage in STAGES:
        assert any(name_of(path).startswith(f"{stage}/") for path in MODULES), stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage_and_no_command(stage: str) -> None:
    """Stages share ir, formats, board, artifact, config and errors; commands compose them."""
    forbidden = [f"tinykd.{other}" for other in STAGES if other != stage] + ["tinykd.commands", "tinykd.cli"]
    found = [
        f"{name_of(path)}:{line} imports {module}"
        for path in MODULES
        if name_of(path).startswith(f"{stage}/")
        for module, line in imports(path)
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]
    assert found == []


def test_shared_parts_import_no_stage() -> None:
    """ir, formats, data, models, distill and the modules at the top know nothing of the stages."""
    found = [
        f"{name_of(path)}:{line} imports {module}"
        for path in MODULES
        if name_of(path).split("/")[0] not in (*STAGES, "commands", "cli.py")
        for module, line in imports(path)
        if any(module == f"tinykd.{stage}" or module.startswith(f"tinykd.{stage}.") for stage in STAGES)
    ]
    assert found == []


def test_only_formats_knows_onnx_and_tflite() -> None:
    """The file formats' libraries are imported in tinykd/formats and nowhere else."""
    found = [
        f"{name_of(path)}:{line} imports {module}"
        for path in MODULES
        if not name_of(path).startswith("formats/")
        for module, line in imports(path)
        if module.split(".")[0] in ("onnx", "tflite", "flatbuffers")
    ]
    assert found == []


def test_no_code_asks_which_board_it_is() -> None:
    """A board is data: no comparison in Python and no macro in C names one."""
    names = set(list_boards())
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = [item.value for item in ast.walk(node) if isinstance(item, ast.Constant)]
                found += [f"{name_of(path)}:{node.lineno}" for value in constants if value in names]
    for path in (ROOT / "firmware").rglob("*.[ch]"):
        text = path.read_text(encoding="utf-8").lower().replace("-", "_")
        found += [str(path.relative_to(ROOT)) for name in names if name.replace("-", "_") in text]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    """Each module has a docstring whose first line ends the sentence."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text and len(text.splitlines()[0]) > 20


def test_no_bare_except_and_no_print_on_stdout() -> None:
    """Nothing is swallowed by a bare `except:`, and stdout is for results."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{name_of(path)}:{node.lineno} except:")
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print and not any(keyword.arg == "file" for keyword in node.keywords):
                found.append(f"{name_of(path)}:{node.lineno} print()")
    assert found == []
