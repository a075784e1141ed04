"""Gradient attention: golden values, second derivatives, symmetry, taps, mixed precision and its figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, Y, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.config import DistillConfig, TrainConfig
from tinykd.distill import build_method
from tinykd.distill.at_grad import AtGrad, gradient_distance, loss_gradients
from tinykd.distill.base import DistillStep, LabelLoss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.teacher import Teacher
from tinykd.train.objective import Objective

# Inputs of the golden values: two linear models on 4 vectors of 6, labels Y.
X = wave((4, 6), 0.35, 0.4)
W1 = wave((5, 6), 0.8, 0.1)
W2 = wave((5, 6), 0.55, 0.7)


class Linear(nn.Module):
    """A linear model of (N, 6, 1, 1) images, logits W x."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Take the (K, 6) weight."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, K) logits."""
        return x.flatten(1) @ self.weight.T


def linear_step(dtype: torch.dtype = torch.float64) -> tuple[DistillStep, Linear, Linear]:
    """Return a step of two linear models with both forward passes in the graph."""
    images = X.to(dtype).reshape(4, 6, 1, 1).requires_grad_(True)
    student, teacher = Linear(W1.to(dtype)), Linear(W2.to(dtype))
    frozen = Teacher(teacher)
    step = DistillStep(images, Y, student(images), frozen(images), run_student=student, run_teacher=frozen)
    return step, student, teacher


def numpy_gradients(weight: np.ndarray) -> np.ndarray:
    """Return J = W^T (p - y) of each image in NumPy."""
    logits = X.numpy() @ weight.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True) - np.eye(5)[Y.numpy()]) @ weight


def test_gradients_of_linear_models_have_a_closed_form() -> None:
    """J is W^T (p - y) for each image, not divided by the size of the batch; row 0 is the oracle's."""
    step, _, _ = linear_step()
    (found,) = loss_gradients(step.cross_entropy(step.student_logits, reduction="none"), [step.images], True)
    assert np.allclose(found.detach().flatten(1).numpy(), numpy_gradients(W1.numpy()), rtol=1e-12)
    assert found.detach().flatten(1)[0].tolist() == pytest.approx(GOLDEN["gradAT_J1_row0"], rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_golden_loss_and_second_derivative(dtype: torch.dtype, tolerance: float) -> None:
    """The loss and its gradient with respect to the student's weight equal the oracle; the teacher gets none."""
    step, student, teacher = linear_step(dtype)
    loss = build_method("at_grad")(step)
    assert (loss.ndim, loss.dtype) == (0, dtype)
    assert float(loss.detach()) == pytest.approx(GOLDEN["gradAT_half_sumsq/B"], rel=tolerance)
    loss.backward()
    assert student.weight.grad is not None
    assert student.weight.grad[0].tolist() == pytest.approx(GOLDEN["gradAT_dW1_row0"], rel=5 * tolerance)
    assert teacher.weight.grad is None


@pytest.mark.parametrize("args", [{}, {"normalize": "l2"}, {"mode": "min_l2"}])
def test_second_derivative_by_finite_differences(args: dict[str, Any]) -> None:
    """The gradient of the loss of J equals central differences."""
    step, student, _ = linear_step()
    method = build_method("at_grad", args)
    method(step).backward()
    assert student.weight.grad is not None
    for index in ((0, 0), (2, 3), (4, 5)):
        values = []
        for shift in (1e-5, -1e-5):
            other, moved, _ = linear_step()
            with torch.no_grad():
                moved.weight[index] += shift
            values.append(float(method(replace(other, student_logits=moved(other.images))).detach()))
        assert float(student.weight.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_min_l2_and_l2_normalisation_by_formula() -> None:
    """min_l2 is half the mean of ||J||^2; with l2 the unit vectors of J are compared, at most 2 apart."""
    step, _, _ = linear_step()
    own, wanted = numpy_gradients(W1.numpy()), numpy_gradients(W2.numpy())
    small = build_method("at_grad", {"mode": "min_l2"})(step)
    assert float(small.detach()) == pytest.approx(0.5 * (own**2).sum() / 4, rel=1e-12)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, wanted)]
    found = build_method("at_grad", {"normalize": "l2"})(step)
    assert float(found.detach()) == pytest.approx(0.5 * ((units[0] - units[1]) ** 2).sum() / 4, rel=1e-12)
    assert float(gradient_distance(torch.eye(3), -torch.eye(3), "l2")) == pytest.approx(2)


