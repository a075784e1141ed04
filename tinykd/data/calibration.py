"""Calibration sets for quantisation: always from the training images, never from validation or test."""

from __future__ import annotations

from tinykd.data.base import Dataset, Images, stratified_indices


def calibration_images(dataset: Dataset, count: int, seed: int = 0) -> Images:
    """Return `count` images uint8 (count, H, W, C) of the train split, classes represented as there.

    With fewer training images than `count`, all of them are returned. The same arguments give the same images.
    """
    count = min(count, len(dataset.train))
    return dataset.train.images[stratified_indices(dataset.train.labels, count, seed)]
