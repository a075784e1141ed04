"""Files as other producers write them: read for what they mean, or refused with the op, its place and a way out."""

from dataclasses import replace

import numpy as np
import pytest
import tflite as schema
from graphs import needs_oracle
from tflite_cases import CASES, activation, graph
from tflite_files import FileOp, FileTensor, with_option, write_file

from tinykd.errors import InternalError, InvalidModelError, UnsupportedModelError
from tinykd.export import oracle
from tinykd.formats import tflite, tflite_file, tflite_reader, tflite_rules, tflite_writer
from tinykd.formats.tflite_refusals import builtin_advice
from tinykd.formats.tflite_schema import BUILTIN_NAMES
from tinykd.ir import difference, verify

RNG = np.random.default_rng(3)
W = RNG.integers(-90, 90, (3, 4)).astype(np.int8)
B = np.array([100, -50, 7], np.int32)


def i32(*values):
    """An int32 vector."""
    return np.array(values, np.int32)


def shape_constant(name, values, kind="INT32"):
    """A constant without quantisation."""
    data = np.asarray(values, np.int64 if kind == "INT64" else np.int32)
    return FileTensor(name, data.shape, kind, data, (), ())


def dense(x=(1, 4), y=(1, 3), bias_scale=0.01, weights=None, **extra):
    """Tensors and op of a FULLY_CONNECTED; `extra` goes to write_file."""
    tensors = [
        FileTensor("x", x),
        weights or FileTensor("w", (3, 4), data=W),
        FileTensor("b", (3,), "INT32", B, (bias_scale,), (0,)),
        FileTensor("y", y, scales=(0.2,), zeros=(5,)),
    ]
    op = FileOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    return write_file(tensors, [op], [0], [3], **extra)


def one(builtin, inputs, outputs=None, table="", **fields):
    """A file of one op: all inputs without data are the graph's, or an idle tensor where it has none."""
    outputs = outputs or [FileTensor("y", (1, 4))]
    tensors = [*inputs, *outputs, FileTensor("idle", (1, 1))]
    numbers = list(range(len(inputs)))
    fed = [number for number in numbers if inputs[number].data is None and not inputs[number].variable]
    out = list(range(len(inputs), len(inputs) + len(outputs)))
    return write_file(tensors, [FileOp(builtin, numbers, out, table, fields)], fed or [len(tensors) - 1], out)


def refusal(data):
    """The error that a file is refused with."""
    with pytest.raises(UnsupportedModelError) as caught:
        tflite.read_bytes(data, "m")
    return caught.value


def run(data, *values):
    """What TFLite Micro computes."""
    return oracle.Oracle(data).invoke_many(values, 1)[0]


X = FileTensor("x", (1, 4))


@needs_oracle
def test_constants_outside_the_flatbuffer_are_found_and_repaired():
    """Constants behind the flatbuffer (ai-edge-quantizer), where TFLite Micro does not look: writing mends the file."""
    inside, outside = dense(), dense(outside=True)
    model = tflite.read_bytes(outside)
    assert difference(model, tflite.read_bytes(inside)) is None
    x = RNG.integers(-128, 127, (1, 4)).astype(np.int8)
    expected = run(inside, x)
    assert np.array_equal(run(tflite_writer.write(model), x), expected)
    assert not np.array_equal(run(outside, x), expected)


def test_constants_beyond_the_end_are_corrupt():
    """A buffer that ends behind the file is refused."""
    with pytest.raises(InvalidModelError, match="beyond the end"):
        tflite.read_bytes(dense(outside=True)[:-1])


def test_old_files_have_the_operator_code_in_a_byte():
    """TensorFlow 1.15 wrote one-byte operator codes only."""
    assert difference(tflite.read_bytes(dense(old_codes=True)), tflite.read_bytes(dense())) is None


def test_operator_codes_beyond_a_byte_are_read_from_the_new_field():
    """A builtin above 127 stands as 127 in the old field; the new one counts."""
    assert "op 0 (GELU, writing 'y')" in refusal(one("GELU", [X])).message


def test_metadata_is_ignored():
    """Metadata of any name and a missing description change nothing."""
    assert (
        difference(tflite.read_bytes(dense(metadata=["min_runtime_version", "x"])), tflite.read_bytes(dense())) is None
    )


