"""Methods that compare relations between images: golden values, invariances, degenerate batches, adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from distill_support import (
    E1,
    E2,
    FS,
    FT,
    GOLDEN,
    assert_golden,
    make_context,
    make_method,
    run_step,
    small_models,
    train_steps,
)

from tinykd.distill import build_method
from tinykd.distill.base import DistillMethod, DistillStep, unit_vectors
from tinykd.distill.cc import cc_kernel_loss, cc_pairs_loss, correlations
from tinykd.distill.pkt import neighbour_probabilities, pkt_loss
from tinykd.distill.rkd import angles, distances, rkd_angle_loss, rkd_distance_loss
from tinykd.distill.sp import similarities, sp_loss
from tinykd.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rkd": ("rkd", {}),
    "rkd-seed_sq": ("rkd", {"mode": "seed_sq", "angle_weight": 0.0}),
    "sp": ("sp", {}),
    "cc": ("cc", {"dim": 16}),
    "cc-kernel": ("cc", {"form": "kernel"}),
    "pkt": ("pkt", {}),
    "crd": ("crd", {"dim": 16}),
}
WITH_LAYERS = {"cc", "crd"}
SCALE = {"rkd": 1.0, "rkd-seed_sq": 1.0, "sp": 300.0, "cc": 1.0, "cc-kernel": 100.0, "pkt": 3000.0, "crd": 1.0}

LOSSES: dict[str, Loss] = {
    "rkd distance": rkd_distance_loss,
    "rkd squared": lambda s, t: rkd_distance_loss(s, t, "seed_sq"),
    "rkd angle": rkd_angle_loss,
    "sp": sp_loss,
    "pkt": pkt_loss,
    "cc kernel": lambda s, t: cc_kernel_loss(s, t, 0.4, 2),
}


def rotation(size: int) -> torch.Tensor:
    """Return a seeded orthogonal matrix in float64."""
    draws = torch.randn((size, size), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.linalg.qr(draws)[0]


def make(name: str) -> tuple[DistillMethod, torch.nn.Module, torch.nn.Module]:
    """Return a method that is set up, and its student and teacher."""
    student, teacher = small_models()
    key, args = METHODS[name]
    return make_method(key, args, make_context(student, teacher)), student, teacher


@pytest.mark.parametrize(
    ("loss", "inputs", "key"),
    [
        (sp_loss, (FS, FT), "sp(fs,ft)"),
        (pkt_loss, (E1, E2), "pkt(E1,E2)"),
        (rkd_distance_loss, (E1, E2), "rkd_d"),
        (rkd_angle_loss, (E1, E2), "rkd_a"),
    ],
    ids=["sp", "pkt", "rkd distance", "rkd angle"],
)
def test_golden_values(loss: Loss, inputs: tuple[torch.Tensor, ...], key: str) -> None:
    """Each loss equals the independent implementation in float64 and in float32, for different sizes of the two."""
    assert_golden(loss, inputs, GOLDEN[key])


def test_rkd_mixes_25_distances_and_50_angles() -> None:
    """The method's defaults weigh the two losses as the benchmark tables do."""
    method = build_method("rkd")
    method.student_taps, method.teacher_taps = ("s",), ("t",)
    step = DistillStep(E1, torch.zeros(5), E1, student_features={"s": E1}, teacher_features={"t": E2})
    assert float(method(step)) == pytest.approx(GOLDEN["rkd_25d_50a"], rel=1e-9)
    method.student_taps, method.teacher_taps = ("s", "s"), ("t", "t")
    assert float(method(step)) == pytest.approx(2 * GOLDEN["rkd_25d_50a"], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_relations_cost_nothing(name: str) -> None:
    """A loss of something with itself is 0, and above 0 with something else."""
    assert float(LOSSES[name](E1, E1)) == pytest.approx(0, abs=1e-12)
    assert float(LOSSES[name](E1, E2)) > 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_the_batch_changes_nothing(name: str) -> None:
    """Permuting the images of both sides keeps the loss, permuting those of one side does not."""
    order = torch.tensor([2, 0, 3, 1, 4])
    student, teacher = 0.3 * E1, 0.2 * E2
    expected = float(LOSSES[name](student, teacher))
    assert float(LOSSES[name](student[order], teacher[order])) == pytest.approx(expected, rel=1e-12)
    assert float(LOSSES[name](student[order], teacher)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["rkd distance", "rkd angle"])
def test_rkd_ignores_similar_transformations(name: str) -> None:
    """Rotating, stretching and shifting all embeddings of either side changes nothing."""
    loss, expected = LOSSES[name], float(LOSSES[name](E1, E2))
    assert float(loss(3 * E1 @ rotation(6) + 5, E2)) == pytest.approx(expected, rel=1e-10)
    assert float(loss(E1, 0.2 * E2 @ rotation(8) - 1)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["sp", "pkt", "cc kernel"])
def test_rotation_and_scale_change_nothing(name: str) -> None:
    """Rotating and stretching all features of either side changes nothing; shifting them does."""
    loss, expected = LOSSES[name], float(LOSSES[name](E1, E2))
    assert float(loss(3 * E1 @ rotation(6), E2)) == pytest.approx(expected, rel=1e-9)
    assert float(loss(E1, 0.2 * E2 @ rotation(8))) == pytest.approx(expected, rel=1e-9)
    assert float(loss(E1 + 1, E2)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("name", "ignores"), [("pkt", True), ("cc kernel", True), ("sp", False)])
def test_length_of_single_embeddings(name: str, ignores: bool) -> None:
    """Cosine methods ignore how long each image's features are; sp, which normalises rows of products, does not."""
    lengths = torch.tensor([[0.5], [2.0], [1.0], [7.0], [3.0]], dtype=torch.float64)
    expected = float(LOSSES[name](E1, E2))
    assert (float(LOSSES[name](lengths * E1, E2)) == pytest.approx(expected, rel=1e-6)) == ignores


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_flows_into_the_teacher(name: str) -> None:
    """A teacher that asks for a gradient gets none; every image of the student gets one."""
    student, teacher = (x.clone().requires_grad_(True) for x in (E1, E2))
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences(name: str) -> None:
    """The gradient is that of the value."""
    student = E1.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, E2), (student,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_batches_stay_finite(name: str) -> None:
    """One image, equal images, all equal, and features of zeros: finite loss and gradient, and none that explodes."""
    twins = E1.float()[[0, 1, 2, 0, 1]]
    zeros = E1.float().clone()
    zeros[2] = 0
    for student, teacher in (
        (E1[:1].float(), E2[:1].float()),
        (twins, E2.float()),
        (E1.float(), E2.float()[[0, 0, 1, 2, 2]]),
        (E1.float()[[0, 0, 0, 0, 0]], E2.float()),
        (zeros, E2.float()),
        (torch.zeros(5, 6), E2.float()),
        (E1.float(), torch.zeros(5, 8)),
    ):
        own = student.clone().requires_grad_(True)
        loss = LOSSES[name](own, teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert own.grad is not None
        assert torch.isfinite(own.grad).all()
        assert own.grad.abs().max() < 100
        if len(student) == 1:
            assert float(loss.detach()) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    """Half-precision features give the float32 loss of the same numbers, large ones too, autocast or not."""
    loss = LOSSES[name]
    size = 10 if name == "rkd squared" else 1000
    for dtype in (torch.float16, torch.bfloat16):
        student, teacher = (size * E1).to(dtype), (size * E2).to(dtype)
        value = loss(student, teacher)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(loss(student.double(), teacher.double())), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(E1.float(), E2.float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(E1.float(), E2.float()))


def test_rkd_distances_by_hand() -> None:
    """A triangle of sides 3, 4, 5: distances over their mean of the six that are not 0, or the squares as they are."""
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    plain = torch.tensor([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]])
    assert torch.allclose(distances(triangle), plain / 4)
    assert torch.allclose(distances(triangle, normalize=False), plain)
    assert torch.allclose(distances(triangle, squared=True, normalize=False), plain.square())
    assert torch.allclose(distances(triangle, squared=True), plain.square() / (50 / 3))


def test_rkd_angles_by_hand() -> None:
    """At the right angle the cosine is 0, at the others 3/5 and 4/5; a side with itself has cosine 1."""
    cosines = angles(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    assert cosines.shape == (3, 3, 3)
    assert [float(cosines[i, j, k]) for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 1, 1), (0, 0, 1))] == (
        pytest.approx([0, 0.6, 0.8, 1, 0], abs=1e-6)
    )


