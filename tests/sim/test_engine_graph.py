"""What the engine computes of a file: conversions at the edges left to the host, pads folded, results as before."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_oracle
from sim.fakeboard import needs_arm_gcc, needs_unicorn
from sim.test_bench_command import bench

from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Op, Tensor, verify

pytestmark = [needs_unicorn, needs_arm_gcc]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model as PyTorch's routes make them: floats at the edges, a PAD before each convolution of stride 2."""
    builder = Builder(np.random.default_rng(0), (1, 12, 12, 3))
    for make in (
        lambda: builder.conv(8, stride=(2, 2), same=False),
        lambda: builder.depthwise(stride=(2, 2), same=False),
    ):
        builder.pad((1, 1, 1, 1))
        make()
    builder.mean()
    builder.dense(5)
    graph = builder.graph()
    tensors = {
        **graph.tensors,
        "image": Tensor("image", (1, 12, 12, 3), "float32"),
        "scores": Tensor("scores", (1, 5), "float32"),
    }
    first = Op("quantize", ("image",), ("input",), {}, "first")
    last = Op("dequantize", graph.outputs, ("scores",), {}, "last")
    edged = replace(graph, tensors=tensors, ops=(first, *graph.ops, last), inputs=("image",), outputs=("scores",))
    path = tmp_path_factory.mktemp("model") / "edges.tflite"
    path.write_bytes(tflite_writer.write(verify(edged)))
    return path


@needs_oracle
def test_the_firmware_computes_the_model_between_its_edges(model, tmp_path):
    """No PAD and no conversion runs; each op is told by its layer in the file; the outputs are TFLite Micro's."""
    result = bench(model, tmp_path / "run", "--samples", "6")
    assert result["outputs_equal"] and result["host"] == "tflite-micro"
    assert [row["kind"] for row in result["per_op"]] == ["conv_2d", "depthwise_conv_2d", "mean", "fully_connected"]
    assert [row["source"] for row in result["per_op"]] == [
        "conv_2d_1",
        "depthwise_conv_2d_3",
        "mean_4",
        "fully_connected_5",
    ]
