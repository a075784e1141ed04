"""Methods that compare logits: golden values, invariances, identities, limits, and what recipes must not ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, ZS, ZT, Y, assert_golden, make_context, make_method, small_models, train_steps
from torch import nn

from tinykd.config import AugmentConfig, DistillConfig, TrainConfig, load_recipe
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset, Split
from tinykd.distill import build_method
from tinykd.distill.base import DistillStep
from tinykd.distill.defensive import defensive_loss
from tinykd.distill.dist import dist_loss, pearson
from tinykd.distill.dkd import dkd_loss, dkd_parts
from tinykd.distill.func_match import FuncMatch
from tinykd.distill.kd import kd_loss
from tinykd.distill.logit_l2 import logit_l2_loss
from tinykd.distill.logit_std import logit_std_loss, standardise
from tinykd.errors import ConfigError
from tinykd.models.teacher import Teacher
from tinykd.train.loop import fit
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "logit_l2": ("logit_l2", {}),
    "logit_l2-mean": ("logit_l2", {"reduction": "mean"}),
    "logit_l2-probs": ("logit_l2", {"on": "probs"}),
    "logit_l2-center": ("logit_l2", {"center": True}),
    "dkd": ("dkd", {}),
    "dist": ("dist", {"temperature": 2.0}),
    "logit_std": ("logit_std", {}),
    "func_match": ("func_match", {}),
    "defensive": ("defensive", {}),
}
WHOLE_BATCH = {"dist"}
CROSS_ENTROPIES = {"defensive"}


def step_of(student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor = Y, **facts: Any) -> DistillStep:
    """Return a step with these logits."""
    return DistillStep(torch.zeros(len(student), 1, 2, 2), labels, student, teacher, **facts)


def loss_of(name: str) -> Callable[..., torch.Tensor]:
    """Return a method as a function of student logits, teacher logits and labels."""
    key, args = METHODS[name]
    method = build_method(key, args)
    return lambda student, teacher, labels=Y: method(step_of(student, teacher, labels))


@pytest.mark.parametrize(
    ("loss", "key"),
    [
        (logit_l2_loss, "logit_l2_ba_caruana(sum_c,/2B)"),
        (partial(logit_l2_loss, reduction="mean"), "logit_l2_mean"),
        (partial(dkd_loss, labels=Y, alpha=1.0, beta=8.0, temperature=4.0), "dkd_a1_b8_T4"),
        (partial(dist_loss, beta=1.0, gamma=1.0, temperature=1.0), "dist_b1_g1_T1"),
        (partial(logit_std_loss, temperature=2.0), "logit_std_T2"),
        (loss_of("func_match"), "kd_T1"),
    ],
    ids=["logit_l2", "logit_l2-mean", "dkd", "dist", "logit_std", "func_match"],
)
def test_golden_values(loss: Callable[..., torch.Tensor], key: str) -> None:
    """Each loss equals the independent implementation in float64 and in float32, and is a scalar."""
    assert_golden(loss, (ZS, ZT), GOLDEN[key])


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_the_golden_values(name: str) -> None:
    """A method built from its row gives a 0-d float32 tensor of the same loss as its function."""
    loss = loss_of(name)(ZS.float(), ZT.float())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    expected = {
        "kd": GOLDEN["kd_T4"],
        "logit_l2": GOLDEN["logit_l2_ba_caruana(sum_c,/2B)"],
        "dkd": GOLDEN["dkd_a1_b8_T4"],
        "logit_std": GOLDEN["logit_std_T2"],
        "func_match": GOLDEN["kd_T1"],
        "defensive": GOLDEN["defensive_soft_ce_T20(no T^2)"],
    }
    if name in expected:
        assert float(loss) == pytest.approx(expected[name], rel=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_the_batch_changes_nothing(name: str) -> None:
    """Permuting images, with their labels, keeps the loss."""
    order = torch.tensor([2, 0, 3, 1])
    loss = loss_of(name)
    assert float(loss(ZS[order], ZT[order], Y[order])) == pytest.approx(float(loss(ZS, ZT)), rel=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_reduction_is_a_mean_over_images(name: str) -> None:
    """The same images twice cost the same. `local` says truly whether the loss is the mean of its halves' losses."""
    loss = loss_of(name)
    whole = float(loss(ZS, ZT))
    assert float(loss(ZS.repeat(2, 1), ZT.repeat(2, 1), Y.repeat(2))) == pytest.approx(whole, rel=1e-7)
    halves = [float(loss(ZS[part], ZT[part], Y[part])) for part in (slice(0, 2), slice(2, 4))]
    is_mean = abs(sum(halves) / 2 - whole) < 1e-9 * abs(whole)
    assert is_mean == (name not in WHOLE_BATCH)
    assert build_method(METHODS[name][0]).local == is_mean


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CROSS_ENTROPIES])
def test_equal_logits_cost_nothing(name: str) -> None:
    """The loss is 0 where student and teacher agree, and above 0 where they do not."""
    assert float(loss_of(name)(ZT, ZT)) == pytest.approx(0, abs=1e-6)
    assert float(loss_of(name)(ZS, ZT)) > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_nothing_flows_into_the_teacher(name: str) -> None:
    """Teacher logits that ask for a gradient get none; the student's get one for every image."""
    student, teacher = (x.clone().requires_grad_(True) for x in (ZS, ZT))
    loss_of(name)(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    "loss",
    [
        logit_l2_loss,
        partial(dkd_loss, labels=Y, alpha=1.0, beta=8.0, temperature=4.0),
        partial(dist_loss, beta=1.0, gamma=1.0, temperature=1.0),
        partial(logit_std_loss, temperature=2.0),
        partial(defensive_loss, temperature=20.0),
    ],
    ids=["logit_l2", "dkd", "dist", "logit_std", "defensive"],
)
def test_losses_detach_the_teacher_themselves(loss: Callable[..., torch.Tensor]) -> None:
    """The functions are safe without the method around them, which detaches the teacher's logits as well."""
    student, teacher = (x.clone().requires_grad_(True) for x in (ZS, ZT))
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    """bfloat16 and float16 logits give the float32 loss of the same numbers, finite for large ones, autocast or not."""
    loss = loss_of(name)
    for dtype in (torch.float16, torch.bfloat16):
        student, teacher = (30 * ZS).to(dtype).requires_grad_(True), (30 * ZT).to(dtype)
        value = loss(student, teacher)
        value.backward()
        assert value.dtype == torch.float32
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        expected = float(loss(student.detach().double(), teacher.double()))
        assert float(value.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(ZS.float(), ZT.float())
    assert torch.equal(inside, loss(ZS.float(), ZT.float()))


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_logits_stay_finite(name: str) -> None:
    """Constant rows (a classifier of zeros), a single image and extreme logits: finite loss and gradient."""
    for student, teacher in (
        (torch.zeros(4, 5), ZT.float()),
        (ZS.float(), torch.full((4, 5), 2.5)),
        (torch.zeros(1, 5), ZT[:1].float()),
        (1e4 * ZS.float(), -1e4 * ZS.float()),
    ):
        own = student.clone().requires_grad_(True)
        loss = loss_of(name)(own, teacher, Y[: len(own)])
        loss.backward()
        assert torch.isfinite(loss)
        assert own.grad is not None
        assert torch.isfinite(own.grad).all()
        if student.abs().max() < 10:
            assert own.grad.abs().max() < 1e3, "a direction that is not there must not explode"


@pytest.mark.parametrize("name", METHODS)
def test_training_on_a_fixed_batch_lowers_the_loss(name: str) -> None:
    """Fifty steps with the loss alone bring a small network at least 30 % nearer to the teacher."""
    student, teacher = small_models()
    key, args = METHODS[name]
    method = make_method(key, args, make_context(student, teacher))
    assert not list(method.parameters())
    # Without T^2 the gradient of `defensive` is some T^2 = 400 times smaller.
    losses = train_steps(method, student, teacher, lr=20.0 if name == "defensive" else 0.05)
    least = 0.0
    if name in CROSS_ENTROPIES:
        logits = Teacher(teacher)(torch.randn((8, 3, 16, 16), generator=torch.Generator().manual_seed(0)))
        least = float(loss_of(name)(logits, logits, torch.arange(8) % 5))
    assert losses[-1] - least < 0.7 * (losses[0] - least)


def test_logit_l2_gradient_is_its_formula() -> None:
    """The gradient of the paper's form is (s - t) / N; that of `mean` is 2 / K times it."""
    for reduction, factor in (("sum_half", 1.0), ("mean", 2 / 5)):
        student = ZS.clone().requires_grad_(True)
        logit_l2_loss(student, ZT, reduction=reduction).backward()
        assert student.grad is not None
        assert (student.grad - factor * (ZS - ZT) / 4).abs().max() < 1e-14


def test_logit_l2_sees_a_shift_unless_centred() -> None:
    """A constant added to the teacher's logits costs, but not with `center`, and not on probabilities."""
    plain, shifted = float(logit_l2_loss(ZS, ZT)), float(logit_l2_loss(ZS, ZT + 7))
    assert shifted > plain + 10
    for args in ({"center": True}, {"on": "probs"}):
        assert float(logit_l2_loss(ZS, ZT + 7, **args)) == pytest.approx(
            float(logit_l2_loss(ZS, ZT, **args)), rel=1e-12
        )  # type: ignore[arg-type]


def test_centred_logit_l2_is_kd_at_high_temperature() -> None:
    """K times T^2 KL tends to it: at T = 1000 the ratio is the 1.00038 of the golden values."""
    ratio = 5 * float(kd_loss(ZS, ZT, 1000.0)) / float(logit_l2_loss(ZS, ZT, center=True))
    assert ratio == pytest.approx(GOLDEN["_kd_highT_limit_ratio(T=1e3)"], rel=1e-9)


def test_logit_l2_on_probabilities_is_the_distance_of_softmax() -> None:
    """`probs` compares what softmax gives."""
    expected = 0.5 * (F.softmax(ZS, 1) - F.softmax(ZT, 1)).square().sum(1).mean()
    assert float(logit_l2_loss(ZS, ZT, on="probs")) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_parts_add_up_to_kd(temperature: float) -> None:
    """KL = TCKD + (1 - p) NCKD for each image: with alpha 1 and beta 1 - p, dkd is kd."""
    target, nontarget, p = dkd_parts(ZS, ZT, Y, temperature)
    expected = F.softmax(ZT / temperature, 1).gather(1, Y[:, None])[:, 0]
    assert (p - expected).abs().max() < 1e-15
    whole = float((target + (1 - p) * nontarget).mean()) * temperature**2
    assert whole == pytest.approx(float(kd_loss(ZS, ZT, temperature)), rel=1e-12)


def test_dkd_parts_see_what_they_should() -> None:
    """Scaling the target's logit moves TCKD alone, mixing the others moves NCKD; two classes have no NCKD."""
    target, nontarget, _ = dkd_parts(ZS, ZT, Y, 1.0)
    raised = ZS.scatter_add(1, Y[:, None], torch.full((4, 1), 2.0, dtype=torch.float64))
    other_target, same_nontarget, _ = dkd_parts(raised, ZT, Y, 1.0)
    assert (same_nontarget - nontarget).abs().max() < 1e-14
    assert (other_target - target).abs().min() > 1e-3
    assert float(dkd_parts(ZS[:, :2], ZT[:, :2], Y.clamp(max=1), 1.0)[1].abs().max()) == 0


def test_dkd_takes_the_larger_share_of_a_mixed_image() -> None:
    """With mixup the target class is the one with the larger share."""
    method = build_method("dkd")
    others = torch.tensor([1, 1, 0, 3])
    for share, labels in ((0.7, Y), (0.3, others)):
        mixed = step_of(ZS, ZT, other_labels=others, share=torch.tensor(share))
        assert float(method(mixed)) == pytest.approx(float(dkd_loss(ZS, ZT, labels, 1.0, 8.0, 4.0)), rel=1e-12)
    assert float(dkd_loss(ZS, ZT, others, 1.0, 8.0, 4.0)) != pytest.approx(GOLDEN["dkd_a1_b8_T4"], rel=1e-3)


def test_dkd_weights_are_its_parts() -> None:
    """alpha weighs the target class and beta the others, each times T^2."""
    target, nontarget, _ = dkd_parts(ZS, ZT, Y, 2.0)
    assert float(dkd_loss(ZS, ZT, Y, 1.0, 0.0, 2.0)) == pytest.approx(4 * float(target.mean()), rel=1e-12)
    assert float(dkd_loss(ZS, ZT, Y, 0.0, 3.0, 2.0)) == pytest.approx(12 * float(nontarget.mean()), rel=1e-12)


def test_pearson_is_that_of_numpy() -> None:
    """The correlation of rows equals NumPy's, ignores scale and offset, and is 0 for a constant row."""
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(ZS.numpy(), ZT.numpy(), strict=True)]
    assert pearson(ZS, ZT).tolist() == pytest.approx(expected, rel=1e-7)
    assert pearson(3 * ZS - 5, 0.1 * ZT + 2).tolist() == pytest.approx(expected, rel=1e-6)
    assert pearson(torch.ones(1, 5), ZT[:1].float()).tolist() == [0]


