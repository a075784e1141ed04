"""What feature methods share: adapters from a student's maps to a teacher's, and a look into models beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tinykd.distill.base import ModelView, Shape, require_integer, require_number
from tinykd.errors import ConfigError
from tinykd.models.taps import record


def _resize_conv(student: Shape, teacher: Shape) -> nn.Module:
    """Return the convolution that brings (C, H, W) `student` to the size of `teacher`, where there is one."""
    (c_in, *own), (c_out, *wanted) = student, teacher
    down, up = own[0] // wanted[0], wanted[0] // own[0]
    if down > 1 and all(s == down * t for s, t in zip(own, wanted, strict=True)):
        return nn.Conv2d(c_in, c_out, down + 1, stride=down, padding=down // 2)
    if up > 1 and all(t == up * s for s, t in zip(own, wanted, strict=True)):
        return nn.ConvTranspose2d(c_in, c_out, 2 * up - up % 2, stride=up, padding=up // 2)
    if all(s >= t for s, t in zip(own, wanted, strict=True)):
        height, width = (1 + s - t for s, t in zip(own, wanted, strict=True))
        return nn.Conv2d(c_in, c_out, (height, width))
    return nn.Conv2d(c_in, c_out, 1)


def conv_regressor(student: Shape, teacher: Shape, relu: bool = True) -> nn.Sequential:
    """Return FitNets' regressor: a convolution that maps (N, *student) to (N, *teacher), batch norm, and a ReLU.

    The kernel follows from the sizes: 1x1 where they are equal; where one is r times the other, a convolution of stride
    r (kernel r + 1), or a transposed one of stride r, so 3x3 and 4x4 for r = 2; else a student's map that is larger
    loses the rest to a convolution without padding of kernel 1 + H_s - H_t (section 2.2 of arXiv:1412.6550). Where the
    teacher's map is larger in any other ratio, the regressor is 1x1, and the teacher's map has to be pooled.

    Args:
        student, teacher: (C, H, W).
        relu: end with a ReLU, for teachers' maps without negative values.
    """
    bn = nn.BatchNorm2d(teacher[0])
    return nn.Sequential(_resize_conv(student, teacher), bn, *([nn.ReLU()] if relu else []))


def connector(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """Return a convolution without bias, He-normal over the fan-out, and batch norm: (N, Cin, H, W) to (N, Cout, H, W).

    There is no activation behind it, so that the result has both signs.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode for the block, and each one's own mode back afterwards."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are for the block, in training mode too: an extra pass must not count twice."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def sample_images(view: ModelView, count: int = 2) -> torch.Tensor:
    """Return (count, C, H, W) standard normal images on the view's device, always the same ones."""
    first = next(iter([*view.module.parameters(), *view.module.buffers()]), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, *view.input_shape), generator=generator).to(first.device)


def has_negatives(view: ModelView, tap: str) -> bool:
    """Return whether the resolved tap gives a negative value for any of two random images."""
    with evaluating(view.module), torch.no_grad(), record(view.module, [tap]) as found:
        view.module(sample_images(view))
    return bool((found[tap] < 0).any())


def check_init(method: str, init_epochs: object, init_lr: object, joint: object = True) -> None:
    """Check the arguments of a method's init stage (see `tinykd.train.stages`).

    Args:
        method: the key, for errors.
        init_epochs: length of the init stage; 0 is none.
        init_lr: its learning rate; None is the recipe's.
        joint: whether the loss stays in the stages after it.

    Raises:
        ConfigError: one of them is of a wrong type or outside its range.
    """
    require_integer(method, "init_epochs", init_epochs, least=0)
    if init_lr is not None:
        require_number(method, "init_lr", init_lr, above=0)
    if not isinstance(joint, bool):
        raise ConfigError(f"{method}: joint must be true or false, not {joint!r}")
    if not joint and not init_epochs:
        raise ConfigError(f"{method}: joint is false and init_epochs is 0, so that the loss would never be used")
