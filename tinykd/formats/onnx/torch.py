"""Turns a PyTorch student into float ONNX bytes."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

OPSET = 17


def export_torch(model: nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """Return the float ONNX model of a student in eval mode.

    Args:
        model: maps float32 (N, C, H, W) to (N, K).
        input_shape: (C, H, W).

    The TorchScript exporter is used: it takes a tenth of the other one's time and folds batch normalisation.
    """
    import torch

    was_training = model.training
    model.eval()
    buffer = io.BytesIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.zeros(1, *input_shape),),
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes files as well as paths
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
                do_constant_folding=True,
                dynamo=False,
            )
    finally:
        logger.setLevel(level)
        model.train(was_training)
    return buffer.getvalue()
