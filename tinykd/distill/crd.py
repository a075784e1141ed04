"""Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    require_integer,
    require_number,
    unit_vectors,
)
from tinykd.distill.cc import embed
from tinykd.errors import ConfigError


def draw_negatives(
    index: torch.Tensor, labels: torch.Tensor, count: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Return for each image of a batch `count` others of other classes, all different: (N, count) int64.

    Args:
        index: (N,) int64, the batch's images.
        labels: (M,) int64, the classes of all images.
        count: at most the number of images outside of any class.
        generator: of the device of `labels`; None is torch's own.
    """
    draws = torch.rand((len(index), len(labels)), generator=generator, device=labels.device)
    draws.masked_fill_(labels[index].unsqueeze(1) == labels.unsqueeze(0), -1.0)
    return draws.topk(count, dim=1).indices


def log_normaliser(scores: torch.Tensor, num_images: int) -> torch.Tensor:
    """Return log Z, 0-d without gradient: Z is the mean of exp(scores) times the number of images (Wu et al. 2018)."""
    return scores.detach().flatten().logsumexp(dim=0) + math.log(num_images / scores.numel())


def nce_loss(scores: torch.Tensor, log_z: torch.Tensor, num_images: int) -> torch.Tensor:
    """Return the noise-contrastive loss of one positive against K negatives, a 0-d tensor (section 3.2 and appendix).

    With h = exp(score) / Z and c = K / M, it is `-mean_n (log h / (h + c) + sum_k log c / (h_k + c))`: the sum over the
    negatives, the mean over images. Written with softplus, nothing overflows.

    Args:
        scores: (N, 1 + K) products of embeddings divided by the temperature; the positive comes first.
        log_z: 0-d, the logarithm of Z.
        num_images: M.
    """
    log_odds = scores - log_z - math.log((scores.shape[1] - 1) / num_images)
    return (F.softplus(-log_odds[:, 0]) + F.softplus(log_odds[:, 1:]).sum(dim=1)).mean()


class Crd(FeatureMethod):
    """Contrastive distillation with memories, as in the authors' code (RepDistiller), on one pair of taps.

    Embeddings of student and teacher, of `dim` numbers and length 1, come from a trained linear layer each. A memory
    holds for every training image the running mean of its embedding, for either side. The student's embedding of an
    image is to be told apart: the teacher's memory of the same image is the positive, those of `negatives` images of
    other classes are the negatives; likewise the teacher's embedding against the student's memory. The two losses are
    added. Z is set by the first batch and stays. Memories change only in training. Usual weight: 0.8.

    A mixed image goes under the first of its two images. The memories, 8 * dim bytes for each training image, are part
    of every checkpoint.

    Args:
        dim: numbers of an embedding.
        negatives: K; where fewer images are outside of some class, as many as those.
        temperature: divides the products.
        momentum: share of the old value when an image's memory is renewed.
        student_taps, teacher_taps: one each, the embeddings by default; maps are flattened.

    Raises:
        ConfigError: a number outside its range, several pairs of taps, or images of a single class.
    """

    default_taps = "@pooled"

    def __init__(
        self,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_integer("crd", "dim", dim, least=1)
        require_integer("crd", "negatives", negatives, least=1)
        require_number("crd", "temperature", temperature, above=0)
        require_number("crd", "momentum", momentum, least=0)
        if momentum >= 1:
            raise ConfigError(f"crd: momentum must be below 1, or the memories never change; not {momentum!r}")
        self.dim, self.negatives = dim, negatives
        self.temperature, self.momentum = float(temperature), float(momentum)
        self.labels: torch.Tensor
        self.memory_student: torch.Tensor
        self.memory_teacher: torch.Tensor
        self.log_z: torch.Tensor

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Make the linear layers and the memories."""
        if len(student_shapes) != 1:
            raise ConfigError(f"crd: compares one pair of taps, not {len(student_shapes)}")
        count = len(context.labels)
        outside = count - int(torch.bincount(context.labels).max())
        if outside == 0:
            raise ConfigError(f"crd: needs images of at least two classes, but all {count} are of one")
        self.negatives = min(self.negatives, outside)
        self.embed_student = nn.Linear(math.prod(student_shapes[0]), self.dim)
        self.embed_teacher = nn.Linear(math.prod(teacher_shapes[0]), self.dim)
        self.register_buffer("labels", context.labels.clone(), persistent=False)
        bound = math.sqrt(3 / self.dim)
        for side in ("student", "teacher"):
            self.register_buffer(f"memory_{side}", torch.empty((count, self.dim)).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.inf))

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor; in training, renew the memories of its images."""
        if step.index is None:
            raise ValueError("crd needs to know which images the step holds, and the step has no index")
        [(student, teacher)] = self.pairs(step)
        negatives = draw_negatives(step.index, self.labels, self.negatives, step.generator)
        chosen = torch.cat([step.index.unsqueeze(1), negatives], dim=1)
        with torch.autocast(student.device.type, enabled=False):
            own_student = unit_vectors(embed(self.embed_student, student))
            own_teacher = unit_vectors(embed(self.embed_teacher, teacher))
            # Products with all of the memory, of which some are taken, are faster than copying K rows for each image.
            scores = [
                (own @ memory.T).gather(1, chosen) / self.temperature
                for own, memory in ((own_student, self.memory_teacher), (own_teacher, self.memory_student))
            ]
            count = len(self.labels)
            found = torch.stack([log_normaliser(side, count) for side in scores])
            log_z = torch.where(self.log_z.isinf(), found, self.log_z)
            loss = nce_loss(scores[0], log_z[0], count) + nce_loss(scores[1], log_z[1], count)
        if self.training:
            self.log_z = log_z
            self.memory_student = self._renew(self.memory_student, step.index, own_student)
            self.memory_teacher = self._renew(self.memory_teacher, step.index, own_teacher)
        return loss

    def _renew(self, memory: torch.Tensor, index: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the memory with new rows for these images; the old one is still needed by the backward pass."""
        mixed = self.momentum * memory[index] + (1 - self.momentum) * embeddings.detach()
        return memory.index_copy(0, index, unit_vectors(mixed))
