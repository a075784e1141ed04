"""Reading float ONNX: every node as ONNX's own reference computes it, whatever layout it ends up in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.export import float_reference
from tinykd.export.passes import run_passes

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnxnet import OnnxNet  # noqa: E402

from tinykd.formats.onnx import reader as onnx_reader  # noqa: E402

MAP = (1, 6, 5, 4)


def check(net, *, samples=3, channels_last=(), tolerance=2e-5):
    """Compare the graph, as read and after all passes, with ONNX; return the graph after all passes.

    `channels_last`: the outputs of rank 4 that the graph gives as maps (1, H, W, C).
    """
    graph = onnx_reader.read(net.bytes(), "net")
    lowered = run_passes(graph)
    for sample in net.samples(samples):
        inputs = {}
        for name, value in zip(graph.inputs, sample, strict=True):
            readers = {node.op_type for node in net.nodes if name in node.input}
            is_map = readers != {"Transpose"} if value.ndim == 4 else readers & {"Conv", "AveragePool"}
            inputs[name] = np.moveaxis(value, 1, -1) if is_map else value
            assert inputs[name].shape == graph.tensor(name).shape
        expected = net.run(sample)
        for candidate in (graph, lowered):
            found = float_reference.run_outputs(candidate, inputs)
            for index, (name, value) in enumerate(zip(candidate.outputs, expected, strict=True)):
                value = np.moveaxis(value, 1, -1) if index in channels_last else value
                assert found[name].shape == value.shape
                assert np.abs(found[name] - value).max() <= tolerance * max(1, np.abs(value).max())
    return lowered


def kinds(graph):
    """The kinds of a graph's ops, in order."""
    return [op.kind for op in graph.ops]


def single(kind, *extra, shape=MAP, opset=17, **attrs):
    """A network of one node; `extra` makes its inputs behind the first."""
    net = OnnxNet(shape, opset=opset)
    net.node(kind, net.x, *[make(net) for make in extra], **attrs)
    return net