@pytest.mark.parametrize("normalize", [False, True, None])
def test_rkd_squared_form(normalize: bool | None) -> None:
    """`seed_sq` is the mean Huber distance of the n (n - 1) / 2 squared distances, not normalised by default."""
    sides = []
    for x in (E1.numpy(), E2.numpy()):
        squares = np.array([np.sum((x[i] - x[j]) ** 2) for i, j in combinations(range(5), 2)])
        sides.append(squares / squares.mean() if normalize else squares)
    apart = np.abs(sides[0] - sides[1])
    expected = np.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
    assert float(rkd_distance_loss(E1, E2, "seed_sq", normalize)) == pytest.approx(expected, rel=1e-12)


def test_rkd_paper_form_without_normaliser() -> None:
    """`normalize: false` in the paper's mode compares plain distances, over all N^2 pairs."""
    apart = (torch.cdist(E1, E1) - torch.cdist(E2, E2)).abs()
    expected = torch.where(apart < 1, 0.5 * apart.square(), apart - 0.5).mean()
    assert float(rkd_distance_loss(E1, E2, "paper", False)) == pytest.approx(float(expected), rel=1e-6)
    assert float(rkd_distance_loss(E1, E2, "paper", True)) == pytest.approx(GOLDEN["rkd_d"], rel=1e-9)


