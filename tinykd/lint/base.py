"""What a lint rule is: it looks at a model and yields findings, each with a price and a mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tinykd.formats.tflite.file import TfliteFile
from tinykd.ir import Graph, Op, op_macs

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""ERROR: results are wrong or undefined somewhere. WARNING: it costs memory, time or accuracy. NOTE: good to know."""

Masks = Mapping[str, np.ndarray]
"""Activation -> bool (C,): which of its channels are needed."""
Reach = Mapping[str, tuple[int, int]]
"""Int8 activation -> the smallest and largest value that it can take, whatever the input."""


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        rule: id of the rule.
        severity: one of `SEVERITIES`.
        op: index of the op in the file, or None for the whole model.
        message: what it is, value against limit.
        mend: what to do about it: a command, or advice for training.
        price: what it costs: `arena_bytes` (SRAM), `constant_bytes` (flash), `macs`, `ops`, `moved_bytes` (an
            inference). Keys that do not apply are left out.
    """

    rule: str
    severity: str
    op: int | None
    message: str
    mend: str
    price: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Prices:
    """Functions that stages offer and rules need; the command hands them in, since lint belongs to no stage.

    Attributes:
        engine_arena: arena bytes of our engine for a graph.
        tflm_arena: arena bytes that TFLite Micro needs for a graph's activations under the best plan.
        tflm_heads: what it allocates for activations and scratch with its own plan, and with the best one in the file;
            None when nobody can measure it here.
        kernel: the C function of our engine that runs an op, "" for none needed; raises UnsupportedModelError for an op
            that the engine cannot run.
        fastest: the fastest C function of our engine for an op kind, or "" for an unknown kind.
        kept_channels: which channels `tinykd optimize` would keep.
        reach: which values each activation can take.
    """

    engine_arena: Callable[[Graph], int]
    tflm_arena: Callable[[Graph], int]
    tflm_heads: Callable[[Graph], tuple[int, int] | None]
    kernel: Callable[[Graph, Op], str]
    fastest: Callable[[str], str]
    kept_channels: Callable[[Graph], Masks]
    reach: Callable[[Graph], Reach]


@dataclass(frozen=True)
class Model:
    """What rules look at: the graph, the facts of its file, and the price functions."""

    graph: Graph
    file: TfliteFile
    prices: Prices

    @cached_property
    def tflm_arena(self) -> int:
        """Arena bytes of TFLite Micro under the best plan."""
        return self.prices.tflm_arena(self.graph)

    @cached_property
    def engine_arena(self) -> int:
        """Arena bytes of our engine."""
        return self.prices.engine_arena(self.graph)

    @cached_property
    def kept_channels(self) -> Masks:
        """Which channels are needed."""
        return self.prices.kept_channels(self.graph)

    @cached_property
    def reach(self) -> Reach:
        """Which values each activation can take."""
        return self.prices.reach(self.graph)

    def price_of_a_copy(self, index: int) -> dict[str, int]:
        """Return what an op costs that only moves bytes, in TFLite Micro: planned with it, and without."""
        moved = sum(self.graph.tensor(name).num_bytes for name in self.graph.ops[index].outputs)
        price = {"ops": 1, "moved_bytes": moved}
        if can_be_bypassed(self.graph, index):
            saved = self.tflm_arena - self.prices.tflm_arena(bypassed(self.graph, index))
            price["arena_bytes"] = max(saved, 0)
        return price


Check = Callable[[Model], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A row of the registry.

    Attributes:
        id: how users select it.
        title: what it finds, a few words.
        why: what it costs and how it comes about, for the manual.
        check: yields the findings.
        severity: the worst that it gives.
    """

    id: str
    title: str
    why: str
    check: Check
    severity: str


_MOVING = ("concatenation", "reshape", "split", "strided_slice", "transpose")


def can_be_bypassed(graph: Graph, index: int) -> bool:
    """Whether a planner can make sense of the graph without op `index`.

    Ops beside it that only move bytes need the very shape that it gives or takes.
    """
    op = graph.ops[index]
    shapes = {(graph.tensor(name).shape, graph.tensor(name).dtype) for name in (op.inputs[0], *op.outputs)}
    beside = [graph.ops[i].kind for name in op.outputs for i in graph.consumers().get(name, [])]
    if op.inputs[0] in graph.producers():
        beside.append(graph.ops[graph.producers()[op.inputs[0]]].kind)
    return len(shapes) == 1 or not any(kind in _MOVING for kind in beside)


def bypassed(graph: Graph, index: int) -> Graph:
    """Return the graph as a planner sees it when op `index` is not there: its readers read its input instead.

    Only sizes and live ranges of the result mean anything.
    """
    op = graph.ops[index]
    instead = dict.fromkeys(op.outputs, op.inputs[0])
    if any(name in graph.outputs for name in op.outputs):
        # The op before it writes the output; a graph whose input is its output keeps the op.
        writer = graph.producers().get(op.inputs[0])
        if writer is None or len(op.outputs) > 1 or len(graph.consumers()[op.inputs[0]]) > 1:
            return graph
        renamed = {op.inputs[0]: op.outputs[0]}
        ops = [_renamed(other, {}, renamed) if i == writer else other for i, other in enumerate(graph.ops)]
        return graph.with_ops([other for i, other in enumerate(ops) if i != index])
    return graph.with_ops([_renamed(other, instead, {}) for i, other in enumerate(graph.ops) if i != index])


def _renamed(op: Op, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Op:
    return Op(
        op.kind,
        tuple(inputs.get(name, name) for name in op.inputs),
        tuple(outputs.get(name, name) for name in op.outputs),
        op.attrs,
        op.source,
    )


def weights_of(graph: Graph, op: Op) -> np.ndarray | None:
    """Return the constant weights of a convolution or dense layer with the output channels first; None for others."""
    if op.kind not in WEIGHT_AXIS:
        return None
    data = graph.tensor(op.inputs[1]).data
    if data is None:
        return None
    return np.moveaxis(data, WEIGHT_AXIS[op.kind], 0).reshape(data.shape[WEIGHT_AXIS[op.kind]], -1)


WEIGHT_AXIS = {"conv_2d": 0, "depthwise_conv_2d": 3, "transpose_conv": 0, "fully_connected": 0}
"""Axis of the output channels in the weights of an op."""


def bias_of(graph: Graph, op: Op) -> np.ndarray | None:
    """Return the constant bias of a convolution or dense layer, or None."""
    if len(op.inputs) < 3 or not op.inputs[2]:
        return None
    return graph.tensor(op.inputs[2]).data


def macs_of(graph: Graph, index: int) -> int:
    """Return the MACs of an op by its index."""
    return op_macs(graph, graph.ops[index])
