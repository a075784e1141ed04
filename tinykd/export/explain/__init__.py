"""The arithmetic behind one value: how the integers of `docs/spec-int8.md` made one element of one op's output.

Each function recomputes a single element, step by step, from the op's inputs. It shares the constants with the
reference (`tinykd/ir/requant.py`) and walks to the element by itself: a test holds it against the reference's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tinykd.errors import UnsupportedModelError
from tinykd.export.explain import elementwise, layout, sums
from tinykd.export.explain.steps import Explainer, Explanation, Values
from tinykd.ir import Graph, Op

EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {**sums.EXPLAINERS, **elementwise.EXPLAINERS, **layout.EXPLAINERS}
)


def explain(graph: Graph, op: Op, values: Values, index: Sequence[int], output: int = 0) -> Explanation:
    """Return how the reference comes to one element of an op's output.

    Args:
        graph: the graph of the op, for scales and constants.
        op: the op.
        values: its input activations of one sample, and where they are not those of a reset model its variables.
        index: the element, with or without a batch axis of 1.
        output: which of the op's outputs.

    Raises:
        UnsupportedModelError: ops of this kind cannot be explained.
    """
    if op.kind not in EXPLAINERS:
        raise UnsupportedModelError(f"op '{op.source}' ({op.kind}) has no explanation")
    at = tuple(int(i) for i in index)
    if len(at) < len(graph.tensor(op.outputs[output]).shape):
        at = (0, *at)
    told = Explanation()
    told.value = EXPLAINERS[op.kind](graph, op, values, at, output, told)
    return told
