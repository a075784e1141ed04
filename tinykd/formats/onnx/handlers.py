"""Which ONNX nodes can be read, and what to do about common ones that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tinykd.formats.onnx import elementwise as elementwise
from tinykd.formats.onnx import shaping as shaping
from tinykd.formats.onnx import windows as windows
from tinykd.formats.onnx.reader import Node

HANDLERS: Mapping[str, Callable[[Node], None]] = MappingProxyType(
    {
        "Conv": windows.conv,
        "ConvTranspose": windows.conv_transpose,
        "MaxPool": windows.pool("max_pool_2d"),
        "AveragePool": windows.pool("average_pool_2d"),
        "GlobalAveragePool": windows.global_pool("mean"),
        "GlobalMaxPool": windows.global_pool("max_pool_2d"),
        "ReduceMean": windows.reduce_mean,
        "Pad": windows.pad,
        "Resize": windows.resize,
        "Relu": elementwise.unary("relu"),
        "Sigmoid": elementwise.unary("logistic"),
        "Tanh": elementwise.unary("tanh"),
        "HardSwish": elementwise.unary("hard_swish"),
        "HardSigmoid": elementwise.hard_sigmoid,
        "LeakyRelu": elementwise.leaky_relu,
        "PRelu": elementwise.prelu,
        "Clip": elementwise.clip,
        "Add": elementwise.arithmetic("add"),
        "Sub": elementwise.arithmetic("sub"),
        "Mul": elementwise.arithmetic("mul"),
        "Max": elementwise.arithmetic("maximum"),
        "Min": elementwise.arithmetic("minimum"),
        "Sum": elementwise.arithmetic("add"),
        "Div": elementwise.divide,
        "Neg": elementwise.negate,
        "Gemm": shaping.gemm,
        "MatMul": shaping.matmul,
        "BatchNormalization": shaping.batch_norm,
        "Softmax": shaping.softmax,
        "ArgMax": shaping.arg_max,
        "Reshape": shaping.reshape,
        "Flatten": shaping.flatten,
        "Squeeze": shaping.squeeze,
        "Unsqueeze": shaping.unsqueeze,
        "Transpose": shaping.transpose,
        "DepthToSpace": shaping.depth_to_space,
        "SpaceToDepth": shaping.space_to_depth,
        "Concat": shaping.concat,
        "Split": shaping.split,
        "Slice": shaping.slice_,
        "Gather": shaping.gather,
        "Expand": shaping.expand,
        "Cast": shaping.cast,
        "Identity": shaping.free,
        "Dropout": shaping.free,
    }
)

_RECURRENT = "Unroll the recurrence, or use convolutions over time."
_SMOOTH = "Train with HardSwish, ReLU or SiLU instead."
_CONTROL = "Trace the model with fixed shapes, so that no branch is left."
_QUANTISED = "Read it with onnx_reader.read_quantised, which takes QuantizeLinear and DequantizeLinear pairs."
WAYS_OUT: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
        **dict.fromkeys(("Gelu", "Erf", "Elu", "Selu", "Mish", "Softplus", "Celu", "Swish"), _SMOOTH),
        **dict.fromkeys(("If", "Loop", "Scan"), _CONTROL),
        **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"), _QUANTISED),
        **dict.fromkeys(
            ("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
            "Train with batch normalisation instead.",
        ),
        "Upsample": "Export with opset 13 or newer, which has Resize.",
        "LogSoftmax": "End the model with its logits.",
        "ReduceSum": "Use ReduceMean.",
    }
)