def test_smoothing_and_mixup_reach_both_gradients() -> None:
    """J is that of the recipe's cross-entropy, label smoothing and mixed labels included, for student and teacher."""
    step, _, _ = linear_step()
    other, share = torch.tensor([1, 1, 0, 3]), torch.tensor(0.7)
    step = replace(step, label_loss=LabelLoss(smoothing=0.2), other_labels=other, share=share)
    targets = 0.7 * np.eye(5)[Y.numpy()] + 0.3 * np.eye(5)[other.numpy()]
    targets = 0.8 * targets + 0.2 / 5
    gradients = []
    for weight in (W1.numpy(), W2.numpy()):
        logits = X.numpy() @ weight.T
        gradients.append((np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - targets) @ weight)
    expected = 0.5 * ((gradients[0] - gradients[1]) ** 2).sum() / 4
    assert float(build_method("at_grad")(step).detach()) == pytest.approx(expected, rel=1e-6)


class Mirrored(nn.Module):
    """A convolutional network that treats an image and its mirror image alike, if `symmetric`."""

    def __init__(self, symmetric: bool) -> None:
        """Draw the weights."""
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)
        if symmetric:
            with torch.no_grad():
                self.conv.weight += self.conv.weight.flip(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 5) logits."""
        return self.linear(F.softplus(self.bn(self.conv(x))).mean(dim=(2, 3)))


@pytest.mark.parametrize("taps", [None, ["conv"]])
@pytest.mark.parametrize("training", [True, False])
def test_symmetry_is_free_for_symmetric_networks(training: bool, taps: list[str] | None) -> None:
    """The term is 0 for a network with mirrored kernels, at the images and at a map, and above 0 for another one."""
    losses = []
    for symmetric in (True, False):
        student = Mirrored(symmetric).train(training)
        method = make_method("at_grad", {"mode": "symmetry", "student_taps": taps}, make_context(student, student))
        loss = method(run_step(method, student, None))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] < 1e-12
    assert losses[1] > 1e-6
    assert student.conv.weight.grad is not None
    assert float(student.conv.weight.grad.abs().sum()) > 0


def test_extra_passes_leave_running_statistics_alone() -> None:
    """The pass of the mirrored images does not count twice in batch norm; the momentum is put back."""
    student = Mirrored(False)
    method = make_method("at_grad", {"mode": "symmetry"}, make_context(student, student))
    step = run_step(method, student, None)
    before = student.bn.running_mean.clone()  # type: ignore[union-attr]
    method(step)
    assert torch.equal(student.bn.running_mean, before)  # type: ignore[arg-type]
    assert student.bn.momentum == 0.1


@pytest.mark.parametrize("args", [{}, {"student_taps": "@stage2", "teacher_taps": "@stage2"}, {"normalize": "l2"}])
def test_zero_for_equal_networks_in_eval_mode(args: dict[str, Any]) -> None:
    """A student that is the teacher, both in eval mode, costs nothing, at the images and at a named tap."""
    torch.manual_seed(0)
    student, teacher = (build_model("resnet20", 5, 16, 3, width=0.25) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    method = make_method("at_grad", args, make_context(student, teacher))
    assert float(method(run_step(method, student.eval(), teacher)).detach()) == pytest.approx(0, abs=1e-12)
    assert float(method(run_step(method, student.train(), teacher)).detach()) > 1e-8


def test_named_taps_give_the_gradient_at_that_map() -> None:
    """With taps, J is the gradient at the map: the loss equals that of gradients taken by hand, pooled to one size."""
    torch.manual_seed(0)
    student = build_model("resnet8", 5, 16, 3, stem_stride=2).eval()
    teacher = build_model("resnet20", 5, 16, 3).eval()
    taps = {"student_taps": ["@stage1", "@stage3"], "teacher_taps": ["@stage1", "@stage3"]}
    method = make_method("at_grad", taps, make_context(student, teacher))
    step = run_step(method, student, teacher)
    assert step.student_features["block1:output"].shape[2:] == (8, 8)
    assert step.teacher_features["layer1:output"].shape[2:] == (16, 16)
    total = 0.0
    for own, wanted in zip(method.student_taps, method.teacher_taps, strict=True):
        gradients = []
        for logits, place in (
            (step.student_logits, step.student_features[own]),
            (step.teacher_logits, step.teacher_features[wanted]),
        ):
            loss = F.cross_entropy(logits, step.labels, reduction="sum")  # type: ignore[arg-type]
            gradients.append(torch.autograd.grad(loss, place, retain_graph=True)[0])
        pooled = F.avg_pool2d(gradients[1], 2)
        total += float(0.5 * (gradients[0] - pooled).square().flatten(1).sum(dim=1).mean())
    assert total > 0
    assert float(method(step).detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("args", [{}, {"student_taps": "@stage2", "teacher_taps": "@stage2"}])
def test_half_precision_models_are_differentiated_in_float32(args: dict[str, Any]) -> None:
    """With float16 logits, as mixed precision makes them, J is that of the models in float32, taps included."""
    torch.manual_seed(0)
    student, teacher = build_model("resnet8", 5, 16, 3), build_model("resnet20", 5, 16, 3)
    method = make_method("at_grad", args, make_context(student, teacher))
    step = run_step(method, student, teacher)
    exact = method(step)
    statistics = {key: value.clone() for key, value in student.state_dict().items() if "running" in key}
    half = replace(step, student_logits=step.student_logits.half(), student_features={}, teacher_features={})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(half)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=1e-4)
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in statistics.items())


def test_the_objective_runs_the_teacher_in_the_graph() -> None:
    """In a recipe the teacher's pass is part of the graph of the images, and trains nothing of the teacher."""
    student, teacher = small_models()
    context = make_context(student, teacher)
    method = make_method("at_grad", None, context)
    objective = Objective(TrainConfig(), [DistillConfig(method="at_grad")], {"at_grad": method}, Teacher(teacher))
    assert objective.needs_input_grad
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    taught = objective.teach(images)
    step = DistillStep(images, torch.arange(4), student(images), taught.logits, run_student=student)
    total, parts = objective(step)
    total.backward()
    assert float(parts[1]) > 0
    assert all(p.grad is None for p in teacher.parameters())
    with pytest.raises(ValueError, match="part of the graph"):
        blind = taught.logits.detach()  # type: ignore[union-attr]
        method(replace(step, student_logits=student(images), teacher_logits=blind))


