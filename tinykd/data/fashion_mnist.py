"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747) from its four IDX files, packed with gzip or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinykd.data.base import RawDataset, Split
from tinykd.data.files import Download, data_folders, digest_files, fetch, first_file
from tinykd.errors import DataError

if TYPE_CHECKING:
    from tinykd.config import DataConfig

HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def read(config: DataConfig) -> RawDataset:
    """Return the official 60,000 training and 10,000 test images.

    Raises:
        DataError: a file is broken, or missing and out of reach.
    """
    folders = data_folders(config.root, "fashion-mnist")
    if config.root is None:
        folders.append(DEBIAN_FOLDER)
    paths = []
    for packed, md5 in MD5.items():
        path = first_file(folders, packed, packed.removesuffix(".gz"))
        if path is None and config.root is not None:
            raise DataError(f"fashion-mnist: {packed} is not in {config.root}", "All four IDX files must be there.")
        paths.append(path or fetch(Download(f"{HOST}/{packed}", md5), "fashion-mnist"))
    arrays = [read_idx(path) for path in paths]
    splits = []
    for images, labels, path in zip(arrays[::2], arrays[1::2], paths[::2], strict=True):
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(f"fashion-mnist: {path} has shape {images.shape} and its labels {labels.shape}")
        splits.append(Split(images[..., None], labels.astype(np.int64)))
    return RawDataset(
        train=splits[0],
        test=splits[1],
        classes=CLASSES,
        provenance={"source": "Fashion-MNIST, Zalando Research", "licence": "MIT", "sha256": digest_files(paths)},
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file of bytes, gzipped or not (magic 00 00 08 and the number of dimensions).

    Raises:
        DataError: unreadable, of another type, or of another length than its header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Delete it and get it again.") from error
    dimensions = raw[3] if len(raw) >= 4 else 0
    start = 4 + 4 * dimensions
    if raw[:3] != b"\x00\x00\x08" or not 1 <= dimensions <= 4 or len(raw) < start:
        raise DataError(f"{path} is not an IDX file of bytes", "Delete it and get it again.")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, 4))
    expected = start + int(np.prod(shape))
    if len(raw) != expected:
        raise DataError(f"{path} has {len(raw)} B, but its header says {expected} B", "Delete it and get it again.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
