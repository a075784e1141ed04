"""Artefacts survive full disks and killed writers."""

import os
import subprocess
import sys

import pytest

from tinykd.artifact import draft_artifact, read_manifest
from tinykd.errors import ArtifactError


def _write(folder, text):
    with draft_artifact(folder, "plan") as draft:
        draft.path("file.txt").write_text(text)


def test_a_failed_writer_leaves_the_old_artefact(tmp_path):
    """An exception inside the block keeps what stood there and leaves nothing beside it."""
    folder = tmp_path / "plan"
    _write(folder, "old")
    with pytest.raises(RuntimeError), draft_artifact(folder, "plan") as draft:
        draft.path("file.txt").write_text("new")
        raise RuntimeError
    assert (folder / "file.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_killed_writer_is_cleaned_up_by_the_next(tmp_path):
    """What a killed process left behind is removed by the next writer, and the old artefact is still whole."""
    folder = tmp_path / "plan"
    _write(folder, "old")
    script = (
        "import os, sys, pathlib; from tinykd.artifact import draft_artifact\n"
        "with draft_artifact(pathlib.Path(sys.argv[1]), 'plan') as draft:\n"
        "    draft.path('file.txt').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert read_manifest(folder, "plan") and (folder / "file.txt").read_text() == "old"
    _write(folder, "new")
    assert (folder / "file.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_an_artefact_that_lost_its_name_gets_it_back(tmp_path):
    """Killed between the two renames: the next writer restores the old artefact before it begins."""
    folder = tmp_path / "plan"
    _write(folder, "old")
    os.replace(folder, tmp_path / ".plan.999999999.old")
    with pytest.raises(RuntimeError), draft_artifact(folder, "plan"):
        raise RuntimeError
    assert (folder / "file.txt").read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path):
    """On a disk with no room left the old artefact stays, nothing half-written is found, and the message says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        folder = disk / "plan"
        _write(folder, "old")
        with pytest.raises(ArtifactError, match="No space left") as caught:
            _write(folder, "x" * 100_000)
        assert caught.value.exit_code == 2
        assert "unchanged" in caught.value.next_step
        assert read_manifest(folder, "plan") and (folder / "file.txt").read_text() == "old"
        assert [path.name for path in disk.iterdir()] == ["plan"]
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_folder_below_a_file_is_an_error_of_the_users(tmp_path):
    """An output folder below a plain file is a usage error, not an internal one."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        _write(tmp_path / "file" / "plan", "x")
