"""Early exits: networks of their own that equal the whole one up to there, and answers that come early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from distill_support import wave
from torch import nn

from tinykd.config import load_recipe
from tinykd.errors import ConfigError
from tinykd.models import MODELS, build_model, find_entry, model_names
from tinykd.models.backbone import Backbone
from tinykd.models.count import count_macs, count_params
from tinykd.models.early_exit import EarlyExit, ExitHead, MultiExit, choose_exits, stage_ends, stage_shapes
from tinykd.models.taps import record, resolve_taps

STUDENTS = {
    "resnet8": {"width": 0.5},
    "mobilenetv2": {"width": 0.1, "head_channels": 64, "stem_stride": 1},
    "mcunet-5fps": {"stem_stride": 1},
    "resnet20": {"width": 0.5, "shortcut": "B"},
}
SHAPE = (3, 16, 16)


def student(name: str = "resnet8") -> Backbone:
    """Return a seeded student of five classes with batch norm statistics that are not the initial ones."""
    torch.manual_seed(3)
    model = build_model(name, 5, 16, 3, **STUDENTS[name])
    assert isinstance(model, Backbone)
    model.train()(torch.randn(16, *SHAPE))
    return model.eval()


def heads_of(model: Backbone) -> list[ExitHead]:
    """Return seeded heads for all stages but the last."""
    torch.manual_seed(4)
    shapes = stage_shapes(model, SHAPE)
    return [ExitHead(shapes[index:], 5).eval() for index in range(len(shapes) - 1)]


def images(count: int = 12) -> torch.Tensor:
    """Return (count, 3, 16, 16) images."""
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", STUDENTS)
def test_every_exit_equals_the_whole_networks(name: str) -> None:
    """An exit as a network of its own has the logits of that exit of the whole, and the last one is the student's."""
    model = student(name)
    heads = heads_of(model)
    with torch.no_grad():
        logits = MultiExit(model, heads)(images())
        assert len(logits) == len(stage_ends(model)) == len(heads) + 1
        for number, head in enumerate(heads, start=1):
            assert torch.equal(EarlyExit(model, number, head)(images()), logits[number - 1])
        assert torch.equal(model(images()), logits[-1])


@pytest.mark.parametrize("name", STUDENTS)
def test_an_exit_has_nothing_deeper(name: str) -> None:
    """Its parameters are those of the parts up to its stage and of its head; exits grow with their stages."""
    model = student(name)
    heads = heads_of(model)
    sizes = []
    for number, head in enumerate(heads, start=1):
        part = build_model(f"{name}@exit{number}", 5, 16, 3, **STUDENTS[name])
        kept = model.chain()[: stage_ends(model)[number - 1] + 1]
        wanted = [p.shape for path in kept for p in model.get_submodule(path).parameters()]
        assert [p.shape for p in part.parameters()] == wanted + [p.shape for p in head.parameters()]
        sizes.append(count_macs(part, SHAPE))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < 1.1 * count_macs(model, SHAPE)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_built_exit_takes_the_state_of_a_trained_one(name: str) -> None:
    """`<student>@exit<n>` has the very names and shapes of a part of a student, so that files can be read back."""
    model = student(name)
    for number, head in enumerate(heads_of(model), start=1):
        trained = EarlyExit(model, number, head).eval()
        built = build_model(f"{name}@exit{number}", 5, 16, 3, **STUDENTS[name])
        built.load_state_dict(trained.state_dict())
        with torch.no_grad():
            assert torch.equal(built.eval()(images()), trained(images()))


@pytest.mark.parametrize("name", STUDENTS)
def test_an_exit_knows_its_taps(name: str) -> None:
    """Stem, stages and activation boundaries of an exit are the student's, up to where it ends."""
    model = student(name)
    number = len(stage_ends(model)) - 1
    part = EarlyExit(model, number, heads_of(model)[number - 1]).eval()
    for alias in ("@stem", *(f"@stage{i + 1}" for i in range(number)), *(f"@preact{i + 1}" for i in range(number))):
        (own,), (whole,) = resolve_taps(part, alias, "exit"), resolve_taps(model, alias, "student")
        with torch.no_grad(), record(part, [own]) as left, record(model, [whole]) as right:
            part(images())
            model(images())
        assert torch.equal(left[own], right[whole]), alias
    with torch.no_grad(), record(part, resolve_taps(part, "@pooled", "exit")) as found:
        part(images())
    assert next(iter(found.values())).shape == (12, heads_of(model)[number - 1].embedding_channels)


