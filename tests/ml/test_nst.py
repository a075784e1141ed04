"""Neuron selectivity transfer: golden values of the kernels, invariances, closed forms, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_support import FS, FT, GOLDEN, assert_golden, make_context, make_method, run_step, small_models, wave
from torch.utils._python_dispatch import TorchDispatchMode

from tinykd.distill import build_method
from tinykd.distill.nst import KERNELS, nst_loss
from tinykd.errors import ConfigError


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_values(kernel: str) -> None:
    """Each kernel equals the oracle for 3 and 4 channels."""
    assert_golden(lambda s, t: nst_loss(s, t, kernel), (FS, FT), GOLDEN[f"nst_{kernel}"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_channels_may_come_in_any_order(kernel: str) -> None:
    """Permuting the channels of either side changes nothing; a permuted teacher costs 0."""
    loss = float(nst_loss(FS, FT, kernel))
    assert float(nst_loss(FS[:, [2, 0, 1]], FT, kernel)) == pytest.approx(loss, rel=1e-12)
    assert float(nst_loss(FS, FT[:, [3, 1, 0, 2]], kernel)) == pytest.approx(loss, rel=1e-12)
    assert float(nst_loss(FT[:, [3, 1, 0, 2]], FT, kernel)) == pytest.approx(0, abs=1e-12)
    assert float(nst_loss(FT, FT, kernel)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_squared_distance(kernel: str, seed: int) -> None:
    """The discrepancy is never negative and symmetric in its two sides."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn((3, c, 4, 4), generator=generator, dtype=torch.float64) for c in (5, 7))
    assert float(nst_loss(x, y, kernel)) >= 0
    assert float(nst_loss(x, y, kernel)) == pytest.approx(float(nst_loss(y, x, kernel)), rel=1e-10)


def units(x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H W) maps of unit length over the pixels."""
    flat = x.flatten(2)
    return flat / flat.square().sum(dim=2, keepdim=True).sqrt()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_poly_is_the_distance_of_gram_matrices(size: int) -> None:
    """For degree 2 without offset it is ||S^T S / C_s - T^T T / C_t||_F^2, in both ways of computing it."""
    student, teacher = wave((2, 12, size, size), 0.37, 0.2), wave((2, 9, size, size), 0.53, 0.9)
    s, t = units(student), units(teacher)
    grams = s.transpose(1, 2) @ s / 12 - t.transpose(1, 2) @ t / 9
    expected = float(grams.square().sum(dim=(1, 2)).mean())
    assert float(nst_loss(student, teacher)) == pytest.approx(expected, rel=1e-10)


def test_poly_with_other_degree_and_offset() -> None:
    """(x.y + c)^d as it is written, for all pairs of channels."""
    s, t = units(FS), units(FT)

    def mean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nid,njd->nij", x, y).add(0.5).pow(3).mean(dim=(1, 2))

    expected = float((mean(t, t) + mean(s, s) - 2 * mean(t, s)).mean())
    assert float(nst_loss(FS, FT, "poly", 3, 0.5)) == pytest.approx(expected, rel=1e-10)
    small = [x[:, :, :1, :2] for x in (FS.repeat(1, 3, 1, 1), FT)]
    with_offset = [float(nst_loss(*small, "poly", 2, offset)) for offset in (0.0, 0.5)]
    assert with_offset[0] != pytest.approx(with_offset[1], rel=1e-3), "the short cut must not be taken with an offset"


def test_linear_is_the_distance_of_mean_maps() -> None:
    """The linear kernel compares the channels' mean maps."""
    expected = (units(FS).mean(dim=1) - units(FT).mean(dim=1)).square().sum(dim=1).mean()
    assert float(nst_loss(FS, FT, "linear")) == pytest.approx(float(expected), rel=1e-10)


