"""Knowledge review: an independent implementation in NumPy, the pyramid's weights, and taps of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from distill_support import FT, assert_golden, make_context, make_method, run_step, small_models, wave
from torch import nn

from tinykd.distill import build_method
from tinykd.distill.reviewkd import Fusion, ReviewKd, hcl_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model


def pool(x: np.ndarray, size: int) -> np.ndarray:
    """Return (N, C, H, W) averaged to `size` pixels a side, bins as adaptive pooling cuts them."""
    rows, columns = x.shape[2:]
    out = np.zeros((*x.shape[:2], size, size))
    for i in range(size):
        for j in range(size):
            top, bottom = i * rows // size, -(-(i + 1) * rows // size)
            left, right = j * columns // size, -(-(j + 1) * columns // size)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


def numpy_hcl(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the hierarchical context loss as the paper's code has it."""
    loss, weight, total = float(((student - teacher) ** 2).mean()), 1.0, 1.0
    for level in (4, 2, 1):
        if level < student.shape[2]:
            weight /= 2
            total += weight
            loss += weight * float(((pool(student, level) - pool(teacher, level)) ** 2).mean())
    return loss / total


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_pyramid_equals_numpy(size: int) -> None:
    """Every number of levels, also those that do not divide the map evenly."""
    student, teacher = wave((2, 3, size, size), 0.37, 0.2), wave((2, 3, size, size), 0.53, 0.9)
    assert_golden(hcl_loss, (student, teacher), numpy_hcl(student.numpy(), teacher.numpy()))


def test_pyramid_weights() -> None:
    """A constant difference d costs d^2 at every level; one that averages out costs on the map alone: 1 / 1.875."""
    ones = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    assert float(hcl_loss(3 * ones, ones)) == pytest.approx(4)
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(4, 4).expand(1, 2, 8, 8)
    assert float(hcl_loss(checkers, 0 * ones)) == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))
    assert float(hcl_loss(FT, FT)) == 0
    maps = FT.clone().requires_grad_(True)
    assert not hcl_loss(FT, maps).requires_grad


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return a convolution of stride 1 that keeps the size, summed over the kernel's offsets."""
    side = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    rows, columns = x.shape[2:]
    out = sum(
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + rows, j : j + columns], weight[:, :, i, j])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)  # type: ignore[operator,return-value]


def norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return batch norm with the batch's own statistics."""
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    weight, bias = (state[f"{name}.{key}"].reshape(1, -1, 1, 1) for key in ("weight", "bias"))
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def nearest(x: np.ndarray, size: int) -> np.ndarray:
    """Return the map with its pixels repeated up to `size`."""
    index = np.arange(size) * x.shape[2] // size
    return x[:, :, index][:, :, :, index]


def numpy_review(
    method: ReviewKd, students: list[np.ndarray], teachers: list[np.ndarray]
) -> tuple[float, list[np.ndarray]]:
    """Return the whole loss from the fusions' weights, and the maps that are compared, from deep to shallow."""
    total, below, maps = 0.0, None, []
    for fusion, x, target in reversed(list(zip(method.fusions, students, teachers, strict=True))):
        state = {key: value.double().numpy() for key, value in fusion.state_dict().items()}
        fused = norm(conv(x, state["reduce.0.weight"]), state, "reduce.1")
        if below is not None:
            below = nearest(below, x.shape[2])
            joined = np.concatenate([fused, below], axis=1)
            shares = 1 / (1 + np.exp(-conv(joined, state["attention.weight"], state["attention.bias"])))
            fused = fused * shares[:, 0:1] + below * shares[:, 1:2]
        below = fused
        maps.append(norm(conv(nearest(fused, target.shape[2]), state["expand.0.weight"]), state, "expand.1"))
        total += numpy_hcl(maps[-1], target)
    return total, maps


