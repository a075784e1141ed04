"""The integer constants and tables of each op against TFLite Micro: every value, rational and extreme scales."""

import numpy as np
import pytest
from graphs import needs_oracle
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinykd.errors import InternalError, InvalidModelError
from tinykd.export import oracle, reference
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor
from tinykd.ir.lookup import has_table, table
from tinykd.ir.requant import activation_range, check_defined

EVERY = np.arange(-128, 128).astype(np.int8)
FIXED_OUTPUT = {"logistic": Quant.per_tensor(1 / 256, -128), "tanh": Quant.per_tensor(1 / 128, 0)}
TABLE_KINDS = ("logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "quantize")

# Ratios of small integers put products exactly on halves, where roundings and float32 factors would show.
rational = st.builds(lambda n, unit: n * unit, st.integers(1, 40), st.sampled_from([0.1, 0.01, 1 / 64, 0.7, 1 / 3]))
wide = st.floats(-4.0, 1.2).map(lambda exponent: 10.0**exponent)
scales = st.one_of(rational, wide)
zero_points = st.one_of(st.sampled_from([-128, 127, 0]), st.integers(-128, 127))
FLOAT32_SHOWS = tuple(Quant.per_tensor(scale, 0) for scale in (40 * 0.01, 5 * 0.7, 4 * 0.7))
"""Scales whose product over the third differs on 128 products when it is computed in float32."""
quants = st.builds(Quant.per_tensor, scales, zero_points)


def one_op(kind, inputs, output, constants=(), **attrs):
    """A graph of one op: `inputs` and `constants` are (shape, quant, data or None), `output` is (shape, quant)."""
    tensors = {}
    for number, (shape, quant, data) in enumerate((*inputs, *constants)):
        dtype = "int8" if data is None else str(data.dtype)
        tensors[f"x{number}"] = Tensor(f"x{number}", shape, dtype, quant, data)
    tensors["y"] = Tensor("y", output[0], "int8", output[1])
    names = tuple(tensors)[:-1]
    return Graph("test", tensors, (Op(kind, names, ("y",), attrs, "here"),), names[: len(inputs)], ("y",))


def unary(kind, x, y, **attrs):
    """A graph of one unary op that reads 256 values."""
    return one_op(kind, [((1, 256), x, None)], ((1, 256), FIXED_OUTPUT.get(kind, y)), **attrs)


def from_wheel(graph, *inputs):
    """What TFLite Micro's wheel makes of one value of each input, flat."""
    return (
        oracle.Oracle(tflite_writer.write(graph))
        .invoke_many([x.reshape(graph.tensor(name).shape) for name, x in zip(graph.inputs, inputs, strict=True)], 1)[0]
        .reshape(-1)
    )


@needs_oracle
@pytest.mark.parametrize("kind", TABLE_KINDS)
@settings(max_examples=60, deadline=None)
@given(quants, quants, st.sampled_from([0.1, 0.3, 0.01, 1.5, 0.0, 1.0, -0.2, -0.5]))
def test_tables_equal_tflite_micro(kind, x, y, alpha):
    """All 256 entries of every kind's table, whatever the scales and zero points."""
    graph = unary(kind, x, y, **({"alpha": alpha} if kind == "leaky_relu" else {}))
    try:
        check_defined(graph, graph.ops[0])
    except InvalidModelError:
        assert kind == "hard_swish"
        return
    assert np.array_equal(table(graph, graph.ops[0]), from_wheel(graph, EVERY))


PAIRS = [pairs.ravel() for pairs in np.meshgrid(EVERY, EVERY)]


@needs_oracle
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
@settings(max_examples=25, deadline=None)
@given(quants, quants, quants, st.sampled_from(["none", "relu", "relu6", "relu_n1_to_1"]))
@example(*FLOAT32_SHOWS, "none")
def test_binary_ops_equal_tflite_micro(kind, first, second, y, activation):
    """All 65,536 pairs of values; rational scales put many of them exactly on a half."""
    shape = (1, len(PAIRS[0]))
    graph = one_op(kind, [(shape, first, None), (shape, second, None)], (shape, y), activation=activation)
    ours = reference.run(graph, dict(zip(graph.inputs, PAIRS, strict=True)))["y"].reshape(-1)
    assert np.array_equal(ours, from_wheel(graph, *PAIRS))


@needs_oracle
@settings(max_examples=25, deadline=None)
@given(quants, quants, quants)
@example(*FLOAT32_SHOWS)
def test_prelu_equals_tflite_micro(x, slopes, y):
    """All 65,536 pairs of a value and a slope."""
    shape = (1, len(PAIRS[0]))
    graph = one_op("prelu", [(shape, x, None)], (shape, y), [(shape, slopes, PAIRS[1].reshape(shape))])
    ours = reference.run(graph, PAIRS[0])["y"].reshape(-1)
    assert np.array_equal(ours, from_wheel(graph, PAIRS[0]))


@needs_oracle
@pytest.mark.parametrize("kind", ["fully_connected", "conv_2d", "transpose_conv", "svdf"])
@pytest.mark.parametrize("seed", range(12))
def test_sums_near_a_rounding_border_equal_tflite_micro(kind, seed):
    """Large biases beside the borders between two outputs: a factor that was rounded to float32 would cross them."""
    rng = np.random.default_rng(seed)
    x, weights, near = rng.uniform(0.001, 0.1, 2).tolist() + [rng.uniform(2e6, 1.5e7)]
    x, weights, y = (float(np.float32(scale)) for scale in (x, weights, x * weights * near))
    count = 300
    borders = rng.integers(-126, 126, count) + 0.5
    bias = (np.round(borders * y / (x * weights)) + rng.integers(-3, 4, count)).astype(np.int32)
    bias_row = ((count,), Quant.per_tensor(x * weights, 0), bias)
    zeros = Quant.per_tensor(weights, 0)
    if kind == "fully_connected":
        constants = [((count, 1), zeros, np.zeros((count, 1), np.int8)), bias_row]
        graph = one_op(
            kind,
            [((1, 1), Quant.per_tensor(x, 0), None)],
            ((1, count), Quant.per_tensor(y, 0)),
            constants,
            activation="none",
        )
    elif kind == "svdf":
        graph = _svdf(x, weights, y, bias)
    else:
        constants = [((count, 1, 1, 1), zeros, np.zeros((count, 1, 1, 1), np.int8)), bias_row]
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
        if kind == "conv_2d":
            attrs["dilation"] = (1, 1)
        graph = one_op(
            kind,
            [((1, 1, 1, 1), Quant.per_tensor(x, 0), None)],
            ((1, 1, 1, count), Quant.per_tensor(y, 0)),
            constants,
            **attrs,
        )
    zero = np.zeros(1, np.int8)
    ours = reference.run(graph, zero)["y"].reshape(-1)
    assert len(np.unique(ours)) > 100
    assert np.array_equal(ours, from_wheel(graph, zero))


def _svdf(state, time, y, bias):
    count = len(bias)
    any_scale = Quant.per_tensor(0.1, 0)
    tensors = [
        Tensor("x", (1, 1), "int8", any_scale),
        Tensor("feature", (count, 1), "int8", any_scale, np.zeros((count, 1), np.int8)),
        Tensor("time", (count, 1), "int16", Quant.per_tensor(time, 0), np.zeros((count, 1), np.int16)),
        Tensor("bias", (count,), "int32", Quant.per_tensor(state * time, 0), bias),
        Tensor("state", (1, count), "int16", Quant.per_tensor(state, 0), variable=True),
        Tensor("y", (1, count), "int8", Quant.per_tensor(y, 0)),
    ]
    names = tuple(tensor.name for tensor in tensors)
    op = Op("svdf", names[:-1], ("y",), {"rank": 1, "activation": "none"}, "here")
    return Graph("test", {tensor.name: tensor for tensor in tensors}, (op,), ("x",), ("y",))


@needs_oracle
@pytest.mark.parametrize("numbers", [(18, 1, 36), (3, 2, 24), (1, 12, 24), (3, 11, 22), (4, 6, 16)])
def test_svdf_features_near_a_rounding_border_equal_tflite_micro(numbers):
    """The factor to the state is not rounded to float32: rational scales put feature sums on halves of a state step."""
    rng = np.random.default_rng(numbers)
    x, feature, state = (float(np.float32(scale)) for scale in np.array(numbers) * [0.1, 0.01, 0.001])
    units = 64
    weights = rng.integers(-127, 128, (units, 2)).astype(np.int8)
    unit = Quant.per_tensor(1.0, 0)
    tensors = [
        Tensor("x", (1, 2), "int8", Quant.per_tensor(x, 0)),
        Tensor("feature", (units, 2), "int8", Quant.per_tensor(feature, 0), weights),
        Tensor("time", (units, 1), "int16", unit, np.ones((units, 1), np.int16)),
        Tensor("bias", (units,), "int32", Quant.per_tensor(state, 0), np.zeros(units, np.int32)),
        Tensor("state", (1, units), "int16", Quant.per_tensor(state, 0), variable=True),
        Tensor("y", (1, units), "int8", Quant.per_tensor(state, 0)),
    ]
    names = tuple(tensor.name for tensor in tensors)
    op = Op("svdf", names[:-1], ("y",), {"rank": 1, "activation": "none"}, "here")
    graph = Graph("test", {tensor.name: tensor for tensor in tensors}, (op,), ("x",), ("y",))
    samples = rng.integers(-128, 128, (20, 2)).astype(np.int8)
    samples[::2] //= 16
    ours = reference.run(graph, samples)["y"]
    assert np.array_equal(ours, [from_wheel(graph, sample) for sample in samples])


@needs_oracle
@pytest.mark.parametrize("activation", ["relu6", "relu_n1_to_1"])
def test_activation_bounds_equal_tflite_micro(activation):
    """Bounds that lie on a half of a step are divided in float32."""
    bound = {"relu6": 6.0, "relu_n1_to_1": 1.0}[activation]
    wide_quant = Quant.per_tensor(1.0, 0)
    for halves in range(1, 60, 2):
        y = Quant.per_tensor(float(np.float32(bound) / np.float32(halves / 2)), -3)
        operands = [((1, 256), wide_quant, None)] * 2
        graph = one_op("add", operands, ((1, 256), y), activation=activation)
        theirs = from_wheel(graph, EVERY, EVERY)
        assert activation_range(y, activation) == (theirs.min(), theirs.max())


POOL = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0)}
UNDEFINED = {
    "add below its output's scale": ("add", 1.0, 0.9, 2.0**-19, {"activation": "none"}),
    "sub below its output's scale": ("sub", 1.0, 0.9, 2.0**-19, {"activation": "none"}),
    "mul by 2**30": ("mul", 1.0, 0.9, 2.0**-30, {"activation": "none"}),
    "relu by 2**30": ("relu", 1.0, 0.9, 2.0**-30, {}),
    "quantize by 2**30": ("quantize", 1.0, 0.9, 2.0**-30, {}),
    "leaky relu by 2**30": ("leaky_relu", 1.0, 0.9, 1.0, {"alpha": -(2.0**30)}),
    "hard swish to a fine output": ("hard_swish", 128.0, 127.0, 1.0, {}),
    "hard swish of a huge input": ("hard_swish", 2.0**24, 2.0**23, 2.0**24, {}),
    "logistic of a tiny input": ("logistic", 2.0**-29, 2.0**-28, 1.0, {}),
    "tanh of a huge input": ("tanh", 2.0**36, 2.0**30, 1.0, {}),
    "softmax of a tiny input": ("softmax", 2.0**-26, 2.0**-25, 1 / 256, {"beta": 1.0}),
    "relu6 beyond int32": ("relu6", 2.0**-29, 2.0**-28, 1.0, {}),
    "fused relu6 beyond int32": ("average_pool_2d", 2.0**-29, 2.0**-28, None, {**POOL, "activation": "relu6"}),
    "fused relu_n1_to_1 beyond int32": (
        "max_pool_2d",
        2.0**-31,
        2.0**-30,
        None,
        {**POOL, "activation": "relu_n1_to_1"},
    ),
}
"""Name -> kind, an input scale that is refused, one that is not, the output's scale (None: the same), attributes."""


