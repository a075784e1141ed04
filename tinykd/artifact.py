"""Artefacts: a folder with plain files and a `manifest.json` that says what they are made of.

A stage writes into a temporary folder beside its final place and moves it there when it is complete, so that a reader
never sees half an artefact: a killed or failed stage leaves the previous result untouched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tinykd
from tinykd.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# The folder cannot be written; any other OSError inside a stage is not about the artefact.
_CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically: the file is either the old or the whole new one."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically (a temporary file in the same folder, then a rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error} ({len(data)} B wanted)",
            "Free disk space or choose another folder with --out; nothing was changed.",
        ) from error


@dataclass(frozen=True)
class Manifest:
    """What an artefact folder contains and where it came from.

    `inputs` and `outputs` map names to SHA-256 digests; outputs are file names relative to the folder.
    """

    stage: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    board: str | None = None
    tools: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as the JSON object that is written to disk."""
        return dict(self.__dict__)


class Draft:
    """A stage's output folder while it is being written; see `draft_artifact`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Return the place for the output file `name`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def draft_artifact(
    folder: Path,
    stage: str,
    *,
    inputs: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    board: str | None = None,
    tools: Mapping[str, str] | None = None,
) -> Iterator[Draft]:
    """Write an artefact all or nothing.

    Inside the `with` block, write files at `draft.path(name)` and facts into `draft.results`. On a normal exit every
    file is hashed, `manifest.json` is written and the folder takes its final name; on an exception it is removed and
    whatever stood at `folder` before stays.

    Raises:
        ArtifactError: the folder cannot be written (full disk, permission).
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    _remove_leftovers(folder)
    try:
        try:
            temporary.mkdir(parents=True)
            draft = Draft(temporary)
            yield draft
            outputs = {
                str(path.relative_to(temporary)): sha256_file(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = Manifest(
                stage=stage,
                inputs=dict(inputs or {}),
                outputs=outputs,
                config=dict(config or {}),
                seed=seed,
                board=board,
                tools={"tinykd": tinykd.__version__, **(tools or {})},
                results=draft.results,
            )
            write_json(temporary / MANIFEST, manifest.to_dict())
            _swap(temporary, folder)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise ArtifactError(
                f"{stage}: cannot write {folder}: {error.strerror or error}",
                "Free disk space or choose another folder with --out; what stood there before is unchanged.",
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, folder: Path) -> None:
    """Give `temporary` the name `folder`; what had it before goes only after that."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left beside `folder`; an old artefact that lost its name gets it back."""
    for path in folder.parent.glob(f".{folder.name}.*.*"):
        pid, _, kind = path.name.removeprefix(f".{folder.name}.").partition(".")
        if kind not in ("tmp", "old") or not pid.isdigit() or (int(pid) != os.getpid() and _is_alive(int(pid))):
            continue
        if kind == "old" and not folder.exists():
            os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_manifest(folder: Path, stage: str | None = None, *, verify: bool = True) -> Manifest:
    """Read and check the manifest of an artefact folder.

    Args:
        folder: the artefact folder.
        stage: the stage it must come from; None accepts any.
        verify: also re-hash every output file and compare.

    Raises:
        ArtifactError: missing, of another stage or schema, or a file differs from its hash.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
        manifest = Manifest(**raw)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {MANIFEST}: it is not a finished tinykd artefact",
            f"Run the '{stage}' step first." if stage else "Run the step that makes it first.",
        ) from None
    except (json.JSONDecodeError, TypeError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "Delete the folder and run that step again.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {manifest.schema_version}; this tinykd reads {SCHEMA_VERSION}",
            "Run that step again with this version of tinykd.",
        )
    if stage is not None and manifest.stage != stage:
        raise ArtifactError(f"{folder} was made by stage '{manifest.stage}', not by '{stage}'")
    if verify:
        for name, digest in manifest.outputs.items():
            file = folder / name
            found = sha256_file(file) if file.is_file() else "missing"
            if found != digest:
                raise ArtifactError(
                    f"{file} differs from its manifest: {found[:12]} instead of {digest[:12]}",
                    f"Run the '{manifest.stage}' step again, or restore the file.",
                )
    return manifest
