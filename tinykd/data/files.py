"""Where data files are looked for, how they are downloaded, and the cache that keeps downloads and decoded arrays."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinykd.artifact import sha256_file
from tinykd.errors import DataError

TIMEOUT_S = 30
_CACHE_VERSION = 1


def cache_dir() -> Path:
    """Return the folder for downloads and decoded arrays: TINYKD_CACHE, or the platform's cache folder for the user."""
    if named := os.environ.get("TINYKD_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinykd"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tinykd" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinykd"


def data_folders(root: str | None, name: str) -> list[Path]:
    """Return the folders that may hold the files of data set `name`, the nearest first.

    With `data.root` in the recipe it is that folder alone; otherwise TINYKD_DATA and the cache's downloads. Each
    folder is followed by its sub-folder `name`.

    Raises:
        DataError: `root` is given and is no folder.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise DataError(f"{name}: data.root '{root}' is not a folder")
        return [folder, folder / name]
    named = os.environ.get("TINYKD_DATA")
    folders = [Path(named).expanduser()] if named else []
    return [path for folder in [*folders, cache_dir() / "downloads"] for path in (folder, folder / name)]


def first_file(folders: Iterable[Path], *names: str) -> Path | None:
    """Return the first existing file among `folders` x `names`, folders first; None when there is none."""
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


@dataclass(frozen=True)
class Download:
    """A file on its official host, with the checksum that is published there."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def fetch(download: Download, dataset: str) -> Path:
    """Return the downloaded file from the cache, fetching and checking it first when it is not there.

    The file appears in the cache only when it is complete and its checksum is right.

    Raises:
        DataError: no network, wrong checksum, or no room; it says which file to put where.
    """
    path = cache_dir() / "downloads" / download.name
    if path.is_file():
        return path
    place = (
        f"Without a network: put {download.name} (MD5 {download.md5}) into the folder that the environment variable "
        f"TINYKD_DATA names, or that the recipe's data.root names."
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(download.url, timeout=TIMEOUT_S) as response, partial.open("wb") as file:
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != download.md5:
            raise DataError(
                f"{dataset}: {download.url} has MD5 {digest.hexdigest()} instead of {download.md5}; it was not kept",
                f"Try again. {place}",
            )
        os.replace(partial, path)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{dataset}: cannot download {download.url}: {reason}", place) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def digest_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 (64 hex digits) over the contents of the files, in the order given."""
    digests = [sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz file; pickled objects in it are refused.

    Raises:
        OSError, ValueError, EOFError, zipfile.BadZipFile: missing or broken.
    """
    # Opened here and not by numpy, which leaves a file that is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def cached_arrays(key: str, make: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that `make` returns, from the cache when they were made before.

    `key` must change with everything that the arrays depend on; it is part of the file's name. A cache that cannot be
    read or written costs time and nothing else, so such errors are not raised.
    """
    path = cache_dir() / "decoded" / f"{key}-v{_CACHE_VERSION}.npz"
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return read_npz(path)
    arrays = dict(make())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return arrays
