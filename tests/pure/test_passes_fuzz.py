"""The int8 passes on random graphs whose channels are constant, saturated or unread: bounds hold, and outputs stay."""

from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from fuzzing.kinds import graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinykd.errors import InvalidModelError
from tinykd.export import reference
from tinykd.export.optimize import optimize
from tinykd.export.passes.value_ranges import value_ranges
from tinykd.export.proof import proving_inputs
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, verify

WEIGHTED = ("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected")
# Where channels hang together, and what reads them.
CHANNELED = (*WEIGHTED, "conv_2d", "conv_2d", "add", "mul", "concatenation", "split", "strided_slice", "pad", "reshape")
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def plant(graph: Graph, seed: int) -> Graph:
    """Silence, saturate and unread channels of the ops with weights."""
    rng = np.random.default_rng(seed)
    tensors = dict(graph.tensors)
    for op in graph.ops:
        if op.kind not in WEIGHTED:
            continue
        weights, bias = tensors[op.inputs[1]], tensors.get(op.inputs[2]) if len(op.inputs) > 2 else None
        zero, data = weights.quant.zero_points[0], weights.data.copy()
        values = None if bias is None else bias.data.copy()
        outputs = np.moveaxis(data, -1, 0) if op.kind == "depthwise_conv_2d" else data
        for channel in np.flatnonzero(rng.random(len(outputs)) < 0.5):
            way = rng.integers(0, 4)
            if way < 2:
                outputs[channel] = zero
            if values is not None and way:
                values[channel] = (0, 0, 1 << 27, -(1 << 27))[way]
        if op.kind != "depthwise_conv_2d":
            data[..., rng.random(data.shape[-1]) < 0.25] = zero
        tensors[weights.name] = replace(weights, data=data)
        if bias is not None:
            tensors[bias.name] = replace(bias, data=values)
    return verify(replace(graph, tensors=tensors))


def check(graph: Graph) -> None:
    """No value leaves its bounds, and the optimised graph gives the same outputs and can be written."""
    stream = bool(graph.variables())
    inputs = proving_inputs(graph, 10, 1)
    try:
        values = reference.run(graph, inputs, stream=stream, keep_all=True)
    except InvalidModelError:
        hypothesis.reject()
    for name, bounds in value_ranges(graph).items():
        if name in values:
            value = values[name].reshape(-1, *bounds.low.shape)
            assert (value >= bounds.low).all() and (value <= bounds.high).all(), name
    smaller, _ = optimize(graph)
    tflite_writer.write(smaller)
    after = reference.run(smaller, inputs, stream=stream)
    for name in graph.outputs:
        np.testing.assert_array_equal(values[name], after[name], err_msg=name)


@pytest.mark.parametrize("kind", dict.fromkeys(CHANNELED))
def test_planted_channels_leave_without_trace(kind):
    """Random graphs of the ops that read channels and pass them on keep every output bit."""

    @settings(max_examples=15, **QUIET)
    @given(graphs(kind, CHANNELED, 9), st.integers(0, 1000))
    def holds(graph, seed):
        check(plant(graph, seed))

    holds()
