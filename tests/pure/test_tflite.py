"""Reading and writing .tflite: what was written is read back, and nothing broken gets through."""

import numpy as np
import pytest
import tflite as schema
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from tflite_files import with_builtin, with_type

from tinykd.errors import ConfigError, InvalidModelError, TinykdError, UnsupportedModelError
from tinykd.export import oracle
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import difference


def assert_same(first, second):
    """Assert that two graphs are equal, and number their tensors alike."""
    assert difference(first, second) is None
    assert list(first.tensors) == list(second.tensors)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_written_is_read_back(seed):
    """reader(writer(graph)) is the graph, with and without a memory plan, and the bytes repeat."""
    graph = random_network(seed).graph()
    plain = tflite_writer.write(graph)
    planned = tflite_writer.write(graph, dict.fromkeys(graph.outputs, 0))
    assert plain == tflite_writer.write(graph)
    assert plain != planned
    assert_same(graph, tflite.read_bytes(plain, graph.name))
    assert_same(graph, tflite.read_bytes(planned, graph.name))


@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_round_trip(path):
    """A model of another producer survives our writer unchanged."""
    graph = tflite.read(path)
    assert_same(graph, tflite.read_bytes(tflite_writer.write(graph), graph.name))


@needs_oracle
@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_rewritten_public_models_compute_the_same(path):
    """TFLite Micro gives the same outputs for a public model and for what we write, on 50 random and extreme inputs."""
    graph = tflite.read(path)
    shape = graph.tensor(graph.inputs[0]).shape
    samples = list(np.random.default_rng(5).integers(-128, 128, (46, *shape)).astype(np.int8))
    samples += [np.full(shape, value, np.int8) for value in (-128, 127)]
    board = np.indices(shape).sum(0) % 2 * 255 - 128
    samples += [board.astype(np.int8), (-1 - board).astype(np.int8)]
    theirs, ours = oracle.Oracle(path.read_bytes()), oracle.Oracle(tflite_writer.write(graph))
    for x in samples:
        assert np.array_equal(theirs.invoke(x), ours.invoke(x))


def _model() -> bytes:
    builder = Builder(np.random.default_rng(0), (1, 8, 8, 3))
    builder.conv(4, activation="relu")
    builder.depthwise()
    builder.mean()
    builder.dense(3)
    builder.softmax()
    return tflite_writer.write(builder.graph())


def test_truncated_files_are_refused():
    """Every truncation of a model is an error of ours, never another exception."""
    data = _model()
    for size in [0, 3, 7, 8, 15, *range(16, len(data) - 1, 37)]:
        with pytest.raises(UnsupportedModelError):
            tflite.read_bytes(data[:size], "cut")


def test_flipped_bits_never_escape_as_other_errors():
    """A corrupt file either still reads or is refused by an error of ours, and never hangs."""
    data = _model()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(1500):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), int(rng.integers(1, 4))):
            broken[position] ^= 1 << int(rng.integers(0, 8))
        try:
            tflite.read_bytes(bytes(broken), "flipped")
        except TinykdError:
            refused += 1
    assert refused > 50


def test_other_files_are_told_apart(tmp_path):
    """A file that is no .tflite, and one that does not exist, get their own messages."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x08\x07onnx" * 20)
    with pytest.raises(InvalidModelError, match="not a .tflite"):
        tflite.read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        tflite.read(tmp_path / "absent.tflite")


def test_unsupported_op_is_named_with_its_place():
    """An op that is not supported is named with its index and the tensor it writes, before anything else."""
    data = with_builtin(_model(), schema.BuiltinOperator.MEAN, schema.BuiltinOperator.RESIZE_BILINEAR)
    with pytest.raises(UnsupportedModelError, match=r"op 2 \(RESIZE_BILINEAR, writing 'mean_2'\)") as caught:
        tflite.read_bytes(data, "odd")
    assert "RESIZE_NEAREST_NEIGHBOR" in caught.value.next_step


def test_float_models_are_refused_with_the_way_out():
    """A float model is recognised as such and the message says how to quantise it."""
    data = with_type(_model(), schema.TensorType.INT8, schema.TensorType.FLOAT32)
    with pytest.raises(UnsupportedModelError, match="float model") as caught:
        tflite.read_bytes(data, "float")
    assert "inference_input_type" in caught.value.next_step
    assert caught.value.exit_code == 4
