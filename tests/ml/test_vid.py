"""Variational information distillation: the likelihood by formula, its variance, and the regressor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from distill_support import FT, assert_golden, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.distill import build_method
from tinykd.distill.vid import LEAST_VARIANCE, Prediction, Vid, vid_loss
from tinykd.errors import ConfigError

MEAN = wave((2, 4, 4, 4), 0.37, 0.2)
RAW = wave((4,), 1.1, 0.3, 2)


def log_density(x: float, mean: float, variance: float) -> float:
    """Return the logarithm of a Gaussian's density."""
    return math.log(math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance))


def test_it_is_the_negative_log_likelihood() -> None:
    """Element by element, minus the log-density of the teacher's value, less the constant; the mean over all."""
    total = 0.0
    for n in range(2):
        for c in range(4):
            variance = math.log(1 + math.exp(float(RAW[c]))) + 1e-5
            for x, mean in zip(FT[n, c].flatten().tolist(), MEAN[n, c].flatten().tolist(), strict=True):
                total -= log_density(x, mean, variance) + 0.5 * math.log(2 * math.pi)
    assert_golden(vid_loss, (MEAN, RAW, FT), total / FT.numel())


def test_the_best_variance_is_the_mean_squared_error() -> None:
    """The gradient with respect to a channel's variance is 0 where it equals that channel's mean squared error."""
    errors = (FT - MEAN).square().mean(dim=(0, 2, 3))
    raw = (errors - LEAST_VARIANCE).expm1().log().requires_grad_(True)
    loss = vid_loss(MEAN, raw, FT)
    loss.backward()
    assert raw.grad is not None
    assert raw.grad.abs().max() < 1e-12
    assert float(loss.detach()) == pytest.approx(float(0.5 * (1 + errors.log()).mean()), rel=1e-9)


def test_gradients_and_extreme_variances() -> None:
    """Gradients equal finite differences; the loss stays finite where softplus is as good as 0, or as its argument."""
    mean, raw = MEAN.clone().requires_grad_(True), RAW.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda m, r: vid_loss(m, r, FT), (mean, raw))
    for value in (-1e3, 1e3):
        extreme = torch.full((4,), value, requires_grad=True)
        loss = vid_loss(MEAN.float(), extreme, FT.float())
        loss.backward()
        assert torch.isfinite(loss.detach())
        assert torch.isfinite(extreme.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("variance", [0.001, 0.5, 5.0, 500.0])
def test_the_variance_starts_where_it_should(variance: float) -> None:
    """softplus of the raw variance, plus the least one, is the initial variance in every channel."""
    prediction = Prediction(3, 6, variance)
    found = torch.nn.functional.softplus(prediction.raw_variance.double()) + LEAST_VARIANCE
    assert found.tolist() == pytest.approx([variance] * 6, rel=1e-4)


def test_the_regressor_has_three_layers() -> None:
    """Three 1x1 convolutions without bias, ReLU between and none behind, as wide as the teacher's map."""
    student, teacher = small_models()
    method = make_method("vid", None, make_context(student, teacher))
    assert isinstance(method, Vid)
    assert len(method.predictions) == 3
    for prediction, (own, wanted) in zip(method.predictions, ((8, 8), (16, 16), (32, 32)), strict=True):
        assert isinstance(prediction, Prediction)
        kinds = [type(layer) for layer in prediction.mean]
        assert kinds == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
        shapes = [tuple(layer.weight.shape) for layer in prediction.mean if isinstance(layer, nn.Conv2d)]
        assert shapes == [(wanted, own, 1, 1), (wanted, wanted, 1, 1), (wanted, wanted, 1, 1)]
        assert prediction.raw_variance.shape == (wanted,)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled_before_the_regressor(larger: str) -> None:
    """An 8x8 map is averaged to 4x4 on either side; the student's so before its layers."""
    torch.manual_seed(0)
    prediction = Prediction(4, 4, 5.0).double()
    large = wave((2, 4, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    if larger == "student":
        found, expected = prediction(large, FT), prediction(pooled, FT)
    else:
        found, expected = prediction(FT, large), prediction(FT, pooled)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_stages_are_added_up_and_the_teacher_gets_no_gradient() -> None:
    """The method's loss is the sum over stages."""
    student, teacher = small_models()
    method = make_method("vid", {"initial_variance": 2.0}, make_context(student, teacher))
    assert isinstance(method, Vid)
    step = run_step(method, student, teacher)
    parts = [
        float(vid_loss(p.mean(s), p.raw_variance, t).detach())  # type: ignore[operator,arg-type]
        for p, (s, t) in zip(method.predictions, method.pairs(step), strict=True)
    ]
    assert float(method(step).detach()) == pytest.approx(sum(parts), rel=1e-6)
    maps = FT.clone().requires_grad_(True)
    assert not vid_loss(MEAN, RAW, maps).requires_grad


@pytest.mark.parametrize("variance", [0, 1e-6, -1, "wide"])
def test_impossible_variances_are_refused(variance: Any) -> None:
    """The initial variance must be above the least one."""
    with pytest.raises(ConfigError, match="initial_variance must be a number above 1e-05"):
        build_method("vid", {"initial_variance": variance})
