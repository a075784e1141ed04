"""Makes an int8 graph smaller without changing one bit of what it computes, and tells which pass did what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinykd.errors import InternalError
from tinykd.export.passes import INT8_PASSES, Pass
from tinykd.ir import Graph, difference, graph_macs, verify

MOST_ROUNDS = 50


@dataclass(frozen=True)
class Size:
    """What a graph costs: its number of ops, multiply-accumulates, bytes of constants."""

    ops: int
    macs: int
    constant_bytes: int


@dataclass(frozen=True)
class Step:
    """What one pass took away, over all rounds.

    Attributes:
        name: of the pass.
        ops, macs, constant_bytes: how much less there is; negative where a pass adds something.
    """

    name: str
    ops: int = 0
    macs: int = 0
    constant_bytes: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything that is counted changed."""
        return bool(self.ops or self.macs or self.constant_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the step as a JSON object."""
        return {"pass": self.name, **{key: value for key, value in asdict(self).items() if key != "name"}}


def size_of(graph: Graph) -> Size:
    """Return what a graph costs."""
    constants = sum(tensor.num_bytes for tensor in graph.tensors.values() if tensor.is_constant)
    return Size(len(graph.ops), graph_macs(graph), constants)


def optimize(graph: Graph, passes: Sequence[Pass] = INT8_PASSES) -> tuple[Graph, list[Step]]:
    """Apply exact passes, in order and again, until none of them changes anything.

    Returns:
        the smaller graph, with the same inputs and outputs, and one step for each pass.

    Raises:
        InvalidModelError: a pass broke the graph.
        InternalError: the passes did not come to an end, or a pass touched an edge: bugs of ours.
    """
    steps = {step.__name__: Step(step.__name__) for step in passes}
    edges = _edges(graph)
    for _ in range(MOST_ROUNDS):
        before = graph
        for step in passes:
            old = size_of(graph)
            graph = verify(step(graph))
            new, so_far = size_of(graph), steps[step.__name__]
            steps[step.__name__] = Step(
                step.__name__,
                so_far.ops + old.ops - new.ops,
                so_far.macs + old.macs - new.macs,
                so_far.constant_bytes + old.constant_bytes - new.constant_bytes,
            )
        if _edges(graph) != edges:
            raise InternalError(f"the passes changed an edge of '{graph.name}'")
        if difference(before, graph) is None:
            return graph, list(steps.values())
    raise InternalError(f"the passes on '{graph.name}' change it for ever: {MOST_ROUNDS} rounds")


def _edges(graph: Graph) -> list[tuple[Any, ...]]:
    tensors = [graph.tensor(name) for name in (*graph.inputs, *graph.outputs)]
    return [(tensor.name, tensor.shape, tensor.dtype, tensor.quant) for tensor in tensors]
