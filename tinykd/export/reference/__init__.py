"""The NumPy integer reference: what every op of an int8 graph computes, to the last bit.

It equals TFLite Micro's reference kernels (double rounding) on every activation; the tests hold it there. It runs
many samples at once: inside, a value is an array (N, *shape of its tensor). The kernels are in `products` (ops with
weights), `elementwise`, `reductions` and `moves` (ops that only place values).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import InternalError, UnsupportedModelError
from tinykd.export.reference import elementwise, moves, products, reductions
from tinykd.export.reference.values import Kernel, Values, to_public
from tinykd.export.windows import map_batches
from tinykd.ir import DTYPES, Graph, Op


def run(
    graph: Graph,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    keep_all: bool = False,
    batch: int = 16,
    stream: bool = False,
) -> Values:
    """Run an int8 graph on many samples.

    Args:
        graph: int8 activations; uint8, int16, int32 and float32 only where its quantize, dequantize, arg_max and svdf
            ops have them.
        x: the samples (N, *input shape without the batch dimension) of a graph with one input, or input name ->
            samples. Each of its tensor's dtype.
        keep_all: return every activation, and each variable after each inference, instead of the graph's outputs only.
        batch: samples worked on at once; bounds the memory used.
        stream: the samples are consecutive inferences, so that variables (the state of an svdf) go on from one to the
            next. Otherwise each sample starts from the reset state.

    Returns:
        tensor name -> array (N, *shape without the batch dimension) of the tensor's dtype. A tensor whose first
        dimension is not 1 keeps it: (N, *shape).

    Raises:
        UnsupportedModelError: an op has no integer reference, or TFLite Micro does not define it for its scales.
        InternalError: the inputs do not fit the graph's.
    """
    samples = _samples(graph, x)
    count = len(next(iter(samples.values())))
    # None: every sample starts from the reset state. Else the state that the next batch goes on from.
    state: Values | None = None
    if stream:
        state = {name: np.zeros((1, *graph.tensor(name).shape), np.int16) for name in graph.variables()}

    def run_rows(rows: range) -> Values:
        part = {name: value[rows.start : rows.stop] for name, value in samples.items()}
        return _run_batch(graph, part, keep_all, state)

    if state is None:
        results = map_batches(run_rows, range(count), batch)
    else:
        results = [run_rows(range(start, min(start + batch, count))) for start in range(0, count, batch)]
    return {
        name: to_public(graph.tensor(name), np.concatenate([values[name] for values in results])) for name in results[0]
    }


def run_output(graph: Graph, x: np.ndarray | Mapping[str, np.ndarray], *, batch: int = 16) -> np.ndarray:
    """Return the first output of `run`, flattened to (N, elements)."""
    output = run(graph, x, batch=batch)[graph.outputs[0]]
    return output.reshape(len(output), -1)


def run_op(graph: Graph, op: Op, values: Values) -> tuple[np.ndarray, ...]:
    """Return an op's outputs, given at least its input activations by name, all as (N, *shape of the tensor).

    Raises:
        UnsupportedModelError: the op has no integer reference, or TFLite Micro does not define it for its scales.
    """
    kernel = KERNELS.get(op.kind)
    if kernel is None:
        raise UnsupportedModelError(f"op '{op.source}' ({op.kind}) has no integer reference")
    result = kernel(graph, op, values)
    return result if isinstance(result, tuple) else (result,)


def _samples(graph: Graph, x: np.ndarray | Mapping[str, np.ndarray]) -> Values:
    given = x if isinstance(x, Mapping) else {graph.inputs[0]: x}
    if set(given) != set(graph.inputs):
        raise InternalError(f"inputs {sorted(given)} given for a graph with inputs {sorted(graph.inputs)}")
    samples = {}
    for name, value in given.items():
        tensor = graph.tensor(name)
        if value.dtype != DTYPES[tensor.dtype] or value.size == 0 or value.size % tensor.num_elements:
            raise InternalError(
                f"input '{name}' is {value.dtype} {list(value.shape)}; it takes {tensor.dtype} samples of "
                f"{list(tensor.shape)}"
            )
        samples[name] = value.reshape(-1, *tensor.shape)
    if len({len(value) for value in samples.values()}) != 1:
        counts = {name: len(value) for name, value in samples.items()}
        raise InternalError(f"different numbers of samples for the inputs: {counts}")
    return samples


def _run_batch(graph: Graph, samples: Values, keep_all: bool, state: Values | None) -> Values:
    values = {**samples, **(state or {})}
    last_use = {name: readers[-1] for name, readers in graph.consumers().items()}
    for index, op in enumerate(graph.ops):
        values.update(zip(op.outputs, run_op(graph, op, values), strict=True))
        if keep_all:
            continue
        for name in op.inputs:
            if last_use.get(name) == index and name not in graph.outputs and not graph.tensor(name).variable:
                values.pop(name, None)
    if state is not None:
        state.update({name: values[name][-1:] for name in state})
    return values if keep_all else {name: values[name] for name in graph.outputs}


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "conv_2d": products.conv_2d,
        "depthwise_conv_2d": products.depthwise_conv_2d,
        "transpose_conv": products.transpose_conv,
        "fully_connected": products.fully_connected,
        "svdf": products.svdf,
        "add": elementwise.add,
        "sub": elementwise.add,
        "mul": elementwise.mul,
        "maximum": elementwise.maximum,
        "minimum": elementwise.minimum,
        "prelu": elementwise.prelu,
        "logistic": elementwise.mapped,
        "tanh": elementwise.mapped,
        "hard_swish": elementwise.mapped,
        "relu": elementwise.mapped,
        "relu6": elementwise.mapped,
        "leaky_relu": elementwise.mapped,
        "quantize": elementwise.quantize,
        "dequantize": elementwise.dequantize,
        "softmax": elementwise.softmax,
        "average_pool_2d": reductions.average_pool_2d,
        "max_pool_2d": reductions.max_pool_2d,
        "mean": reductions.mean,
        "arg_max": reductions.arg_max,
        "pad": moves.pad,
        "reshape": moves.reshape,
        "transpose": moves.transpose,
        "concatenation": moves.concatenation,
        "split": moves.split,
        "strided_slice": moves.strided_slice,
        "resize_nearest_neighbor": moves.resize_nearest_neighbor,
    }
)