def test_the_axis_of_a_bias_may_be_that_of_its_weights():
    """person_detect counts the axis of a bias vector in the dimensions of the weights."""
    scales = (0.01, 0.02, 0.03)
    tensors = [
        FileTensor("x", (1, 2, 2, 3)),
        FileTensor(
            "w", (1, 1, 1, 3), data=RNG.integers(-9, 9, (1, 1, 1, 3)).astype(np.int8), scales=scales, zeros=[0], axis=3
        ),
        FileTensor("b", (3,), "INT32", B, scales=[s * 0.1 for s in scales], zeros=[0, 0, 0], axis=3),
        FileTensor("y", (1, 2, 2, 3)),
    ]
    fields = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": 1}
    op = FileOp("DEPTHWISE_CONV_2D", [0, 1, 2], [3], "DepthwiseConv2DOptions", fields)
    model = tflite.read_bytes(write_file(tensors, [op], [0], [3]))
    assert model.tensor("b").quant.axis == 0
    assert model.tensor("w").quant.axis == 3
    assert model.tensor("w").quant.zero_points == (0, 0, 0)


def test_an_omitted_bias_of_a_depthwise_convolution_is_left_out():
    """A depthwise bias that stands as -1 makes TFLite Micro crash: it is read as absent, and written so."""
    w = FileTensor("w", (1, 1, 1, 3), data=W[:1, :3].reshape(1, 1, 1, 3).copy())
    tensors = [FileTensor("x", (1, 2, 2, 3)), w, FileTensor("y", (1, 2, 2, 3))]
    op = FileOp("DEPTHWISE_CONV_2D", [0, 1, -1], [2], "DepthwiseConv2DOptions", CONV_FIELDS)
    model = tflite.read_bytes(write_file(tensors, [op], [0], [2]))
    assert model.ops[0].inputs == ("x", "w")
    written = schema.Model.GetRootAs(tflite_writer.write(model), 0).Subgraphs(0).Operators(0)
    assert written.InputsAsNumpy().tolist() == [0, 1]


def test_names_that_repeat_or_miss_become_unique():
    """Duplicate, empty and absent tensor names are made unique in the file's order, also where that name is taken."""
    tensors = [FileTensor(name, (1, 4)) for name in ("x", "a#3", "a", "a", None, "")]
    ops = [FileOp("RELU", [at], [at + 1]) for at in range(5)]
    model = tflite.read_bytes(write_file(tensors, ops, [0], [5]))
    assert list(model.tensors) == ["x", "a#3", "a", "a#3#3", "tensor_4", "tensor_5"]
    assert list(tflite_file.tensor_indices(write_file(tensors, ops, [0], [5]))) == list(model.tensors)
    assert difference(tflite.read_bytes(tflite_writer.write(model)), model) is None


def test_unused_tensors_are_left_out():
    """What no op reads or writes is not in the graph, whatever its type."""
    tensors = [FileTensor("x", (1, 4)), FileTensor("y", (1, 4)), FileTensor("z", (9, 0), "STRING")]
    model = tflite.read_bytes(write_file(tensors, [FileOp("RELU", [0], [1])], [0], [1]))
    assert list(model.tensors) == ["x", "y"]


@pytest.mark.parametrize("kind", ["INT32", "INT64"])
def test_constants_of_a_shape_vanish_into_attributes(kind):
    """Axes, paddings, permutations and sizes become attributes, from int32 and from int64."""
    cases = [
        ("MEAN", [FileTensor("x", (1, 2, 3, 4)), shape_constant("c", [-2, 1], kind)], (1, 4), "axes", (1, 2)),
        ("TRANSPOSE", [FileTensor("x", (1, 2, 3)), shape_constant("c", [0, 2, 1], kind)], (1, 3, 2), "perm", (0, 2, 1)),
        ("PAD", [X, shape_constant("c", [[0, 0], [1, 2]], kind)], (1, 7), "paddings", ((0, 0), (1, 2))),
        ("ARG_MAX", [X, shape_constant("c", [-1], kind)], (1,), "axis", 1),
    ]
    for builtin, inputs, shape, attribute, value in cases:
        y = FileTensor("y", shape, "INT32" if builtin == "ARG_MAX" else "INT8")
        model = tflite.read_bytes(one(builtin, inputs, [y]))
        assert model.ops[0].attrs[attribute] == value
        assert list(model.tensors) == ["x", "y"]


