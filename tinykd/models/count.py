"""Parameters and multiply-accumulates of a model as it will be deployed."""

from __future__ import annotations

import torch
from torch import nn


def count_params(model: nn.Module) -> int:
    """Return the parameters after batch norm is folded: weights, plus one bias per output channel of each layer.

    A batch norm that follows a convolution adds only the bias it becomes; one that does not counts its scale and shift.
    """
    total = 0
    folded: set[int] = set()
    for module in model.modules():
        children = list(module.children())
        for first, second in zip(children, children[1:], strict=False):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                folded.add(id(second))
                total += first.out_channels if first.bias is None else 0
    for module in model.modules():
        if id(module) not in folded:
            total += sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return total


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of convolutions and linear layers for one image.

    Args:
        model: any module; its mode and weights are left as they are.
        input_shape: (C, H, W) of one image.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # By the tensors and not by the parameters, of which an augmented network uses a part.
        nonlocal total
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            total += inputs[0].shape[1] // module.groups * height * width * output[0].numel()
        elif isinstance(module, nn.Linear):
            total += inputs[0].shape[-1] * output[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return total
