"""Passes with a regularizer: what a recipe's `regularize` drops inside the student, in every pass of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from tinykd.config import RegularizeConfig
from tinykd.distill.base import ModelView, require_maps
from tinykd.models.regularize import Regularizer, regularized_taps
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.ema import Ema
from tinykd.train.passes import Passes


def regularize(passes: Passes | None, config: RegularizeConfig, epochs: int, cluster: Cluster = SOLO) -> Passes | None:
    """Return the passes of a stage of so many epochs with its regularizer, or as they are where nothing is dropped."""
    if not (config.dropout or config.spatial_dropout or config.dropblock):
        return passes
    return Regularized(passes or Passes(), config, epochs, cluster)


def check_regularizer(config: RegularizeConfig, student: ModelView) -> None:
    """Raise ConfigError for taps that the student does not have, or that are no (C, H, W) maps."""
    _, maps = regularized_taps(config, student.module, student.name)
    require_maps(f"regularize: {student.name}", student.shapes(maps))


class Regularized(Passes):
    """Other passes, each with the regularizer in the student.

    Args:
        inner: which passes a step makes.
        config: what is dropped, and where.
        epochs: of the stage: DropBlock's share grows over them.
        cluster: the processes that share each batch.
    """

    def __init__(self, inner: Passes, config: RegularizeConfig, epochs: int, cluster: Cluster) -> None:
        self.inner, self.config, self.epochs, self.cluster = inner, config, epochs, cluster

    def begin(self, model: nn.Module) -> nn.Module:
        """Return what is trained, and find the regularizer's taps in it."""
        trained = self.inner.begin(model)
        self.regularizer = Regularizer(self.config, trained, "student", self.cluster.rank, self.cluster.size)
        return trained

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
        """Prepare the 0-based epoch."""
        self.inner.start_epoch(epoch, optimizer, ema)

    def run(self, step: int, steps_per_epoch: int) -> Iterator[float]:
        """Yield the weight of each pass of the 0-based step, with the regularizer attached until the step ends."""
        self.regularizer.set_progress(step / (self.epochs * steps_per_epoch))
        with self.regularizer.attached():
            yield from self.inner.run(step, steps_per_epoch)

    def narrow(self, features: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Cut features of an augmented pass to the channels that the student itself has."""
        return self.inner.narrow(features)

    def ready(self, model: nn.Module) -> nn.Module:
        """Return the model ready to be evaluated as the student."""
        return self.inner.ready(model)

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the plain student."""
        return self.inner.finish(model)