def test_a_mean_may_name_the_batch_where_it_stays():
    """A mean that keeps its dimensions may list the batch, which is one; otherwise it is refused."""
    inputs = [FileTensor("x", (1, 2, 3)), shape_constant("c", [0, 1])]
    kept = one("MEAN", inputs, [FileTensor("y", (1, 1, 3))], "ReducerOptions", KeepDims=True)
    assert tflite.read_bytes(kept).ops[0].attrs["axes"] == (1,)
    assert "batch axis" in refusal(one("MEAN", inputs, [FileTensor("y", (3,))])).message


@needs_oracle
@pytest.mark.parametrize(
    ("begin", "end", "strides", "fields", "expected"),
    [
        ([0, 1], [1, 3], [1, 1], {}, np.s_[:, 1:3]),
        ([0, -3], [1, -1], [1, 1], {}, np.s_[:, -3:-1]),
        ([9, 9], [9, 9], [1, 1], {"BeginMask": 3, "EndMask": 3}, np.s_[:, :]),
        ([0, 0], [0, 0], [1, -1], {"BeginMask": 3, "EndMask": 3}, np.s_[:, ::-1]),
        ([0, -1], [1, 0], [1, -2], {"BeginMask": 1, "EndMask": 1}, np.s_[:, -1:0:-2]),
        ([0, -1], [1, -9], [1, -1], {}, np.s_[:, -1:-9:-1]),
        ([0, -2], [1, 0], [1, 1], {"ShrinkAxisMask": 2}, np.s_[:, -2]),
        ([0, 2], [1, 99], [1, 1], {}, np.s_[:, 2:99]),
    ],
)
def test_slices_resolve_their_masks(begin, end, strides, fields, expected):
    """Masks, negative bounds and strides of a STRIDED_SLICE mean what TFLite Micro and NumPy make of them."""
    x = RNG.integers(-128, 127, (1, 5)).astype(np.int8)
    y = FileTensor("y", x[expected].shape)
    constants = [shape_constant(name, value) for name, value in (("b", begin), ("e", end), ("s", strides))]
    data = one("STRIDED_SLICE", [FileTensor("x", (1, 5)), *constants], [y], "StridedSliceOptions", **fields)
    model = tflite.read_bytes(data)
    assert np.array_equal(run(data, x), x[expected])
    assert np.array_equal(run(tflite_writer.write(model), x), x[expected])


def test_slices_may_name_fewer_axes_or_an_offset():
    """Axes that a STRIDED_SLICE leaves out are whole; with `offset` its end counts from its begin."""
    inputs = [
        FileTensor("x", (1, 5, 3)),
        *(shape_constant(n, v) for n, v in (("b", [0, 1]), ("e", [1, 2]), ("s", [1, 1]))),
    ]
    y = FileTensor("y", (1, 2, 3))
    attrs = tflite.read_bytes(one("STRIDED_SLICE", inputs, [y], "StridedSliceOptions", Offset=True)).ops[0].attrs
    assert (attrs["begin"], attrs["end"]) == ((0, 1, 0), (1, 3, 3))


def test_slice_becomes_a_strided_slice():
    """SLICE takes begin and size; -1 is the rest of an axis."""
    inputs = [FileTensor("x", (1, 5)), shape_constant("b", [0, 2]), shape_constant("s", [1, -1])]
    attrs = tflite.read_bytes(one("SLICE", inputs, [FileTensor("y", (1, 3))])).ops[0].attrs
    assert attrs == {"begin": (0, 2), "end": (1, 5), "strides": (1, 1), "shrink_axes": ()}


@pytest.mark.parametrize("builtin", ["SQUEEZE", "EXPAND_DIMS", "RESHAPE"])
def test_ops_that_only_rename_axes_are_reshapes(builtin):
    """SQUEEZE and EXPAND_DIMS are RESHAPEs to the shape of their output."""
    model = tflite.read_bytes(one(builtin, [X, shape_constant("c", [0])], [FileTensor("y", (1, 2, 2))]))
    assert (model.ops[0].kind, model.ops[0].inputs) == ("reshape", ("x",))