def test_dist_is_made_of_rows_and_columns() -> None:
    """beta weighs the correlation over classes and gamma that over images, times T^2; the range is kept at its ends."""
    p, q = F.softmax(ZS / 4, 1).numpy(), F.softmax(ZT / 4, 1).numpy()
    rows = np.mean([1 - np.corrcoef(p[n], q[n])[0, 1] for n in range(4)])
    columns = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(5)])
    assert float(dist_loss(ZS, ZT, 1.0, 0.0, 4.0)) == pytest.approx(16 * rows, rel=1e-5)
    assert float(dist_loss(ZS, ZT, 0.0, 2.0, 4.0)) == pytest.approx(32 * columns, rel=1e-5)
    two = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])
    assert float(dist_loss(two, -two, 1.0, 2.0, 1.0)) == pytest.approx(2 * (1 + 2), rel=1e-6)


def test_logit_std_ignores_scale_and_offset_of_each_image() -> None:
    """Shifting and stretching any row of either side changes the loss by at most the 5e-8 that epsilon leaves."""
    scale = torch.tensor([[0.5], [2.0], [10.0], [0.1]], dtype=torch.float64)
    expected = float(logit_std_loss(ZS, ZT, 2.0))
    assert abs(float(logit_std_loss(scale * ZS - 4, ZT, 2.0)) - expected) < 1e-6
    assert abs(float(logit_std_loss(ZS, scale * ZT + 3, 2.0)) - expected) < 1e-6
    assert abs(float(logit_std_loss(ZS, -ZT, 2.0)) - expected) > 0.1


