"""Write a small valid int8 .tflite, for checks that need a model and no training: make_tiny_model.py FILE."""

import sys
from pathlib import Path

import numpy as np

from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, verify


def tiny_graph() -> Graph:
    """Return conv 3x3 (4 channels), mean and a linear layer over an (1, 8, 8, 1) image: 5 tensors, 3 classes."""
    rng = np.random.default_rng(0)

    def constant(name: str, shape: tuple[int, ...], dtype: str, quant: Quant) -> Tensor:
        low, high = (-127, 128) if dtype == "int8" else (-500, 500)
        return Tensor(name, shape, dtype, quant, rng.integers(low, high, shape).astype(dtype))

    def channels(count: int, scale: float, axis: int) -> Quant:
        return Quant((float(np.float32(scale)),) * count, (0,) * count, axis)

    tensors = [
        Tensor("image", (1, 8, 8, 1), "int8", Quant.per_tensor(1 / 64, -28)),
        constant("conv/weights", (4, 3, 3, 1), "int8", channels(4, 0.01, 0)),
        constant("conv/bias", (4,), "int32", channels(4, 0.01 / 64, 0)),
        Tensor("conv", (1, 8, 8, 4), "int8", Quant.per_tensor(0.05, -128)),
        Tensor("mean", (1, 4), "int8", Quant.per_tensor(0.03, -128)),
        constant("logits/weights", (3, 4), "int8", Quant.per_tensor(0.02, 0)),
        constant("logits/bias", (3,), "int32", Quant.per_tensor(0.02 * 0.03, 0)),
        Tensor("logits", (1, 3), "int8", Quant.per_tensor(0.1, 0)),
    ]
    conv = {"stride": (1, 1), "dilation": (1, 1), "padding": (1, 1, 1, 1), "activation": "relu"}
    ops = (
        Op("conv_2d", ("image", "conv/weights", "conv/bias"), ("conv",), conv, "conv"),
        Op("mean", ("conv",), ("mean",), {"axes": (1, 2), "keep_dims": False}, "mean"),
        Op("fully_connected", ("mean", "logits/weights", "logits/bias"), ("logits",), {"activation": "none"}, "logits"),
    )
    return verify(Graph("tiny", {tensor.name: tensor for tensor in tensors}, ops, ("image",), ("logits",)))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(tflite_writer.write(tiny_graph()))