def test_padding_with_the_zero_point_is_a_plain_pad():
    """A PADV2 that fills with the output's zero point is a PAD; any other value is kept as an integer."""
    for value, expected in ((3, None), (4, 4)):
        x, y = FileTensor("x", (1, 4), zeros=[3]), FileTensor("y", (1, 5), zeros=[3])
        fill = FileTensor("v", (), data=np.array(value, np.int8), zeros=[3])
        model = tflite.read_bytes(one("PADV2", [x, shape_constant("c", [[0, 0], [0, 1]]), fill], [y]))
        assert model.ops[0].attrs["value"] == expected


def test_uneven_splits_take_their_sizes_from_their_outputs():
    """SPLIT_V may leave one size open as -1."""
    inputs = [FileTensor("x", (1, 5)), shape_constant("s", [2, -1]), shape_constant("a", 1)]
    outputs = [FileTensor("y", (1, 2)), FileTensor("z", (1, 3))]
    model = tflite.read_bytes(one("SPLIT_V", inputs, outputs, "SplitVOptions", NumSplits=2))
    assert (model.ops[0].attrs, model.ops[0].outputs) == ({"axis": 1}, ("y", "z"))


def test_options_that_are_left_out_have_their_defaults():
    """A file without an option table means the schema's defaults."""
    data = one("ADD", [X, FileTensor("z", (1, 4))])
    assert tflite.read_bytes(data).ops[0].attrs == {"activation": "none"}


def dynamic_reshape():
    """SHAPE, STRIDED_SLICE and PACK compute the shape of a RESHAPE, as Keras' Flatten with a free batch does."""

    def none(name, shape):
        return FileTensor(name, shape, "INT32", None, (), ())

    tensors = [
        FileTensor("x", (1, 2, 3), signature=[-1, 2, 3]),
        none("shape", (3,)),
        *(shape_constant(name, value) for name, value in (("b", [0]), ("e", [1]), ("s", [1]))),
        none("batch", ()),
        shape_constant("six", 6),
        none("target", (2,)),
        FileTensor("y", (1, 6), signature=[-1, 6]),
    ]
    ops = [
        FileOp("SHAPE", [0], [1]),
        FileOp("STRIDED_SLICE", [1, 2, 3, 4], [5], "StridedSliceOptions", {"ShrinkAxisMask": 1}),
        FileOp("PACK", [5, 6], [7], "PackOptions", {"ValuesCount": 2}),
        FileOp("RESHAPE", [0, 7], [8]),
    ]
    return tensors, ops


def test_shapes_of_a_free_batch_are_computed_while_reading():
    """The ops that compute a shape vanish; the batch is what the shape field says, one."""
    tensors, ops = dynamic_reshape()
    model = tflite.read_bytes(write_file(tensors, ops, [0], [8]))
    assert [op.kind for op in model.ops] == ["reshape"]
    assert list(model.tensors) == ["x", "y"]


def test_a_dimension_that_was_fixed_after_conversion_is_fixed():
    """A signature may keep -1 where the shape field has a size since; open dimensions stand as 1 there."""
    tensors = [FileTensor("x", (1, 5, 3), signature=[-1, -1, 3]), FileTensor("y", (1, 5, 3))]
    assert tflite.read_bytes(write_file(tensors, [FileOp("RELU", [0], [1])], [0], [1])).tensor("x").shape == (1, 5, 3)


def test_shape_arithmetic_that_contradicts_itself_is_corrupt():
    """A computed shape must have as many values as its tensor says."""
    tensors, ops = dynamic_reshape()
    tensors[7].shape = (3,)
    assert isinstance(refusal(write_file(tensors, ops, [0], [8])), InvalidModelError)


def test_several_inputs_and_outputs():
    """A graph may have several of both; one tensor must not stand twice among them."""
    tensors = [FileTensor(name, (1, 4)) for name in "abcd"]
    ops = [FileOp("ADD", [0, 1], [2]), FileOp("SUB", [0, 1], [3])]
    model = tflite.read_bytes(write_file(tensors, ops, [1, 0], [3, 2]))
    assert (model.inputs, model.outputs) == (("b", "a"), ("d", "c"))
    assert "twice" in refusal(write_file(tensors, ops, [1, 0], [3, 3])).message


