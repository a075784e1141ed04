"""Weight hints: golden residuals of the linear maps, padding, which layers are meant, and the ridge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_support import GOLDEN, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.distill import build_method
from tinykd.distill.base import ModelView
from tinykd.distill.weight_hint import WeightHint, centre_pad, map_weight, weight_hint_loss, weighted_layers
from tinykd.errors import ConfigError
from tinykd.models import build_model

# Inputs of the golden values: a one-sided map A of (6, 3) student to (6, 4) teacher weights.
WS = wave((6, 3), 0.9, 0.2)
WT = wave((6, 4), 0.6, 0.5)


def kernel(weight: torch.Tensor) -> torch.Tensor:
    """Return an (O, I) weight as (O, I, 1, 1)."""
    return weight[:, :, None, None]


def one_sided(in_map: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return the sum of squares of W_s A - W_t."""
    return weight_hint_loss(kernel(WS.to(dtype)), kernel(WT.to(dtype)), torch.eye(6).to(dtype), in_map, 0.0, "sum")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_golden_residuals(dtype: torch.dtype, tolerance: float) -> None:
    """At A = 0 the sum of squares is that of W_t; at the least-squares solution it is the oracle's residual."""
    zero = one_sided(torch.zeros(3, 4, dtype=dtype), dtype)
    assert (zero.ndim, zero.dtype) == (0, dtype)
    assert float(zero) == pytest.approx(GOLDEN["weight_hint_sumsq_at_A=0"], rel=tolerance)
    best = torch.linalg.lstsq(WS, WT).solution.to(dtype)
    assert float(one_sided(best, dtype)) == pytest.approx(GOLDEN["weight_hint_min_residual_sumsq"], rel=tolerance)


