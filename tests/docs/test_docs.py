"""What the documents say is true: links lead somewhere, commands exist, folders are all named, marked blocks run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tinykd.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r'(?:src|srcset|href)="([^"]+)"')
BLOCK = re.compile(r"(?:<!-- test: (\w+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)


def page_id(path: Path) -> str:
    """Return a page's place in the repository, for test ids."""
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, made as the usual viewers make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
    return set(plain)


def blocks(path: Path, mark: str) -> list[str]:
    """Return the code blocks of a page below the comment `<!-- test: mark -->`."""
    return [code for found, _, code in BLOCK.findall(path.read_text(encoding="utf-8")) if found == mark]


def commands(path: Path) -> Iterator[list[str]]:
    """Yield each `tinykd ...` command line that stands in a code block or in backticks, split into words."""
    text = path.read_text(encoding="utf-8")
    lines = [line.strip() for _, _, code in BLOCK.findall(text) for line in code.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    tinykd ")]
    lines += re.findall(r"`(tinykd [^`]+)`", text)
    for line in lines:
        if line.startswith("tinykd "):
            line = re.split(r"\s{2,}|[|>#]", line.replace("\\|", "/"))[0]
            yield shlex.split(line)[1:]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the repository, and every anchor in it, exists."""
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text) + SOURCE.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = path if not file else (path.parent / file).resolve()
        if not place.exists() or (anchor and anchor not in anchors(place.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached() -> None:
    """Each page of docs/ is linked from docs/index.md."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in LINK.findall(index)}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]} - {"index.md"}
    assert sorted(pages - linked) == []


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_and_their_options_exist(path: Path) -> None:
    """Every `tinykd VERB --option` that a page shows is one that the program has."""
    wrong = []
    for words in commands(path):
        verb = words[0].rstrip(":,.") if words else ""
        if not re.fullmatch(r"[a-z-]+", verb) or verb.startswith("-"):
            continue
        if verb not in COMMANDS:
            wrong.append(" ".join(words))
            continue
        command: click.Command = importlib.import_module(COMMANDS[verb][0]).command
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        known |= {"--help", "--debug"}
        used = {word.partition("=")[0] for word in words[1:] if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        wrong += [f"{' '.join(words)}: {option}" for option in sorted(used - known)]
    assert wrong == []


def test_every_verb_is_documented() -> None:
    """docs/command-line.md has each verb of the program."""
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [verb for verb in COMMANDS if f"`tinykd {verb}" not in text] == []


def test_layout_names_every_folder() -> None:
    """docs/layout.md has every folder of the package and of the top level, and names none that does not exist."""
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    skipped = {"__pycache__", "_resources"}
    package = [path for path in (ROOT / "tinykd").iterdir() if path.is_dir() and path.name not in skipped]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("this is not a git checkout: the top level's own folders are not known")
    top = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line}
    missing = [f"tinykd/{path.name}/" for path in package if f"`tinykd/{path.name}/`" not in text]
    missing += [f"{name}/" for name in sorted(top) if f"`{name}/" not in text]
    assert missing == []
    named = re.findall(r"`((?:tinykd|firmware|docs|tests|scripts|boards|benchmarks)/[\w/.]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_glossary_defines_every_word_once() -> None:
    """The terms that names and pages use are each defined in docs/glossary.md, in bold, once."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    defined = [word.lower() for word in re.findall(r"\*\*([^*]+)\*\*", text)]
    wanted = (
        "teacher,student,logits,temperature,base network,augmented network,calibration set,PTQ,QAT,scale,zero_point,"
        "multiplier,shift,requantize,op,tensor,pass,live range,arena,scratch,offset,alignment,peak,lower bound,flash,"
        "SRAM,board,MCU,probe,host,device,emulator"
    )
    assert [word for word in wanted.split(",") if word.lower() not in defined] == []
    assert [word for word in set(defined) if defined.count(word) > 1] == []


def test_changelog_has_an_unreleased_part() -> None:
    """The first version of the changelog is 'Unreleased', with known groups only."""
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "Unreleased"
    groups = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_marked_blocks_run(tmp_path: Path) -> None:
    """Each block below `<!-- test: runs -->` runs as it stands in a folder with a `model.tflite`."""
    found = [(path, code) for path in PAGES for code in blocks(path, "runs")]
    assert found
    maker = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "make_tiny_model.py")
    assert maker and maker.loader
    module = importlib.util.module_from_spec(maker)
    maker.loader.exec_module(module)
    (tmp_path / "model.tflite").write_bytes(module.tflite_writer.write(module.tiny_graph()))
    path_variable = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for path, code in found:
        for line in code.splitlines():
            words = shlex.split(line)
            assert words[0] == "tinykd", line
            done = subprocess.run(
                [sys.executable, "-m", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path_variable},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{page_id(path)}: {line}\n{done.stderr}"


def test_marked_recipes_are_valid(tmp_path: Path) -> None:
    """Each block below `<!-- test: recipe -->` is a recipe without faults."""
    from tinykd.config import load_recipe

    found = [(path, code) for path in PAGES for code in blocks(path, "recipe")]
    assert found
    for index, (_, code) in enumerate(found):
        file = tmp_path / f"recipe{index}.yaml"
        file.write_text(code)
        assert load_recipe(file).data.name


def test_make_targets_of_the_readme_exist() -> None:
    """`make X` in README and tutorial is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "docs" / "tutorial.md"):
        used = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert used and used <= targets
