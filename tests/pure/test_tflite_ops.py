"""Every op kind in a `.tflite`: it reads back as it was written, and TFLite Micro loads and runs the file."""

import pytest
from graphs import needs_oracle
from tflite_cases import CASES, values

from tinykd.export import oracle
from tinykd.formats import tflite, tflite_writer
from tinykd.ir import difference


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
