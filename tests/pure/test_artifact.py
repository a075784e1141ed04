"""Artefact folders: complete or absent, and refused when they differ from their manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykd
from tinykd.artifact import MANIFEST, draft_artifact, read_manifest, sha256_file, write_bytes, write_json
from tinykd.errors import ArtifactError


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """Return a finished artefact with a file and one in a sub-folder."""
    folder = tmp_path / "runs" / "export"
    with draft_artifact(
        folder, "export", inputs={"student": "0" * 64}, config={"bits": 8}, seed=3, board="b", tools={"gcc": "12"}
    ) as draft:
        draft.path("model.tflite").write_bytes(b"model")
        draft.path("deep/er/file.txt").write_text("text")
        draft.results["top1"] = 0.5
    return folder


def test_manifest_says_what_the_folder_is_made_of(artefact: Path) -> None:
    """Stage, hashes, configuration, seed, board, tools and results come back as they were written."""
    manifest = read_manifest(artefact, "export")
    assert manifest.outputs == {
        "deep/er/file.txt": sha256_file(artefact / "deep/er/file.txt"),
        "model.tflite": sha256_file(artefact / "model.tflite"),
    }
    assert manifest.inputs == {"student": "0" * 64} and manifest.config == {"bits": 8}
    assert (manifest.seed, manifest.board, manifest.results) == (3, "b", {"top1": 0.5})
    assert manifest.tools == {"tinykd": tinykd.__version__, "gcc": "12"}


def test_same_contents_give_the_same_manifest(tmp_path: Path) -> None:
    """Nothing in a manifest depends on the clock, the folder or the process."""
    for name in ("a", "b"):
        with draft_artifact(tmp_path / name, "plan", seed=1) as draft:
            draft.path("plan.json").write_text("{}")
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_nothing_but_the_artefact_is_left(artefact: Path) -> None:
    """The temporary folder is gone after success."""
    assert [path.name for path in artefact.parent.iterdir()] == ["export"]


def test_a_failure_leaves_what_was_there(artefact: Path) -> None:
    """An exception inside the block passes through; the old artefact stands and no half of the new one does."""
    before = sha256_file(artefact / MANIFEST)
    with pytest.raises(ZeroDivisionError), draft_artifact(artefact, "export") as draft:
        draft.path("model.tflite").write_bytes(b"half")
        raise ZeroDivisionError
    assert sha256_file(artefact / MANIFEST) == before
    assert [path.name for path in artefact.parent.iterdir()] == ["export"]


def test_a_new_artefact_replaces_every_old_file(artefact: Path) -> None:
    """Files of the previous artefact do not survive among the new ones."""
    with draft_artifact(artefact, "export") as draft:
        draft.path("other.txt").write_text("new")
    assert sorted(path.name for path in artefact.iterdir()) == [MANIFEST, "other.txt"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.tflite").write_bytes(b"other"), "model.tflite differs"),
        (lambda folder: (folder / "model.tflite").unlink(), "missing instead of"),
        (lambda folder: (folder / MANIFEST).unlink(), "not a finished tinykd artefact"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text('{"stage": "export", "more": 1}'), "cannot be read"),
    ],
)
def test_damage_is_refused_with_the_file_and_a_next_step(artefact: Path, damage, message: str) -> None:
    """Every way in which a folder can be broken names the file and says which step to run again."""
    damage(artefact)
    with pytest.raises(ArtifactError, match=message) as error:
        read_manifest(artefact, "export")
    assert error.value.next_step


def test_another_stage_or_schema_is_refused(artefact: Path) -> None:
    """A folder of another stage, or of a later version's schema, is not read by accident."""
    with pytest.raises(ArtifactError, match="made by stage 'export', not by 'plan'"):
        read_manifest(artefact, "plan")
    raw = json.loads((artefact / MANIFEST).read_text())
    (artefact / MANIFEST).write_text(json.dumps({**raw, "schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema version 99"):
        read_manifest(artefact)


def test_unverified_reading_does_not_hash(artefact: Path) -> None:
    """verify=False reads the record of a folder whose large files are not at hand."""
    (artefact / "model.tflite").unlink()
    assert read_manifest(artefact, "export", verify=False).stage == "export"


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    """The same object gives the same bytes, whatever the order of its keys."""
    write_json(tmp_path / "a.json", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "b.json", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text().endswith("}\n")


def test_write_bytes_makes_folders_and_replaces(tmp_path: Path) -> None:
    """The second write replaces the first one whole, and no temporary file stays."""
    path = tmp_path / "new" / "file"
    write_bytes(path, b"long contents")
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x" and [item.name for item in path.parent.iterdir()] == ["file"]


@given(data=st.binary(max_size=3_000_000 // 1000))
def test_sha256_is_that_of_the_standard_library(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """The digest of a file is SHA-256 of its bytes, in 64 hex digits."""
    import hashlib

    path = tmp_path_factory.mktemp("sha") / "file"
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()
