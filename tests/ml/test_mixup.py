"""mixup: golden value, the two ways to write the label, what is mixed with what, and draws that need no state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, ZS, Y, assert_golden

from tinykd.config import AugmentConfig
from tinykd.data.augment import Augment
from tinykd.data.mixup import mixup
from tinykd.distill.base import LabelLoss

OTHER = Y.flip(0)


def batch(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images that tell their number in every pixel, and that number as label."""
    labels = torch.arange(count)
    return labels.float().view(-1, 1, 1, 1).expand(count, 3, 4, 4).clone(), labels


def test_golden_loss() -> None:
    """The label loss with share 0.3 equals the oracle, in float64 and in float32."""

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return LabelLoss()(logits, Y, OTHER, torch.tensor(0.3, dtype=logits.dtype))

    assert_golden(loss, (ZS,), GOLDEN["mixup_ce(l=.3)"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_losses_are_the_loss_of_mixed_labels(share: float, smoothing: float) -> None:
    """Mixing two cross-entropies and mixing the one-hot labels give the same: the loss is linear in the label."""
    own, partner = (F.one_hot(labels, 5).double() for labels in (Y, OTHER))
    soft = share * own + (1 - share) * partner
    soft = (1 - smoothing) * soft + smoothing / 5
    expected = -(soft * F.log_softmax(ZS, 1)).sum(1).mean()
    loss = LabelLoss(smoothing)(ZS, Y, OTHER, torch.tensor(share, dtype=torch.float64))
    assert abs(float(loss - expected)) < 1e-14


def test_each_image_is_mixed_with_one_other_by_one_share() -> None:
    """Images are share * own + (1 - share) * partner, partners are a permutation, the labels are the partners'."""
    images, labels = batch()
    before = images.clone()
    mixed, other_labels, share = mixup(images, labels, 1.0, (0, 7))
    assert torch.equal(images, before)
    assert share.ndim == 0
    assert share.dtype == torch.float32
    assert 0 < float(share) < 1
    assert sorted(other_labels.tolist()) == labels.tolist()
    assert not torch.equal(other_labels, labels)
    expected = share * labels + (1 - share) * other_labels
    torch.testing.assert_close(mixed, expected.view(-1, 1, 1, 1).expand_as(mixed))


def test_draws_depend_on_seed_and_step_alone() -> None:
    """The same pair of numbers gives the same mix, another step or seed another one, and no generator is touched."""
    state = torch.get_rng_state()
    images, labels = batch()
    first = mixup(images, labels, 1.0, (3, 5))
    again = mixup(images, labels, 1.0, (3, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed in ((3, 6), (4, 5), (5, 3)):
        _, others, share = mixup(images, labels, 1.0, seed)
        assert float(share) != float(first[2])
        assert not torch.equal(others, first[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_beta(alpha: float) -> None:
    """Over 3000 steps, mean and variance are those of Beta(alpha, alpha): 1/2 and 1 / (4 (2 alpha + 1))."""
    images, labels = batch(2)
    shares = torch.stack([mixup(images, labels, alpha, (1, step))[2] for step in range(3000)]).double()
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(float(shares.mean()) - 0.5) < 4 * (variance / 3000) ** 0.5
    assert float(shares.var()) == pytest.approx(variance, rel=0.1)


def test_tiny_alpha_leaves_images_whole() -> None:
    """As alpha tends to 0, each mixed image is one image of the batch as it was, with that image's label."""
    images, labels = batch()
    for step in range(20):
        mixed, others, share = mixup(images, labels, 1e-4, (0, step))
        assert float(share) in (0.0, 1.0)
        assert torch.equal(mixed[:, 0, 0, 0].long(), labels if share == 1 else others)


def test_evaluation_mixes_nothing() -> None:
    """Neither the call of `Augment` nor its normalisation mixes: the loop does, once for student and teacher."""
    x = torch.randint(0, 256, (8, 6, 6, 1), dtype=torch.uint8)
    augment = Augment(AugmentConfig(mixup=1.0), 0, 1.0)
    plain = x.permute(0, 3, 1, 2).float()
    assert torch.equal(augment.normalise(x), plain)
    assert torch.equal(augment(x, torch.Generator()), plain)
