"""MobileNetV3: published sizes, squeeze-and-excitation and taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.count import count_macs, count_params
from tinykd.models.mobilenetv3 import LARGE, SMALL
from tinykd.models.squeeze import SqueezedResidual, SqueezeExcite
from tinykd.models.taps import record, resolve_taps


@pytest.mark.parametrize(("name", "params"), [("mobilenetv3-large", 5_483_032), ("mobilenetv3-small", 2_542_856)])
def test_parameters_are_those_of_torchvision(name: str, params: int) -> None:
    """At width 1 and 1000 classes, batch norm counted, there are as many as torchvision's documentation tells."""
    assert sum(p.numel() for p in build_model(name, 1000, 224).parameters()) == params


def test_large_costs_what_is_published() -> None:
    """217 M multiply-accumulates at 224 pixels (the table of Keras applications), 216.6 counted here."""
    assert count_macs(build_model("mobilenetv3-large", 1000, 224), (3, 224, 224)) == 216_589_760


def test_netaug_s_network_has_a_size_that_does_not_change() -> None:
    """Width 0.35 at 160 pixels, by the architecture of the released code; own count, batch norm folded."""
    model = build_model("mobilenetv3-large", 1000, 160, width=0.35)
    assert count_params(model) == 2_105_552
    assert count_macs(model, (3, 160, 160)) == 19_495_688


def test_widths_of_netaug_s_network() -> None:
    """Channels at width 0.35 by the release's rule: inner ones from the rounded product, 16 inside of gates."""
    model = build_model("mobilenetv3-large", 1000, 160, width=0.35)
    blocks = [block for block in model.modules() if isinstance(block, SqueezedResidual)]
    assert [block.project.conv.out_channels for block in blocks] == [8] * 3 + [16] * 3 + [32] * 4 + [40] * 2 + [56] * 3
    inner = [block.depthwise.conv.out_channels for block in blocks]
    assert inner == [8, 24, 24, 24, 40, 40, 88, 72, 64, 64, 168, 232, 232, 336, 336]
    gates = [block.squeeze.reduce.out_channels for block in blocks if isinstance(block.squeeze, SqueezeExcite)]
    assert gates == [16, 16, 16, 40, 56, 56, 88, 88]
    assert model.head.conv.out_channels == 336
    assert model.classifier.hidden.out_features == 1280


@pytest.mark.parametrize(("name", "table"), [("mobilenetv3-large", LARGE), ("mobilenetv3-small", SMALL)])
def test_blocks_follow_the_paper_s_tables(name: str, table: tuple) -> None:
    """Kernels, channels, gates, activations and strides of each row; shortcuts where shapes allow."""
    model = build_model(name, 10, 224)
    blocks = [block for block in model.modules() if isinstance(block, SqueezedResidual)]
    assert len(blocks) == len(table) == {"mobilenetv3-large": 15, "mobilenetv3-small": 11}[name]
    for block, (kernel, inner, out, squeezes, act, stride) in zip(blocks, table, strict=True):
        conv = block.depthwise.conv
        assert (conv.kernel_size, conv.stride, conv.out_channels) == ((kernel, kernel), (stride, stride), inner)
        assert block.project.conv.out_channels == out
        assert isinstance(block.squeeze, SqueezeExcite) == squeezes
        assert isinstance(block.depthwise.act, act)
        assert isinstance(block.project.act, nn.Identity)
        assert block.has_shortcut == (stride == 1 and block.project.conv.out_channels == _inputs(block))
    assert sum(block.has_shortcut for block in blocks) == {"mobilenetv3-large": 10, "mobilenetv3-small": 6}[name]


def _inputs(block: SqueezedResidual) -> int:
    first = block.expand if hasattr(block.expand, "conv") else block.depthwise
    return first.conv.in_channels


def test_a_gate_scales_whole_channels() -> None:
    """Squeeze-and-excitation multiplies each channel by hard_sigmoid(W2 relu(W1 mean + b1) + b2), in [0, 1]."""
    torch.manual_seed(0)
    gate, x = SqueezeExcite(6, 3), torch.randn(2, 6, 5, 4)
    mean = x.mean((2, 3))
    hidden = F.relu(mean @ gate.reduce.weight[:, :, 0, 0].T + gate.reduce.bias)
    scale = (hidden @ gate.expand.weight[:, :, 0, 0].T + gate.expand.bias + 3).clamp(0, 6) / 6
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])


@pytest.mark.parametrize("name", ["mobilenetv3-large", "mobilenetv3-small"])
@pytest.mark.parametrize(("resolution", "channels", "stem_stride"), [(28, 1, 1), (33, 3, 2)])
def test_it_takes_any_input(name: str, resolution: int, channels: int, stem_stride: int) -> None:
    """Odd sizes and grey images work, every parameter gets a gradient, and taps give the ends of its stages."""
    torch.manual_seed(0)
    model = build_model(name, 3, resolution, channels, width=0.35, hidden_channels=16, stem_stride=stem_stride)
    taps = resolve_taps(model, ["@stem", "@stages", "@preacts", "@pooled"], "student")
    with record(model, taps) as found:
        logits = model(torch.randn(4, channels, resolution, resolution))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())
    sizes = [found[tap].shape[-1] for tap in resolve_taps(model, "@stages", "student")]
    assert sizes == sorted(set(sizes), reverse=True)
    assert found["classifier.act:output"].shape == (4, 16)
    assert (found[resolve_taps(model, "@last_preact", "student")[0]] < -0.5).any()


@pytest.mark.parametrize("name", ["mobilenetv3-large", "mobilenetv3-small"])
def test_it_learns(name: str) -> None:
    """Fifty steps on one fixed batch take more than 30 % off the loss."""
    torch.manual_seed(0)
    model = build_model(name, 4, 16, 3, width=0.25, hidden_channels=16, stem_stride=1).train()
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(50):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ({"width": 0.01}, "width 0.01 is outside"),
        ({"hidden_channels": 4}, "hidden_channels 4 is outside"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2"),
        ({"dropout": 1.0}, "dropout 1.0 is outside"),
    ],
)
def test_arguments_outside_their_range_are_refused(args: dict, fault: str) -> None:
    """Each error names the argument and its value."""
    with pytest.raises(ConfigError, match=fault):
        build_model("mobilenetv3-small", 10, 32, 3, **args)