@needs_oracle
@pytest.mark.parametrize("case", UNDEFINED)
def test_scales_that_tflite_micro_does_not_define_are_refused(case):
    """A scale at the limit is refused with an error; a little inside, the op equals TFLite Micro."""
    kind, refused, accepted, output, attrs = UNDEFINED[case]

    def graph_of(scale):
        y = Quant.per_tensor(output or scale, -128 if kind == "softmax" else 3)
        shape = (1, 16, 16, 1) if "kernel" in attrs else (1, 256)
        second = Quant.per_tensor(1.0 if kind == "mul" else scale, -5)
        operands = [(shape, Quant.per_tensor(scale, 3), None), (shape, second, None)]
        return one_op(
            kind,
            operands[: 2 if kind in ("add", "sub", "mul") else 1],
            (shape, FIXED_OUTPUT.get(kind, y)),
            **attrs,
        )

    graph = graph_of(refused)
    with pytest.raises(InvalidModelError):
        check_defined(graph, graph.ops[0])
    graph = graph_of(accepted)
    check_defined(graph, graph.ops[0])
    values = [EVERY, EVERY[::-1]][: len(graph.inputs)]
    ours = reference.run(graph, dict(zip(graph.inputs, values, strict=True)))["y"].reshape(-1)
    assert np.array_equal(ours, from_wheel(graph, *values))


