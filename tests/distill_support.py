"""What the tests of distillation methods share: golden values and their inputs, steps, contexts and short trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinykd.distill import build_method
from tinykd.distill.base import Context, DistillMethod, DistillStep, ModelView
from tinykd.models import build_model
from tinykd.models.taps import record
from tinykd.models.teacher import Teacher

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "distill.json").read_text())
RTOL = {torch.float64: 1e-6, torch.float32: 2e-5}


def wave(shape: tuple[int, ...], a: float, b: float, scale: float = 1.0) -> torch.Tensor:
    """Return scale * sin(a k + b) over the row-major index k, in float64."""
    count = torch.Size(shape).numel()
    return scale * torch.sin(a * torch.arange(count, dtype=torch.float64) + b).reshape(shape)


# The inputs of the golden values.
ZS = wave((4, 5), 0.7, 0.3, 3)
ZT = wave((4, 5), 0.9, 1.1, 3)
Z3 = wave((4, 5), 1.3, 0.5, 3)
Y = torch.tensor([0, 2, 4, 1])
FS = wave((2, 3, 4, 4), 0.37, 0.2)
FT = wave((2, 4, 4, 4), 0.53, 0.9)
F1 = wave((2, 4, 4, 4), 0.37, 0.2)
FB = wave((2, 3, 4, 4), 0.2, 0.1)
E1 = wave((5, 6), 0.41, 0.3)
E2 = wave((5, 8), 0.77, 0.5)


def assert_golden(loss: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], expected: float) -> None:
    """Assert that the loss of the inputs is a scalar of the expected value, in float64 and in float32."""
    for dtype, tolerance in RTOL.items():
        value = loss(*(x.to(dtype) if x.is_floating_point() else x for x in inputs))
        assert value.ndim == 0
        assert value.dtype == dtype
        assert abs(float(value) - expected) <= tolerance * abs(expected), (dtype, float(value), expected)


def make_context(
    student: nn.Module, teacher: nn.Module | None, shape: tuple[int, ...] = (3, 16, 16), num_classes: int = 5
) -> Context:
    """Return a context of two models for images of `shape` and 40 training images with labels 0, 1, ..., 0, 1, ..."""

    def build(model: str, **args: Any) -> nn.Module:
        return build_model(model, num_classes, shape[1], shape[0], **args)

    return Context(
        student=ModelView("student", student, shape),
        teacher=None if teacher is None else ModelView("teacher", teacher, shape),
        num_classes=num_classes,
        labels=torch.arange(40) % num_classes,
        build=build,
    )


def small_models(num_classes: int = 5, resolution: int = 16) -> tuple[nn.Module, nn.Module]:
    """Return a seeded student and a teacher of another family, for 3-channel images."""
    torch.manual_seed(1)
    student = build_model("resnet8", num_classes, resolution, 3, width=0.5)
    teacher = build_model("resnet20", num_classes, resolution, 3, width=0.5)
    return student, teacher


def make_method(key: str, args: dict[str, Any] | None, context: Context) -> DistillMethod:
    """Return a method that is set up."""
    torch.manual_seed(2)
    method = build_method(key, args)
    method.setup(context)
    return method


def run_step(
    method: DistillMethod, student: nn.Module, teacher: nn.Module | None, seed: int = 0, count: int = 8, **facts: Any
) -> DistillStep:
    """Run both models on seeded random images and return the step as the training loop would make it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, 3, 16, 16), generator=generator)
    if method.needs_input_grad:
        images.requires_grad_(True)
    frozen = None if teacher is None else Teacher(teacher)
    with record(student, method.student_taps) as student_features:
        student_logits = student(images)
    teacher_logits, teacher_features = None, {}
    if frozen is not None:
        with torch.set_grad_enabled(method.needs_input_grad), record(frozen.model, method.teacher_taps) as found:
            teacher_logits = frozen(images)
        teacher_features = found
    index = torch.arange(count)
    return DistillStep(
        images=images,
        labels=index % student_logits.shape[1],
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        student_features=student_features,
        teacher_features=teacher_features,
        index=index,
        generator=generator,
        run_student=student,
        run_teacher=frozen,
        **facts,
    )


def train_steps(
    method: DistillMethod, student: nn.Module, teacher: nn.Module | None, steps: int = 50, lr: float = 0.05
) -> list[float]:
    """Train the student (and the method's adapters) on one fixed batch with its loss alone; return the losses."""
    parameters = [p for module in (student, method) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    losses = []
    student.train()
    for _ in range(steps):
        loss = method(run_step(method, student, teacher))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
