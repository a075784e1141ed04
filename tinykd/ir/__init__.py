"""The intermediate representation that every stage shares."""

from tinykd.ir.compare import difference
from tinykd.ir.graph import DTYPES, Graph, Op, Tensor
from tinykd.ir.ops import (
    ACTIVATIONS,
    SPECS,
    conv_output_size,
    graph_macs,
    op_label,
    op_macs,
    same_padding,
    spatial_padding,
    spatial_paddings,
)
from tinykd.ir.plan import MemoryPlan, Placement, Scratch
from tinykd.ir.quant import Quant, quantize_multiplier
from tinykd.ir.requant import (
    activation_range,
    add_params,
    mean_params,
    requantization,
    softmax_params,
    tensor_quant,
)
from tinykd.ir.shapes import output_shapes
from tinykd.ir.verify import verify

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "SPECS",
    "Graph",
    "MemoryPlan",
    "Op",
    "Placement",
    "Scratch",
    "Quant",
    "Tensor",
    "activation_range",
    "add_params",
    "conv_output_size",
    "difference",
    "graph_macs",
    "mean_params",
    "op_label",
    "op_macs",
    "output_shapes",
    "quantize_multiplier",
    "requantization",
    "same_padding",
    "spatial_padding",
    "spatial_paddings",
    "softmax_params",
    "tensor_quant",
    "verify",
]