def test_gradient_descent_on_the_map_alone_reaches_the_residual() -> None:
    """The map learns as far as least squares goes and no further: what is left is up to the student's weights."""
    in_map = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([in_map], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss = one_sided(in_map)
        loss.backward()
        optimizer.step()
        assert float(loss.detach()) >= GOLDEN["weight_hint_min_residual_sumsq"] - 1e-9
    assert float(one_sided(in_map).detach()) == pytest.approx(GOLDEN["weight_hint_min_residual_sumsq"], rel=1e-6)


def test_identity_maps_are_plain_l2() -> None:
    """With phi = I it is the mean squared difference of the weights; the teacher's get no gradient."""
    student, teacher = wave((4, 3, 3, 3), 0.3, 0.1), wave((4, 3, 3, 3), 0.7, 0.4)
    eyes = torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    loss = weight_hint_loss(student, teacher, *eyes)
    assert float(loss) == pytest.approx(float((student - teacher).square().mean()), rel=1e-12)
    assert float(weight_hint_loss(student, student, *eyes)) == 0
    assert not weight_hint_loss(student, teacher.requires_grad_(True), *eyes).requires_grad


def test_a_teacher_made_by_the_maps_costs_nothing() -> None:
    """For orthogonal maps and W_t = phi(W_s) the loss is 0; phi acts pixel by pixel of the kernel."""
    torch.manual_seed(0)
    student = wave((4, 3, 3, 3), 0.3, 0.1)
    out_map, in_map = (nn.init.orthogonal_(torch.empty(*size)).double() for size in ((8, 4), (3, 5)))
    mapped = map_weight(student, out_map, in_map)
    assert mapped.shape == (8, 5, 3, 3)
    assert torch.allclose(mapped[:, :, 1, 2], out_map @ student[:, :, 1, 2] @ in_map)
    assert float(weight_hint_loss(student, mapped, out_map, in_map)) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("smaller", ["student", "teacher"])
def test_smaller_kernels_get_zeros_around_them(smaller: str) -> None:
    """A 1x1 kernel is compared with the middle of a 3x3 one, on either side."""
    large, small = wave((4, 3, 3, 3), 0.3, 0.1), wave((4, 3, 1, 1), 0.7, 0.4)
    eyes = torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    padded = torch.zeros_like(large)
    padded[:, :, 1, 1] = small[:, :, 0, 0]
    pair = (small, large) if smaller == "student" else (large, small)
    assert float(weight_hint_loss(*pair, *eyes)) == pytest.approx(float((padded - large).square().mean()), rel=1e-12)
    assert torch.equal(centre_pad(small, (3, 3)), padded)
    assert centre_pad(wave((1, 1, 2, 1), 1, 1), (5, 3)).squeeze().nonzero().tolist() == [[1, 1], [2, 1]]


def test_the_ridge_keeps_the_maps_small() -> None:
    """The ridge adds the mean squares of both maps, or their sums."""
    torch.manual_seed(0)
    out_map, in_map = torch.randn(6, 6, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        losses = [
            float(weight_hint_loss(kernel(WS), kernel(WT), out_map, in_map, ridge, reduction)) for ridge in (0.0, 0.1)
        ]
        added = 0.1 * float(reduce(out_map**2) + reduce(in_map**2))
        assert losses[1] - losses[0] == pytest.approx(added, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", ["block1.conv2.conv", "block2.conv2.conv", "block3.conv2.conv"]),
        ("resnet20", ["layer1.2.conv2", "layer2.2.conv2", "layer3.2.conv2"]),
        ("wrn-10-2", ["blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"]),
        ("resnet18", ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"]),
        ("mobilenetv2", ["blocks.0.project.conv", "blocks.2.project.conv", "blocks.5.project.conv", "head.conv"]),
    ],
)
def test_the_last_convolution_of_each_stage(name: str, expected: list[str]) -> None:
    """It is the last on the main way, never a projection shortcut, though that one runs later in some blocks."""
    torch.manual_seed(0)
    model = build_model(name, 5, 16, 3).train().requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert weighted_layers(ModelView(name, model, (3, 16, 16)), "@stages") == expected
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_by_path() -> None:
    """Convolutions and linear layers are meant themselves; pre-activations lead to the same layers as the stages."""
    view = ModelView("resnet8", build_model("resnet8", 5, 16, 3), (3, 16, 16))
    assert weighted_layers(view, ["block2.shortcut.conv", "head.linear"]) == ["block2.shortcut.conv", "head.linear"]
    assert weighted_layers(view, "@preacts") == weighted_layers(view, "@stages")
    assert weighted_layers(view, ["stem", "block1.conv1.act"]) == ["stem.conv", "block1.conv1.conv"]
    with pytest.raises(ConfigError, match="no module 'block9'"):
        weighted_layers(view, "block9")
    with pytest.raises(ConfigError, match="no convolution in front of 'stem.pad:output'"):
        weighted_layers(view, "stem.pad")


def test_the_method_compares_the_weights_of_the_step() -> None:
    """The sum over layers, of the student as it is now and the teacher as it was; a linear layer is a 1x1 kernel."""
    student, teacher = small_models()
    taps = {"student_taps": ["@stage3", "head.linear"], "teacher_taps": ["@stage3", "linear"]}
    method = make_method("weight_hint", {**taps, "ridge": 0.01}, make_context(student, teacher))
    assert isinstance(method, WeightHint)
    step = run_step(method, student, teacher)
    with torch.no_grad():
        student.get_submodule("block3.conv2.conv").weight.mul_(2)  # type: ignore[operator,union-attr]
    total = 0.0
    for index, (own, wanted) in enumerate((("block3.conv2.conv", "layer3.2.conv2"), ("head.linear", "linear"))):
        s, t = student.get_submodule(own).weight, teacher.get_submodule(wanted).weight
        s, t = (x if x.ndim == 4 else kernel(x) for x in (s, t))  # type: ignore[union-attr,arg-type]
        total += float(weight_hint_loss(s, t, method.out_maps[index], method.in_maps[index], 0.01).detach())
    assert float(method(step).detach()) == pytest.approx(total, rel=1e-6)
    with pytest.raises(ValueError, match="does not hold the student"):
        method(replace(step, run_student=lambda x: x))


def test_maps_start_orthonormal() -> None:
    """Square maps start as the identity, others with orthonormal rows or columns."""
    student, teacher = build_model("resnet8", 5, 16, 3), build_model("wrn-16-2", 5, 16, 3)
    method = make_method("weight_hint", None, make_context(student, teacher))
    assert isinstance(method, WeightHint)
    assert [tuple(x.shape) for x in method.out_maps] == [(32, 16), (64, 32), (128, 64)]
    assert [tuple(x.shape) for x in method.in_maps] == [(16, 32), (32, 64), (64, 128)]
    for out_map, in_map in zip(method.out_maps, method.in_maps, strict=True):
        assert torch.allclose(out_map.T @ out_map, torch.eye(out_map.shape[1]), atol=1e-5)
        assert torch.allclose(in_map @ in_map.T, torch.eye(in_map.shape[0]), atol=1e-5)
    same = make_method("weight_hint", None, make_context(student, build_model("resnet20", 5, 16, 3)))
    assert isinstance(same, WeightHint)
    assert all(torch.equal(x, torch.eye(x.shape[0])) for x in (*same.out_maps, *same.in_maps))


@pytest.mark.parametrize("ridge", [-0.1, "small", None])
def test_impossible_ridges_are_refused(ridge: Any) -> None:
    """The ridge must be a number of at least 0."""
    with pytest.raises(ConfigError, match="ridge must be a number of at least 0"):
        build_method("weight_hint", {"ridge": ridge})
