"""Layers that use the first channels of larger parameters: a network of any width inside of a wide one.

The width of the input is that of the tensor that arrives; only the width of the output is set. A plain layer becomes
a dynamic one in place, as one that synchronises its statistics does: paths, hooks and isinstance stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models.widths import Slot
from tinykd.train.cluster import SYNCHRONISED, synchronised_batch_norm


class DynamicConv2d(nn.Conv2d):
    """A convolution with the first `width` outputs, or a depthwise one with as many channels as its input."""

    width: int
    depthwise: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, Cin, H, W) to (N, width, H', W'), or to (N, Cin, H', W') when depthwise."""
        count = input.shape[1]
        if self.depthwise:
            weight = self.weight[:count]
            self.groups = count
        else:
            # The loop's layout for this device. A slice of a 1x1 kernel left as it is can pass for channels_last on the
            # CPU, where that layout must not be used.
            layout = torch.channels_last if input.is_cuda else torch.contiguous_format
            weight = self.weight[: self.width, :count].contiguous(memory_format=layout)
        bias = None if self.bias is None else self.bias[: len(weight)]
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class DynamicLinear(nn.Linear):
    """A linear layer with the first `width` outputs."""

    width: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, Din) to (N, width)."""
        bias = None if self.bias is None else self.bias[: self.width]
        return F.linear(input, self.weight[: self.width, : input.shape[1]].contiguous(), bias)


class DynamicBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with as many channels as its input; the running statistics of the others stay as they are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        weight, bias, mean, var = _first(self, input.shape[1])
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return F.batch_norm(input, mean, var, weight, bias, self.training, momentum, self.eps)


class SynchronisedDynamicBatchNorm2d(DynamicBatchNorm2d):
    """The same over the whole batch of all processes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return synchronised_batch_norm(input, self, *_first(self, input.shape[1]))


SYNCHRONISED[DynamicBatchNorm2d] = SynchronisedDynamicBatchNorm2d


def _first(norm: nn.BatchNorm2d, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weight, bias, running mean and running variance of the first channels."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.weight[:count], norm.bias[:count], norm.running_mean[:count], norm.running_var[:count]


def make_dynamic(
    model: nn.Module, slots: Sequence[Slot], widths: Mapping[str, int], generator: torch.Generator, redraw: bool
) -> None:
    """Make every layer of a plain model dynamic, in place, with room for `widths`.

    The plain model's weights are the first channels of the larger ones. All others are drawn from U(-b, b) with
    b = 1 / sqrt(fan-in) of the large layer (`kaiming_uniform_` with a = sqrt(5), as in the code released with the
    paper); their biases are 0 and their batch norms start fresh. Widths are left at their maximum.

    Args:
        model: plain.
        slots: all of its layers.
        widths: path -> largest number of outputs, of all slots.
        generator: on the CPU.
        redraw: draw the plain model's weights anew as well.

    Raises:
        ConfigError: a grouped convolution that is not depthwise.
    """
    for slot in slots:
        layer, width = model.get_submodule(slot.path), widths[slot.path]
        inputs = None if slot.reads is None else widths[slot.reads]
        shape: tuple[int, ...]
        if isinstance(layer, nn.Linear):
            layer.__class__ = DynamicLinear
            shape = (width, inputs or layer.in_features)
            layer.out_features, layer.in_features = shape
        else:
            assert isinstance(layer, nn.Conv2d)
            layer.__class__ = DynamicConv2d
            layer.depthwise = layer.groups > 1  # type: ignore[assignment]
            if layer.depthwise and not layer.groups == layer.in_channels == layer.out_channels:
                raise ConfigError(f"netaug: '{slot.path}' is a grouped convolution, which cannot be widened")
            layer.out_channels, layer.in_channels = width, inputs or layer.in_channels
            shape = (width, 1 if layer.depthwise else layer.in_channels, *layer.kernel_size)
        layer.width = width  # type: ignore[assignment]
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        _enlarge(layer, "weight", (2 * torch.rand(shape, generator=generator) - 1) * bound, not redraw)
        if layer.bias is not None:
            _enlarge(layer, "bias", torch.zeros(width), not redraw)
        if slot.norm:
            norm = model.get_submodule(slot.norm)
            norm.__class__ = DynamicBatchNorm2d
            norm.num_features = width  # type: ignore[assignment]
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                _enlarge(norm, name, torch.full((width,), value), not redraw)


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Make a dynamic model the network of these widths until the next call."""
    for path, width in widths.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, DynamicConv2d | DynamicLinear)
        layer.width = width


def _enlarge(layer: nn.Module, name: str, fresh: torch.Tensor, keep: bool) -> None:
    """Replace a parameter or buffer by a larger tensor that keeps the old one in its first channels."""
    old = getattr(layer, name)
    value = fresh.to(old.device, old.dtype)
    if keep:
        value[tuple(slice(size) for size in old.shape)] = old.detach()
    setattr(layer, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def slice_into(plain: nn.Module, wide: nn.Module) -> None:
    """Copy the first channels of each tensor of a dynamic model into the plain model that it was made from."""
    state = wide.state_dict()
    plain.load_state_dict(
        {name: state[name][tuple(slice(size) for size in own.shape)] for name, own in plain.state_dict().items()}
    )
