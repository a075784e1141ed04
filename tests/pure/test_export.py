"""Export without torch: ONNX in, passes, calibration, quantisation, QDQ ONNX out."""

import numpy as np
import pytest
from graphs import needs_oracle

from tinykd.errors import ConfigError, DataError, InvalidModelError, UnsupportedModelError
from tinykd.export import calibrate, convert, float_reference, oracle, parity, reference
from tinykd.export.passes import fold_batch_norm, fold_pad, fuse_activation, lower_padding, run_passes, squeeze_mean
from tinykd.export.ptq import PtqOptions
from tinykd.export.ranges import METHODS
from tinykd.ir import Quant, graph_macs, verify
from tinykd.ir.affine import activation_quant

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

NORMALIZATION = convert.Normalization(33, 78.0)


class Net:
    """Writes a float ONNX network node by node."""

    def __init__(self, seed=0, shape=(1, 3, 10, 10)):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.x, self.shape = [], [], "image", shape

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape):
        return self.constant(self.rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape))

    def node(self, kind, *extra, x=None, **attrs):
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, [x or self.x, *extra], [name], name=f"{kind}/{len(self.nodes)}", **attrs)
        )
        self.x = name
        return name

    def conv(self, out, channels, kernel=3, **attrs):
        group = attrs.get("group", 1)
        bias = self.constant(self.rng.normal(0, 0.5, out))
        return self.node("Conv", self.weights(out, channels // group, kernel, kernel), bias, **attrs)

    def norm(self, channels):
        r = self.rng
        parts = (
            r.uniform(0.5, 2, channels),
            r.normal(0, 1, channels),
            r.normal(0, 1, channels),
            r.uniform(0.2, 3, channels),
        )
        return self.node("BatchNormalization", *[self.constant(part) for part in parts])

    def pad(self, *pads):
        return self.node("Pad", self.constant(pads, np.int64))

    def bytes(self):
        inputs = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, list(self.shape))]
        outs = [helper.make_tensor_value_info(self.x, onnx.TensorProto.FLOAT, ["batch", "classes"])]
        graph = helper.make_graph(self.nodes, "net", inputs, outs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return model.SerializeToString()

    def run(self, x):
        """What ONNX's own reference says, for x (N, H, W, C)."""
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(onnx.load_model_from_string(self.bytes()))
        return np.concatenate([session.run(None, {"image": row[None].transpose(0, 3, 1, 2)})[0] for row in x])


def _student(seed=0):
    net = Net(seed)
    net.pad(0, 0, 0, 0, 0, 0, 1, 1)
    net.conv(8, 3, strides=[2, 2])
    net.norm(8)
    skip = net.node("Relu")
    net.conv(8, 8, group=8, pads=[1, 1, 1, 1])
    net.norm(8)
    net.node("Clip", net.constant(0.0), net.constant(6.0))
    net.conv(8, 8, kernel=1)
    net.node("Add", skip)
    net.node("Relu")
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.node("Gemm", net.weights(5, 8), net.constant(net.rng.normal(0, 1, 5)), transB=1)
    return net


def _images(count=32, shape=(10, 10, 3), seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def test_float_graph_equals_onnx():
    """Reading, every pass and the NHWC executor keep the numbers of the ONNX model."""
    net = _student()
    x = NORMALIZATION.to_float(_images())
    graph = convert.onnx_reader.read(net.bytes(), "student")
    expected = net.run(x)
    for step in (None, fold_batch_norm, fold_pad, fuse_activation, squeeze_mean, lower_padding):
        if step is not None:
            graph = verify(step(graph))
        if not {"batch_norm", "relu", "relu6"} & {op.kind for op in graph.ops}:
            assert np.abs(float_reference.run(graph, x) - expected).max() < 1e-4
    assert [op.kind for op in graph.ops] == [
        "conv_2d",
        "depthwise_conv_2d",
        "conv_2d",
        "add",
        "mean",
        "fully_connected",
    ]


def test_students_need_no_pad_op():
    """TF-SAME padding disappears into the convolution; PyTorch's symmetric one at stride 2 needs a PAD op."""
    assert "pad" not in {op.kind for op in run_passes(convert.onnx_reader.read(_student().bytes())).ops}
    net = Net(shape=(1, 3, 8, 8))
    net.conv(4, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    net.node("Flatten")
    net.node("Gemm", net.weights(2, 64), net.constant([0.0, 0.0]), transB=1)
    graph = run_passes(convert.onnx_reader.read(net.bytes()))
    assert [op.kind for op in graph.ops][:2] == ["pad", "conv_2d"]
    x = NORMALIZATION.to_float(_images(4, (8, 8, 3)))
    assert np.abs(float_reference.run(graph, x) - net.run(x)).max() < 1e-4


def test_flattened_maps_reach_the_dense_layer_in_order():
    """Flattening NCHW in the model and NHWC on the device give the same logits."""
    net = Net(shape=(1, 2, 5, 4))
    net.node("MaxPool", kernel_shape=[2, 2], strides=[1, 1])
    net.node("Flatten")
    net.node("Relu")
    net.node("MatMul", net.weights(24, 3))
    net.node("Add", net.constant([1.0, 2.0, 3.0]))
    x = np.random.default_rng(0).normal(0, 1, (5, 5, 4, 2)).astype(np.float32)
    graph = run_passes(convert.onnx_reader.read(net.bytes()))
    assert np.abs(float_reference.run(graph, x) - net.run(x)).max() < 1e-5


@needs_oracle
@pytest.mark.parametrize("method", METHODS)
def test_quantised_student_equals_tflite_micro(method):
    """The int8 student is close to the float one and equals TFLite Micro on every activation."""
    from tinykd.formats.tflite import writer as tflite_writer

    net, images = _student(), _images(64)
    float_graph, graph = convert.convert(net.bytes(), images, NORMALIZATION, name="student", options=PtqOptions(method))
    assert graph_macs(float_graph) == graph_macs(graph)
    x = convert.to_device(images)
    result = parity.compare(graph, tflite_writer.write(graph), x[:5])
    assert result.first_mismatch is None
    output = graph.tensor(graph.outputs[0]).quant
    real = (reference.run_output(graph, x).astype(float) - output.zero_point) * output.scale
    error = np.abs(real - net.run(NORMALIZATION.to_float(images)))
    # Entropy clips most: few images of noise are not what it is for.
    assert error.mean() < (8 if method == "entropy" else 4) * output.scale


def test_device_input_is_pixel_minus_128():
    """The input's scale and zero point make the int8 input exactly pixel - 128, for all 256 levels."""
    levels = np.arange(256, dtype=np.uint8)
    quant = NORMALIZATION.input_quant()
    expected = np.rint(NORMALIZATION.to_float(levels) / quant.scale) + quant.zero_point
    assert np.array_equal(convert.to_device(levels), expected.astype(np.int8))


def test_qdq_onnx_holds_the_same_integers():
    """The QDQ ONNX model carries the scales and integers of the int8 graph and computes nearly the same."""
    from onnx.reference import ReferenceEvaluator

    from tinykd.formats.onnx import writer as onnx_writer

    net, images = _student(), _images(8)
    _, graph = convert.convert(net.bytes(), images, NORMALIZATION, name="student")
    data = onnx_writer.write_qdq(graph)
    assert data == onnx_writer.write_qdq(graph)
    model = onnx.load_model_from_string(data)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for tensor in graph.tensors.values():
        assert np.array_equal(stored[f"{tensor.name}/scale"].reshape(-1), np.float32(tensor.quant.scales))
        if tensor.is_constant:
            assert np.array_equal(np.sort(stored[f"{tensor.name}/q"], axis=None), np.sort(tensor.data, axis=None))
    x = NORMALIZATION.to_float(images).transpose(0, 3, 1, 2)
    session = ReferenceEvaluator(model)
    fake = np.concatenate([session.run(None, {session.input_names[0]: row[None]})[0] for row in x])
    output = graph.tensor(graph.outputs[0]).quant
    real = (reference.run_output(graph, convert.to_device(images)).astype(float) - output.zero_point) * output.scale
    assert np.abs(fake - real).max() <= 4 * output.scale


def test_tiny_weights_with_a_large_bias_do_not_overflow():
    """A channel whose weights are almost zero gets a coarser scale instead of an overflowing bias."""
    net = Net(shape=(1, 1, 4, 4))
    weights = np.zeros((2, 1, 1, 1))
    weights[0], weights[1] = 1.0, 1e-12
    net.node("Conv", net.constant(weights), net.constant([0.0, 3.0]))
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.node("Gemm", net.constant(np.eye(2)), net.constant([0.0, 0.0]), transB=1)
    images = _images(8, (4, 4, 1))
    _, graph = convert.convert(net.bytes(), images, NORMALIZATION, name="tiny")
    bias = graph.tensor(graph.ops[0].inputs[2]).data
    assert np.abs(bias.astype(np.int64)).max() <= 1 << 30
    quant = graph.tensor(graph.outputs[0]).quant
    logits = (reference.run_output(graph, convert.to_device(images)).astype(float) - quant.zero_point) * quant.scale
    assert np.abs(logits[:, 1] - 3.0).max() < 0.1


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_activation_ranges_represent_zero(low, high):
    """Zero is an integer of every activation's grid, and the range is covered to half a step."""
    quant = activation_quant(low, high)
    assert -128 <= quant.zero_point <= 127
    assert (-128 - quant.zero_point) * quant.scale <= low + quant.scale / 2
    assert (127 - quant.zero_point) * quant.scale >= high - quant.scale / 2 - 1e-6
    assert isinstance(quant, Quant)


def _refused(change):
    net = _student()
    change(net)
    return net.bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.node("Elu"), r"node 13 \(Elu"),
        (lambda net: net.node("ReduceMean", axes=[0]), "includes the batch"),
        (lambda net: net.node("Clip", net.constant(1.0), net.constant(0.0)), r"clips to \[1, 0\]"),
    ],
)
def test_unsupported_nodes_are_named(change, message):
    """A node that has no int8 form is refused by name, with its number."""
    with pytest.raises(UnsupportedModelError, match=message):
        convert.onnx_reader.read(_refused(change), "student")


