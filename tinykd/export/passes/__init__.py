"""Graph passes, one a file. Each is a function Graph -> Graph; `run_passes` verifies after each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinykd.export.passes.fold_batch_norm import fold_batch_norm
from tinykd.export.passes.fold_pad import fold_pad
from tinykd.export.passes.fuse_activation import fuse_activation
from tinykd.export.passes.lower_padding import lower_padding
from tinykd.export.passes.squeeze_mean import squeeze_mean
from tinykd.ir import Graph, verify

Pass = Callable[[Graph], Graph]

# From the float graph that ONNX gives to the one that is calibrated and quantised.
FLOAT_PASSES: tuple[Pass, ...] = (fold_batch_norm, fold_pad, fuse_activation, squeeze_mean, lower_padding)


def run_passes(graph: Graph, passes: Sequence[Pass] = FLOAT_PASSES) -> Graph:
    """Apply the passes in order and verify the graph after each.

    Raises:
        InvalidModelError: a pass broke the graph.
    """
    for step in passes:
        graph = verify(step(graph))
    return graph


__all__ = [
    "FLOAT_PASSES",
    "fold_batch_norm",
    "fold_pad",
    "fuse_activation",
    "lower_padding",
    "run_passes",
    "squeeze_mean",
]
