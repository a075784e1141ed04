"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in every form in which people have them.

Looked for in this order: the official archives or their extracted folders (binary or Python version), then archives of
mosaics (`cifar10_compact.npz`, `cifar100_lossless_a.npz` with `_b.npz`), then a download of the binary version.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinykd.data.base import RawDataset, Split
from tinykd.data.files import Download, cached_arrays, data_folders, digest_files, fetch, first_file, read_npz
from tinykd.errors import DataError

if TYPE_CHECKING:
    from tinykd.config import DataConfig

HOST = "https://www.cs.toronto.edu/~kriz"
SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE


@dataclass(frozen=True)
class _Edition:
    """The names that one of the two data sets uses for its parts."""

    name: str
    binary: Download
    python: Download
    binary_folder: str
    python_folder: str
    train_parts: tuple[str, ...]
    test_part: str
    label_bytes: int
    label_key: str
    names_file: str
    names_key: str
    mosaics: tuple[tuple[str, ...], ...]
    num_classes: int


_CIFAR10 = _Edition(
    name="cifar10",
    binary=Download(f"{HOST}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    python=Download(f"{HOST}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    binary_folder="cifar-10-batches-bin",
    python_folder="cifar-10-batches-py",
    train_parts=tuple(f"data_batch_{index}" for index in range(1, 6)),
    test_part="test_batch",
    label_bytes=1,
    label_key="labels",
    names_file="batches.meta.txt",
    names_key="label_names",
    mosaics=(("cifar10_lossless_a.npz", "cifar10_lossless_b.npz"), ("cifar10_compact.npz",)),
    num_classes=10,
)
_CIFAR100 = _Edition(
    name="cifar100",
    binary=Download(f"{HOST}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    python=Download(f"{HOST}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    binary_folder="cifar-100-binary",
    python_folder="cifar-100-python",
    train_parts=("train",),
    test_part="test",
    label_bytes=2,
    label_key="fine_labels",
    names_file="fine_label_names.txt",
    names_key="fine_label_names",
    mosaics=(("cifar100_lossless_a.npz", "cifar100_lossless_b.npz"), ("cifar100_compact.npz",)),
    num_classes=100,
)

# What the readers below raise on files that are cut, doctored or something else altogether.
_BROKEN = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    tarfile.TarError,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)

Arrays = dict[str, npt.NDArray[Any]]
ReadPart = Callable[[str], bytes]


def read_cifar10(config: DataConfig) -> RawDataset:
    """Return CIFAR-10, 50,000 training and 10,000 test images.

    Raises:
        DataError: a file is broken, or missing and out of reach.
    """
    return _read(_CIFAR10, config)


def read_cifar100(config: DataConfig) -> RawDataset:
    """Return CIFAR-100 with its 100 fine labels, 50,000 training and 10,000 test images.

    Raises:
        DataError: a file is broken, or missing and out of reach.
    """
    return _read(_CIFAR100, config)


def _read(edition: _Edition, config: DataConfig) -> RawDataset:
    source, paths, make = _find(edition, config.root)
    digest = digest_files(paths)
    try:
        arrays = cached_arrays(f"{edition.name}-{digest[:24]}", make)
    except _BROKEN as error:
        names = ", ".join(str(path) for path in paths[:2])
        raise DataError(
            f"{edition.name}: {names} cannot be read: {error or type(error).__name__}", "Delete it and get it again."
        ) from error
    return RawDataset(
        train=Split(arrays["x_train"], arrays["y_train"]),
        test=Split(arrays["x_test"], arrays["y_test"]),
        classes=tuple(str(name) for name in arrays["classes"]),
        provenance={"source": source, "licence": "none stated", "sha256": digest},
    )


def _find(edition: _Edition, root: str | None) -> tuple[str, list[Path], Callable[[], Arrays]]:
    """Return what the files are, the files, and how to read them."""
    folders = data_folders(root, edition.name)
    official = f"official {edition.name} files"
    for folder in folders:
        for name, reader in (
            (edition.binary_folder, _read_binary),
            (edition.python_folder, _read_python),
        ):
            suffix = ".bin" if reader is _read_binary else ""
            for place in (folder / name, folder):
                parts = [place / f"{part}{suffix}" for part in (*edition.train_parts, edition.test_part)]
                if all(part.is_file() for part in parts):
                    read_part = _part_of_folder(place)
                    return official, parts, lambda reader=reader, part=read_part: reader(edition, part)  # type: ignore[misc]
    for folder in folders:
        for archive, name, reader in (
            (edition.binary, edition.binary_folder, _read_binary),
            (edition.python, edition.python_folder, _read_python),
        ):
            path = first_file([folder], archive.name)
            if path is not None:
                return (
                    official,
                    [path],
                    lambda path=path, name=name, reader=reader: _read_archive(  # type: ignore[misc]
                        edition, path, name, reader
                    ),
                )
    for names in edition.mosaics:
        for folder in folders:
            paths = [folder / name for name in names]
            if all(path.is_file() for path in paths):
                how = "bit-exact" if len(paths) > 1 else "test bit-exact, training images through JPEG quality 95"
                return f"{' + '.join(names)} ({how})", paths, lambda paths=paths: _read_mosaics(paths)  # type: ignore[misc]
    if root is not None:
        raise DataError(
            f"{edition.name}: data.root '{root}' holds none of its files",
            f"It may hold {edition.binary.name}, {edition.binary_folder}/, {edition.python.name}, "
            f"{edition.python_folder}/ or {' + '.join(edition.mosaics[-1])}.",
        )
    path = fetch(edition.binary, edition.name)
    return official, [path], lambda: _read_archive(edition, path, edition.binary_folder, _read_binary)


def _part_of_folder(folder: Path) -> ReadPart:
    return lambda name: (folder / name).read_bytes()


def _read_archive(edition: _Edition, path: Path, folder: str, reader: Callable[[_Edition, ReadPart], Arrays]) -> Arrays:
    with tarfile.open(path) as archive:

        def read_part(name: str) -> bytes:
            member = archive.extractfile(f"{folder}/{name}")
            if member is None:
                raise ValueError(f"{folder}/{name} in it is not a file")
            return member.read()

        return reader(edition, read_part)


def _planes_to_images(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Map (N, 3072) bytes, planes red, green, blue, to (N, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _read_binary(edition: _Edition, read_part: ReadPart) -> Arrays:
    def records(part: str) -> npt.NDArray[np.uint8]:
        raw = np.frombuffer(read_part(f"{part}.bin"), np.uint8)
        record = edition.label_bytes + PIXEL_BYTES
        if not len(raw) or len(raw) % record:
            raise ValueError(f"{part}.bin has {len(raw)} B, not a multiple of {record} B")
        return raw.reshape(-1, record)

    train = np.concatenate([records(part) for part in edition.train_parts])
    test = records(edition.test_part)
    names = read_part(edition.names_file).decode("ascii").split()
    arrays: Arrays = {"classes": np.array(names[: edition.num_classes])}
    for split, table in (("train", train), ("test", test)):
        arrays[f"y_{split}"] = table[:, edition.label_bytes - 1].astype(np.int64)
        arrays[f"x_{split}"] = _planes_to_images(table[:, edition.label_bytes :])
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled arrays and plain containers, and refuses everything that could run code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which does not belong into CIFAR")
        return super().find_class(module, name)


def _read_python(edition: _Edition, read_part: ReadPart) -> Arrays:
    def load(part: str) -> Mapping[str, Any]:
        return _ArrayUnpickler(io.BytesIO(read_part(part)), encoding="latin1").load()

    arrays: Arrays = {}
    for split, parts in (("train", edition.train_parts), ("test", (edition.test_part,))):
        batches = [load(part) for part in parts]
        arrays[f"x_{split}"] = _planes_to_images(np.concatenate([np.asarray(batch["data"]) for batch in batches]))
        arrays[f"y_{split}"] = np.concatenate([np.asarray(batch[edition.label_key], np.int64) for batch in batches])
    meta = load("batches.meta" if edition.name == "cifar10" else "meta")
    arrays["classes"] = np.array([str(name) for name in meta[edition.names_key]])
    return arrays


def _read_mosaics(paths: list[Path]) -> Arrays:
    """Read archives of 1,000-image mosaics: keys test_000.. and train_000.. hold encoded pictures of 32x32 tiles."""
    from PIL import Image, features

    if not features.check("webp"):
        raise DataError(f"{paths[0]} holds WebP pictures, which this Pillow cannot read", "pip install -U pillow")
    stored: dict[str, npt.NDArray[Any]] = {}
    for path in paths:
        stored.update(read_npz(path))

    def tiles(key: str) -> npt.NDArray[np.uint8]:
        picture = np.asarray(Image.open(io.BytesIO(stored[key].tobytes())).convert("RGB"))
        rows, columns = picture.shape[0] // SIDE, picture.shape[1] // SIDE
        grid = picture.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
        return grid.reshape(rows * columns, SIDE, SIDE, 3)

    arrays: Arrays = {"classes": np.array([str(name) for name in stored["classes"]])}
    for split in ("train", "test"):
        keys = sorted(key for key in stored if key.startswith(f"{split}_"))
        labels = stored[f"y_{split}"].astype(np.int64)
        images = np.concatenate([tiles(key) for key in keys])[: len(labels)]
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images, labels
    return arrays
