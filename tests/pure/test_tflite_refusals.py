"""What a `.tflite` must not have: each refusal names the op or tensor and its place, and says what to do instead."""

import numpy as np
import pytest
from graphs import needs_oracle
from tflite_files import B, FileOp, FileTensor, W, X, dense, one, refusal, shape_constant, write_file

from tinykd.errors import InvalidModelError, UnsupportedModelError
from tinykd.export import oracle
from tinykd.formats import tflite
from tinykd.formats.tflite import reader as tflite_reader
from tinykd.formats.tflite import rules as tflite_rules
from tinykd.formats.tflite.refusals import builtin_advice
from tinykd.formats.tflite.schema import BUILTIN_NAMES

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
