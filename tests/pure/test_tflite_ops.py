"""Every op kind in a `.tflite`: it reads back as it was written, and TFLite Micro loads and runs the file."""

import pytest
import tflite as schema
from graphs import needs_oracle
from tflite_cases import CASES, values

from tinykd.export import oracle
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.formats.tflite.codec import never
from tinykd.formats.tflite.ops import CODECS, codec_of
from tinykd.formats.tflite.schema import OPTION_CODES
from tinykd.ir import SPECS, difference


@pytest.mark.parametrize("case", CASES, ids=str)
def test_op_reads_back_as_it_was_written(case):
    """reader(writer(graph)) is the graph, for each op kind in each of its forms; the bytes repeat."""
    data = tflite_writer.write(CASES[case])
    assert data == tflite_writer.write(CASES[case])
    assert difference(tflite.read_bytes(data), CASES[case]) is None


@needs_oracle
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tflite_micro_runs_the_op(case):
    """TFLite Micro loads the file of each op, runs it, and gives outputs of the graph's shapes and types."""
    model = CASES[case]
    interpreter = oracle.Oracle(tflite_writer.write(model))
    found = interpreter.invoke_many([values(model.tensor(name)) for name in model.inputs], len(model.outputs))
    for name, value in zip(model.outputs, found, strict=True):
        tensor = model.tensor(name)
        assert (value.shape, str(value.dtype)) == (tensor.shape, tensor.dtype)


def test_every_op_kind_has_a_case():
    """The cases cover every int8 op kind of the IR and every builtin that the writer chooses."""
    assert {op.kind for graph in CASES.values() for op in graph.ops} == set(SPECS) - {"batch_norm"}
    written = {codec_of(graph, op).builtin for graph in CASES.values() for op in graph.ops}
    assert written == {codec.builtin for codec in CODECS if codec.writes is not never}


def test_option_tables_and_fields_are_in_the_schema():
    """Every option table that the op table names exists."""
    assert not [codec.options for codec in CODECS if codec.options and codec.options not in OPTION_CODES]


@pytest.mark.parametrize(
    ("case", "version"),
    [
        ("conv SAME", 3),
        ("depthwise", 3),
        ("transpose_conv without bias", 2),
        ("transpose_conv SAME", 3),
        ("transpose_conv relu", 4),
        ("dense", 4),
        ("dense of rows that keep their shape", 5),
        ("dense of two inputs", 6),
        ("dense per channel", 12),
        ("svdf", 3),
        ("mul", 2),
        ("mul above one", 3),
        ("resize", 2),
        ("resize align", 3),
        ("quantize to int16", 2),
        ("reshape", 1),
        ("hard_swish", 1),
    ],
)
def test_versions_are_the_lowest_that_mean_it(case, version):
    """Old runtimes take a file where they can: its operator versions are no higher than what the op needs."""
    model = schema.Model.GetRootAs(tflite_writer.write(CASES[case]), 0)
    assert model.OperatorCodes(0).Version() == version
