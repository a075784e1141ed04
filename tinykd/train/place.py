"""Where a training happens: the data, the device, the processes and the display, together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from tinykd.data.augment import Augment
from tinykd.data.base import Dataset
from tinykd.train.cluster import Cluster
from tinykd.train.loop import DeviceSplit
from tinykd.train.progress import Progress


@dataclass(frozen=True)
class Place:
    """What all trainings of a run share."""

    dataset: Dataset
    augment: Augment
    device: torch.device
    cluster: Cluster
    progress: Progress

    @cached_property
    def test(self) -> DeviceSplit:
        """The test split on the device."""
        return DeviceSplit(self.dataset.test, self.device)
