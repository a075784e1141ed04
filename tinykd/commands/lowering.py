"""From a student to the float graph that is quantised: what export and quantisation-aware training share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from tinykd.models.load import ModelSpec
    from tinykd.models.quant_student import Lowered


def lower_student(model: nn.Module, spec: ModelSpec, images: np.ndarray) -> Lowered:
    """Return a student's graph after all passes and the ranges of its activations, just as export makes them.

    Args:
        model: the float student, left as it is.
        spec: how it is fed.
        images: calibration images, uint8 (N, H, W, C), from the training split only.

    Raises:
        UnsupportedModelError: the student has a node or a structure that has no int8 form.
    """
    from tinykd.export import calibrate, convert
    from tinykd.formats.onnx import torch as onnx_torch
    from tinykd.models.quant_student import Lowered

    shape = (spec.in_channels, spec.resolution, spec.resolution)
    graph = convert.lower(onnx_torch.export_torch(copy.deepcopy(model).cpu(), shape), spec.model)
    normalization = convert.Normalization(spec.mean_level, spec.std_level)
    # Training follows the smallest and largest values from there.
    ranges = calibrate.calibrate(graph, normalization.to_float(images), "minmax")
    return Lowered(graph, ranges, normalization.input_quant())