def test_broken_onnx_is_refused():
    """Bytes that are no ONNX model are an InvalidModelError."""
    with pytest.raises(InvalidModelError):
        convert.onnx_reader.read(_student().bytes()[:100], "cut")


def test_calibration_refuses_nonsense():
    """Unknown methods, empty sets and infinite activations are errors before anything is quantised."""
    graph = run_passes(convert.onnx_reader.read(_student().bytes()))
    x = NORMALIZATION.to_float(_images(2))
    with pytest.raises(ConfigError, match="Did you mean 'minmax'"):
        calibrate.calibrate(graph, x, "min-max")
    with pytest.raises(DataError, match="empty"):
        calibrate.calibrate(graph, x[:0])
    with pytest.raises(DataError, match="not finite"):
        calibrate.calibrate(graph, np.full_like(x, np.inf))


def test_percentile_is_inside_minmax():
    """Percentile ranges lie within the min-max ranges."""
    graph = run_passes(convert.onnx_reader.read(_student().bytes()))
    x = NORMALIZATION.to_float(_images(64))
    wide, narrow = calibrate.calibrate(graph, x, "minmax"), calibrate.calibrate(graph, x, "percentile")
    assert all(wide[name][0] <= narrow[name][0] and narrow[name][1] <= wide[name][1] for name in wide)


def test_oracle_says_when_it_is_missing(monkeypatch):
    """Without the wheel the error names the command that installs it."""
    import sys

    from tinykd.errors import ToolchainError

    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(ToolchainError) as caught:
        oracle.Oracle(b"")
    assert "pip install tflite-micro" in caught.value.next_step