@needs_oracle
def test_equal_constants_share_a_buffer():
    """Two constants of equal bytes are written once, and TFLite Micro computes the same."""
    twin = [FileTensor("x", (1, 4)), FileTensor("w", (4, 4), data=np.tile(W[:1], (4, 1))), FileTensor("h", (1, 4))]
    twin += [FileTensor("w2", (4, 4), data=np.tile(W[:1], (4, 1))), FileTensor("y", (1, 4))]
    ops = [FileOp("FULLY_CONNECTED", [0, 1, -1], [2]), FileOp("FULLY_CONNECTED", [2, 3, -1], [4])]
    data = write_file(twin, ops, [0], [4])
    written = tflite_writer.write(tflite.read_bytes(data))
    assert written.count(np.tile(W[:1], (4, 1)).tobytes()) == 1
    x = RNG.integers(-128, 127, (1, 4)).astype(np.int8)
    assert np.array_equal(run(written, x), run(data, x))


def test_a_bias_of_the_wrong_scale_is_refused_as_the_runtime_does():
    """A FULLY_CONNECTED whose bias scale is not input times weights is refused beyond TFLite's tolerance."""
    assert tflite.read_bytes(dense(bias_scale=0.0139)).ops
    error = refusal(dense(bias_scale=0.0141))
    assert "instead of 0.01" in error.message
    if oracle.is_available():
        oracle.Oracle(dense(bias_scale=0.0139))
        with pytest.raises(UnsupportedModelError):
            oracle.Oracle(dense(bias_scale=0.0141))


FLOAT = {"scales": (), "zeros": ()}
CONV_X = FileTensor("x", (1, 4, 4, 4))
CONV_FIELDS = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": 1}


def conv(x=CONV_X, w=None, y=(1, 4, 4, 3), **fields):
    """A convolution with 1 x 1 kernels."""
    w = w or FileTensor("w", (3, 1, 1, 4), data=W.reshape(3, 1, 1, 4))
    return one("CONV_2D", [x, w], [FileTensor("y", y)], "Conv2DOptions", **{**CONV_FIELDS, **fields})


def svdf(state_zero=0, state_shape=(1, 6), bias_scale=1e-6, bias=True, variable=True):
    """An SVDF of three filters over two steps."""
    tensors = [
        X,
        FileTensor("f", (3, 4), data=W),
        FileTensor("t", (3, 2), "INT16", np.arange(6, dtype=np.int16), [1e-4]),
        FileTensor("b", (3,), "INT32", B, [bias_scale]),
        FileTensor("s", state_shape, "INT16", None, [0.01], [state_zero], variable=variable),
        FileTensor("y", (1, 3)),
    ]
    op = FileOp("SVDF", [0, 1, 2, 3 if bias else -1, 4], [5], "SVDFOptions", {"Rank": 1})
    return write_file(tensors, [op], [0] if variable else [0, 4], [5])


def custom_op(name):
    """A file with one custom op."""
    return write_file([X, FileTensor("y", (1, 4))], [FileOp("CUSTOM", [0], [1], custom=name)], [0], [1])


