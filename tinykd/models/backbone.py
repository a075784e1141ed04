"""What every network of the registry can tell about itself: the chain of its parts and where its stages end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class StageTaps:
    """Where the usual feature maps of a network are, as taps (see `tinykd.models.taps`).

    Attributes:
        stem: output of the first convolution, activated.
        stages: output of the last block of each stage, after its activation where it has one.
        preacts: the same before the activation, as activation boundaries need them.
        pooled: the (N, D) embedding in front of the classifier.
    """

    stem: str
    stages: tuple[str, ...]
    preacts: tuple[str, ...]
    pooled: str


class Backbone(nn.Module):
    """A network that is a chain of submodules, from (N, C, H, W) images to (N, num_classes) logits."""

    def chain(self) -> tuple[str, ...]:
        """Return the paths of the submodules that run one after another; the last one gives the logits."""
        raise NotImplementedError(f"{type(self).__name__} does not define chain")

    def stage_taps(self) -> StageTaps:
        """Return where the network's feature maps are."""
        raise NotImplementedError(f"{type(self).__name__} does not define stage_taps")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, num_classes) logits."""
        for path in self.chain():
            x = self.get_submodule(path)(x)
        return x


class GlobalMean(nn.Module):
    """Mean over height and width: (N, C, H, W) to (N, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of each channel."""
        return x.mean(dim=(2, 3))
