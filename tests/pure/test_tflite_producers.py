"""Files as other producers write them: read for what they mean, or refused with the op, its place and a way out."""

from dataclasses import replace

import numpy as np
import pytest
import tflite as schema
from graphs import needs_oracle
from tflite_cases import CASES, activation, graph
from tflite_files import B, FileOp, FileTensor, W, X, dense, one, refusal, shape_constant, with_option, write_file

from tinykd.errors import InternalError, InvalidModelError, UnsupportedModelError
from tinykd.export import oracle
from tinykd.formats import tflite
from tinykd.formats.tflite import file as tflite_file
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import difference, verify

RNG = np.random.default_rng(3)

CONV_FIELDS = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": 1}


def run(data, *values):
    """What TFLite Micro computes."""
    return oracle.Oracle(data).invoke_many(values, 1)[0]


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
