"""Knowledge distillation: golden values, the gradient's formula, limits, and what must not leak into the teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinykd.config import DistillConfig, TrainConfig
from tinykd.distill import AXES, METHODS, build_method
from tinykd.distill.base import DistillStep
from tinykd.distill.kd import kd_loss
from tinykd.errors import ConfigError
from tinykd.models.teacher import Teacher
from tinykd.train.objective import Objective


def wave(shape: tuple[int, ...], a: float, b: float) -> torch.Tensor:
    """Return sin(a k + b) over the row-major index k, in float64."""
    count = torch.Size(shape).numel()
    return torch.sin(a * torch.arange(count, dtype=torch.float64) + b).reshape(shape)


STUDENT = 3 * wave((4, 5), 0.7, 0.3)
TEACHER = 3 * wave((4, 5), 0.9, 1.1)
LABELS = torch.tensor([0, 2, 4, 1])

# From an independent NumPy implementation in float64, on the logits above.
GOLDEN = {1.0: 3.209939497090651, 2.0: 4.635071486446541, 4.0: 5.149868485344151}
GOLDEN_CROSS_ENTROPY = 4.420277801200461
GOLDEN_TOTAL = 5.076909416929783


def step(student: torch.Tensor = STUDENT, teacher: torch.Tensor | None = TEACHER) -> DistillStep:
    """Return a step with these logits."""
    return DistillStep(torch.zeros(4, 1, 2, 2), LABELS, student, teacher)


@pytest.mark.parametrize("temperature", list(GOLDEN))
def test_golden_values(temperature: float) -> None:
    """The loss equals the oracle in float64 and in float32, and is a scalar."""
    loss = kd_loss(STUDENT, TEACHER, temperature)
    assert loss.ndim == 0
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(GOLDEN[temperature], rel=1e-6)
    single = kd_loss(STUDENT.float(), TEACHER.float(), temperature)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(GOLDEN[temperature], rel=2e-5)


def test_golden_mix_with_labels() -> None:
    """0.1 cross-entropy + 0.9 kd at T = 4, as the objective adds them up from a recipe."""
    loss = DistillConfig(method="kd", weight=0.9, args={"temperature": 4.0})
    objective = Objective(TrainConfig(label_weight=0.1), [loss], {"kd": build_method("kd")}, Teacher(Constant(TEACHER)))
    total, parts = objective(step(teacher=objective.teach(torch.zeros(4, 1, 2, 2)).logits))
    assert float(total) == pytest.approx(GOLDEN_TOTAL, rel=1e-6)
    assert objective.part_names == ["labels", "kd"]
    assert [float(part) for part in parts] == pytest.approx([GOLDEN_CROSS_ENTROPY, GOLDEN[4.0]], rel=1e-6)


class Constant(nn.Module):
    """A teacher that always answers the same; its parameter would show a gradient if one came through."""

    def __init__(self, logits: torch.Tensor) -> None:
        """Keep the logits as a parameter."""
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.logits + 0 * x.sum().to(self.logits.dtype)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 8.0])
def test_gradient_equals_its_formula(temperature: float) -> None:
    """The gradient is T / N (softmax(student / T) - softmax(teacher / T)), also by finite differences."""
    student = STUDENT.clone().requires_grad_(True)
    kd_loss(student, TEACHER, temperature).backward()
    expected = temperature / 4 * (F.softmax(STUDENT / temperature, 1) - F.softmax(TEACHER / temperature, 1))
    assert student.grad is not None
    assert (student.grad - expected).abs().max() < 1e-12
    numeric = torch.empty_like(STUDENT)
    for index in range(STUDENT.numel()):
        shift = torch.zeros(STUDENT.numel(), dtype=torch.float64)
        shift[index] = 1e-6
        shift = shift.reshape(STUDENT.shape)
        difference = kd_loss(STUDENT + shift, TEACHER, temperature) - kd_loss(STUDENT - shift, TEACHER, temperature)
        numeric.view(-1)[index] = difference / 2e-6
    assert (numeric - expected).abs().max() < 1e-8


def test_zero_at_identity_and_positive_elsewhere() -> None:
    """Equal logits cost exactly nothing; others cost something."""
    assert float(kd_loss(STUDENT, STUDENT, 4.0)) == pytest.approx(0, abs=1e-15)
    assert float(kd_loss(STUDENT, TEACHER, 4.0)) > 0


def test_constants_per_row_change_nothing() -> None:
    """Adding a constant to a row of either side's logits leaves the loss as it is."""
    rows = torch.tensor([[5.0], [-7.0], [0.5], [100.0]], dtype=torch.float64)
    loss = kd_loss(STUDENT, TEACHER, 2.0)
    assert float(kd_loss(STUDENT + rows, TEACHER, 2.0)) == pytest.approx(float(loss), rel=1e-10)
    assert float(kd_loss(STUDENT, TEACHER + rows, 2.0)) == pytest.approx(float(loss), rel=1e-10)