def test_sp_rows_have_length_1() -> None:
    """The similarities are products of flattened maps, each row of length 1."""
    found = similarities(FS)
    products = np.array([[np.sum(a * b) for b in FS.numpy()] for a in FS.numpy()])
    expected = products / np.linalg.norm(products, axis=1, keepdims=True)
    assert np.abs(found.numpy() - expected).max() < 1e-14


def test_pkt_rows_are_probabilities() -> None:
    """Each row sums to 1 over the neighbours, itself included, and the teacher is the first of the divergence."""
    found = neighbour_probabilities(E1)
    assert (found >= 0).all()
    assert (found.sum(1) - 1).abs().max() < 1e-14
    assert float(pkt_loss(E2, E1)) != pytest.approx(float(pkt_loss(E1, E2)), rel=1e-3)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.isfinite(pkt_loss(opposite, E2[:2].float()))


def test_cc_kernel_against_numpy() -> None:
    """The paper's form: powers of cosines up to the order, by an independent implementation."""
    gamma, matrices = 0.4, []
    for x in (E1.numpy(), E2.numpy()):
        matrix = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                cosine = x[i] @ x[j] / np.sqrt(x[i] @ x[i]) / np.sqrt(x[j] @ x[j])
                matrix[i, j] = np.exp(-2 * gamma) * (1 + 2 * gamma * cosine + (2 * gamma * cosine) ** 2 / 2)
        matrices.append(matrix)
    expected = np.sum((matrices[0] - matrices[1]) ** 2) / 25
    assert_golden(lambda s, t: cc_kernel_loss(s, t, gamma, 2), (E1, E2), float(expected))


def test_cc_kernel_tends_to_the_gaussian() -> None:
    """With many terms the series is exp(-gamma ||x - y||^2) of the unit vectors."""
    units = E1 / E1.norm(dim=1, keepdim=True)
    expected = torch.exp(-0.7 * torch.cdist(units, units).square())
    assert (correlations(E1, 0.7, 20) - expected).abs().max() < 1e-7


def test_cc_pairs_against_numpy() -> None:
    """RepDistiller's form: products of the distances of neighbours, summed over numbers, averaged over N - 1 pairs."""
    a, b = E1[:, :5].numpy(), E2[:, :5].numpy()
    total = sum(abs(a[n, d] - b[n, d]) * abs(a[n + 1, d] - b[n + 1, d]) for n in range(4) for d in range(5))
    assert_golden(cc_pairs_loss, (E1[:, :5], E2[:, :5]), float(total / 4))


def test_cc_pairs_depend_on_the_order() -> None:
    """Only neighbours of the batch meet: another order is another loss, the reverse is the same, one image costs 0."""
    expected = float(cc_pairs_loss(E1[:, :5], E2[:, :5]))
    order = torch.tensor([2, 0, 3, 1, 4])
    assert float(cc_pairs_loss(E1[order, :5], E2[order, :5])) != pytest.approx(expected, rel=1e-3)
    assert float(cc_pairs_loss(E1.flip(0)[:, :5], E2.flip(0)[:, :5])) == pytest.approx(expected, rel=1e-12)
    single = E1[:1, :5].clone().requires_grad_(True)
    loss = cc_pairs_loss(single, E2[:1, :5])
    loss.backward()
    assert float(loss.detach()) == 0
    assert single.grad is not None
    assert torch.isfinite(single.grad).all()


def test_unit_vectors_without_direction() -> None:
    """Vectors of zeros stay zeros without a gradient; others get length 1, along the dimension asked for."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    units = unit_vectors(x)
    assert units.flatten().tolist() == pytest.approx([0.6, 0.8, 0, 0])
    units.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[1], torch.zeros(2))
    assert (unit_vectors(E1, dim=0).norm(dim=0) - 1).abs().max() < 1e-14
    assert torch.equal(unit_vectors(torch.full((1, 2), 1e-4), least=1e-3), torch.zeros(1, 2))


@pytest.mark.parametrize("name", METHODS)
def test_training_on_a_fixed_batch_lowers_the_loss(name: str) -> None:
    """Fifty steps of student and adapters with the loss alone lower it by at least 30 %; the teacher stays."""
    method, student, teacher = make(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    layers = [parameter.detach().clone() for parameter in method.parameters()]
    losses = train_steps(method, student, teacher, lr=0.05 * SCALE[name])
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert bool(layers) == (name in WITH_LAYERS)
    assert not any(torch.equal(old, new) for old, new in zip(layers, method.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_only_the_student_and_the_layers_learn(name: str) -> None:
    """The teacher's parameters get no gradient; the student's and the method's own do, and are not the same ones."""
    method, student, teacher = make(name)
    loss = method(run_step(method, student, teacher))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    body = [parameter for key, parameter in student.named_parameters() if not key.startswith("classifier")]
    assert sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in body) > 0.9 * len(body)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
    own = {id(parameter) for parameter in student.parameters()}
    assert not own & {id(parameter) for parameter in method.parameters()}


