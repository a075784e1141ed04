"""Activation boundaries: golden values, the zones of the loss, connectors, weights by depth, and taps before ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_support import F1, FT, GOLDEN, assert_golden, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.distill import METHODS, build_method
from tinykd.distill.ab import Ab, ab_loss, sparsity_disagreement
from tinykd.errors import ConfigError
from tinykd.models import build_model


def test_golden_values() -> None:
    """The sum over channels and pixels, mean over images, without the constant 3 / 1000; the share of mismatches."""
    assert_golden(ab_loss, (F1, FT), GOLDEN["ab_m1_sum/B"])
    assert_golden(sparsity_disagreement, (F1, FT), GOLDEN["sparsity_disagreement"])


def at(student: float, teacher: float, margin: float = 1.0) -> tuple[float, float]:
    """Return loss and gradient of one neuron."""
    s = torch.full((1, 1, 1, 1), student, dtype=torch.float64, requires_grad=True)
    loss = ab_loss(s, torch.full_like(s, teacher), margin)
    loss.backward()
    return float(loss.detach()), float(s.grad.sum())  # type: ignore[union-attr]


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_zones_and_gradients(margin: float) -> None:
    """Beyond the margin on the right side nothing is due; elsewhere (s +- m)^2 with gradient 2 (s +- m)."""
    m = margin
    for s in (-3 * m, -m, -0.5 * m, 0.0, 0.5 * m, m, 3 * m):
        off = (s + m) if s > -m else 0.0
        on = (s - m) if s <= m else 0.0
        assert at(s, -0.3, m) == pytest.approx((off**2, 2 * off))
        assert at(s, 0.3, m) == pytest.approx((on**2, 2 * on))


def test_a_neuron_at_exactly_zero_is_off() -> None:
    """t = 0 does not fire: a student far below costs nothing, one far above does."""
    assert at(-5.0, 0.0) == (0.0, 0.0)
    assert at(5.0, 0.0) == (36.0, 12.0)
    assert float(sparsity_disagreement(torch.zeros(1, 1, 1, 1), -torch.ones(1, 1, 1, 1))) == 0
    assert float(sparsity_disagreement(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))) == 1


def test_only_the_teachers_signs_matter() -> None:
    """A teacher ten times as large teaches the same; the student's size does matter."""
    loss = float(ab_loss(F1, FT))
    assert float(ab_loss(F1, 10 * FT)) == pytest.approx(loss, rel=1e-12)
    assert float(ab_loss(10 * F1, FT)) != pytest.approx(loss, rel=1e-3)


def test_zero_if_and_only_if_every_neuron_is_beyond_the_margin() -> None:
    """Signs as the teacher's and a size of at least the margin cost 0; one neuron inside the margin does not."""
    student = torch.where(FT > 0, 1.0, -1.0).double()
    assert float(ab_loss(student, FT)) == 0
    assert float(sparsity_disagreement(student, FT)) == 0
    for factor in (0.99, -1.0):
        inside = student.clone()
        inside[0, 0, 0, 0] *= factor
        assert float(ab_loss(inside, FT)) > 0


