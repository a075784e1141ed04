"""What must hold for every int8 graph. A rule returns None, or what is wrong and the inputs that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fuzzing.device import Emulated, device_part, expected_of
from fuzzing.judge import IsolatedTflm
from fuzzing.record import Values
from tinykd.export import parity, reference
from tinykd.export.optimize import optimize
from tinykd.export.passes import fold_pad, lower_padding, run_passes
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, difference, graph_macs

SAMPLES = 5
"""Inputs for each graph: the two ends, a checkerboard, noise."""


@dataclass(frozen=True)
class Problem:
    """What is wrong.

    Attributes:
        text: one sentence.
        op: index of the op where it shows, or None.
        inputs: input name -> values (N, ...) that show it, or None.
    """

    text: str
    op: int | None = None
    inputs: Values | None = None


Judge = IsolatedTflm | Emulated
Rule = Callable[[Graph, Any, "Values | None"], "Problem | None"]


def sample_inputs(graph: Graph) -> Values:
    """Return the inputs of a graph: the same for the same graph."""
    return parity.sample_inputs(graph, SAMPLES, seed=len(graph.ops))


def round_trip(graph: Graph, judge: IsolatedTflm, inputs: Values | None = None) -> Problem | None:
    """What the reader reads from the writer's file is the graph itself, and the file does not depend on the day."""
    model = tflite_writer.write(graph)
    found = difference(graph, tflite.read_bytes(model, graph.name))
    if found is None and tflite_writer.write(tflite.read_bytes(model, graph.name)) != model:
        found = "the graph that was read is written as other bytes"
    return None if found is None else Problem(f"written and read: {found}")


def equals_tflm(graph: Graph, judge: IsolatedTflm, inputs: Values | None = None) -> Problem | None:
    """Every activation of the reference is TFLite Micro's; an SVDF's over consecutive inferences."""
    inputs = sample_inputs(graph) if inputs is None else inputs
    judge.load(graph, tflite_writer.write(graph))
    result = parity.compare_judge(graph, judge, inputs, stream=bool(graph.variables()))
    if result.first_mismatch is None:
        return None
    first = result.first_mismatch
    # All inferences before it count where the graph has a state.
    start = 0 if graph.variables() else first.sample
    return Problem(
        first.describe(), first.op, {name: value[start : first.sample + 1] for name, value in inputs.items()}
    )


def optimized(graph: Graph, judge: IsolatedTflm, inputs: Values | None = None) -> Problem | None:
    """Exact passes change no output, and what they leave is a model like any other, no larger than before.

    Folding PADs is beyond what a file can say: it is held to the reference, and to TFLite Micro once it is undone.
    """
    inputs = sample_inputs(graph) if inputs is None else inputs
    expected = outputs_of(graph, inputs)
    smaller, _ = optimize(graph)
    folded = run_passes(smaller, (fold_pad,))
    for label, other in (("optimize", smaller), ("fold_pad", folded)):
        if problem := _changed(label, expected, outputs_of(other, inputs), inputs):
            return problem
    if graph_macs(smaller) > graph_macs(graph):
        return Problem(f"optimize: {graph_macs(graph)} MACs became {graph_macs(smaller)}", None, inputs)
    for label, other in (("optimized", smaller), ("folded and lowered", run_passes(folded, (lower_padding,)))):
        if difference(graph, other) is None:
            continue
        for rule in (round_trip, equals_tflm):
            if problem := rule(other, judge, inputs):
                return Problem(f"{label}: {problem.text}", None, inputs)
    return None


def outputs_of(graph: Graph, inputs: Values) -> Values:
    """Return the graph's outputs by the reference; those of a graph with a state for consecutive inferences."""
    x = inputs if len(graph.inputs) > 1 else inputs[graph.inputs[0]]
    return reference.run(graph, x, stream=bool(graph.variables()))


