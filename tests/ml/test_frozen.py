"""The frozen teacher is the teacher, only faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinykd.models import build_model
from tinykd.models.taps import resolve_taps
from tinykd.models.teacher import Teacher
from tinykd.train.frozen import FrozenTeacher


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2", "mobilenetv2"])
def test_logits_and_features_equal_eager_mode(name: str) -> None:
    """Logits and every tap, inputs of activations too, equal eager mode to rounding; no gradient is kept."""
    torch.manual_seed(0)
    teacher = Teacher(build_model(name, 5, 32, 3), 128, 64.0, [0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
    taps = resolve_taps(teacher.model, ["@stages", "@preacts", "@pooled"], name)
    frozen = FrozenTeacher(teacher, taps)
    images = torch.randn(4, 3, 32, 32)
    logits, features = frozen(images)
    assert frozen._graph is not None
    with torch.no_grad():
        expected = teacher(images)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert set(features) == set(taps)
    assert not logits.requires_grad
    assert all(not feature.requires_grad for feature in features.values())


def test_the_same_images_give_the_same_bits_from_the_first_call() -> None:
    """The first call's result equals the tenth's: a resumed training sees the teacher that it saw before."""
    teacher = Teacher(build_model("resnet20", 5, 32, 3))
    images = torch.randn(8, 3, 32, 32)
    first = FrozenTeacher(teacher, ())(images)[0]
    frozen = FrozenTeacher(teacher, ())
    for _ in range(10):
        assert torch.equal(frozen(images)[0], first)


def test_another_batch_size_is_another_graph() -> None:
    """The last, smaller batch is computed right."""
    teacher = Teacher(build_model("resnet8", 5, 16, 3))
    frozen = FrozenTeacher(teacher, ())
    for count in (8, 3, 8):
        images = torch.randn(count, 3, 16, 16)
        with torch.no_grad():
            expected = teacher(images)
        assert torch.allclose(frozen(images)[0], expected, atol=1e-5)


class Untraceable(nn.Module):
    """Returns what a trace cannot hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fail while traced."""
        if torch.jit.is_tracing():
            raise RuntimeError("not while tracing")
        return x.mean((2, 3))


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    """A model that refuses the trace still teaches."""
    frozen = FrozenTeacher(Teacher(Untraceable()), ())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(frozen(images)[0], images.mean((2, 3)))
    assert frozen._graph is None


def test_the_teacher_itself_is_untouched() -> None:
    """Freezing changes no weight and no mode, and leaves no hook behind."""
    teacher = Teacher(build_model("resnet20", 5, 32, 3))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    FrozenTeacher(teacher, resolve_taps(teacher.model, "@stages", "teacher"))(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())
    assert not teacher.training