REFUSED = {
    "custom op": (
        write_file(
            [X, FileTensor("y", (1, 4))], [FileOp("CUSTOM", [0], [1], custom="TFLite_Detection_PostProcess")], [0], [1]
        ),
        ["op 0", "custom op 'TFLite_Detection_PostProcess'", "writing 'y'"],
        "boxes and scores",
    ),
    "select TF op": (
        custom_op("FlexErf"),
        ["FlexErf"],
        "SELECT_TF_OPS",
    ),
    "control flow": (one("WHILE", [X]), ["op 0 (WHILE, writing 'y')"], "Unroll"),
    "variable": (one("READ_VARIABLE", [X]), ["READ_VARIABLE"], "outside the model"),
    "activation op": (one("RELU_N1_TO_1", [X]), ["RELU_N1_TO_1"], "fused"),
    "subgraphs": (dense(subgraphs=2), ["2 subgraphs"], "Unroll"),
    "fused tanh": (
        one("ADD", [X, FileTensor("z", (1, 4))], None, "AddOptions", FusedActivationFunction=4),
        ["op 0 (ADD, writing 'y')", "TANH"],
        "RELU6",
    ),
    "grouped convolution": (
        conv(w=FileTensor("w", (3, 1, 1, 2), data=W[:, :2].reshape(3, 1, 1, 2).copy())),
        ["grouped convolution (2 groups)"],
        "SPLIT",
    ),
    "float model": (
        one("RELU", [FileTensor("x", (1, 4), "FLOAT32", **FLOAT)]),
        ["'x' is float32", "float model"],
        "int8",
    ),
    "uint8 activations": (one("RELU", [FileTensor("x", (1, 4), "UINT8")]), ["'x' is uint8"], "TensorFlow 1"),
    "int16 activations": (one("RELU", [FileTensor("x", (1, 4), "INT16")]), ["'x' is int16"], "16x8"),
    "float16 weights": (
        one("DEQUANTIZE", [FileTensor("x", (1, 4), "FLOAT16", **FLOAT)], [FileTensor("y", (1, 4), "FLOAT32", **FLOAT)]),
        ["'x' is float16"],
        "Half precision",
    ),
    "int4 weights": (
        dense(weights=FileTensor("w", (3, 4), "INT4", data=W[:, :2].copy())),
        ["'w' is int4"],
        "int8 weights",
    ),
    "hybrid": (
        one(
            "FULLY_CONNECTED",
            [FileTensor("x", (1, 4), "FLOAT32", **FLOAT), FileTensor("w", (3, 4), data=W)],
            [FileTensor("y", (1, 3), "FLOAT32", **FLOAT)],
        ),
        ["in its weights alone"],
        "representative_dataset",
    ),
    "int64 output": (
        one("ARG_MAX", [X, shape_constant("c", 1)], [FileTensor("y", (1,), "INT64", **FLOAT)]),
        ["'y' is int64"],
        "output_type",
    ),
    "batch": (dense((2, 4), (2, 3)), ["'x' has shape [2, 4]", "batch"], "batch 1"),
    "dynamic shape": (
        one("RELU", [FileTensor("x", (1, 1, 1, 3), signature=[-1, -1, -1, 3])], [FileTensor("y", (1, 1, 1, 3))]),
        ["dynamic shape [-1, -1, -1, 3]"],
        "batch 1",
    ),
    "no dimension": (one("RELU", [FileTensor("x", (1, 0))], [FileTensor("y", (1, 0))]), ["dynamic"], "batch 1"),
    "computed weights": (
        one("FULLY_CONNECTED", [X, FileTensor("w", (1, 4))], [FileTensor("y", (1, 1))]),
        ["'w' is computed"],
        "MUL",
    ),
    "computed axes": (
        one("MEAN", [X, FileTensor("c", (1,), "INT32", None, (), ())], [FileTensor("y", (1,))]),
        ["list of axes ('c') must be a constant"],
        "fixed shapes",
    ),
    "sparse weights": (
        dense(weights=FileTensor("w", (3, 4), data=W, sparse=True)),
        ["'w' is stored in TFLite's sparse form"],
        "without sparse",
    ),
    "asymmetric weights": (
        dense(weights=FileTensor("w", (3, 4), data=W, zeros=[3])),
        ["'w' have the zero point 3"],
        "symmetrically",
    ),
    "weights along the wrong axis": (
        conv(w=FileTensor("w", (3, 1, 1, 4), data=W.reshape(3, 1, 1, 4), scales=[0.1] * 4, zeros=[0] * 4, axis=3)),
        ["axis 3"],
        "per output channel",
    ),
    "slopes per channel": (
        one("PRELU", [X, FileTensor("s", (4,), data=W[0], scales=[0.1] * 4, zeros=[0] * 4)]),
        ["'s' has one scale per channel"],
        "per tensor",
    ),
    "svdf with asymmetric state": (svdf(state_zero=4), ["'s' has the zero point 4"], "symmetrically"),
    "svdf with a flat state": (svdf(state_shape=(6,)), ["shape [6] instead of [1, 6]"], "again"),
    "svdf with a wrong bias": (svdf(bias_scale=1.2e-5), ["scale 1.2", "instead of 9.99"], "again"),
    "svdf without bias": (svdf(bias=False), ["without bias"], "zeros"),
    "svdf without state": (svdf(variable=False), ["'s' is no variable"], "outlive"),
    "activations per channel": (
        one("RELU", [FileTensor("x", (1, 4), scales=[0.1] * 4, zeros=[0] * 4, axis=1)]),
        ["'x' has one scale per channel"],
        "per tensor",
    ),
    "no quantisation": (one("RELU", [FileTensor("x", (1, 4), **FLOAT)]), ["without quantisation"], "int8"),
    "scales that differ": (
        one("MAXIMUM", [X, FileTensor("z", (1, 4), scales=[0.2])]),
        ["'x'", "'z'", "differ"],
        "QUANTIZE",
    ),
    "moves between scales": (
        one("RESHAPE", [X, shape_constant("c", [4, 1])], [FileTensor("y", (4, 1), zeros=[1])]),
        ["differ"],
        "QUANTIZE",
    ),
    "softmax scale": (
        one("SOFTMAX", [X], None, "SoftmaxOptions", Beta=1.0),
        ["0.00390625, -128"],
        "TensorFlow 2",
    ),
    "constants only": (
        one("ADD", [FileTensor("c", (1, 4), data=W[:1]), FileTensor("d", (1, 4), data=W[1:2])]),
        ["constants only"],
        "fold",
    ),
    "constant activation": (
        one("RELU", [FileTensor("c", (1, 4), data=W[:1])]),
        ["'c' is a constant"],
        "fold",
    ),
    "variable that is no state": (
        one("RELU", [FileTensor("x", (1, 4), variable=True)]),
        ["'x' is a variable"],
        "SVDF",
    ),
    "too many dimensions": (
        one("TRANSPOSE", [FileTensor("x", (1,) * 6), shape_constant("c", range(6))], [FileTensor("y", (1,) * 6)]),
        ["6 dimensions", "up to 5"],
        "fewer dimensions",
    ),
    "too many inputs": (
        one(
            "CONCATENATION",
            [FileTensor(f"x{i}", (1, 1)) for i in range(11)],
            [FileTensor("y", (1, 11))],
            "ConcatenationOptions",
            Axis=1,
        ),
        ["11 inputs", "up to 10"],
        "several ops",
    ),
    "shuffled weights": (
        one(
            "FULLY_CONNECTED",
            [X, FileTensor("w", (3, 4), data=W)],
            [FileTensor("y", (1, 3))],
            "FullyConnectedOptions",
            WeightsFormat=1,
        ),
        ["shuffled"],
        "without shuffled",
    ),
    "change of type": (
        one("QUANTIZE", [FileTensor("x", (1, 4), "UINT8")], [FileTensor("y", (1, 4), "UINT8")]),
        ["from uint8 to uint8"],
        "through int8",
    ),
    "new axis": (
        one(
            "STRIDED_SLICE",
            [X, *(shape_constant(n, [0, 0]) for n in "bes")],
            None,
            "StridedSliceOptions",
            NewAxisMask=1,
        ),
        ["new axis"],
        "reshape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_with_a_way_out(case):
    """Each refusal names the op or tensor and its place, and says what to do instead."""
    data, parts, way_out = REFUSED[case]
    error = refusal(data)
    assert not [part for part in parts if part not in error.message], error.message
    assert way_out in error.next_step
    assert error.exit_code == 4


@needs_oracle
def test_what_is_refused_about_an_svdf_the_runtime_refuses_too():
    """TFLite Micro takes the SVDF of these files, and neither a flat state nor a bias of another scale."""
    assert tflite.read_bytes(svdf()).variables() == ("s",)
    oracle.Oracle(svdf())
    for data in (svdf(state_shape=(6,)), svdf(bias_scale=1.2e-5)):
        with pytest.raises(UnsupportedModelError):
            oracle.Oracle(data)


def test_all_unsupported_ops_are_named_at_once():
    """The first is named with its place, the others with their number."""
    tensors = [FileTensor(name, (1, 4)) for name in "abcdef"]
    ops = [FileOp(kind, [at], [at + 1]) for at, kind in enumerate(["RELU", "ELU", "ABS", "ABS", "NEG"])]
    message = refusal(write_file(tensors, ops, [0], [5])).message
    assert "op 1 (ELU, writing 'c') is not supported; neither are ABS (2), NEG (1)" in message


def test_every_builtin_has_a_way_out():
    """No op of the schema is refused without a next step."""
    assert all(builtin_advice(name, "x").endswith(".") for name in BUILTIN_NAMES.values())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (conv(StrideH=0), "stride"),
        (conv(y=(1, 4, 4, 2)), "shape"),
        (conv(x=FileTensor("x", (1, 4, 4, 4), scales=[float("nan")])), "scale"),
        (conv(x=FileTensor("x", (1, 4, 4, 4), scales=[1e-38])), "scale"),
        (conv(x=FileTensor("x", (1, 4, 4, 4), zeros=[300])), "zero point 300"),
        (one("LEAKY_RELU", [X], None, "LeakyReluOptions", Alpha=float("nan")), "alpha nan"),
        (one("SOFTMAX", [X], None, "SoftmaxOptions", Beta=float("inf")), "beta inf"),
        (
            one(
                "MAX_POOL_2D",
                [FileTensor("x", (1, 4, 4, 1))],
                [FileTensor("y", (1, 4, 4, 1))],
                "Pool2DOptions",
                StrideH=1,
                StrideW=1,
                FilterHeight=1 << 30,
                FilterWidth=1,
            ),
            "limit",
        ),
        (
            conv(
                w=FileTensor("w", (1, 3, 1, 4), data=W.reshape(1, 3, 1, 4)),
                y=(1, 4, 4, 1),
                DilationHFactor=1 << 28,
                Padding=0,
            ),
            "padded by",
        ),
        (one("RELU", [FileTensor("x", (1, 1 << 30))], [FileTensor("y", (1, 1 << 30))]), "limit"),
        (one("RELU", [FileTensor("x", (1,) * 33)]), "33 dimensions"),
        (one("RESHAPE", [X, shape_constant("c", [5])], [FileTensor("y", (5,))]), "5"),
        (one("TRANSPOSE", [X, shape_constant("c", [0, 7])]), "axis 7"),
        (one("ADD", [X, FileTensor("z", (1, 4))], None, "Conv2DOptions", **CONV_FIELDS), "options"),
        (one("RELU", [X, X], [FileTensor("y", (1, 4))]), "inputs"),
        (dense(weights=FileTensor("w", (3, 5), data=W)), "buffer"),
    ],
)
def test_nonsense_is_refused(data, match):
    """What no runtime could compute, or no host should try, is called so by the reader, whatever comes later."""
    with pytest.raises(InvalidModelError, match=match):
        tflite.read_bytes(data)