WINDOWED = {
    "conv": lambda: single("Conv", lambda n: n.weights(8, 6, 3, 2), lambda n: n.weights(8), strides=[2, 1]),
    "conv-pads": lambda: single("Conv", lambda n: n.weights(8, 6, 3, 3), pads=[0, 1, 2, 0], dilations=[1, 2]),
    "conv-same-upper": lambda: single("Conv", lambda n: n.weights(4, 6, 2, 4), auto_pad="SAME_UPPER", strides=[1, 2]),
    "conv-same-lower": lambda: single("Conv", lambda n: n.weights(4, 6, 2, 4), auto_pad="SAME_LOWER", strides=[1, 1]),
    "conv-valid": lambda: single("Conv", lambda n: n.weights(4, 6, 2, 3), auto_pad="VALID"),
    "depthwise": lambda: single("Conv", lambda n: n.weights(6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]),
    "multiplier": lambda: single("Conv", lambda n: n.weights(12, 1, 3, 3), lambda n: n.weights(12), group=6),
    "grouped": lambda: single("Conv", lambda n: n.weights(9, 2, 3, 3), lambda n: n.weights(9), group=3),
    "conv-1d": lambda: single(
        "Conv", lambda n: n.weights(5, 3, 4), shape=(1, 3, 11), pads=[2, 1], strides=[2], dilations=[2]
    ),
    "transposed": lambda: single("ConvTranspose", lambda n: n.weights(6, 3, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    "transposed-odd": lambda: single(
        "ConvTranspose", lambda n: n.weights(6, 3, 3, 3), lambda n: n.weights(3), strides=[2, 2],
        pads=[1, 1, 1, 1], output_padding=[1, 1],
    ),
    "transposed-wide": lambda: single(
        "ConvTranspose", lambda n: n.weights(6, 2, 2, 1), strides=[3, 2], output_padding=[1, 1]
    ),
    "max": lambda: single("MaxPool", kernel_shape=[3, 2], strides=[2, 1]),
    "max-pads": lambda: single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max-ceil": lambda: single("MaxPool", kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
    "max-ceil-behind": lambda: single("MaxPool", kernel_shape=[1, 2], strides=[3, 3], ceil_mode=1),
    "average": lambda: single("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "average-counted": lambda: single("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average-left-out": lambda: single("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "average-1d": lambda: single("AveragePool", shape=(1, 3, 9), kernel_shape=[4], strides=[2]),
    "global": lambda: single("GlobalAveragePool"),
    "global-max": lambda: single("GlobalMaxPool"),
    "resize": lambda: single(
        "Resize", lambda n: "", lambda n: n.constant([1, 1, 2, 3]), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "resize-half": lambda: single(
        "Resize", lambda n: "", lambda n: "", lambda n: n.ints(1, 6, 10, 8), mode="nearest",
        coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil",
    ),
    "resize-corners": lambda: single(
        "Resize", lambda n: "", lambda n: "", lambda n: n.ints(1, 6, 9, 7), mode="nearest",
        coordinate_transformation_mode="align_corners", nearest_mode="round_prefer_ceil",
    ),
    "batch-norm": lambda: single(
        "BatchNormalization", *[lambda n: n.constant(n.rng.uniform(0.5, 2, 6)) for _ in range(4)]
    ),
    "pad": lambda: single("Pad", lambda n: n.ints(0, 1, 2, 0, 0, 0, 1, 3)),
    "pad-value": lambda: single("Pad", lambda n: n.ints(0, 0, 2, 0, 0, 2, 1, 3), lambda n: n.constant(-1.5)),
    "space-to-depth": lambda: single("SpaceToDepth", shape=(1, 3, 4, 6), blocksize=2),
    "depth-to-space": lambda: single("DepthToSpace", shape=(1, 8, 3, 2), blocksize=2),
    "depth-to-space-crd": lambda: single("DepthToSpace", shape=(1, 8, 3, 2), blocksize=2, mode="CRD"),
    "slice": lambda: single(
        "Slice", lambda n: n.ints(4, -2), lambda n: n.ints(-9, 9), lambda n: n.ints(1, 2), lambda n: n.ints(-2, 1)
    ),
    "softmax-channels": lambda: single("Softmax", axis=1),
    "concat": lambda: single("Concat", lambda n: n.x, lambda n: n.weights(1, 2, 5, 4), axis=1),
    "concat-rows": lambda: single("Concat", lambda n: n.x, axis=2),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWED)
def test_maps(case):
    """Nodes over maps give, channels last, what ONNX gives channels first."""
    net = WINDOWED[case]()
    rank = len(net.run(net.samples(1)[0])[0].shape)
    check(net, channels_last=(0,) if rank == 4 else ())


ELEMENTWISE = {
    "relu": lambda: single("Relu"),
    "relu6": lambda: single("Clip", lambda n: n.constant(0), lambda n: n.constant(6)),
    "clip": lambda: single("Clip", lambda n: n.constant(-0.5), lambda n: n.constant(2)),
    "clip-low": lambda: single("Clip", lambda n: n.constant(-0.5)),
    "leaky": lambda: single("LeakyRelu", alpha=0.2),
    "prelu": lambda: single("PRelu", lambda n: n.weights(6, 1, 1)),
    "prelu-all": lambda: single("PRelu", lambda n: n.weights(6, 5, 4)),
    "sigmoid": lambda: single("Sigmoid"),
    "tanh": lambda: single("Tanh"),
    "hard-swish": lambda: single("HardSwish"),
    "hard-sigmoid": lambda: single("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard-sigmoid-default": lambda: single("HardSigmoid"),
    "add-scalar": lambda: single("Add", lambda n: n.constant(1.5)),
    "add-channels": lambda: single("Add", lambda n: n.weights(6, 1, 1)),
    "add-width": lambda: single("Add", lambda n: n.weights(4)),
    "mul-map": lambda: single("Mul", lambda n: n.weights(1, 1, 5, 4)),
    "sub": lambda: single("Sub", lambda n: n.weights(6, 1, 1)),
    "div": lambda: single("Div", lambda n: n.constant([4.0])),
    "neg": lambda: single("Neg"),
    "max": lambda: single("Max", lambda n: n.weights(6, 5, 4), lambda n: n.constant(0.1)),
    "min": lambda: single("Min", lambda n: n.constant(0.5)),
    "sum": lambda: single("Sum", lambda n: n.x, lambda n: n.x),
    "identity": lambda: single("Identity"),
    "cast": lambda: single("Cast", to=1),
}


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_elementwise(case):
    """Activations and arithmetic with broadcast constants give what ONNX gives."""
    check(ELEMENTWISE[case](), channels_last=(0,))


def test_constants_first():
    """A constant may be the first operand of a difference."""
    net = OnnxNet(MAP)
    net.node("Sub", net.weights(6, 1, 1), net.x)
    check(net, channels_last=(0,))


def test_dense_layers():
    """Gemm with all its factors, MatMul with a bias behind it, and rows of a sequence."""
    net = OnnxNet((1, 7))
    net.node("Gemm", net.x, net.weights(7, 5), net.weights(5), alpha=0.5, beta=2.0)
    net.node("Gemm", net.x, net.weights(4, 5), transB=1)
    net.node("MatMul", net.x, net.weights(4, 3))
    net.node("Add", net.x, net.weights(3))
    assert kinds(check(net)) == ["fully_connected"] * 3
    rows = OnnxNet((1, 5, 7))
    rows.node("MatMul", rows.x, rows.weights(7, 3))
    rows.node("Add", rows.weights(3), rows.x)
    rows.node("Relu")
    rows.node("Transpose", perm=[0, 2, 1])
    rows.node("MatMul", rows.x, rows.weights(5, 1))
    rows.node("Flatten")
    assert kinds(check(rows)) == ["fully_connected", "transpose", "fully_connected", "reshape"]


def test_batch_norm_without_convolution():
    """Norms that no convolution precedes become depthwise 1x1, or a product and a sum; others are folded."""
    net = OnnxNet(MAP)

    def norm(channels):
        parts = [net.constant(net.rng.uniform(0.5, 2, channels)) for _ in range(4)]
        return net.node("BatchNormalization", net.x, *parts)

    norm(6)
    net.node("Relu")
    net.node("ConvTranspose", net.x, net.weights(6, 3, 2, 2), strides=[2, 2])
    norm(3)
    net.node("Flatten")
    norm(240)
    net.node("Gemm", net.x, net.weights(240, 4))
    norm(4)
    graph = check(net)
    moves = ["reshape", "transpose", "reshape"]
    assert kinds(graph) == ["depthwise_conv_2d", "transpose_conv", *moves, "mul", "add", "fully_connected"]
    assert graph.ops[0].attrs["activation"] == "relu"


@pytest.mark.parametrize("spelling", ["over-product", "over-ramp", "node"])
def test_hard_swish_is_found(spelling):
    """x * relu6(x + 3) / 6 becomes one op however it is grouped."""
    net = OnnxNet(MAP)
    x = net.node("Conv", net.x, net.weights(4, 6, 1, 1))
    if spelling == "node":
        net.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        net.node("Mul", x, net.x)
    else:
        net.node("Add", net.constant(3), x)
        net.node("Clip", net.x, net.constant(0), net.constant(6))
        if spelling == "over-product":
            net.node("Mul", net.x, x)
            net.node("Div", net.x, net.constant(6))
        else:
            net.node("Mul", net.x, net.constant(1 / 6))
            net.node("Mul", x, net.x)
    assert kinds(check(net, channels_last=(0,))) == ["conv_2d", "hard_swish"]


def test_near_hard_swish_is_left_alone():
    """Another offset, another factor, or another multiplicand is no hard-swish."""
    for offset, factor, own in ((2.9, 1 / 6, True), (3, 0.2, True), (3, 1 / 6, False)):
        net = OnnxNet(MAP)
        x = net.node("Conv", net.x, net.weights(6, 6, 1, 1))
        net.node("Add", x, net.constant(offset))
        net.node("Clip", net.x, net.constant(0), net.constant(6))
        net.node("Mul", net.x, net.constant(factor))
        net.node("Mul", x if own else "input0", net.x)
        assert "hard_swish" not in kinds(check(net, channels_last=(0,)))


def test_activations_are_fused_where_they_can_be():
    """The bounds -1 and 1, relu and relu6 join their producer; a value that is read elsewhere keeps them apart."""
    net = OnnxNet(MAP)
    net.node("Conv", net.x, net.weights(6, 6, 1, 1))
    net.node("Clip", net.x, net.constant(-1), net.constant(1))
    x = net.node("Mul", net.x, net.weights(1, 1, 5, 4))
    y = net.node("Relu", x)
    net.node("Add", x, y)
    net.node("Relu")
    net.node("Concat", net.x, net.x, axis=1)
    net.node("Clip", net.x, net.constant(0), net.constant(6))
    graph = check(net, channels_last=(0,))
    assert kinds(graph) == ["conv_2d", "mul", "relu", "add", "concatenation", "relu6"]
    assert [op.attrs.get("activation") for op in graph.ops] == ["relu_n1_to_1", "none", None, "relu", None, None]


def test_channel_shuffle_costs_one_transpose():
    """ShuffleNet's reshape, transpose, reshape moves elements once, and only between the groups."""
    net = OnnxNet((1, 12, 5, 4))
    net.node("Conv", net.x, net.weights(12, 12, 1, 1))
    net.node("Reshape", net.x, net.ints(0, 3, 4, 5, 4))
    net.node("Transpose", perm=[0, 2, 1, 3, 4])
    net.node("Reshape", net.x, net.ints(0, -1, 5, 4))
    net.node("Conv", net.x, net.weights(2, 12, 1, 1))
    graph = check(net, channels_last=(0,))
    assert kinds(graph) == ["conv_2d", "reshape", "transpose", "reshape", "conv_2d"]
    assert graph.ops[2].attrs["perm"] == (0, 1, 3, 2)


def test_squeeze_and_excitation():
    """A gate of shape (1, C, 1, 1), or (1, C) brought back to it, multiplies the map without moving it."""
    net = OnnxNet((1, 8, 5, 4))
    x = net.node("Conv", net.x, net.weights(8, 8, 1, 1))
    net.node("ReduceMean", axes=[2, 3], keepdims=0)
    net.node("Gemm", net.x, net.weights(8, 8))
    net.node("HardSigmoid", alpha=1 / 6, beta=0.5)
    net.node("Unsqueeze", net.x, net.ints(2, 3))
    net.node("Mul", x, net.x)
    graph = check(net, channels_last=(0,))
    assert kinds(graph)[:4] == ["conv_2d", "mean", "fully_connected", "mul"]
    assert "transpose" not in kinds(graph)


def test_channels_last_models_need_no_transpose():
    """A model that takes and gives (N, H, W, C) by transposing inside is read without any transpose."""
    net = OnnxNet((1, 5, 4, 6))
    net.node("Transpose", perm=[0, 3, 1, 2])
    net.node("Conv", net.x, net.weights(3, 6, 3, 3))
    net.node("Transpose", perm=[0, 2, 3, 1])
    assert kinds(check(net)) == ["conv_2d"]


def test_shapes_are_computed():
    """Shape, Gather, Concat and arithmetic on shapes are evaluated; a flattened map keeps its order."""
    net = OnnxNet((1, 6, 5, 4))
    x = net.node("MaxPool", kernel_shape=[2, 2])
    net.node("Shape")
    batch = net.node("Gather", net.x, net.constant(0, np.int64))
    batch = net.node("Unsqueeze", batch, net.ints(0))
    net.node("Concat", batch, net.ints(-1), axis=0)
    net.node("Reshape", x, net.x)
    net.node("Gemm", net.x, net.weights(3, 72), net.weights(3), transB=1)
    assert kinds(check(net)) == ["max_pool_2d", "reshape", "fully_connected"]


def test_several_inputs_and_outputs():
    """Two inputs of different rank, a split in three, outputs in the middle; what feeds none of them is gone."""
    net = OnnxNet((1, 6, 5, 4), (1, 6))
    gate = net.node("Sigmoid", "input1")
    net.node("Reshape", gate, net.ints(1, 6, 1, 1))
    net.node("Mul", "input0", net.x)
    parts = net.node("Split", net.x, net.ints(1, 3, 2), axis=1, count=3)
    net.node("Tanh", parts[1])
    net.outputs = [parts[0], net.x, gate]
    net.node("Relu", parts[2])
    graph = check(net, channels_last=(0, 1))
    assert kinds(graph) == ["logistic", "reshape", "mul", "split", "tanh"]
    assert graph.inputs == ("input0", "input1")


def test_arg_max_and_gather():
    """The largest channel of each position, and single elements or every second one of an axis."""
    net = OnnxNet(MAP)
    net.node("ArgMax", axis=1, keepdims=0)
    assert check(net).tensor(onnx_reader.read(net.bytes()).outputs[0]).dtype == "int32"
    for indices in ([1, 3, 5], [3, 2, 1, 0], 2, [4]):
        net = OnnxNet(MAP)
        net.node("Gather", net.x, net.constant(indices, np.int64), axis=1)
        whole = isinstance(indices, list)
        graph = check(net, channels_last=(0,) if whole else ())
        assert kinds(graph) == (["strided_slice"] if whole else ["strided_slice", "reshape"])


@pytest.mark.parametrize("opset", [13, 16, 18, 20, 21])
def test_opsets(opset):
    """Axes, parts and pads as attributes or inputs, as each opset has them."""
    net = OnnxNet(MAP, opset=opset)
    split = {"num_outputs": 2} if opset >= 18 else {}
    parts = net.node("Split", axis=1, count=2, **split)
    net.node("Sub", *parts)
    if opset >= 18:
        net.node("Pad", net.x, net.ints(1, 2), "", net.ints(2))
        net.node("ReduceMean", net.x, net.ints(2), keepdims=1)
    else:
        net.node("Pad", net.x, net.ints(0, 0, 1, 0, 0, 0, 2, 0))
        net.node("ReduceMean", axes=[2], keepdims=1)
    net.node("Squeeze", net.x, net.ints(2))
    check(net)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_moves(data):
    """However a value is reshaped and transposed, the elements come out where ONNX puts them."""
    dims = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
    shape = [1, *dims]
    net = OnnxNet(tuple(shape), seed=1)
    for _ in range(data.draw(st.integers(1, 5))):
        choice = data.draw(st.sampled_from(["transpose", "reshape", "relu", "pool"]))
        if choice == "transpose":
            perm = [0, *(1 + axis for axis in data.draw(st.permutations(range(len(shape) - 1))))]
            net.node("Transpose", perm=perm)
            shape = [shape[axis] for axis in perm]
        elif choice == "reshape":
            count, target = int(np.prod(shape)), [1]
            while count > 1 and len(target) < 5:
                size = data.draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0]))
                target.append(size)
                count //= size
            target.append(count)
            net.node("Reshape", net.x, net.ints(*target))
            shape = target
        elif choice == "pool" and len(shape) == 4:
            net.node("MaxPool", kernel_shape=[1, 1])
        else:
            net.node("LeakyRelu")
    net.node("Reshape", net.x, net.ints(1, -1))
    check(net, samples=1)


REFUSED = {
    "opset": (lambda: single("Relu", opset=12), "opset 12.*\n.*version_converter"),
    "recurrent": (lambda: single("Elu"), "Elu.*is not supported\n.*HardSwish"),
    "two-activations": (lambda: single("MatMul", lambda n: n.x), "no constant"),
    "batch": (lambda: single("Transpose", perm=[1, 0, 2, 3]), "batch, which must stay 1"),
    "batch-flat": (lambda: single("Reshape", lambda n: n.ints(-1)), "the first axis is the batch"),
    "mean": (lambda: single("ReduceMean", axes=[0, 1]), "includes the batch"),
    "reflect": (lambda: single("Pad", lambda n: n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "mode 'reflect'"),
    "linear": (
        lambda: single("Resize", lambda n: "", lambda n: n.constant([1, 1, 2, 2]), mode="linear"), "only nearest"
    ),
    "neighbours": (
        lambda: single(
            "Resize", lambda n: "", lambda n: n.constant([1, 1, 2, 2]), mode="nearest", nearest_mode="ceil",
            coordinate_transformation_mode="asymmetric",
        ),
        "other neighbours",
    ),
    "uneven": (lambda: single("Gather", lambda n: n.ints(0, 1, 3), axis=1), "evenly spaced"),
    "divide": (lambda: single("Div", lambda n: n.x), "divides by an activation"),
    "zero": (lambda: single("Div", lambda n: n.constant(0)), "divides by zero"),
    "grouped-transpose": (
        lambda: single("ConvTranspose", lambda n: n.weights(6, 1, 2, 2), group=2), "one group"
    ),
    "repeat": (lambda: single("Expand", lambda n: n.ints(1, 6, 5, 4), shape=(1, 6, 1, 1)), "repeats elements"),
    "empty-slice": (
        lambda: single("Slice", lambda n: n.ints(3), lambda n: n.ints(3), lambda n: n.ints(1)), "leaves nothing"
    ),
    "quantised": (
        lambda: single("QuantizeLinear", lambda n: n.constant(1), lambda n: n.constant(0, np.int8)), "read_quantised"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    """What cannot be read is refused with the node and the way out."""
    make, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=message):
        onnx_reader.read(make().bytes())


def test_free_sizes_are_refused():
    """A batch may be free; a height may not."""
    net = OnnxNet(("batch", 3, 8, 8))
    net.node("Relu")
    assert onnx_reader.read(net.bytes()).tensor("input0").shape == (1, 8, 8, 3)
    for shape in ((1, 3, "height", 8), (2, 3, 8, 8)):
        net.shapes = (shape,)
        with pytest.raises(UnsupportedModelError, match="input0.*fixed"):
            onnx_reader.read(net.bytes())


def test_broken_files():
    """No bytes, cut bytes and initialisers that are too short are refused, not crashed on."""
    net = single("Add", lambda n: n.weights(6, 1, 1))
    for data in (b"", net.bytes()[:60]):
        with pytest.raises(InvalidModelError):
            onnx_reader.read(data)
    proto = net.proto()
    proto.graph.initializer[0].raw_data = b"\x00"
    with pytest.raises(InvalidModelError):
        onnx_reader.read(proto.SerializeToString())


def test_huge_constants_are_refused():
    """A few bytes that ask for gigabytes of zeros are refused before they are allocated."""
    net = OnnxNet(MAP)
    x = net.x
    net.node("ConstantOfShape", net.ints(1, 6, 1 << 20, 1 << 16))
    net.node("Add", x, net.x)
    with pytest.raises(UnsupportedModelError, match="256 MiB"):
        onnx_reader.read(net.bytes())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_files_are_read_or_refused():
    """Changed bytes give a graph or an error of ours, never another exception."""
    rng = np.random.default_rng(0)
    files = [make().bytes() for make in WINDOWED.values()]
    refused = 0
    for _ in range(1500):
        data = bytearray(files[rng.integers(len(files))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            onnx_reader.read(bytes(data))
        except UnsupportedModelError:
            refused += 1
    assert refused > 500
