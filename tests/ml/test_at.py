"""Attention transfer: golden values of both modes, invariances, limits and pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_support import FS, FT, GOLDEN, assert_golden, make_context, make_method, run_step, small_models, wave

from tinykd.distill import build_method
from tinykd.distill.at import at_loss, attention
from tinykd.errors import ConfigError


def test_golden_values() -> None:
    """Both modes equal the oracle for maps of 3 and 4 channels, in float64 and float32."""
    assert_golden(at_loss, (FS, FT), GOLDEN["at_code"])
    assert_golden(lambda s, t: at_loss(s, t, "paper"), (FS, FT), GOLDEN["at_paper(sum over B of L2)/B"])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.0])
def test_attention_is_the_power_mean_over_channels(p: float) -> None:
    """A map is the mean over channels of |F|^p, of unit length over the pixels of an image; signs do not matter."""
    maps = attention(FT, p)
    expected = FT.abs().pow(p).sum(dim=1).flatten(1)
    expected = expected / expected.square().sum(dim=1, keepdim=True).sqrt()
    assert maps.shape == (2, 16)
    assert torch.allclose(maps, expected, rtol=1e-12)
    assert torch.allclose(attention(-FT, p), maps, rtol=1e-12)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_scale_of_either_side_does_not_matter(mode: str, p: float) -> None:
    """Features a and b times as large have the same loss, also where their powers would overflow or vanish."""
    loss = float(at_loss(FS, FT, mode, p))
    assert float(at_loss(3.7 * FS, 0.2 * FT, mode, p)) == pytest.approx(loss, rel=1e-12)
    for scale in (1e-15, 1e15):
        assert float(at_loss(scale * FS.float(), FT.float(), mode, p)) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_zero_at_identity_and_for_other_channel_orders(mode: str) -> None:
    """Equal maps cost 0 with finite gradients, in whichever order the channels come and however often each comes."""
    student = FT.clone().requires_grad_(True)
    loss = at_loss(student, FT, mode)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]
    assert float(at_loss(FT[:, [2, 0, 3, 1]].repeat(1, 2, 1, 1), FT, mode)) == pytest.approx(0, abs=1e-15)


def test_higher_powers_look_at_the_peaks() -> None:
    """The largest value of an attention map grows with p."""
    peaks = [float(attention(FT, p).amax(dim=1).min()) for p in (1.0, 2.0, 4.0, 8.0)]
    assert peaks == sorted(peaks)
    assert peaks[-1] > 1.2 * peaks[0]


def test_code_mode_is_bounded_and_related_to_the_paper() -> None:
    """Both maps are non-negative unit vectors: at most 2 / HW; the paper's distance is that of the same vectors."""
    own, other = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    own[0, 0, 0, 0] = other[0, 0, 1, 1] = 5
    assert float(at_loss(own, other)) == pytest.approx(2 / 4)
    assert float(at_loss(own, other, "paper")) == pytest.approx(2**0.5)
    assert float(at_loss(FS, FT)) <= 2 / 16


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_mean_over_images(mode: str) -> None:
    """The loss of a batch is the mean of its images' losses."""
    single = [float(at_loss(FS[i : i + 1], FT[i : i + 1], mode)) for i in range(2)]
    assert float(at_loss(FS, FT, mode)) == pytest.approx(sum(single) / 2, rel=1e-12)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled_before_the_power(larger: str) -> None:
    """An 8x8 map is averaged to 4x4 on either side."""
    large = wave((2, 3, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    expected = float(at_loss(pooled, FT))
    found = at_loss(large, FT) if larger == "student" else at_loss(FT, large)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_gradient_by_finite_differences_and_none_for_the_teacher() -> None:
    """The gradient with respect to the student equals finite differences; the teacher has none."""
    student = FS.clone().requires_grad_(True)
    for mode in ("code", "paper"):
        assert torch.autograd.gradcheck(lambda x, mode=mode: at_loss(x, FT, mode), (student,))
    teacher = FT.clone().requires_grad_(True)
    at_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_map_of_zeros_is_finite(mode: str, p: float) -> None:
    """A dead map has neither direction nor gradient, on either side."""
    student = torch.zeros_like(FS).requires_grad_(True)
    loss = at_loss(student, FT, mode, p)
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert torch.equal(student.grad, torch.zeros_like(FS))  # type: ignore[arg-type]
    assert torch.isfinite(at_loss(FS, torch.zeros_like(FT), mode, p))


def test_sum_over_stages() -> None:
    """The method adds up the losses of all stages of both networks, and passes mode and power on."""
    student, teacher = small_models()
    for args in ({}, {"mode": "paper", "p": 3}):
        method = make_method("at", args, make_context(student, teacher))
        assert method.student_taps == ("block1:output", "block2:output", "block3:output")
        assert method.teacher_taps == ("layer1:output", "layer2:output", "layer3:output")
        step = run_step(method, student, teacher)
        pairs = method.pairs(step)  # type: ignore[operator]
        total = sum(float(at_loss(s.detach(), t, args.get("mode", "code"), args.get("p", 2))) for s, t in pairs)
        assert float(method(step).detach()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("args", "message"), [({"mode": "sum"}, "mode must be one of"), ({"p": 0.5}, "p must be a number of at least 1")]
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Values outside their range are named."""
    with pytest.raises(ConfigError, match=message):
        build_method("at", args)
