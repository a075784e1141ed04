"""What methods with networks beside the student share: peers, branches and exits that learn together with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.base import Batch
from tinykd.models.layers import init_weights

_SEED_STRIDE = 7919
"""Between the seeds of networks that must differ: recipes use neighbouring numbers, which must not meet them."""


def seed_of(seed: int, number: int) -> int:
    """Return the seed of the network `number` (1, 2, ...) beside a student whose training has `seed`."""
    return seed + _SEED_STRIDE * number


def fresh_copy(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a module on the CPU with new weights from `seed`, in train mode; random state stays as it was.

    Every layer that can is reset, and convolutions, linear layers and batch norms are then drawn as for the students
    of the registry (`tinykd.models.layers.init_weights`).
    """
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
        init_weights(fresh)
    return fresh.requires_grad_(True).train()


def divergence(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Return `mean_n KL(probabilities_n || softmax(logits_n))`, summed over classes: a 0-d tensor.

    Args:
        logits: (N, K) float32 or float64.
        probabilities: (N, K) of the same type, rows sum to 1; zeros are allowed. No gradient flows into them.
    """
    return F.kl_div(F.log_softmax(logits, dim=1), probabilities.detach(), reduction="batchmean")


def mean_probabilities(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the networks' softmax, (N, K): the answer of an ensemble.

    Probabilities are averaged and not logits, so that every network has the same say.
    """
    return torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0)


@torch.no_grad()
def accuracies(
    predict: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], batches: Callable[[], Iterator[Batch]]
) -> dict[str, float]:
    """Return the top-1 accuracy 0..1 of several networks in one pass over the images.

    Args:
        predict: maps images (N, C, H, W) to name -> (N, K) logits or probabilities.
        batches: gives (images, labels).
    """
    correct: dict[str, torch.Tensor] = {}
    count = 0
    for images, labels in batches():
        count += len(labels)
        for name, scores in predict(images).items():
            correct[name] = correct.get(name, torch.zeros_like(labels[0])) + (scores.argmax(1) == labels).sum()
    return {name: int(number) / count for name, number in correct.items()}