def test_lists_that_overlap_cannot_exhaust_the_reader(monkeypatch):
    """A file whose tables share one long list is refused when what was read exceeds what it can hold."""
    monkeypatch.setattr(tflite_reader, "MAX_LIST_BYTES", 100)
    with pytest.raises(InvalidModelError, match="more names, shapes and lists"):
        tflite.read_bytes(dense())


def test_activations_together_have_a_limit(monkeypatch):
    """Many activations that are each small enough are refused together."""
    monkeypatch.setattr(tflite_rules, "MAX_GRAPH_BYTES", 6)
    with pytest.raises(InvalidModelError, match="activations take 7 B"):
        tflite.read_bytes(dense())


def test_files_that_never_end_are_not_swallowed(monkeypatch, tmp_path):
    """No more is read than a model for a microcontroller can have."""
    monkeypatch.setattr(tflite, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "long.tflite"
    path.write_bytes(dense() + bytes(2000))
    with pytest.raises(UnsupportedModelError, match="larger than 1000 B"):
        tflite.read(path)


def test_a_changed_option_reaches_the_graph():
    """Fields of the options that the writer stores are those that are read."""
    data = tflite_writer.write(CASES["leaky_relu"])
    assert tflite.read_bytes(with_option(data, 0, "LeakyReluOptions", "Alpha", 0.5)).ops[0].attrs == {"alpha": 0.5}
    conv = tflite_writer.write(CASES["conv per tensor, relu6"])
    with pytest.raises(UnsupportedModelError, match="TANH"):
        tflite.read_bytes(with_option(conv, 0, "Conv2DOptions", "FusedActivationFunction", 4))


def test_the_writer_refuses_what_tflite_micro_does_not_take():
    """An SVDF without bias, and ops beyond the runtime's limits, are errors of the writer, not crashes of the board."""
    svdf = CASES["svdf"].ops[0]
    bare = CASES["svdf"].with_ops([replace(svdf, inputs=(*svdf.inputs[:3], "", svdf.inputs[4]))])
    with pytest.raises(InternalError, match="no bias"):
        tflite_writer.write(verify(bare))
    parts = [activation(f"x{index}", (1, 1)) for index in range(11)]
    wide = graph("concatenation", parts, [activation("y", (1, 11))], axis=1)
    with pytest.raises(InternalError, match="11 inputs"):
        tflite_writer.write(wide)
