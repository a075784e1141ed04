"""Several processes that share each batch: what they exchange so that together they compute what one alone would.

Every process makes the same random draws for the whole batch and works on its own part of it. Batch norm uses the whole
batch's statistics, relations between images see all of them, and gradients are averaged: the loss is that of one
process, to rounding. `torchrun` starts the processes and says in the environment how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from tinykd.errors import ConfigError


@dataclass(frozen=True)
class Cluster:
    """This process's place among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's part of a batch of `count` images.

        Raises:
            ConfigError: the batch cannot be divided evenly.
        """
        if count % self.size:
            raise ConfigError(
                f"train: a batch of {count} images cannot be divided evenly among {self.size} processes",
                f"Choose train.batch_size as a multiple of {self.size}.",
            )
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all processes in order of rank, joined along the first dimension, with gradient."""
        if self.size == 1:
            return tensor
        if not tensor.requires_grad:
            parts = [torch.empty_like(tensor) for _ in range(self.size)]
            dist.all_gather(parts, tensor.contiguous())
            return torch.cat(parts)
        return torch.cat(_AllGather.apply(tensor, self.rank, self.size))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place, without gradient."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, all in one message."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all of them must ask."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=_wire_device())))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def synchronise_batch_norm(self, model: nn.Module) -> None:
        """Make the model's batch norms use the statistics of all processes; names and isinstance stay."""
        if self.size == 1:
            return
        for module in model.modules():
            if type(module) in SYNCHRONISED:
                module.__class__ = SYNCHRONISED[type(module)]

    @staticmethod
    def part_batch_norm(model: nn.Module) -> None:
        """Undo `synchronise_batch_norm`: each process is on its own again."""
        alone = {synchronised: plain for plain, synchronised in SYNCHRONISED.items()}
        for module in model.modules():
            module.__class__ = alone.get(type(module), type(module))


SOLO = Cluster()
"""One process on its own."""


class _AllGather(torch.autograd.Function):
    """Forward: every process's tensor. Backward: the sum over processes of the gradients for this one's."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, rank: int, size: int) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
        ctx.rank = rank
        parts = [torch.empty_like(tensor) for _ in range(size)]
        dist.all_gather(parts, tensor.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):  # type: ignore[no-untyped-def]
        stacked = torch.stack(gradients)
        dist.all_reduce(stacked)
        return stacked[ctx.rank], None, None


class _AllSum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum over processes of the gradients, and so on."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        return _AllSum.apply(gradient.contiguous())


def synchronised_batch_norm(
    x: torch.Tensor,
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
) -> torch.Tensor:
    """Return batch norm of `x` with the statistics of all processes' parts, updating the running ones in place.

    Args:
        x: (N, C, ...), this process's part; every part has the same N.
        norm: gives `momentum` and `eps`.
        weight, bias, running_mean, running_var: (C,).
    """
    size = dist.get_world_size()
    momentum = 0.1 if norm.momentum is None else norm.momentum
    dims = [0, *range(2, x.ndim)]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = x.numel() // x.shape[1] * size
    sums = _AllSum.apply(torch.stack([wide.sum(dims), wide.square().sum(dims)]))
    mean = sums[0] / count
    shape = [1, -1, *[1] * (x.ndim - 2)]
    # Two messages, but the variance as a mean of squared distances does not cancel.
    var = _AllSum.apply((wide - mean.view(shape)).square().sum(dims)) / count
    with torch.no_grad():
        running_mean.lerp_(mean.detach(), momentum)
        running_var.lerp_(var.detach() * count / max(count - 1, 1), momentum)
    scale = weight * torch.rsqrt(var + norm.eps)
    return ((wide - mean.view(shape)) * scale.view(shape) + bias.view(shape)).to(x.dtype)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the whole batch of all processes, on any device."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        return _synchronised(self, input) if self.training else super().forward(input)


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """The same for (N, C)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (N, C) to the same shape."""
        return _synchronised(self, input) if self.training else super().forward(input)


SYNCHRONISED: dict[type, type] = {nn.BatchNorm2d: SynchronisedBatchNorm2d, nn.BatchNorm1d: SynchronisedBatchNorm1d}
"""What takes the place of each batch norm when several processes share a batch."""


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return synchronised_batch_norm(x, norm, norm.weight, norm.bias, norm.running_mean, norm.running_var)


def _wire_device() -> torch.device:
    """Return where tensors must lie to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def join(device: torch.device) -> Iterator[Cluster]:
    """Join the processes that `torchrun` started, for the block; on its own a process is a cluster of one.

    Raises:
        ConfigError: the environment describes processes, but they cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SOLO
        return
    if dist.is_initialized():
        yield Cluster(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"train: WORLD_SIZE is {size}, but the processes cannot be reached: {error}",
            "Start it as `torchrun --nproc-per-node N -m tinykd train RECIPE`, or unset WORLD_SIZE.",
        ) from error
    try:
        yield Cluster(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