def _changed(label: str, expected: Values, found: Values, inputs: Values) -> Problem | None:
    for name, value in expected.items():
        if value.dtype != found[name].dtype or value.shape != found[name].shape:
            return Problem(f"{label}: output '{name}' has another type or shape", None, inputs)
        if not np.array_equal(value, found[name]):
            at = tuple(int(i) for i in np.argwhere(value != found[name])[0])
            return Problem(
                f"{label}: output '{name}'{list(at)} is {found[name][at]} instead of {value[at]}", None, inputs
            )
    return None


def on_device(graph: Graph, judge: Emulated, inputs: Values | None = None) -> Problem | None:
    """The generated C computes every activation of the reference, and touches nothing else."""
    part = device_part(graph)
    if part is None:
        return None
    if inputs is None or part is not graph:
        inputs = sample_inputs(part)
    device = judge.device(part)
    fault = device.first_fault(inputs, expected_of(part, inputs), watched=len(inputs[part.inputs[0]]) - 1)
    if fault is None:
        return None
    kernel = next((op.kernel for op in device.generated.ops if op.graph_op == fault.op), "nothing")
    op = part.ops[fault.op]
    return Problem(
        f"{judge}: op {fault.op} ({op.kind}, {kernel}), sample {fault.sample}: {fault.text}",
        graph.ops.index(op),
        {name: value[fault.sample : fault.sample + 1] for name, value in inputs.items()} if part is graph else None,
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {"round trip": round_trip, "equals TFLM": equals_tflm, "optimized": optimized}
)
"""Rules of a judge that is TFLite Micro."""
DEVICE_RULES: Mapping[str, Rule] = MappingProxyType({"on the device": on_device})
"""Rules of a judge that is an emulated core."""


def rules_of(judge: Judge) -> Mapping[str, Rule]:
    """Return the rules that a judge can tell."""
    return DEVICE_RULES if isinstance(judge, Emulated) else RULES


def examine(rule: str, graph: Graph, judge: Judge, inputs: Values | None = None) -> Problem | None:
    """Return what is wrong with a graph by one rule; whatever is raised on the way is wrong, too."""
    try:
        return rules_of(judge)[rule](graph, judge, inputs)
    except Exception as error:
        return Problem(f"{type(error).__name__}: {error}")


def examine_all(graph: Graph, judge: Judge) -> tuple[str, Problem] | None:
    """Return the first rule that a graph breaks, and what is wrong, or None."""
    for rule in rules_of(judge):
        if problem := examine(rule, graph, judge):
            return rule, problem
    return None


def single_op(graph: Graph, op: Op) -> Graph:
    """Return a graph of one op: its activations are the inputs."""
    names = [name for name in dict.fromkeys((*op.inputs, *op.outputs)) if name]
    tensors = {name: graph.tensor(name) for name in graph.tensors if name in names}
    inputs = tuple(
        name
        for name in dict.fromkeys(op.inputs)
        if name and not tensors[name].is_constant and not tensors[name].variable
    )
    return Graph(graph.name, tensors, (op,), inputs, op.outputs)


def reduced(rule: str, graph: Graph, problem: Problem, judge: Judge) -> tuple[Graph, Problem]:
    """Return the op that breaks the rule by itself, on the values that reach it in the graph, where there is one."""
    for index in range(len(graph.ops)) if problem.op is None else (problem.op,):
        small = single_op(graph, graph.ops[index])
        inputs = None
        if problem.inputs is not None:
            values = reference.run(
                graph,
                problem.inputs if len(graph.inputs) > 1 else problem.inputs[graph.inputs[0]],
                keep_all=True,
                stream=bool(graph.variables()),
            )
            values = {**problem.inputs, **values}
            inputs = {name: np.asarray(values[name]) for name in small.inputs}
        if len(small.ops) < len(graph.ops) and (found := examine(rule, small, judge, inputs)):
            return small, replace(found, op=0)
    return graph, problem
