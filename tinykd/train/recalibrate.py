"""Batch norm statistics of a network as it is now, from images that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tinykd.train.cluster import SOLO, Cluster


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor], cluster: Cluster = SOLO) -> None:
    """Give each batch norm the statistics of these batches, every layer fed as in training.

    The running mean becomes the mean of the batches' means, the running variance that of their biased variances, both
    weighted by the batches' sizes. The model is left in eval mode.

    Args:
        model: plain.
        batches: (N, C, H, W) each; with several processes this one's share of them.
        cluster: the processes.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    sums = {norm: torch.zeros((2, norm.num_features), device=norm.weight.device) for norm in norms}
    steps = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    count = torch.zeros((), device=norms[0].weight.device)

    def note(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        variance, mean = torch.var_mean(x, dim=(0, *range(2, x.ndim)), correction=0)
        sums[norm] += len(x) * torch.stack([mean, variance])  # type: ignore[index]

    model.eval()
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        for norm in norms:
            norm.train()
        for batch in batches:
            model(batch)
            count += len(batch)
    finally:
        model.eval()
        for handle in handles:
            handle.remove()
    cluster.sum(count)
    for norm, step in zip(norms, steps, strict=True):
        norm.num_batches_tracked = step
        mean, variance = cluster.sum(sums[norm]) / count
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
