"""How ops that move, join, cut and reduce are spelled in a `.tflite`. Their integers go into the IR's attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tflite

from tinykd.formats.tflite.codec import INT32, Attrs, Codec, int32, never
from tinykd.formats.tflite.source import Source
from tinykd.ir import Graph, Op, Tensor

_BUILTIN = tflite.BuiltinOperator
Inputs = list[str | Tensor]


def _read_mean(source: Source) -> Attrs:
    options, shape = source.options("ReducerOptions"), source.input(0).shape
    axes = sorted({source.from_front(axis, len(shape)) for axis in source.integers(1, "list of axes")})
    keep_dims = bool(options.KeepDims())
    if keep_dims and axes[1:] and axes[0] == 0 and shape[0] == 1:
        axes = axes[1:]
    if axes[:1] == [0]:
        source.refuse("a mean over the batch axis", "Leave the batch out of the reduced axes.")
    return {"axes": tuple(axes), "keep_dims": keep_dims}


def _mean_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "axes", op.attrs["axes"])]


def _read_paddings(source: Source) -> tuple[tuple[int, int], ...]:
    values = source.integers(1, "paddings", 2 * len(source.input(0).shape))
    return tuple(zip(values[::2], values[1::2], strict=True))


def _read_pad(source: Source) -> Attrs:
    return {"paddings": _read_paddings(source), "value": None}


def _read_pad_v2(source: Source) -> Attrs:
    quant = source.output().quant
    data = source.constant(2, "fill value")
    if data.dtype != np.int8 or data.size != 1:
        source.refuse(f"its fill value is {data.dtype}{list(data.shape)} instead of one int8")
    if source.input(2).quant != quant:
        source.refuse("its fill value and its output have different scales", "Convert the model again.")
    value = int(data.reshape(-1)[0])
    return {"paddings": _read_paddings(source), "value": None if quant and value == quant.zero_point else value}


def _pad_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "paddings", op.attrs["paddings"])]


def _pad_v2_inputs(graph: Graph, op: Op) -> Inputs:
    y = graph.tensor(op.outputs[0])
    value = np.array(op.attrs["value"], np.int8)
    return [*_pad_inputs(graph, op), Tensor(f"{y.name}/value", (), "int8", y.quant, value)]


def _pad_version(graph: Graph, op: Op) -> int:
    return 4 if len(graph.tensor(op.inputs[0]).shape) > 4 else 2


def _reshape_inputs(graph: Graph, op: Op) -> Inputs:
    shape = graph.tensor(op.outputs[0]).shape
    # A constant without elements cannot be told from a computed one: a scalar's shape stands in the options only.
    return [op.inputs[0], int32(op, "shape", shape)] if shape else [op.inputs[0]]


def _reshape_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"NewShape": graph.tensor(op.outputs[0]).shape}


def _read_transpose(source: Source) -> Attrs:
    rank = len(source.input(0).shape)
    perm = source.integers(1, "permutation", rank)
    return {"perm": tuple(source.from_front(axis, rank) for axis in perm)}


def _transpose_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "perm", op.attrs["perm"])]


def _transpose_version(graph: Graph, op: Op) -> int:
    return 4 if len(op.attrs["perm"]) > 4 else 2


def _read_concatenation(source: Source) -> Attrs:
    options = source.options("ConcatenationOptions")
    if source.activation(options) != "none":
        source.refuse(
            "a fused activation in a concatenation", "Apply the activation to the inputs, before they are joined."
        )
    return {"axis": source.from_front(options.Axis(), len(source.output().shape))}


def _read_split(source: Source) -> Attrs:
    source.options("SplitOptions")
    return {"axis": source.axis(0, len(source.input(1).shape))}


def _read_split_v(source: Source) -> Attrs:
    source.options("SplitVOptions")
    return {"axis": source.axis(2, len(source.input(0).shape))}


def _part_sizes(graph: Graph, op: Op) -> list[int]:
    return [graph.tensor(name).shape[op.attrs["axis"]] for name in op.outputs]


def _is_even(graph: Graph, op: Op) -> bool:
    return len(set(_part_sizes(graph, op))) == 1


def _split_inputs(graph: Graph, op: Op) -> Inputs:
    return [int32(op, "axis", op.attrs["axis"]), op.inputs[0]]


def _split_v_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "sizes", _part_sizes(graph, op)), int32(op, "axis", op.attrs["axis"])]


def _split_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"NumSplits": len(op.outputs)}


def _bit(mask: int, axis: int) -> bool:
    return bool(mask >> axis & 1)


def read_strided_slice(source: Source) -> Attrs:
    """Return begin, end and strides of each axis, and the axes that are dropped, with all masks resolved."""
    options, shape = source.options("StridedSliceOptions"), source.input(0).shape
    if options.EllipsisMask() or options.NewAxisMask():
        source.refuse(
            "slicing with an ellipsis or a new axis", "Name every axis in the slice, and add axes with a reshape."
        )
    begin, end, strides = (
        source.integers(position, what) for position, what in ((1, "begin"), (2, "end"), (3, "strides"))
    )
    if not len(begin) == len(end) == len(strides) <= len(shape) or 0 in strides:
        source.corrupt(f"begin {begin}, end {end}, strides {strides} for {list(shape)}")
    if options.Offset():
        end = [first + length for first, length in zip(begin, end, strict=True)]
    shrink = tuple(axis for axis in range(len(begin)) if _bit(options.ShrinkAxisMask(), axis))
    ranges = []
    for axis, size in enumerate(shape):
        if axis >= len(begin):
            ranges.append((0, size, 1))
            continue
        step = strides[axis]
        first = _bound(begin[axis], size, step, (0, size - 1) if _bit(options.BeginMask(), axis) else None)
        last = _bound(end[axis], size, step, (size, -1) if _bit(options.EndMask(), axis) else None)
        if axis in shrink and (step < 0 or len(range(first, last, step)) != 1):
            # A dropped axis takes the one element at `begin`, whatever the end and the stride say.
            last, step = first + 1, 1
        ranges.append((first, last, step))
    return _slice_attrs(ranges, shrink)


def _bound(value: int, size: int, step: int, masked: tuple[int, int] | None) -> int:
    """Return a slice's bound inside its axis; `masked`: the bound for a positive and for a negative stride."""
    if masked is not None:
        return masked[step < 0]
    if value < 0:
        value += size
    return min(max(value, 0), size) if step > 0 else min(max(value, -1), size - 1)