@pytest.mark.parametrize("stride", [1, 2])
def test_loss_equals_an_independent_implementation(stride: int) -> None:
    """From the same weights NumPy computes the same loss, for equal sizes and for a student of half the size."""
    torch.manual_seed(0)
    student = build_model("resnet8", 5, 16, 3, stem_stride=stride)
    teacher = build_model("resnet20", 5, 16, 3)
    method = make_method("reviewkd", None, make_context(student, teacher)).double()
    assert isinstance(method, ReviewKd)
    step = run_step(method, student, teacher)
    pairs = [[x.detach().double() for x in pair] for pair in method.pairs(step)]
    arrays = [[(x[:, :, None, None] if x.ndim == 2 else x).numpy() for x in pair] for pair in pairs]
    expected, _ = numpy_review(method, [pair[0] for pair in arrays], [pair[1] for pair in arrays])
    step.student_features.update(zip(method.student_taps, (pair[0] for pair in pairs), strict=True))  # type: ignore[attr-defined]
    step.teacher_features.update(zip(method.teacher_taps, (pair[1] for pair in pairs), strict=True))  # type: ignore[attr-defined]
    assert float(method(step).detach()) == pytest.approx(expected, rel=1e-9)


def test_shallow_maps_of_the_teacher_guide_deeper_ones_of_the_student() -> None:
    """The loss of the shallowest pair alone reaches all of the student's fused maps; that of the deepest its own."""
    fusions = [Fusion(4, 6, 4, deepest) for deepest in (False, True)]
    shallow, deep = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 4, 4, requires_grad=True)
    own_deep, below = fusions[1](deep, None, (4, 4))
    own_shallow, _ = fusions[0](shallow, below, (8, 8))
    from_shallow = torch.autograd.grad(own_shallow.square().sum(), [shallow, deep], retain_graph=True)
    assert all(float(g.abs().sum()) > 0 for g in from_shallow)
    from_deep = torch.autograd.grad(own_deep.square().sum(), [shallow, deep], allow_unused=True)
    assert from_deep[0] is None
    assert from_deep[1] is not None
    assert fusions[1].attention is None


def test_default_taps_and_widths() -> None:
    """The student's stages and embedding against the teacher's pre-activations and embedding; mid as narrow as fits."""
    student, teacher = small_models()
    for args, mid in (({}, 32), ({"mid_channels": 12}, 12)):
        method = make_method("reviewkd", args, make_context(student, teacher))
        assert isinstance(method, ReviewKd)
        assert method.student_taps == ("block1:output", "block2:output", "block3:output", "head.flatten:output")
        assert method.teacher_taps[:3] == ("layer1.2.act2:input", "layer2.2.act2:input", "layer3.2.act2:input")
        assert method.teacher_taps[3] == "pool:output"
        for fusion in method.fusions:
            assert isinstance(fusion, Fusion)
            assert isinstance(fusion.reduce[0], nn.Conv2d)
            assert fusion.reduce[0].out_channels == mid
        assert [fusion.attention is None for fusion in method.fusions] == [False, False, False, True]  # type: ignore[union-attr]


def test_a_larger_student_map_is_averaged_down() -> None:
    """Where the teacher's map is smaller, the fused map is pooled, not sampled."""
    torch.manual_seed(0)
    fusion = Fusion(3, 5, 4, deepest=True).eval()
    x = torch.randn(2, 3, 8, 8)
    own, fused = fusion(x, None, (4, 4))
    assert own.shape == (2, 4, 4, 4)
    assert fused.shape == (2, 5, 8, 8)
    assert torch.allclose(own, fusion.expand(nn.functional.avg_pool2d(fused, 2)), atol=1e-6)


@pytest.mark.parametrize("mid", [0, 1.5, "wide"])
def test_impossible_arguments_are_refused(mid: Any) -> None:
    """The fused maps need at least one channel."""
    with pytest.raises(ConfigError, match="mid_channels must be a whole number of at least 1"):
        build_method("reviewkd", {"mid_channels": mid})


class Sequence(nn.Module):
    """A network with a (C, L) tensor inside."""

    def __init__(self) -> None:
        """Make the part that is tapped."""
        super().__init__()
        self.flat = nn.Flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C)."""
        return self.flat(x).mean(dim=2)


def test_taps_of_other_shapes_are_refused() -> None:
    """Neither a map nor an embedding: the tap is named."""
    student, _ = small_models()
    taps = {"student_taps": "@stage1", "teacher_taps": "flat"}
    with pytest.raises(ConfigError, match=r"teacher tap 'flat:output' gives \(3, 256\), neither"):
        make_method("reviewkd", taps, make_context(student, Sequence()))
