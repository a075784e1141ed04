"""From a student's float ONNX to its int8 graph: read, pass by pass, calibrate, quantise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinykd.export.passes import run_passes
from tinykd.export.ptq import PtqOptions, quantise_trained
from tinykd.formats.onnx import reader as onnx_reader
from tinykd.ir import Graph, Quant

PIXEL_OFFSET = 128


@dataclass(frozen=True)
class Normalization:
    """How the student sees pixels: (pixel - mean_level) / std_level, the same for every channel.

    Being one line for all channels, it disappears into the quantisation of the input: the int8 input of the device is
    `pixel - 128`, and no microcontroller ever computes a float.
    """

    mean_level: int
    std_level: float

    def to_float(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 (N, H, W, C) images as the float32 that the student sees."""
        return (images.astype(np.float32) - np.float32(self.mean_level)) / np.float32(self.std_level)

    def input_quant(self) -> Quant:
        """Return the input's int8 parameters."""
        return Quant.per_tensor(1.0 / self.std_level, self.mean_level - PIXEL_OFFSET)


def to_device(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as the int8 values that the device takes: pixel - 128."""
    return (images.astype(np.int16) - PIXEL_OFFSET).astype(np.int8)


def lower(float_onnx: bytes, name: str) -> Graph:
    """Return the float graph after all passes: batch norm folded, activations fused, paddings spelt out.

    Raises:
        UnsupportedModelError: the model has a node or a structure that has no int8 form.
    """
    return run_passes(onnx_reader.read(float_onnx, name))


def convert(
    float_onnx: bytes, images: np.ndarray, normalization: Normalization, *, name: str, options: PtqOptions | None = None
) -> tuple[Graph, Graph]:
    """Return (float graph that was quantised, int8 graph) of a student.

    Args:
        float_onnx: the float ONNX model.
        images: calibration images, uint8 (N, H, W, C), from the training split only.
        normalization: what training did to the pixels.
        name: the graphs' name.
        options: how it is quantised; None takes the defaults.

    Raises:
        UnsupportedModelError: the model has a node or a structure that has no int8 form.
    """
    quantised = quantise_trained(
        lower(float_onnx, name), normalization.to_float(images), normalization.input_quant(), options
    )
    return quantised.float_graph, quantised.graph
