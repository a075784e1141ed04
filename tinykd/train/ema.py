"""Exponential moving average of a model's weights and batch norm statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Keeps `average = decay * average + (1 - decay) * model`, with a shorter memory in the first steps.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten. Running means
    and variances are averaged like weights; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's state after the 0-based `step`."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, current in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(current, weight)
        for buffer, now in zip(self.model.buffers(), model.buffers(), strict=True):
            if buffer.is_floating_point():
                buffer.lerp_(now, weight)
            else:
                buffer.copy_(now)