def _slice_attrs(ranges: Sequence[tuple[int, int, int]], shrink: tuple[int, ...]) -> Attrs:
    begin, end, strides = (tuple(column) for column in zip(*ranges, strict=True)) if ranges else ((), (), ())
    return {"begin": begin, "end": end, "strides": strides, "shrink_axes": shrink}


def _read_slice(source: Source) -> Attrs:
    shape = source.input(0).shape
    begin = source.integers(1, "begin", len(shape))
    size = source.integers(2, "size", len(shape))
    ends = [dim if length == -1 else first + length for dim, first, length in zip(shape, begin, size, strict=True)]
    return _slice_attrs([(first, last, 1) for first, last in zip(begin, ends, strict=True)], ())


def _strided_slice_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], *(int32(op, what, op.attrs[what]) for what in ("begin", "end", "strides"))]


def _strided_slice_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    # An end of -1 would count from the back: "past the front" has to be said by the mask.
    ends = (axis for axis, end in enumerate(op.attrs["end"]) if end < 0)
    return {
        "EndMask": sum(1 << axis for axis in ends),
        "ShrinkAxisMask": sum(1 << axis for axis in op.attrs["shrink_axes"]),
    }


def _read_resize(source: Source) -> Attrs:
    options = source.options("ResizeNearestNeighborOptions")
    size, shape = source.integers(1, "size", 2), source.output().shape
    if list(shape[1:3]) != size:
        source.corrupt(f"its size is {size}, its output {list(shape)}")
    return {
        "align_corners": bool(options.AlignCorners()),
        "half_pixel_centers": bool(options.HalfPixelCenters()),
    }


def _resize_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "size", graph.tensor(op.outputs[0]).shape[1:3])]


def _resize_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"AlignCorners": op.attrs["align_corners"], "HalfPixelCenters": op.attrs["half_pixel_centers"]}


def _resize_version(graph: Graph, op: Op) -> int:
    return 3 if op.attrs["align_corners"] or op.attrs["half_pixel_centers"] else 2


