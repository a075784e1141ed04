"""Graph passes, one a file. Each is a function Graph -> Graph; `run_passes` verifies after each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinykd.export.passes.float_edges import float_edges_to_host
from tinykd.export.passes.fold_batch_norm import fold_batch_norm
from tinykd.export.passes.fold_constants import fold_constants
from tinykd.export.passes.fold_pad import fold_pad
from tinykd.export.passes.fuse_activation import fuse_activation
from tinykd.export.passes.fuse_clamps import fuse_clamps
from tinykd.export.passes.fuse_hard_swish import fuse_hard_swish
from tinykd.export.passes.lower_padding import lower_padding
from tinykd.export.passes.merge_moves import merge_moves
from tinykd.export.passes.pad_to_same import pad_to_same
from tinykd.export.passes.remove_channels import remove_channels
from tinykd.export.passes.remove_identities import remove_identities
from tinykd.export.passes.separate_fixed import separate_fixed
from tinykd.export.passes.share_duplicates import share_duplicates
from tinykd.export.passes.squeeze_mean import squeeze_mean
from tinykd.export.passes.undo_concat_split import undo_concat_split
from tinykd.ir import Graph, verify
from tinykd.ir.dead_ops import remove_dead_ops

Pass = Callable[[Graph], Graph]

# From the float graph that ONNX gives to the one that is calibrated and quantised.
FLOAT_PASSES: tuple[Pass, ...] = (
    fold_batch_norm,
    fuse_hard_swish,
    fold_pad,
    fuse_activation,
    squeeze_mean,
    merge_moves,
    lower_padding,
    separate_fixed,
)

# Exact on int8 graphs, to the last bit of every output; repeated until nothing changes (`tinykd.export.optimize`).
# Moves and constants first: they join what channels hang together by.
INT8_PASSES: tuple[Pass, ...] = (
    remove_dead_ops,
    fold_constants,
    merge_moves,
    remove_identities,
    undo_concat_split,
    fuse_clamps,
    pad_to_same,
    remove_channels,
    share_duplicates,
)

# Exact as well, but beyond what a `.tflite` can say: what our engine computes instead of the graph in the file.
ENGINE_PASSES: tuple[Pass, ...] = (float_edges_to_host, fold_pad)


def run_passes(graph: Graph, passes: Sequence[Pass] = FLOAT_PASSES) -> Graph:
    """Apply the passes in order and verify the graph after each.

    Raises:
        InvalidModelError: a pass broke the graph.
    """
    for step in passes:
        graph = verify(step(graph))
    return graph


def for_engine(graph: Graph) -> Graph:
    """Return the graph that the firmware computes: int8 from edge to edge, pads folded into convolutions.

    Ops keep their `source`, so that what is measured on a device maps back to the layers of the file.
    """
    return run_passes(graph, ENGINE_PASSES)


__all__ = [
    "ENGINE_PASSES",
    "FLOAT_PASSES",
    "INT8_PASSES",
    "Pass",
    "float_edges_to_host",
    "fold_batch_norm",
    "fold_constants",
    "fold_pad",
    "for_engine",
    "fuse_activation",
    "fuse_clamps",
    "fuse_hard_swish",
    "lower_padding",
    "merge_moves",
    "pad_to_same",
    "remove_channels",
    "remove_dead_ops",
    "remove_identities",
    "run_passes",
    "separate_fixed",
    "share_duplicates",
    "squeeze_mean",
    "undo_concat_split",
]
