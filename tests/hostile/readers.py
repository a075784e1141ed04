"""What is done with a broken file: read it, and hold whatever still reads to its promises."""

from __future__ import annotations

from tinykd.errors import InternalError
from tinykd.formats import tflite
from tinykd.formats.onnx import reader as onnx_reader
from tinykd.formats.tflite import file as tflite_file
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import difference


def read_tflite(data: bytes) -> None:
    """Read a `.tflite` and its facts; a graph that comes out must be writable, and read back the same.

    Raises:
        TinykdError: the file is refused.
        RuntimeError: a graph came out that does not keep the promise.
    """
    graph = tflite.read_bytes(data, "hostile")
    tflite_file.inspect(data)
    try:
        found = difference(tflite.read_bytes(tflite_writer.write(graph), "again"), graph)
    except InternalError as error:
        raise RuntimeError(f"it reads, but cannot be written: {error}") from error
    if found is not None:
        raise RuntimeError(f"it reads back differently: {found}")


def plan_and_run_tflite(data: bytes) -> None:
    """Read a `.tflite`; a graph that comes out is planned and, if it is small, run once by the reference.

    Raises:
        TinykdError: the file is refused, here or by the reference.
    """
    import numpy as np

    from tinykd.export import reference
    from tinykd.ir import DTYPES, graph_macs
    from tinykd.plan import plan_for_tflm

    graph = tflite.read_bytes(data, "hostile")
    plan_for_tflm(graph)
    elements = sum(tensor.num_elements for tensor in graph.tensors.values())
    if graph_macs(graph) + elements < MOST_WORK:
        inputs = {
            name: np.zeros((1, *graph.tensor(name).shape[1:]), DTYPES[graph.tensor(name).dtype])
            for name in graph.inputs
        }
        reference.run(graph, inputs)


MOST_WORK = 1 << 24


def read_onnx(data: bytes) -> None:
    """Read an ONNX model.

    Raises:
        TinykdError: the file is refused.
    """
    onnx_reader.read(data, "hostile")