def _read_arg_max(source: Source) -> Attrs:
    source.options("ArgMaxOptions")
    return {"axis": source.axis(1, len(source.input(0).shape))}


def _arg_max_inputs(graph: Graph, op: Op) -> Inputs:
    return [op.inputs[0], int32(op, "axis", op.attrs["axis"])]


def _arg_max_fields(graph: Graph, op: Op) -> Mapping[str, Any]:
    return {"OutputType": tflite.TensorType.INT32}


CODECS = (
    Codec(
        _BUILTIN.MEAN,
        "mean",
        "ReducerOptions",
        version=2,
        operands=(0,),
        read=_read_mean,
        inputs=_mean_inputs,
        fields=lambda graph, op: {"KeepDims": op.attrs["keep_dims"]},
    ),
    Codec(
        _BUILTIN.PAD,
        "pad",
        "PadOptions",
        version=_pad_version,
        operands=(0,),
        read=_read_pad,
        inputs=_pad_inputs,
        writes=lambda graph, op: op.attrs["value"] is None,
        one_quantisation=True,
        max_rank=5,
    ),
    Codec(
        _BUILTIN.PADV2,
        "pad",
        "PadV2Options",
        version=_pad_version,
        operands=(0,),
        read=_read_pad_v2,
        inputs=_pad_v2_inputs,
        one_quantisation=True,
        max_rank=5,
    ),
    Codec(
        _BUILTIN.RESHAPE,
        "reshape",
        "ReshapeOptions",
        version=1,
        operands=(0,),
        inputs=_reshape_inputs,
        fields=_reshape_fields,
        one_quantisation=True,
    ),
    Codec(_BUILTIN.SQUEEZE, "reshape", "SqueezeOptions", version=1, operands=(0,), writes=never, one_quantisation=True),
    Codec(
        _BUILTIN.EXPAND_DIMS,
        "reshape",
        "ExpandDimsOptions",
        version=1,
        operands=(0,),
        writes=never,
        one_quantisation=True,
    ),
    Codec(
        _BUILTIN.TRANSPOSE,
        "transpose",
        "TransposeOptions",
        version=_transpose_version,
        operands=(0,),
        read=_read_transpose,
        inputs=_transpose_inputs,
        one_quantisation=True,
        max_rank=5,
    ),
    Codec(
        _BUILTIN.CONCATENATION,
        "concatenation",
        "ConcatenationOptions",
        version=2,
        read=_read_concatenation,
        fields=lambda graph, op: {"Axis": op.attrs["axis"]},
        one_quantisation=True,
    ),
    Codec(
        _BUILTIN.SPLIT,
        "split",
        "SplitOptions",
        version=2,
        operands=(1,),
        read=_read_split,
        inputs=_split_inputs,
        fields=_split_fields,
        writes=_is_even,
        one_quantisation=True,
    ),
    Codec(
        _BUILTIN.SPLIT_V,
        "split",
        "SplitVOptions",
        version=2,
        operands=(0,),
        read=_read_split_v,
        inputs=_split_v_inputs,
        fields=_split_fields,
        one_quantisation=True,
    ),
    Codec(
        _BUILTIN.STRIDED_SLICE,
        "strided_slice",
        "StridedSliceOptions",
        version=2,
        operands=(0,),
        read=read_strided_slice,
        inputs=_strided_slice_inputs,
        fields=_strided_slice_fields,
        one_quantisation=True,
        max_rank=4,
    ),
    Codec(
        _BUILTIN.SLICE,
        "strided_slice",
        "SliceOptions",
        version=2,
        operands=(0,),
        read=_read_slice,
        writes=never,
        one_quantisation=True,
        max_rank=4,
    ),
    Codec(
        _BUILTIN.RESIZE_NEAREST_NEIGHBOR,
        "resize_nearest_neighbor",
        "ResizeNearestNeighborOptions",
        version=_resize_version,
        operands=(0,),
        read=_read_resize,
        inputs=_resize_inputs,
        fields=_resize_fields,
        one_quantisation=True,
    ),
    Codec(
        _BUILTIN.ARG_MAX,
        "arg_max",
        "ArgMaxOptions",
        version=2,
        operands=(0,),
        read=_read_arg_max,
        inputs=_arg_max_inputs,
        fields=_arg_max_fields,
        output_types=INT32,
    ),
)