def test_a_state_with_a_zero_point_is_refused():
    """TFLite Micro starts an SVDF's state at the integer 0, which must stand for the real 0."""
    graph = _svdf(0.1, 0.1, 0.1, np.zeros(4, np.int32))
    state = Tensor("state", (1, 4), "int16", Quant.per_tensor(0.1, 3), variable=True)
    other = Graph("test", {**graph.tensors, "state": state}, graph.ops, graph.inputs, graph.outputs)
    with pytest.raises(InvalidModelError, match="zero point 3 instead of 0"):
        check_defined(other, other.ops[0])


def test_only_maps_of_int8_have_a_table():
    """A softmax mixes elements, and a float input has more than 256 values."""
    quant = Quant.per_tensor(0.1, 0)
    softmax = unary("softmax", quant, quant, beta=1.0)
    assert not has_table(softmax, softmax.ops[0])
    with pytest.raises(InternalError, match="no int8 values one by one"):
        table(softmax, softmax.ops[0])
    edge = Graph(
        "test",
        {"x": Tensor("x", (1, 4), "float32"), "y": Tensor("y", (1, 4), "int8", quant)},
        (Op("quantize", ("x",), ("y",), {}, "here"),),
        ("x",),
        ("y",),
    )
    assert not has_table(edge, edge.ops[0])
    check_defined(edge, edge.ops[0])