def test_a_larger_margin_never_costs_less() -> None:
    """The loss grows with the margin."""
    losses = [float(ab_loss(F1, FT, margin)) for margin in (0.25, 0.5, 1.0, 2.0)]
    assert losses == sorted(losses)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled(larger: str) -> None:
    """Responses are averaged down to the smaller map before signs are taken."""
    large = wave((2, 4, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    if larger == "student":
        assert float(ab_loss(large, FT)) == pytest.approx(float(ab_loss(pooled, FT)), rel=1e-12)
    else:
        assert float(ab_loss(FT, large)) == pytest.approx(float(ab_loss(FT, pooled)), rel=1e-12)


def test_connectors_have_both_signs_and_taps_lie_before_the_activation() -> None:
    """A 1x1 convolution and batch norm without activation, on the pre-activations of both networks."""
    student, teacher = small_models()
    method = make_method("ab", None, make_context(student, teacher))
    assert isinstance(method, Ab)
    assert method.student_taps == ("block1.act:input", "block2.act:input", "block3.act:input")
    assert method.teacher_taps == ("layer1.2.act2:input", "layer2.2.act2:input", "layer3.2.act2:input")
    for connect in method.connectors:
        assert isinstance(connect, nn.Sequential)
        conv, bn = connect
        assert conv.kernel_size == (1, 1)
        assert conv.bias is None
        assert isinstance(bn, nn.BatchNorm2d)
    step = run_step(method, student, teacher)
    mapped = method.connectors[0](step.student_features[method.student_taps[0]])
    assert mapped.min() < 0 < mapped.max()


def test_the_deepest_layer_weighs_one_and_each_before_half() -> None:
    """The loss is 1/4, 1/2 and 1 times those of the three stages."""
    student, teacher = small_models()
    method = make_method("ab", {"margin": 0.7}, make_context(student, teacher)).eval()
    assert isinstance(method, Ab)
    step = run_step(method, student, teacher)
    losses = [
        float(ab_loss(connect(s), t, 0.7).detach())
        for connect, (s, t) in zip(method.connectors, method.pairs(step), strict=True)
    ]
    expected = losses[0] / 4 + losses[1] / 2 + losses[2]
    assert float(method(step).detach()) == pytest.approx(expected, rel=1e-6)


def test_figures_tell_the_disagreement_of_each_stage_and_change_nothing() -> None:
    """figures give the share of mismatches behind each connector; running statistics stay."""
    student, teacher = small_models()
    method = make_method("ab", None, make_context(student, teacher))
    assert isinstance(method, Ab)
    step = run_step(method, student, teacher)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        found = method.figures(step)
    assert list(found) == [f"sparsity_disagreement_{n}" for n in (1, 2, 3)]
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    for (s, t), connect, value in zip(method.pairs(step), method.connectors, found.values(), strict=True):
        assert value.ndim == 0
        assert float(value) == pytest.approx(float(((connect(s) > 0) != (t > 0)).float().mean()))
        assert 0.3 < float(value) < 0.7


def test_taps_behind_the_activation_are_refused_at_the_first_step() -> None:
    """Maps without negative values have no boundary: post-ReLU taps, and a ReLU that works in place."""
    student, teacher = small_models()
    taps = {"student_taps": "@preact2", "teacher_taps": "@stage2"}
    method = make_method("ab", taps, make_context(student, teacher))
    with pytest.raises(ConfigError, match="teacher tap 'layer2:output' gives no negative value"):
        method(run_step(method, student, teacher))
    for name, module in teacher.named_modules():
        if name == "layer2.2.act2":
            assert isinstance(module, nn.ReLU)
            module.inplace = True
    method = make_method("ab", {"student_taps": "@preact2", "teacher_taps": "@preact2"}, make_context(student, teacher))
    with pytest.raises(ConfigError, match="in place overwrites its ':input'"):
        method(run_step(method, student, teacher))


@pytest.mark.parametrize("name", ["mobilenetv2", "wrn-16-2"])
def test_networks_that_end_stages_without_activation_have_boundaries_too(name: str) -> None:
    """Linear bottlenecks, and the norms in front of a wide ResNet's next blocks, have both signs."""
    student, _ = small_models()
    torch.manual_seed(0)
    teacher = build_model(name, 5, 16, 3).train()
    teacher(torch.randn(8, 3, 16, 16))
    method = make_method("ab", None, make_context(student, teacher))
    assert torch.isfinite(method(run_step(method, student, teacher)).detach())


def test_it_is_the_loss_of_an_init_stage_only() -> None:
    """By default 30 epochs come first, with the loss alone at 3 / 1000, and the task goes without it."""
    row = METHODS["ab"]
    assert (row.init, row.args["init_epochs"], row.args["joint"]) == ("student", 30, False)
    assert row.weight.startswith("0.003")
    student, teacher = small_models()
    method = make_method("ab", None, make_context(student, teacher))
    step = run_step(method, student, teacher)
    method.init_loss(step).backward()
    assert student.get_parameter("stem.conv.weight").grad is not None
    assert student.get_parameter("head.linear.weight").grad is None, "the classifier starts fresh in the task"


@pytest.mark.parametrize("margin", [0, -1, "wide", True])
def test_impossible_margins_are_refused(margin: Any) -> None:
    """The margin must be a number above 0."""
    with pytest.raises(ConfigError, match="margin must be a number above 0"):
        build_method("ab", {"margin": margin})


def test_nothing_flows_into_the_teacher() -> None:
    """The teacher's responses get no gradient."""
    student, teacher = small_models()
    method = make_method("ab", None, make_context(student, teacher))
    step = run_step(method, student, teacher)
    features = {tap: x.clone().requires_grad_(True) for tap, x in step.teacher_features.items()}
    method(replace(step, teacher_features=features)).backward()
    assert all(x.grad is None for x in features.values())
    maps = FT.clone().requires_grad_(True)
    assert not ab_loss(F1, maps).requires_grad