def test_figures_tell_the_ratio_to_the_cross_entropy() -> None:
    """After a step, figures give loss / CE and the weight that makes the loss a tenth of the cross-entropy."""
    step, _, _ = linear_step()
    method = build_method("at_grad")
    assert method.figures(step) == {}
    loss = float(method(step).detach())
    cross_entropy = float(F.cross_entropy(step.student_logits, Y).detach())
    figures = {key: float(value) for key, value in method.figures(step).items()}
    assert figures == pytest.approx(
        {"to_cross_entropy": loss / cross_entropy, "weight_for_tenth": 0.1 * cross_entropy / loss}
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mode": "flip"}, "mode must be one of"),
        ({"normalize": "l1"}, "normalize must be one of"),
        ({"mode": "min_l2", "normalize": "l2"}, "always 1"),
        ({"student_taps": "@stage1"}, "student_taps and teacher_taps"),
        ({"mode": "symmetry", "teacher_taps": "@stage1"}, "takes no teacher_taps"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Values outside their range, and arguments that do not go together, are named."""
    with pytest.raises(ConfigError, match=message):
        build_method("at_grad", args)


def test_unequal_channels_are_refused_and_other_modes_need_no_teacher() -> None:
    """Maps of unequal channels have no common J; symmetry and min_l2 do without a teacher, but not at vectors."""
    student, teacher = build_model("resnet8", 5, 16, 3), build_model("wrn-16-2", 5, 16, 3)
    taps = {"student_taps": "@stage2", "teacher_taps": "@stage2"}
    with pytest.raises(ConfigError, match="'block2:output' has 32 channels but teacher tap 'blocks.3:output' has 64"):
        make_method("at_grad", taps, make_context(student, teacher))
    for mode in ("symmetry", "min_l2"):
        method = make_method("at_grad", {"mode": mode}, make_context(student, None))
        assert isinstance(method, AtGrad)
        assert torch.isfinite(method(run_step(method, student, None)).detach())
        with pytest.raises(ConfigError, match="a .C, H, W. map is needed"):
            make_method("at_grad", {"mode": mode, "student_taps": "@pooled"}, make_context(student, None))
