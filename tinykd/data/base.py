"""The shape that every data set takes, and the splitting that all of them share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinykd.errors import DataError

if TYPE_CHECKING:
    from tinykd.config import DataConfig
    from tinykd.data import DatasetEntry

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C) and labels int64 (N,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.intp]) -> Split:
        """Return the images at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class RawDataset:
    """What a reader returns: its own split into train and test, and into val where the source has one.

    `provenance` maps facts ("source", "sha256", "licence", ...) to text.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    provenance: dict[str, str]
    val: Split | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training, calibration and test.

    The student sees `(pixel - mean_level) / std_level`, the same for every channel.

    Attributes:
        name: its registry name.
        train: images for training and calibration.
        val: images for watching the training; may be empty.
        test: images for the final accuracy only.
        classes: class names; labels index them.
        mean_level: level 0..255.
        std_level: levels per unit.
        provenance: where it came from, with SHA-256 digests.
        notes: what was changed on the way in, for people.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean_level: int
    std_level: float
    provenance: dict[str, str]
    notes: tuple[str, ...] = field(default=())

    @property
    def resolution(self) -> int:
        """Side of the square images, pixels."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.train.images.shape[3])


def stratified_indices(labels: Labels, count: int, seed: int) -> npt.NDArray[np.intp]:
    """Return `count` sorted indices whose classes are represented as in `labels`, to within one image.

    Raises:
        DataError: `count` is more than there are labels.
    """
    if count > len(labels):
        raise DataError(f"{count} images are asked for, but there are only {len(labels)}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    rank_in_class = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank_in_class[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.sort(np.argsort(rank_in_class, kind="stable")[:count])


def _digests(images: Images) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def assemble(entry: DatasetEntry, config: DataConfig, raw: RawDataset) -> Dataset:
    """Return the finished data set: checked, split, leaks removed, subset taken, levels filled in.

    An image of train that is also in val or test is dropped from train, so the three are disjoint by content.

    Raises:
        DataError: shapes or labels contradict each other, or too few images are left.
    """
    for name, split in (("train", raw.train), ("test", raw.test), ("val", raw.val)):
        if split is not None:
            _check(f"{entry.name}/{name}", split, len(raw.classes))
    train, notes = raw.train, []
    if raw.val is not None:
        val = raw.val
    else:
        default = entry.val_size if entry.val_size is not None else len(train) // 10
        val_size = default if config.val_size is None else config.val_size
        if val_size >= len(train):
            raise DataError(f"{entry.name}: val_size {val_size} leaves nothing of {len(train)} training images")
        chosen = stratified_indices(train.labels, val_size, config.seed)
        keep = np.ones(len(train), dtype=bool)
        keep[chosen] = False
        val, train = train.take(chosen), train.take(np.flatnonzero(keep))
    test_digests, val_digests = set(_digests(raw.test.images)), _digests(val.images)
    clean = np.array([digest not in test_digests for digest in val_digests], dtype=bool)
    if not clean.all():
        notes.append(f"{int((~clean).sum())} images of validation are also in test; dropped from validation")
        val = val.take(np.flatnonzero(clean))
    held_out = test_digests | set(val_digests)
    clean = np.array([digest not in held_out for digest in _digests(train.images)], dtype=bool)
    if not clean.all():
        notes.append(f"{int((~clean).sum())} images of train are also in validation or test; dropped from train")
        train = train.take(np.flatnonzero(clean))
    if config.subset is not None:
        if config.subset > len(train):
            raise DataError(f"{entry.name}: data.subset {config.subset} is more than the {len(train)} training images")
        train = train.take(stratified_indices(train.labels, config.subset, config.seed + 1))
        notes.append(f"trained on a subset of {config.subset} images")
    if len(train) == 0 or len(raw.test) == 0:
        raise DataError(f"{entry.name}: {len(train)} training and {len(raw.test)} test images; both need at least one")
    test = raw.test
    if config.test_subset is not None and config.test_subset < len(test):
        test = test.take(stratified_indices(test.labels, config.test_subset, config.seed + 2))
        notes.append(f"tested on a subset of {config.test_subset} images")
    mean = config.mean_level if config.mean_level is not None else entry.mean_level
    std = config.std_level if config.std_level is not None else entry.std_level
    if mean is None:
        mean = round(float(train.images.mean(dtype=np.float64)))
    if std is None:
        std = max(float(round(float(train.images.std(dtype=np.float64)))), 1.0)
    return Dataset(
        name=entry.name,
        train=train,
        val=val,
        test=test,
        classes=raw.classes,
        mean_level=mean,
        std_level=std,
        provenance=raw.provenance,
        notes=tuple(notes),
    )


def _check(name: str, split: Split, num_classes: int) -> None:
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise DataError(f"{name}: expected uint8 images (N, H, W, 1 or 3), found {images.dtype} {images.shape}")
    if images.shape[1] != images.shape[2]:
        raise DataError(f"{name}: images must be square, found {images.shape[1]}x{images.shape[2]}")
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(f"{name}: labels {labels.min()}..{labels.max()} do not index {num_classes} classes")
