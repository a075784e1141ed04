"""The intermediate representation that every stage shares."""

from tinykd.ir.graph import DTYPES, Graph, Op, Tensor
from tinykd.ir.ops import ACTIVATIONS, SPECS, conv_output_size, graph_macs, op_macs, same_padding
from tinykd.ir.plan import MemoryPlan, Placement
from tinykd.ir.quant import Quant, quantize_multiplier
from tinykd.ir.verify import verify

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "SPECS",
    "Graph",
    "MemoryPlan",
    "Op",
    "Placement",
    "Quant",
    "Tensor",
    "conv_output_size",
    "graph_macs",
    "op_macs",
    "quantize_multiplier",
    "same_padding",
    "verify",
]