def test_order_of_the_batch_changes_nothing_and_direction_does() -> None:
    """Permuting the batch keeps the loss; swapping student and teacher does not: the teacher is the first of KL."""
    order = torch.tensor([2, 0, 3, 1])
    assert float(kd_loss(STUDENT[order], TEACHER[order], 2.0)) == pytest.approx(GOLDEN[2.0], rel=1e-12)
    assert abs(float(kd_loss(TEACHER, STUDENT, 2.0)) - GOLDEN[2.0]) > 1e-3


def test_mean_is_over_the_batch() -> None:
    """Doubling the batch with the same rows keeps the loss: the mean is over images, not over classes."""
    twice = kd_loss(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), 4.0)
    assert float(twice) == pytest.approx(GOLDEN[4.0], rel=1e-12)


def test_high_temperature_is_logit_matching() -> None:
    """For large T the loss tends to ||s - t||^2 / 2K per image on centred logits; at T = 1000 the ratio is 1.00038."""
    centred = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * STUDENT.shape[1])
    assert float(kd_loss(STUDENT, TEACHER, 1000.0) / limit) == pytest.approx(1.00038, abs=1e-4)


def test_gradient_size_does_not_depend_on_the_temperature() -> None:
    """Between T = 1 and T = 4 the gradient keeps its order of magnitude, which is what T^2 is for."""
    norms = []
    for temperature in (1.0, 4.0):
        student = STUDENT.clone().requires_grad_(True)
        kd_loss(student, TEACHER, temperature).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert 0.5 < norms[1] / norms[0] < 4


def test_nothing_flows_into_the_teacher() -> None:
    """Teacher logits that require a gradient get none, and a teacher module's parameters get none either."""
    teacher_logits = TEACHER.clone().requires_grad_(True)
    student = STUDENT.clone().requires_grad_(True)
    kd_loss(student, teacher_logits, 2.0).backward()
    assert teacher_logits.grad is None
    teacher = Teacher(Constant(TEACHER))
    objective = Objective(TrainConfig(), [DistillConfig(method="kd")], {"kd": build_method("kd")}, teacher)
    taught = objective.teach(torch.zeros(4, 1, 2, 2))
    objective(step(student, taught.logits))[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not list(objective.parameters()), "the teacher must be neither trained nor saved with the objective"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Half-precision logits, large ones too, give a finite float32 loss: inside it is float32, autocast or not."""
    student, teacher = (1000 * STUDENT).to(dtype), (1000 * TEACHER).to(dtype)
    loss = kd_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert float(loss) == pytest.approx(float(kd_loss(student.double(), teacher.double(), 4.0)), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = kd_loss(STUDENT.float(), TEACHER.float(), 4.0)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, kd_loss(STUDENT.float(), TEACHER.float(), 4.0))


def test_extreme_logits_stay_finite() -> None:
    """Certain and contradicting predictions cost much but never become infinite or NaN."""
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = kd_loss(student, -student, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_weight_zero_is_plain_training_bit_for_bit() -> None:
    """With weight 0 the objective is the cross-entropy itself: same bits, no teacher pass, same gradient."""

    class Explodes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the teacher was asked")

    objective = Objective(TrainConfig(), [DistillConfig(method="kd", weight=0.0)], {}, Teacher(Explodes()))
    student, plain = (STUDENT.float().requires_grad_(True) for _ in range(2))
    total, _ = objective(step(student, objective.teach(torch.zeros(4, 1, 2, 2)).logits))
    expected = F.cross_entropy(plain, LABELS)
    total.backward()
    expected.backward()
    assert torch.equal(total, expected)
    assert student.grad is not None
    assert plain.grad is not None
    assert torch.equal(student.grad, plain.grad)
    assert objective.part_names == ["labels"]


def test_training_on_the_loss_moves_the_student_to_the_teacher() -> None:
    """Fifty steps on fixed logits bring the loss down by more than 90 %."""
    student = STUDENT.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([student], lr=1.0, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        kd_loss(student, TEACHER, 4.0).backward()
        optimizer.step()
    assert float(kd_loss(student.detach(), TEACHER, 4.0)) < 0.1 * GOLDEN[4.0]


def test_missing_or_misshapen_teacher_logits_are_errors() -> None:
    """No teacher, or one with other classes, fails at once and is not broadcast away."""
    method = build_method("kd")
    with pytest.raises(ValueError, match="needs teacher logits"):
        method(step(teacher=None))
    with pytest.raises(ValueError, match="same classes"):
        method(step(teacher=TEACHER[:, :1]))


@pytest.mark.parametrize("temperature", [0, -1, "hot", None])
def test_impossible_temperatures_are_refused(temperature: object) -> None:
    """The temperature must be a number above 0."""
    with pytest.raises(ConfigError, match="temperature"):
        build_method("kd", {"temperature": temperature})


def test_registry_names_every_argument() -> None:
    """Each row has all that `tinykd list methods` prints; unknown methods and arguments suggest the nearest."""
    for key, row in METHODS.items():
        assert row.key == key
        assert all((row.title, row.matches, row.paper, row.cost, row.stages, row.weight))
        assert row.axis in AXES
        build_method(key)
    with pytest.raises(ConfigError, match="no argument 'temprature'. Did you mean 'temperature'"):
        build_method("kd", {"temprature": 1})
    with pytest.raises(ConfigError, match="no distillation method"):
        build_method("kdd")
