"""What a graph's ops cost and say, one row each: shapes, scales, MACs, bytes. For tables, JSON and the drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinykd.ir import Graph, Op, Tensor, op_macs


@dataclass(frozen=True)
class Value:
    """An activation at an op's edge: `scale` and `zero_point` are None for values that are not quantised."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    scale: float | None
    zero_point: int | None

    def shape_text(self) -> str:
        """Return the shape without the batch axis, for people: "24×24×16"."""
        return "×".join(map(str, self.shape[1:])) or "scalar"

    def quant_text(self) -> str:
        """Return scale and zero point, or the type of what is not quantised."""
        return self.dtype if self.scale is None else f"{self.scale:.4g} {self.zero_point:+d}"


@dataclass(frozen=True)
class OpRow:
    """One op.

    Attributes:
        op: its index.
        kind, source: what it is and where it came from.
        inputs, outputs: its activations; constants are counted in `weight_bytes`.
        activation: fused activation, "" for ops without one.
        detail: kernel, stride and the like, short.
        macs: multiply-accumulates.
        parameters: constants that training found (weights, biases), in elements.
        weight_bytes: bytes of its constants; one that several ops share counts for the first.
        live_bytes: arena bytes that are in use while it runs; None for an op that does not run, or was not planned.
        kernel: the C function that runs it on the board in question; None without a board, and where none runs.
    """

    op: int
    kind: str
    source: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    activation: str
    detail: str
    macs: int
    parameters: int
    weight_bytes: int
    live_bytes: int | None
    kernel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self)


def value_of(tensor: Tensor) -> Value:
    """Return what the table says about an activation."""
    quant = tensor.quant if tensor.dtype != "float32" else None
    return Value(
        tensor.name,
        tensor.shape,
        tensor.dtype,
        tensor.num_bytes,
        None if quant is None else quant.scale,
        None if quant is None else quant.zero_point,
    )


def rows(
    graph: Graph, live_bytes: Sequence[int | None] | None = None, kernels: Sequence[str | None] | None = None
) -> list[OpRow]:
    """Return a row for each op; `live_bytes` are the arena bytes in use during each, `kernels` what runs it."""
    seen: set[str] = set()
    result = []
    for index, op in enumerate(graph.ops):
        constants = [graph.tensor(name) for name in dict.fromkeys(op.inputs) if name and graph.tensor(name).is_constant]
        fresh = [tensor for tensor in constants if tensor.name not in seen]
        seen |= {tensor.name for tensor in fresh}
        activation = op.attrs.get("activation", "")
        result.append(
            OpRow(
                index,
                op.kind,
                op.source,
                tuple(
                    value_of(graph.tensor(name)) for name in op.inputs if name and not graph.tensor(name).is_constant
                ),
                tuple(value_of(graph.tensor(name)) for name in op.outputs),
                "" if activation == "none" else activation,
                detail(graph, op),
                op_macs(graph, op),
                sum(tensor.num_elements for tensor in fresh),
                sum(tensor.num_bytes for tensor in fresh),
                None if live_bytes is None else live_bytes[index],
                None if kernels is None else kernels[index],
            )
        )
    return result


def detail(graph: Graph, op: Op) -> str:
    """Return an op's own parameters in a few characters, for example "3×3 /2 pad"."""
    parts = []
    kernel = op.attrs.get("kernel")
    if kernel is None and op.kind in ("conv_2d", "depthwise_conv_2d", "transpose_conv"):
        kernel = graph.tensor(op.inputs[1]).shape[1:3]
    if kernel is not None:
        parts.append(f"{kernel[0]}×{kernel[1]}")
    stride = op.attrs.get("stride")
    if stride is not None and tuple(stride) != (1, 1):
        parts.append(f"/{stride[0]}" if stride[0] == stride[1] else f"/{stride[0]},{stride[1]}")
    dilation = op.attrs.get("dilation")
    if dilation is not None and tuple(dilation) != (1, 1):
        parts.append(f"dilation {dilation[0]},{dilation[1]}")
    padding = op.attrs.get("padding", ())
    if any(padding):
        parts.append("pad " + (str(padding[0]) if len(set(padding)) == 1 else ",".join(map(str, padding))))
    for key in ("perm", "axis", "axes", "paddings", "begin", "end", "strides", "beta", "alpha", "rank", "value"):
        value = op.attrs.get(key)
        if value is not None and not (key == "beta" and value == 1):
            parts.append(f"{key} {_plain(value)}")
    return " ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(_plain(item) for item in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def totals(graph: Graph, table: Sequence[OpRow]) -> dict[str, int]:
    """Return the sums of a table: ops, MACs, parameters, bytes of constants."""
    return {
        "num_ops": len(table),
        "macs": sum(row.macs for row in table),
        "parameters": sum(row.parameters for row in table),
        "weight_bytes": sum(row.weight_bytes for row in table),
        "input_bytes": sum(graph.tensor(name).num_bytes for name in graph.inputs),
        "output_bytes": sum(graph.tensor(name).num_bytes for name in graph.outputs),
    }
