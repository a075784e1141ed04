"""Dropout and its relatives inside a student while it trains, without editing the student.

Elements: Srivastava et al., JMLR 2014. Whole channels (SpatialDropout): Tompson et al., CVPR 2015 (arXiv:1411.4280).
Blocks (DropBlock): Ghiasi et al., NeurIPS 2018 (arXiv:1810.12890).

Masks come from torch's global generator, whose state is part of a checkpoint. With several processes each one draws the
masks of the whole batch and takes its own part, so that together they drop what one process alone would. Losses that
read a changed tap see what the next layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.config import RegularizeConfig
from tinykd.models.taps import resolve_taps

Change = Callable[[torch.Tensor], torch.Tensor]


def block_seed_rate(rate: float, block_size: int, height: int, width: int) -> float:
    """Return gamma, the probability with which a block starts at a place where all of it fits (equation 1).

    `rate / b^2 * (H W) / ((H - b + 1) (W - b + 1))`: the share `rate` spread over the pixels of a block, and corrected
    for the border, where no block starts. Along a side shorter than the block, the block is as long as the side.

    Args:
        rate: share of a map that is to be dropped, overlaps of blocks not counted.
        block_size: b, side of a block, pixels.
        height, width: H, W of the map.
    """
    tall, wide = min(block_size, height), min(block_size, width)
    return rate / (tall * wide) * (height * width) / ((height - tall + 1) * (width - wide + 1))


def block_mask(shape: tuple[int, int, int, int], rate: float, block_size: int, device: torch.device) -> torch.Tensor:
    """Return what DropBlock keeps of (N, C, H, W) maps: float32, 1 or 0, drawn for each map on its own."""
    count, channels, height, width = shape
    tall, wide = min(block_size, height), min(block_size, width)
    starts = torch.rand((count, channels, height - tall + 1, width - wide + 1), device=device)
    seeds = (starts < block_seed_rate(rate, block_size, height, width)).float()
    # Each pixel is dropped that a block covers: one that starts up to b - 1 pixels above and to the left of it.
    covered = F.max_pool2d(F.pad(seeds, (wide - 1, wide - 1, tall - 1, tall - 1)), (tall, wide), stride=1)
    return 1 - covered


def drop_elements(x: torch.Tensor, rate: float, rank: int = 0, processes: int = 1) -> torch.Tensor:
    """Set each element to 0 with probability `rate`, and divide what stays by 1 - rate.

    Args:
        x: (N, ...), this process's part of the batch.
        rate: 0..1, below 1.
        rank, processes: which part it is, and of how many.
    """
    return _drop(x, tuple(x.shape), rate, rank, processes)


def drop_channels(x: torch.Tensor, rate: float, rank: int = 0, processes: int = 1) -> torch.Tensor:
    """Set each whole channel of (N, C, ...) to 0 with probability `rate`, and divide what stays by 1 - rate."""
    return _drop(x, (*x.shape[:2], *[1] * (x.ndim - 2)), rate, rank, processes)


def _drop(x: torch.Tensor, shape: tuple[int, ...], rate: float, rank: int, processes: int) -> torch.Tensor:
    draw = torch.rand((shape[0] * processes, *shape[1:]), device=x.device)[_part(x, rank)]
    return x * (draw >= rate) / (1 - rate)


def drop_blocks(x: torch.Tensor, rate: float, block_size: int, rank: int = 0, processes: int = 1) -> torch.Tensor:
    """Set square blocks of (N, C, H, W) maps to 0, and scale what stays of the batch so that its mean is kept.

    The scale is the number of elements by the number kept, of the whole batch together (algorithm 1).

    Args:
        x: this process's part of the batch.
        rate: about the share that is dropped, 0..1, below 1.
        block_size: side of a block, pixels.
        rank, processes: which part it is, and of how many.
    """
    count, channels, height, width = x.shape
    keep = block_mask((count * processes, channels, height, width), rate, block_size, x.device)
    scale = keep.numel() / keep.sum().clamp(min=1)
    return x * keep[_part(x, rank)].to(x.dtype) * scale


def _part(x: torch.Tensor, rank: int) -> slice:
    return slice(rank * len(x), (rank + 1) * len(x))


def regularized_taps(config: RegularizeConfig, model: nn.Module, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return where elements are dropped, and where channels and blocks are, as resolved taps.

    Raises:
        ConfigError: a tap that the model does not have.
    """
    elements = resolve_taps(model, "@pooled", name) if config.dropout else ()
    if not config.spatial_dropout and not config.dropblock:
        return elements, ()
    maps = resolve_taps(model, "@stages", name)[-2:] if config.taps is None else resolve_taps(model, config.taps, name)
    return elements, maps


class Regularizer:
    """Changes what passes a model's taps, inside `attached()` and while the tapped module is in training mode.

    Nothing of it stays in the model: outside of the block the model has no hook, so that copies, exports and files of
    it are those of a plain one.

    Args:
        config: what to drop, and where.
        model: the model that trains.
        name: what errors call it.
        rank, processes: this process's place among those that share each batch.

    Raises:
        ConfigError: a tap that the model does not have.
    """

    def __init__(
        self, config: RegularizeConfig, model: nn.Module, name: str, rank: int = 0, processes: int = 1
    ) -> None:
        self.config, self.model = config, model
        self.rank, self.processes = rank, processes
        self.progress = 0.0
        self.elements, self.maps = regularized_taps(config, model, name)

    def set_progress(self, fraction: float) -> None:
        """Say how much of the training is done, 0..1: DropBlock's share grows with it from 0."""
        self.progress = fraction

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the changes into the model for the block."""
        with ExitStack() as stack:
            for taps, change in ((self.elements, self._change_elements), (self.maps, self._change_maps)):
                for tap in taps:
                    stack.callback(_hook(self.model, tap, change).remove)
            yield

    def _change_elements(self, x: torch.Tensor) -> torch.Tensor:
        return drop_elements(x, self.config.dropout, self.rank, self.processes)

    def _change_maps(self, x: torch.Tensor) -> torch.Tensor:
        if self.config.spatial_dropout:
            x = drop_channels(x, self.config.spatial_dropout, self.rank, self.processes)
        rate = self.config.dropblock * self.progress
        return drop_blocks(x, rate, self.config.block_size, self.rank, self.processes) if rate else x


def _hook(model: nn.Module, tap: str, change: Change) -> torch.utils.hooks.RemovableHandle:
    """Let `change` see what passes a resolved tap in training mode."""
    path, _, end = tap.partition(":")
    module = model.get_submodule(path)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (change(inputs[0]), *inputs[1:]) if module.training else None

    def after(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor | None:
        return change(output) if module.training else None

    return module.register_forward_pre_hook(before) if end == "input" else module.register_forward_hook(after)