def test_heads_are_small_and_end_at_the_deepest_size() -> None:
    """A separable convolution for each deeper stage, channels at most doubled, and the last stage's size at the end."""
    head = ExitHead([(8, 16, 16), (16, 8, 8), (64, 4, 4), (512, 2, 2)], 5).eval()
    assert len(head.convs) == 3
    maps = head.convs(torch.zeros(2, 8, 16, 16))
    assert maps.shape == (2, 64, 2, 2)
    assert head.embedding_channels == 64
    same_size = ExitHead([(8, 4, 4), (16, 4, 4)], 5).eval()
    assert same_size.convs(torch.zeros(2, 8, 4, 4)).shape == (2, 16, 4, 4)
    x = torch.randn(2, 8, 16, 16)
    assert torch.equal(head.classify(head.embed(x)), head(x))
    assert head.embed(x).shape == (2, 64)


def test_thresholds_choose_the_first_exit_that_is_sure() -> None:
    """The first exit whose largest probability reaches the threshold; an image that none is sure of takes the last."""
    logit = torch.tensor([0.5, 0.7, 0.9, 0.99]).logit()
    first = torch.stack([logit, torch.zeros(4)], 1)
    second = torch.stack([torch.zeros(4), logit.flip(0)], 1)
    last = torch.zeros(4, 2)
    assert choose_exits([first, second, last], 0.8).tolist() == [1, 1, 0, 0]
    assert choose_exits([first, second, last], 0.95).tolist() == [1, 2, 2, 0]
    exact = torch.tensor([[0.0, 0.0]])
    assert choose_exits([exact, exact], 0.5).tolist() == [0], "a threshold that is reached is enough"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_threshold_zero_is_the_first_exit_and_above_one_the_last(count: int) -> None:
    """The limits hold whatever the logits, certain ones too."""
    logits = [wave((8, 5), 0.3 + number, 0.1, 50) for number in range(count)]
    assert choose_exits(logits, 0).eq(0).all()
    assert choose_exits(logits, 1.0001).eq(count - 1).all()


def decided(model: Backbone) -> MultiExit:
    """Return a network whose first exits are sure of some of `images(40)` and not of others."""
    network = MultiExit(model, heads_of(model)).eval()
    with torch.no_grad():
        for head, logits in zip(network.heads, network(images(40)), strict=True):
            if isinstance(head, ExitHead):
                head.classifier.linear.weight.mul_(1 / logits.std())
    return network


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5, 1.1])
@pytest.mark.parametrize("name", STUDENTS)
def test_early_inference_answers_as_chosen_and_runs_no_deeper(name: str, threshold: float) -> None:
    """Answers and exits are those of all exits computed in full, in order; each stage runs only what is left."""
    network = decided(student(name))
    with torch.no_grad():
        everything = network(images(40))
        exits = choose_exits(everything, threshold)
        ran: list[int] = []
        handles = [
            segment.register_forward_hook(lambda _, inputs, __: ran.append(len(inputs[0])))
            for segment in network.segments
        ]
        logits, found = network.infer(images(40), threshold)
        for handle in handles:
            handle.remove()
    assert torch.equal(found, exits)
    wanted = torch.stack(everything)[exits, torch.arange(40)]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    left = [int((exits >= number).sum()) for number in range(len(everything))]
    assert ran == [count for count in left if count]


@pytest.mark.parametrize("name", STUDENTS)
def test_early_inference_is_tested_with_images_of_several_exits(name: str) -> None:
    """The thresholds of the test above divide the images: otherwise it would test little."""
    network = decided(student(name))
    with torch.no_grad():
        logits = network(images(40))
    assert all(len(choose_exits(logits, threshold).unique()) >= 2 for threshold in (0.4, 0.5))


def test_macs_of_an_exit_count_all_that_was_run() -> None:
    """An image that leaves at exit i has passed the stages up to there and the heads of all exits so far."""
    model = student()
    heads = heads_of(model)
    shapes = stage_shapes(model, SHAPE)
    head_macs = [count_macs(head, shape) for head, shape in zip(heads, shapes, strict=False)]
    alone = [count_macs(EarlyExit(model, number, head).eval(), SHAPE) for number, head in enumerate(heads, start=1)]
    assert MultiExit(model, heads).eval().exit_macs(SHAPE) == [
        alone[0],
        alone[1] + head_macs[0],
        count_macs(model, SHAPE) + sum(head_macs),
    ]