def test_the_width_of_the_gaussian_takes_no_part_in_the_gradient() -> None:
    """sigma^2 follows from each image's own distances and is a constant for the gradient."""
    student = FS.clone().requires_grad_(True)
    nst_loss(student, FT, "gaussian").backward()
    s, t = units(FS), units(FT)
    sigma2 = (t.unsqueeze(2) - s.unsqueeze(1)).square().sum(dim=3).mean(dim=(1, 2)).view(2, 1, 1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        s = units(x)

        def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            distances = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=3)
            return torch.exp(-distances / (2 * sigma2)).mean(dim=(1, 2))

        return (mean(t, t) + mean(s, s) - 2 * mean(t, s)).mean()

    copy = FS.clone().requires_grad_(True)
    loss(copy).backward()
    assert torch.allclose(student.grad, copy.grad, rtol=1e-8, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale_of_each_channel_does_not_matter(kernel: str) -> None:
    """Maps are normalised over pixels, channel by channel, not over channels."""
    scales = torch.tensor([0.1, 3.0, 20.0], dtype=torch.float64).view(1, 3, 1, 1)
    loss = float(nst_loss(FS, FT, kernel))
    assert float(nst_loss(scales * FS, FT, kernel)) == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_dead_channels_and_mean_over_images(kernel: str) -> None:
    """A channel of zeros has no direction and no gradient; a batch costs the mean of its images."""
    student = FS.clone()
    student[:, 1] = 0
    student.requires_grad_(True)
    loss = nst_loss(student, FT, kernel)
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert torch.equal(student.grad[:, 1], torch.zeros(2, 4, 4))  # type: ignore[index]
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]
    single = [float(nst_loss(FS[i : i + 1], FT[i : i + 1], kernel)) for i in range(2)]
    assert float(nst_loss(FS, FT, kernel)) == pytest.approx(sum(single) / 2, rel=1e-10)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled_before_it_is_normalised(larger: str) -> None:
    """An 8x8 map is averaged to 4x4 on either side."""
    large = wave((2, 3, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    found = nst_loss(large, FT) if larger == "student" else nst_loss(FT, large)
    assert float(found) == pytest.approx(float(nst_loss(pooled, FT)), rel=1e-10)


class Largest(TorchDispatchMode):
    """Notices the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it gives."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("kernel", KERNELS)
def test_pairs_of_channels_are_never_spread_over_the_pixels(kernel: str) -> None:
    """Forward and backward, no tensor is larger than the maps or than one number for each pair of channels."""
    student, teacher = torch.randn(2, 48, 8, 8, requires_grad=True), torch.randn(2, 64, 8, 8)
    with Largest() as largest:
        nst_loss(student, teacher, kernel).backward()
    assert largest.numel <= 2 * max(64 * 64, 64 * 8 * 8)
    assert largest.numel < 2 * 48 * 64 * 64 / 20


def test_poly_with_many_channels_stays_small() -> None:
    """With more channels than pixels, as behind MobileNetV2's head, matrices of channels are not even made."""
    student, teacher = torch.randn(2, 1280, 2, 2, requires_grad=True), torch.randn(2, 512, 2, 2)
    with Largest() as largest:
        nst_loss(student, teacher).backward()
    assert largest.numel <= 2 * 1280 * 4


def test_nothing_flows_into_the_teacher_and_stages_are_added_up() -> None:
    """The teacher gets no gradient; the method sums over stages with its kernel."""
    teacher_maps = FT.clone().requires_grad_(True)
    nst_loss(FS.clone().requires_grad_(True), teacher_maps).backward()
    assert teacher_maps.grad is None
    student, teacher = small_models()
    for args in ({}, {"kernel": "gaussian"}, {"degree": 3, "offset": 1.0}):
        method = make_method("nst", args, make_context(student, teacher))
        assert len(method.student_taps) == 3
        step = run_step(method, student, teacher)
        total = sum(float(nst_loss(s.detach(), t, **args)) for s, t in method.pairs(step))  # type: ignore[operator]
        assert float(method(step).detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [({"kernel": "cosine"}, "kernel must be one of"), ({"degree": 0}, "degree"), ({"offset": -1}, "offset")],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Values outside their range are named."""
    with pytest.raises(ConfigError, match=message):
        build_method("nst", args)