def test_standardised_rows_have_unbiased_deviation_1() -> None:
    """Mean 0 and variance 1 over K - 1, not over K; a constant row becomes zeros."""
    rows = standardise(ZS)
    assert rows.mean(1).abs().max() < 1e-15
    assert (rows.var(1, unbiased=True) - 1).abs().max() < 1e-6
    assert torch.equal(standardise(torch.full((2, 5), 3.0)), torch.zeros(2, 5))


class Pixels(nn.Module):
    """A teacher whose logits are pixels of its input, so that they show exactly what it was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return five pixels of each image."""
        return x.flatten(1)[:, ::50][:, :5]


def test_func_match_teacher_sees_the_students_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After crop, flip and mixup, teacher and student get the same bits, and answers are not kept for later epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 16, 16, 1), dtype=np.uint8)
    split = Split(images, np.arange(16) % 5)
    dataset = Dataset("noise", split, split, split, tuple("abcde"), 128, 64.0, {})
    augment = Augment(AugmentConfig(crop_padding=2, flip=True, mixup=0.5), 128, 64.0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    given: list[torch.Tensor] = []
    student.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()) if student.training else None)
    steps: list[DistillStep] = []
    original = FuncMatch.forward

    def note(self: FuncMatch, step: DistillStep) -> torch.Tensor:
        steps.append(step)
        return original(self, step)

    monkeypatch.setattr(FuncMatch, "forward", note)
    config = TrainConfig(epochs=2, batch_size=8, lr=0.01, label_weight=0.0)
    objective = Objective(config, [DistillConfig(method="func_match")], {"func_match": FuncMatch()}, Teacher(Pixels()))
    assert objective.part_names == ["func_match"]
    fit(
        student, objective, dataset, augment, config,
        folder=tmp_path, title="student", progress=Progress(), device=torch.device("cpu"),
    )  # fmt: skip
    assert len(steps) == len(given) == 4
    seen: dict[int, torch.Tensor] = {}
    for step, images_given in zip(steps, given, strict=True):
        assert torch.equal(step.images, images_given)
        assert step.share is not None
        assert step.teacher_logits is not None
        assert torch.equal(step.teacher_logits, Pixels()(images_given))
        assert step.index is not None
        for number, logits in zip(step.index.tolist(), step.teacher_logits, strict=True):
            assert number not in seen or not torch.equal(seen[number], logits)
            seen[number] = logits
    assert len(seen) == 16


