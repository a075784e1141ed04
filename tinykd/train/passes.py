"""Which forward and backward passes a step makes: one for plain training, more where the student is augmented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from tinykd.train.ema import Ema


class Passes:
    """Plain training: one pass of weight 1 through the student itself. The base of `NetAug`.

    The loop calls `begin` once, then for each epoch `start_epoch` and for each step `run`, and `ready` before every
    evaluation. `finish` gives the student that is saved.
    """

    def begin(self, model: nn.Module) -> nn.Module:
        """Return what is trained in place of the plain student."""
        return model

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
        """Prepare the 0-based epoch; called at its first step, not again when it is resumed in the middle."""

    def run(self, step: int, steps_per_epoch: int) -> Iterator[float]:
        """Yield the weight of each pass of the 0-based step, with the model set for it; the student's own is first."""
        yield 1.0

    def narrow(self, features: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Cut features of an augmented pass to the channels that the student itself has."""
        return features

    def ready(self, model: nn.Module) -> nn.Module:
        """Return the model (the trained one, or the averaged one) ready to be evaluated as the student."""
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the plain student."""
        return model
