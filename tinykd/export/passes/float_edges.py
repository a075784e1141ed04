"""Leaves the conversion of inputs and outputs to the host: QUANTIZE and DEQUANTIZE at the edges go."""

from __future__ import annotations

from dataclasses import replace

from tinykd.ir import Graph


def float_edges_to_host(graph: Graph) -> Graph:
    """Return the graph that is int8 from edge to edge, where its edges were conversions to and from int8.

    A QUANTIZE that is the only reader of an input, and a DEQUANTIZE (or a QUANTIZE to another type) that writes an
    output, are taken off; the int8 tensors behind and before them become the edges. The host converts with the scale
    and the zero point of those tensors, as the ops did. Other edges stay.
    """
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    dropped = set()
    consumers, producers = graph.consumers(), graph.producers()
    for number, name in enumerate(graph.inputs):
        readers = consumers.get(name, [])
        if graph.tensor(name).dtype == "int8" or len(readers) != 1 or name in graph.outputs:
            continue
        op = graph.ops[readers[0]]
        if op.kind == "quantize" and graph.tensor(op.outputs[0]).dtype == "int8":
            inputs[number] = op.outputs[0]
            dropped.add(readers[0])
    for number, name in enumerate(graph.outputs):
        if graph.tensor(name).dtype == "int8" or name not in producers or name in consumers:
            continue
        op = graph.ops[producers[name]]
        inner = graph.tensor(op.inputs[0])
        if op.kind in ("quantize", "dequantize") and inner.dtype == "int8" and inner.name not in outputs:
            outputs[number] = inner.name
            dropped.add(producers[name])
    if not dropped:
        return graph
    edged = replace(graph, inputs=tuple(inputs), outputs=tuple(outputs))
    return edged.with_ops([op for index, op in enumerate(graph.ops) if index not in dropped])