FUNC_MATCH = ["distill=[{method: func_match}]"]


def test_func_match_refuses_labels() -> None:
    """A recipe with labels beside it is refused before any work, in the task and in a stage; without it loads."""
    with pytest.raises(ConfigError, match=r"train.label_weight: must be 0 beside 'func_match'.* not 0.1"):
        load_recipe("smoke", FUNC_MATCH)
    stage = "stages=[{name: warm, epochs: 1, label_weight: 0.5, distill: [{method: func_match}]}]"
    with pytest.raises(ConfigError, match=r"stages.0.label_weight: must be 0 beside 'func_match'"):
        load_recipe("smoke", [stage])
    assert load_recipe("smoke", [*FUNC_MATCH, "train.label_weight=0"]).distill[0].method == "func_match"
    assert load_recipe("smoke", ["distill=[{method: func_match, weight: 0}]"]).train.label_weight == 0.1


@pytest.mark.parametrize(
    ("key", "args", "message"),
    [
        ("kd", {"temperature": True}, "kd: temperature must be a number above 0, not True"),
        ("logit_l2", {"on": "logit"}, "logit_l2: on must be one of logits, probs"),
        ("logit_l2", {"reduction": "sum"}, "logit_l2: reduction must be one of sum_half, mean"),
        ("logit_l2", {"center": 1}, "logit_l2: center must be true or false"),
        ("logit_l2", {"on": "probs", "center": True}, "center changes nothing on probs"),
        ("dkd", {"alpha": -1}, "dkd: alpha must be a number of at least 0"),
        ("dkd", {"beta": "8"}, "dkd: beta must be a number of at least 0"),
        ("dkd", {"alpha": 0, "beta": 0}, "dkd: alpha and beta are both 0"),
        ("dkd", {"temperature": 0}, "dkd: temperature must be a number above 0"),
        ("dist", {"beta": -1}, "dist: beta must be a number of at least 0"),
        ("dist", {"gamma": None}, "dist: gamma must be a number of at least 0"),
        ("dist", {"beta": 0, "gamma": 0.0}, "dist: beta and gamma are both 0"),
        ("dist", {"temperature": -1}, "dist: temperature must be a number above 0"),
        ("logit_std", {"temperature": 0}, "logit_std: temperature must be a number above 0"),
        ("defensive", {"temperature": 0}, "defensive: temperature must be a number above 0"),
        ("func_match", {"temperature": 2}, "method 'func_match' has no argument 'temperature'"),
    ],
)
def test_impossible_arguments_are_refused(key: str, args: dict[str, Any], message: str) -> None:
    """A value outside its range names the method, the argument, the limit and the value."""
    with pytest.raises(ConfigError, match=message):
        build_method(key, args)


def test_dkd_refuses_a_single_class() -> None:
    """One class has no others to compare."""
    student, teacher = small_models()
    with pytest.raises(ConfigError, match="dkd: needs at least 2 classes, not 1"):
        make_method("dkd", None, make_context(student, teacher, num_classes=1))


@pytest.mark.parametrize("name", METHODS)
def test_missing_or_misshapen_teacher_logits_are_errors(name: str) -> None:
    """No teacher, or one with other classes, fails at once and is not broadcast away."""
    with pytest.raises(ValueError, match="needs teacher logits"):
        loss_of(name)(ZS, None)
    with pytest.raises(ValueError, match="same classes"):
        loss_of(name)(ZS, ZT[:, :1])