def test_heads_must_fit_the_stages() -> None:
    """One head for each stage but the last, no more and no fewer."""
    model = student()
    with pytest.raises(ValueError, match="1 heads do not fit 3 stages"):
        MultiExit(model, heads_of(model)[:1])


class Unordered(Backbone):
    """A network whose stage ends inside of a part of its chain."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        """Have two parts."""
        super().__init__()
        self.one, self.two = nn.Sequential(nn.Identity()), nn.Flatten()
        self.stages = stages

    def chain(self) -> tuple[str, ...]:
        """Return the two parts."""
        return ("one", "two")

    def stage_taps(self) -> Any:
        """Return the stages that the test wants."""
        from tinykd.models.backbone import StageTaps

        return StageTaps("one", self.stages, self.stages, "two:input")


@pytest.mark.parametrize("stages", [("one.0",), ("one:input",), ("two",)])
def test_stages_that_are_no_parts_of_the_chain_are_refused(stages: tuple[str, ...]) -> None:
    """An exit can only follow a whole part, and not the classifier."""
    with pytest.raises(ConfigError, match="the stages of Unordered"):
        stage_ends(Unordered(stages))
    assert stage_ends(Unordered(("one",))) == (0,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8@exit0", "exits 1 to 2"),
        ("resnet8@exit3", "the end of its last stage is resnet8 itself"),
        ("resnet18@exit1", "'resnet18' is no student"),
        ("nothing@exit1", "'nothing' is no student"),
        ("resnet8@exit", "there is no model"),
        ("resnet8@exit1@exit1", "there is no model"),
    ],
)
def test_impossible_exits_are_refused(name: str, message: str) -> None:
    """Only stages of students, and not the last one, have an exit."""
    with pytest.raises(ConfigError, match=message):
        build_model(name, 5, 16, 3)
    with pytest.raises(ConfigError, match="no argument 'widht'"):
        build_model("resnet8@exit1", 5, 16, 3, widht=1)


def test_exits_are_a_family_that_no_recipe_may_train() -> None:
    """`find_entry` knows exits; a recipe that names one is told to train the whole student instead."""
    entry = find_entry("mcunet-5fps@exit2")
    assert entry is MODELS["<student>@exit<n>"]
    assert entry.derived
    assert entry.name not in model_names()
    assert "resnet8" in model_names("student")
    with pytest.raises(ConfigError, match=r"student.model: 'resnet8@exit1' is a part of resnet8") as caught:
        load_recipe("smoke", ["student.model=resnet8@exit1"])
    assert "byot" in str(caught.value)


def test_list_shows_exits_and_folds_count() -> None:
    """`tinykd list models` has the family; parameters of an exit are counted as for any student."""
    from tinykd.commands.list import command

    shown = CliRunner().invoke(command, ["models", "--json"], catch_exceptions=False)
    assert "<student>@exit<n>" in json.dumps(json.loads(shown.stdout))
    part = build_model("resnet8@exit1", 5, 16, 3, width=0.5)
    assert count_params(part) < count_params(build_model("resnet8", 5, 16, 3, width=0.5))


@pytest.mark.parametrize("name", STUDENTS)
def test_an_exit_exports_to_int8(name: str, tmp_path: Path) -> None:
    """Float ONNX, quantisation and `.tflite` work on an exit; its int8 answers follow the float ones."""
    pytest.importorskip("onnx", reason="the train extra is not installed")
    import numpy as np

    from tinykd.export import convert, reference
    from tinykd.formats import tflite
    from tinykd.formats.onnx import torch as onnx_torch
    from tinykd.formats.tflite import writer as tflite_writer
    from tinykd.ir import graph_macs

    model = student(name)
    number = len(stage_ends(model)) - 1
    part = EarlyExit(model, number, heads_of(model)[number - 1]).eval()
    levels = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    normalization = convert.Normalization(128, 64.0)
    _, graph = convert.convert(onnx_torch.export_torch(part, SHAPE), levels, normalization, name="exit")
    path = tmp_path / "exit.tflite"
    path.write_bytes(tflite_writer.write(graph))
    read = tflite.read(path, "exit")
    assert graph_macs(read) == count_macs(part, SHAPE)
    found = reference.run_output(read, convert.to_device(levels)).astype(np.float32)
    with torch.no_grad():
        wanted = part((torch.from_numpy(levels).permute(0, 3, 1, 2).float() - 128) / 64.0).numpy()
    correlation = np.corrcoef((found - found.mean()).ravel(), (wanted - wanted.mean()).ravel())[0, 1]
    assert correlation > 0.95
