"""mixup (Zhang et al., ICLR 2018, arXiv:1710.09412): convex combinations of pairs of images of a batch."""

from __future__ import annotations

import numpy as np
import torch


def mixup(
    images: torch.Tensor, labels: torch.Tensor, alpha: float, seed: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix each image of a batch with another one of it, all with the same share.

    Args:
        images: (N, C, H, W) float.
        labels: (N,) int64.
        alpha: the share is drawn from Beta(alpha, alpha); above 0.
        seed: two numbers that decide the draws, so that they need no state: training seed and step.

    Returns:
        The mixed images `share * images + (1 - share) * images[order]`, the other images' labels (N,), and the share,
        0-d float32.
    """
    rng = np.random.default_rng(seed)
    share = torch.tensor(rng.beta(alpha, alpha), dtype=torch.float32, device=images.device)
    order = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return share * images + (1 - share) * images[order], labels[order], share
