"""How convolutions, pools and matrix products are spelled in a `.tflite`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tflite

from tinykd.errors import InternalError
from tinykd.formats.tflite.codec import INT8, INT16, INT32, Attrs, Codec, int32
from tinykd.formats.tflite.schema import CODE_OF_ACTIVATION
from tinykd.formats.tflite.source import Source
from tinykd.ir import Graph, Op, Tensor, same_padding

Padding = tuple[int, int, int, int]
_BUILTIN = tflite.BuiltinOperator


def padding_code(padding: Padding, graph: Graph, op: Op) -> int | None:
    """Return the code of TensorFlow's SAME or VALID if an op's padding is that, else None."""
    if op.kind == "transpose_conv":
        kernel, size = graph.tensor(op.inputs[1]).shape[1:3], graph.tensor(op.outputs[0]).shape[1:3]
        for code in (tflite.Padding.SAME, tflite.Padding.VALID):
            if (padding[0], padding[2]) == _cut_before(code, size, kernel, op.attrs["stride"]):
                return code
        return None
    if not any(padding):
        return tflite.Padding.VALID
    x = graph.tensor(op.inputs[0])
    kernel = op.attrs["kernel"] if "kernel" in op.attrs else graph.tensor(op.inputs[1]).shape[1:3]
    same = _same(x.shape, kernel, op.attrs["stride"], op.attrs.get("dilation", (1, 1)))
    return tflite.Padding.SAME if tuple(padding) == same else None


def _same(shape: tuple[int, ...], kernel: Any, stride: Any, dilation: Any) -> Padding:
    return (
        *same_padding(shape[1], kernel[0], stride[0], dilation[0]),
        *same_padding(shape[2], kernel[1], stride[1], dilation[1]),
    )


def _cut_before(code: int, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int]) -> tuple[int, ...]:
    """Return how many rows and columns a TRANSPOSE_CONV cuts off at the top and at the left of its full output.

    TFLite computes them as the padding of the convolution that would lead from the output back to the input.
    """
    before = []
    for length, span, step in zip(size, kernel, stride, strict=True):
        if code == tflite.Padding.SAME:
            steps = (length + step - 1) // step
        else:
            # C's division truncates toward zero.
            steps = int((length - span + step) / step)
        before.append(max((steps - 1) * step + span - length, 0) // 2)
    return tuple(before)


def _padding(graph: Graph, op: Op) -> int:
    code = padding_code(op.attrs["padding"], graph, op)
    if code is None:
        raise InternalError(
            f"op '{op.source or op.outputs[0]}' ({op.kind}) pads by {op.attrs['padding']}: neither SAME nor VALID; "
            "run lower_padding first"
        )
    return code


def _stride(source: Source, options: Any) -> tuple[int, int]:
    stride = (options.StrideH(), options.StrideW())
    if min(stride) < 1:
        source.corrupt(f"stride {stride}: each must be at least 1")
    return stride


def _window(source: Source, options: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> Attrs:
    """Return stride and explicit padding of a convolution or pooling."""
    stride, shape = _stride(source, options), source.input(0).shape
    if len(shape) != 4 or min(*dilation, *kernel) < 1:
        source.corrupt(f"input {list(shape)}, kernel {kernel}, dilation {dilation}")
    same = options.Padding() == tflite.Padding.SAME
    return {"stride": stride, "padding": _same(shape, kernel, stride, dilation) if same else (0, 0, 0, 0)}


def _kernel(source: Source) -> tuple[int, int]:
    shape = source.input(1).shape
    if len(shape) != 4:
        source.corrupt(f"its weights have shape {list(shape)}; it takes 4 dimensions")
    return shape[1], shape[2]


def _read_conv(source: Source, options: Any) -> Attrs:
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    window = _window(source, options, _kernel(source), dilation)
    return {**window, "dilation": dilation, "activation": source.activation(options)}


def _read_conv_2d(source: Source) -> Attrs:
    attrs = _read_conv(source, source.options("Conv2DOptions"))
    depth, channels = source.input(1).shape[3], source.input(0).shape[3]
    if 0 < depth < channels and channels % depth == 0:
        source.refuse(
            f"grouped convolution ({channels // depth} groups)",
            "Train it with groups=1, as a depthwise convolution, or as a SPLIT, one convolution each and a "
            "CONCATENATION.",
        )
    return attrs


def _read_depthwise(source: Source) -> Attrs:
    # TFLite's depth_multiplier repeats what the shapes say, and some producers write 0.
    return _read_conv(source, source.options("DepthwiseConv2DOptions"))


def _read_transpose_conv(source: Source) -> Attrs:
    options = source.options("TransposeConvOptions")
    stride, kernel = _stride(source, options), _kernel(source)
    x, y = source.input(2).shape, source.output().shape
    if len(x) != 4 or len(y) != 4 or min(*kernel, *y) < 1:
        source.corrupt(f"input {list(x)}, kernel {kernel}, output {list(y)}")
    top, left = _cut_before(options.Padding(), y[1:3], kernel, stride)
    bottom = (x[1] - 1) * stride[0] + kernel[0] - top - y[1]
    right = (x[2] - 1) * stride[1] + kernel[1] - left - y[2]
    return {"stride": stride, "padding": (top, bottom, left, right), "activation": source.activation(options)}


def _read_fully_connected(source: Source) -> Attrs:
    options = source.options("FullyConnectedOptions")
    if options.WeightsFormat() != 0:
        source.refuse("its weights are shuffled", "Convert it again for TFLite Micro, without shuffled weights.")
    return {"activation": source.activation(options)}


def _read_svdf(source: Source) -> Attrs:
    options = source.options("SVDFOptions")
    if not source.has_input(3):
        source.refuse("an SVDF without bias", "Give it a bias, of zeros if need be: TFLite Micro crashes without one.")
    state = source.input(4)
    if not state.variable:
        source.refuse(f"its state '{state.name}' is no variable", "Convert it again: the state must outlive a step.")
    return {"rank": options.Rank(), "activation": source.activation(options)}


def _read_pool(source: Source) -> Attrs:
    options = source.options("Pool2DOptions")
    kernel = (options.FilterHeight(), options.FilterWidth())
    window = _window(source, options, kernel, (1, 1))
    return {**window, "kernel": kernel, "activation": source.activation(options)}


def _window_fields(graph: Graph, op: Op) -> dict[str, Any]:
    return {
        "Padding": _padding(graph, op),
        "StrideH": op.attrs["stride"][0],
        "StrideW": op.attrs["stride"][1],
        "FusedActivationFunction": CODE_OF_ACTIVATION[op.attrs["activation"]],
    }


def _conv_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    dilation = op.attrs["dilation"]
    return {**_window_fields(graph, op), "DilationHFactor": dilation[0], "DilationWFactor": dilation[1]}


def _depthwise_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    multiplier = graph.tensor(op.outputs[0]).shape[3] // graph.tensor(op.inputs[0]).shape[3]
    return {**_conv_fields(graph, op), "DepthMultiplier": multiplier}


def _pool_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    kernel = op.attrs["kernel"]
    return {**_window_fields(graph, op), "FilterHeight": kernel[0], "FilterWidth": kernel[1]}


def _transpose_conv_inputs(graph: Graph, op: Op) -> list[str | Tensor]:
    shape = int32(op, "output_shape", graph.tensor(op.outputs[0]).shape)
    return [shape, op.inputs[1], op.inputs[0], *op.inputs[2:]]


def _transpose_conv_version(graph: Graph, op: Op) -> int:
    if op.attrs["activation"] != "none":
        return 4
    return 3 if op.inputs[2:] and op.inputs[2] else 2


def _keeps_dims(graph: Graph, op: Op) -> bool:
    return len(graph.tensor(op.outputs[0]).shape) != 2


def _fully_connected_version(graph: Graph, op: Op) -> int:
    quant = graph.tensor(op.inputs[1]).quant
    if quant is not None and quant.axis is not None:
        return 12
    if len(op.inputs) == 2:
        return 6
    return 5 if _keeps_dims(graph, op) else 4


def _fully_connected_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {
        "FusedActivationFunction": CODE_OF_ACTIVATION[op.attrs["activation"]],
        "KeepNumDims": _keeps_dims(graph, op),
    }


def _svdf_inputs(graph: Graph, op: Op) -> tuple[str, ...]:
    if not op.inputs[3]:
        raise InternalError(f"op '{op.source or op.outputs[0]}' (svdf) has no bias: TFLite Micro crashes on such files")
    return op.inputs


def _svdf_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"Rank": op.attrs["rank"], "FusedActivationFunction": CODE_OF_ACTIVATION[op.attrs["activation"]]}


_WEIGHTED = (INT8, INT8, INT32)

CODECS = (
    Codec(
        _BUILTIN.CONV_2D,
        "conv_2d",
        "Conv2DOptions",
        version=3,
        read=_read_conv_2d,
        fields=_conv_fields,
        input_types=_WEIGHTED,
        constants=(1, 2),
    ),
    Codec(
        _BUILTIN.DEPTHWISE_CONV_2D,
        "depthwise_conv_2d",
        "DepthwiseConv2DOptions",
        version=3,
        read=_read_depthwise,
        fields=_depthwise_fields,
        input_types=_WEIGHTED,
        constants=(1, 2),
        # TFLite Micro's kernel crashes on a bias that is there as -1.
        drops_omitted=True,
    ),
    Codec(
        _BUILTIN.TRANSPOSE_CONV,
        "transpose_conv",
        "TransposeConvOptions",
        version=_transpose_conv_version,
        operands=(2, 1, 3),
        read=_read_transpose_conv,
        inputs=_transpose_conv_inputs,
        fields=_window_fields,
        input_types=_WEIGHTED,
        constants=(1, 2),
    ),
    Codec(
        _BUILTIN.FULLY_CONNECTED,
        "fully_connected",
        "FullyConnectedOptions",
        version=_fully_connected_version,
        read=_read_fully_connected,
        fields=_fully_connected_fields,
        input_types=_WEIGHTED,
        constants=(1, 2),
    ),
    Codec(
        _BUILTIN.SVDF,
        "svdf",
        "SVDFOptions",
        version=3,
        read=_read_svdf,
        inputs=_svdf_inputs,
        fields=_svdf_fields,
        input_types=(INT8, INT8, INT16, INT32, INT16),
        constants=(1, 2, 3),
    ),
    *(
        Codec(
            builtin,
            kind,
            "Pool2DOptions",
            version=2,
            read=_read_pool,
            fields=_pool_fields,
            one_quantisation=True,
        )
        for builtin, kind in (
            (_BUILTIN.AVERAGE_POOL_2D, "average_pool_2d"),
            (_BUILTIN.MAX_POOL_2D, "max_pool_2d"),
        )
    ),
)