def taken(step: DistillStep, choice: torch.Tensor) -> DistillStep:
    """Return the step of some of its images."""

    def pick(features: Any) -> dict[str, torch.Tensor]:
        return {tap: value[choice] for tap, value in features.items()}

    assert step.index is not None
    return replace(
        step,
        labels=step.labels[choice],
        index=step.index[choice],
        student_features=pick(step.student_features),
        teacher_features=pick(step.teacher_features),
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("name", METHODS)
def test_methods_see_the_batch_as_a_whole(name: str) -> None:
    """Order matters to cc's pairs alone. The loss is not the mean of two halves', so processes must gather the batch.

    With its memories as they are, crd's loss is such a mean, but every process must see what the memories become.
    """
    method, student, teacher = make(name)
    method.eval()
    with torch.no_grad():
        step = run_step(method, student, teacher)
        whole = float(method(taken(step, torch.arange(8))))
        shuffled = float(method(taken(step, torch.tensor([3, 7, 0, 2, 6, 1, 5, 4]))))
        halves = [float(method(taken(step, torch.arange(start, start + 4)))) for start in (0, 4)]
    assert (shuffled == pytest.approx(whole, rel=1e-3)) == (name != "cc")
    assert (sum(halves) / 2 != pytest.approx(whole, rel=1e-3)) == (name != "crd")
    assert not method.local


@pytest.mark.parametrize("name", METHODS)
def test_features_in_half_precision(name: str) -> None:
    """Under autocast the features are bfloat16; the loss is finite float32, and so is every gradient."""
    method, student, teacher = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = run_step(method, student, teacher)
        halved = {tap: value.to(torch.bfloat16) for tap, value in step.student_features.items()}
        loss = method(replace(step, student_features=halved))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    loss.backward()
    parameters = [*student.parameters(), *method.parameters()]
    assert all(torch.isfinite(parameter.grad).all() for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_default_taps_and_maps(name: str) -> None:
    """By default sp takes the last maps and the others embeddings; all of them take maps of different sizes as well."""
    method, student, teacher = make(name)
    shapes = {value.ndim for value in run_step(method, student, teacher).student_features.values()}
    assert shapes == ({4} if name == "sp" else {2})
    key, args = METHODS[name]
    taps = {"student_taps": "@stage1", "teacher_taps": "@stage3"}
    on_maps = make_method(key, {**args, **taps}, make_context(student, teacher))
    assert torch.isfinite(on_maps(run_step(on_maps, student, teacher)))


@pytest.mark.parametrize(
    ("key", "args", "message"),
    [
        ("rkd", {"distance_weight": -1}, "rkd: distance_weight must be a number of at least 0"),
        ("rkd", {"angle_weight": "50"}, "rkd: angle_weight must be a number of at least 0"),
        ("rkd", {"distance_weight": 0, "angle_weight": 0}, "rkd: distance_weight and angle_weight are both 0"),
        ("rkd", {"mode": "squared"}, "rkd: mode must be one of paper, seed_sq"),
        ("rkd", {"normalize": 1}, "rkd: normalize must be true, false or null"),
        ("cc", {"form": "gram"}, "cc: form must be one of pairs, kernel"),
        ("cc", {"dim": 0}, "cc: dim must be a whole number of at least 1"),
        ("cc", {"order": 1.5}, "cc: order must be a whole number of at least 1"),
        ("cc", {"gamma": 0}, "cc: gamma must be a number above 0"),
        ("sp", {"temperature": 1}, "method 'sp' has no argument 'temperature'"),
    ],
)
def test_impossible_arguments_are_refused(key: str, args: dict[str, Any], message: str) -> None:
    """A value outside its range names the method, the argument, the limit and the value."""
    with pytest.raises(ConfigError, match=message):
        build_method(key, args)


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_is_needed(name: str) -> None:
    """Without a teacher the method refuses to be set up."""
    student, _ = small_models()
    key, args = METHODS[name]
    with pytest.raises(ConfigError, match="needs a teacher"):
        make_method(key, args, make_context(student, None))
