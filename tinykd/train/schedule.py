"""Learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from tinykd.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based `step`.

    Linear warm-up from `warmup_start` * lr over `warmup_epochs`, then half a cosine down to 0 at the last step, or
    steps by `gamma` at the start of each epoch in `milestones`.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * (config.warmup_start + (1 - config.warmup_start) * step / warmup_steps)
    if config.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return config.lr * config.gamma**passed
    total = config.epochs * steps_per_epoch - warmup_steps
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total, 1)))
