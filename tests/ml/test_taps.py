"""Taps: feature maps by module path or name, without editing the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.backbone import Backbone
from tinykd.models.taps import record, resolve_taps, tap_shapes

NETWORKS = ["resnet8", "mobilenetv2", "mobilenetv2-tiny", "resnet20", "wrn-16-2", "resnet18", "mcunet-5fps"]


def network(name: str) -> Backbone:
    """Return a network for 32x32 colour images and 5 classes, in eval mode."""
    torch.manual_seed(0)
    model = build_model(name, 5, 32, 3)
    assert isinstance(model, Backbone)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_named_taps_exist_and_shrink_towards_the_classifier(name: str) -> None:
    """Every network has a stem, stages whose maps never grow, as many pre-activations, and an embedding."""
    model = network(name)
    stages = resolve_taps(model, "@stages", name)
    shapes = tap_shapes(model, stages, (3, 32, 32))
    sides = [shapes[tap][1] for tap in stages]
    assert sides == sorted(sides, reverse=True)
    assert len(stages) >= 3
    preacts = resolve_taps(model, "@preacts", name)
    assert [shape[0] for shape in tap_shapes(model, preacts, (3, 32, 32)).values()] == [shapes[t][0] for t in stages]
    assert resolve_taps(model, "@last", name) == stages[-1:] == resolve_taps(model, f"@stage{len(stages)}", name)
    (stem,) = tap_shapes(model, resolve_taps(model, "@stem", name), (3, 32, 32)).values()
    (pooled,) = tap_shapes(model, resolve_taps(model, "@pooled", name), (3, 32, 32)).values()
    assert len(stem) == 3
    assert len(pooled) == 1


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18"])
def test_preactivations_become_the_stages_by_relu(name: str) -> None:
    """Where blocks end with a ReLU, a stage is the ReLU of its pre-activation, which has both signs."""
    model = network(name)
    stages, preacts = (resolve_taps(model, alias, name) for alias in ("@stages", "@preacts"))
    with record(model, [*stages, *preacts]) as found:
        model(torch.randn(2, 3, 32, 32))
    for stage, preact in zip(stages, preacts, strict=True):
        assert torch.equal(found[stage], found[preact].relu())
        assert found[preact].min() < 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_chain_is_the_network(name: str) -> None:
    """Running the parts of the chain one after another gives the logits; the classifier comes last."""
    model = network(name)
    x = torch.randn(2, 3, 32, 32)
    y = x
    for path in model.chain():
        y = model.get_submodule(path)(y)
    assert torch.equal(y, model(x))
    assert y.shape == (2, 5)


def test_inputs_and_outputs_of_any_module() -> None:
    """`path:input` is what a module receives, `path` and `path:output` what it returns; gradients go through."""
    model = network("resnet8")
    taps = resolve_taps(model, ["block2.conv2.conv:input", "block2.conv1", "block2.conv1.act:output"], "student")
    with record(model, taps) as found:
        model(torch.randn(2, 3, 32, 32)).sum().backward(retain_graph=True)
    assert torch.equal(found["block2.conv2.conv:input"], found["block2.conv1.act:output"])
    assert torch.equal(found["block2.conv1:output"], found["block2.conv1.act:output"])
    assert found["block2.conv1:output"].requires_grad


def test_recording_leaves_no_trace() -> None:
    """After the block no hook is left, also when the model failed; nothing is recorded outside of it."""
    model = network("resnet8")
    with record(model, ["stem:output"]) as found:
        pass
    model(torch.zeros(1, 3, 32, 32))
    assert found == {}
    with pytest.raises(RuntimeError), record(model, ["stem:output"]):
        model(torch.zeros(1, 4, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())


def test_asking_for_shapes_changes_nothing() -> None:
    """Modes, batch norm statistics and random state are as before."""
    model = network("resnet8").train()
    model.stem.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tap_shapes(model, ["block1:output"], (3, 32, 32))
    assert model.training
    assert not model.stem.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("blokc1", "has no module 'blokc1'. Did you mean 'block1'"),
        ("block1:middle", "must end in ':input' or ':output'"),
        ("@stage9", "its stages are 1 to 3"),
        ("@stage0", "its stages are 1 to 3"),
        ("@polled", "Did you mean '@pooled'"),
        ("", "has no module ''"),
    ],
)
def test_taps_that_do_not_exist_are_refused(tap: str, message: str) -> None:
    """The error names the model and the nearest place."""
    with pytest.raises(ConfigError, match="student resnet8") as caught:
        resolve_taps(network("resnet8"), tap, "student resnet8")
    assert message in str(caught.value)


def test_other_models_have_paths_but_no_names() -> None:
    """A model that is not of the registry is tapped by path; names are refused with the way out."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert resolve_taps(model, "1:input", "teacher") == ("1:input",)
    with pytest.raises(ConfigError, match="give taps by module path"):
        resolve_taps(model, "@stages", "teacher")
