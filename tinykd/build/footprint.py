"""Measures what the parts of the firmware take, core by core, for the planner: `python -m tinykd.build.footprint`.

It builds one firmware without ops and one for each kernel, and writes the differences to `tinykd/plan/footprint.toml`.
Run it after every change of the firmware, the code generator or the compiler; `tests/toolchain` notices when it is due.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import tinykd
from tinykd.board import Board, load_board
from tinykd.build import BuildResult, build, compiler_version
from tinykd.build.size import Sizes, read_sizes
from tinykd.build.stack import LIBRARY_LEAVES
from tinykd.errors import InternalError
from tinykd.ir import Graph, MemoryPlan, Op, Placement, Quant, Scratch, Tensor, op_label, spatial_paddings, verify
from tinykd.kernels import ARMV7EM, KERNELS, Engine, candidates, scratch_bytes, signature

TABLE = Path(tinykd.__file__).resolve().parent / "plan" / "footprint.toml"
REFERENCE_BOARDS: Mapping[str, str] = MappingProxyType({"cortex-m4": "nucleo-f412", "cortex-m7": "nucleo-f746"})
KERNEL_NAMES = frozenset(row.function for table in (KERNELS, ARMV7EM) for rows in table.values() for row in rows)
# Enough ops of one kind that the cost of one more shows beside alignment.
_MANY = 5


def measure(board: Board, folder: Path) -> dict[str, Any]:
    """Build the sample models for a board below `folder` and return one core's row of the table, sizes in bytes."""
    base, sizes = _build(board, folder / "empty", _chain(0, None), Engine())
    row: dict[str, Any] = {
        "text": sizes.text_bytes,
        "rodata": sizes.rodata_bytes - sizes.model_bytes,
        "model": sizes.model_bytes,
        "data": sizes.data_bytes,
        "bss": sizes.bss_bytes - sizes.arena_bytes,
        "stack": base.stack_bytes_max,
        "text_per_call": _text_per_call(board, folder),
        "kernels": {},
    }
    added: dict[str, dict[str, int]] = {}
    for function, make in sorted(_SAMPLES.items()):
        graph, many = _chain(1, make), _chain(_MANY, make)
        one, one_sizes = _build(board, folder / f"{function}-1", graph, _engine(graph, function))
        _, many_sizes = _build(board, folder / f"{function}-{_MANY}", many, _engine(many, function))
        per_op = round((many_sizes.text_bytes - one_sizes.text_bytes) / (_MANY - 1))
        row["kernels"][function] = {
            "text": one_sizes.text_bytes - sizes.text_bytes - per_op,
            "rodata": one_sizes.rodata_bytes - one_sizes.model_bytes - row["rodata"],
            "text_per_op": per_op,
            "params": one_sizes.objects["tk_model_params_000"],
            "stack": one.stack_bytes_max,
        }
        added[function] = {
            name: -(-size // 4) * 4
            for name, size in one_sizes.functions.items()
            if name not in sizes.functions and name != function and not name.startswith("tk_op_")
        }
    users = Counter(name for functions in added.values() for name in functions)
    for function, functions in added.items():
        # What only one kernel calls is part of it.
        added[function] = {
            name: size
            for name, size in functions.items()
            if users[name] > 1 or name in KERNEL_NAMES or name in LIBRARY_LEAVES
        }
    row["shared"] = {name: size for functions in added.values() for name, size in sorted(functions.items())}
    for function, names in added.items():
        row["kernels"][function]["text"] -= sum(names.values())
        row["kernels"][function]["shares"] = sorted(names)
    return row


def render(rows: Mapping[str, Mapping[str, Any]], compiler: str) -> str:
    """Return the table as TOML."""
    lines = [
        "# What the parts of the firmware take, in bytes. Written by `python -m tinykd.build.footprint`; do not edit.",
        "# text, rodata, model (its constants), data, bss (without the arena), stack: of a firmware without ops.",
        "# text_per_call: code of one more call of a kernel by the same op.",
        "# kernels: code and constants of each, once; code per op; size of an op's parameter block; the proven",
        "# stack of a firmware with such ops; which of the shared functions, counted once, it calls.",
        "",
        f'compiler = "{compiler}"',
        f'tinykd = "{tinykd.__version__}"',
    ]
    for core, row in sorted(rows.items()):
        lines += ["", f"[{core}]"]
        lines += [f"{key} = {value}" for key, value in row.items() if not isinstance(value, dict)]
        lines += ["", f"[{core}.shared]"]
        # A static function that the compiler has changed has a dot in its name.
        lines += [f'"{name}" = {size}' for name, size in sorted(row["shared"].items())]
        lines += ["", f"[{core}.kernels]"]
        lines += [
            f"{name} = {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in facts.items())} }}"
            for name, facts in row["kernels"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure every core and rewrite the table."""
    if set(_SAMPLES) != KERNEL_NAMES:
        sys.stderr.write(f"sample models are missing or superfluous: {sorted(KERNEL_NAMES ^ set(_SAMPLES))}\n")
        return 1
    rows = {}
    with tempfile.TemporaryDirectory(prefix="tinykd-footprint-") as temporary:
        for core, name in REFERENCE_BOARDS.items():
            rows[core] = measure(load_board(name), Path(temporary) / core)
    TABLE.write_text(render(rows, compiler_version()))
    sys.stdout.write(f"wrote {TABLE}\n")
    return 0


def _engine(graph: Graph, function: str) -> Engine:
    """Return an engine that runs every op of the graph with one kernel."""
    for isa in ("armv7em", "portable"):
        choices = {
            signature(graph, op): row.variant
            for op in graph.ops
            for row in candidates(graph, op, Engine(isa))
            if row.function == function
        }
        engine = Engine(isa, choices=choices)
        if all(candidates(graph, op, engine)[0].function == function for op in graph.ops):
            return engine
    raise InternalError(f"the sample model for {function} cannot be run by it: {op_label(0, graph.ops[0])}")


def _build(board: Board, folder: Path, graph: Graph, engine: Engine) -> tuple[BuildResult, Sizes]:
    placements, offset = [], 0
    for tensor in graph.tensors.values():
        if not tensor.is_constant:
            placements.append(Placement(tensor.name, offset, tensor.num_bytes, -1, len(graph.ops)))
            offset += (tensor.num_bytes + 3) // 4 * 4
    scratch = []
    for op, size in scratch_bytes(graph, engine).items():
        scratch.append(Scratch(op, offset, size))
        offset += (size + 3) // 4 * 4
    plan = MemoryPlan(tuple(placements), offset, offset, 4, 0, tuple(scratch))
    objects = folder.parent / "objects"
    result = build(
        graph,
        plan,
        board,
        folder,
        model_sha256="00" * 32,
        builder="gcc",
        kernels=engine,
        shared_objects=objects,
    )
    return result, read_sizes(result.elf)


def _text_per_call(board: Board, folder: Path) -> int:
    """Measure what a join of `_MANY` more parts takes."""
    sizes = {}
    for parts in (2, 2 + _MANY):

        def join(x: str, tensors: dict[str, Tensor], parts: int = parts) -> tuple[str, tuple[str, ...], dict[str, Any]]:
            return "concatenation", (x,) * parts, {"axis": 3, "shape": (1, 8, 8, 8 * parts)}

        sizes[parts] = _build(board, folder / f"join-{parts}", _chain(1, join), Engine())[1].text_bytes
    return round((sizes[2 + _MANY] - sizes[2]) / _MANY)


_Sample = Callable[[str, dict[str, Tensor]], tuple[str, tuple[str, ...], dict[str, Any]]]
_QUANT = Quant.per_tensor(0.05, 3)
_QUANT_0 = Quant.per_tensor(0.05, 0)
_SHAPE = (1, 8, 8, 8)


def _chain(count: int, make: _Sample | None) -> Graph:
    """Return a model of `count` equal ops in a row; every activation is (1, 8, 8, 8), around an SVDF (1, 8)."""
    tensors = {"x0": Tensor("x0", (1, 8) if make is _svdf else _SHAPE, "int8", _QUANT)}
    ops = []
    for index in range(count):
        assert make is not None
        kind, inputs, attrs = make(f"x{index}", tensors)
        name = f"x{index + 1}"
        quant = Quant.per_tensor(1 / 256, -128) if kind == "softmax" else _QUANT
        shape = tuple(attrs.pop("shape", _SHAPE))
        tensors[name] = Tensor(name, shape, "int32" if kind == "arg_max" else "int8", quant)
        ops.append(Op(kind, inputs, (name,), attrs))
    return verify(Graph("sample", tensors, tuple(ops), ("x0",), (f"x{count}",)))


def _constants(tensors: dict[str, Tensor], shape: tuple[int, ...], channels: int, axis: int) -> tuple[str, str]:
    index = len(tensors)
    quant = Quant((0.01,) * channels, (0,) * channels, axis)
    tensors[f"w{index}"] = Tensor(f"w{index}", shape, "int8", quant, np.ones(shape, np.int8))
    bias_quant = Quant((0.0005,) * channels, (0,) * channels, 0)
    data = np.zeros(channels, np.int32)
    tensors[f"b{index}"] = Tensor(f"b{index}", (channels,), "int32", bias_quant, data)
    return f"w{index}", f"b{index}"


def _conv(kind: str, weights_shape: tuple[int, ...], axis: int, padding: tuple[int, int, int, int]) -> _Sample:
    def make(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        constants = _constants(tensors, weights_shape, weights_shape[axis], axis)
        attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": padding, "activation": "none"}
        return kind, (x, *constants), attrs

    return make


def _multiplied(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """A depthwise convolution with multiplier 2; the next one in the chain has twice the channels."""
    channels = 2 * tensors[x].shape[3]
    constants = _constants(tensors, (1, 1, 1, channels), channels, 3)
    attrs = {
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding": (0, 0, 0, 0),
        "activation": "none",
        "shape": (1, 8, 8, channels),
    }
    return "depthwise_conv_2d", (x, *constants), attrs


def _dense(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    constants = _constants(tensors, (8, tensors[x].num_elements), 8, 0)
    return "fully_connected", (x, *constants), {"activation": "none", "shape": (1, 8)}


def _add(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "add", (x, x), {"activation": "none"}


def _with_row(kind: str, **attrs: Any) -> _Sample:
    """A binary op whose second operand is a constant row, one value a channel."""

    def make(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        name = f"r{len(tensors)}"
        tensors[name] = Tensor(name, (8,), "int8", _QUANT, np.arange(8, dtype=np.int8))
        return kind, (x, name), dict(attrs)

    return make


def _of_input(kind: str, **attrs: Any) -> _Sample:
    """A unary op of the model's input, so that many of them are alike whatever their output is."""

    def make(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        return kind, ("x0",), dict(attrs)

    return make


def _transpose_conv(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    constants = _constants(tensors, (8, 3, 3, 8), 8, 0)
    return "transpose_conv", (x, *constants), {"stride": (1, 1), "padding": (1, 1, 1, 1), "activation": "none"}


def _svdf(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """An SVDF of 8 units over the last one's outputs, or over a row of the input."""
    index, width = len(tensors), tensors[x].shape[-1]
    names = tuple(f"{part}{index}" for part in ("feature", "time", "bias", "state"))
    tensors[names[0]] = Tensor(names[0], (8, width), "int8", _QUANT_0, np.ones((8, width), np.int8))
    tensors[names[1]] = Tensor(names[1], (8, 4), "int16", _QUANT_0, np.ones((8, 4), np.int16))
    tensors[names[2]] = Tensor(names[2], (8,), "int32", _QUANT_0, np.zeros(8, np.int32))
    tensors[names[3]] = Tensor(names[3], (1, 32), "int16", _QUANT_0, variable=True)
    return "svdf", (x, *names), {"rank": 1, "activation": "relu", "shape": (1, 8)}


def _depthwise(kernel: int, stride: int = 1) -> _Sample:
    """A depthwise convolution of the model's input with SAME padding."""

    def make(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        constants = _constants(tensors, (1, kernel, kernel, 8), 8, 3)
        size = -(-8 // stride)
        total = max((size - 1) * stride + kernel - 8, 0)
        before, after = total // 2, total - total // 2
        attrs = {
            "stride": (stride, stride),
            "dilation": (1, 1),
            "padding": (before, after, before, after),
            "activation": "none",
            "shape": (1, size, size, 8),
        }
        return "depthwise_conv_2d", ("x0", *constants), attrs

    return make


def _pool(kind: str) -> _Sample:
    def make(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        return kind, (x,), {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "activation": "none"}

    return make


def _mean(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "mean", (x,), {"axes": (1, 2), "keep_dims": True, "shape": (1, 1, 1, 8)}


def _pad(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "pad", (x,), {"paddings": spatial_paddings((0, 0, 0, 0)), "value": None, "shape": tensors[x].shape}


def _softmax(x: str, tensors: dict[str, Tensor]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "softmax", (x,), {"beta": 16.0}


_SAMPLES: Mapping[str, _Sample] = MappingProxyType(
    {
        "tk_conv_2d": _conv("conv_2d", (8, 3, 3, 8), 0, (1, 1, 1, 1)),
        "tk_conv_2d_1x1": _conv("conv_2d", (8, 1, 1, 8), 0, (0, 0, 0, 0)),
        "tk_depthwise_conv_2d": _multiplied,
        "tk_depthwise_conv_2d_m1": _conv("depthwise_conv_2d", (1, 3, 3, 8), 3, (1, 1, 1, 1)),
        "tk_fully_connected": _dense,
        "tk_add": _add,
        "tk_average_pool_2d": _pool("average_pool_2d"),
        "tk_max_pool_2d": _pool("max_pool_2d"),
        "tk_mean": _mean,
        "tk_pad": _pad,
        "tk_softmax": _softmax,
        "tk_add_broadcast": _with_row("add", activation="none"),
        "tk_sub": _with_row("sub", activation="none"),
        "tk_mul": _with_row("mul", activation="none"),
        "tk_maximum": _with_row("maximum"),
        "tk_minimum": _with_row("minimum"),
        "tk_prelu": _with_row("prelu"),
        "tk_lookup": _of_input("relu6"),
        "tk_copy": _of_input("transpose", perm=(0, 2, 1, 3)),
        "tk_pad_nd": _of_input("pad", paddings=((0, 0), (0, 0), (0, 0), (0, 0)), value=5),
        "tk_resize_nearest": _of_input("resize_nearest_neighbor", align_corners=False, half_pixel_centers=False),
        "tk_transpose_conv": _transpose_conv,
        "tk_mean_axes": _of_input("mean", axes=(3,), keep_dims=True, shape=(1, 8, 8, 1)),
        "tk_arg_max": _of_input("arg_max", axis=3, shape=(1, 8, 8)),
        "tk_svdf": _svdf,
        "tk_pointwise_widened": _conv("conv_2d", (8, 1, 1, 8), 0, (0, 0, 0, 0)),
        "tk_pointwise_packed": _conv("conv_2d", (8, 1, 1, 8), 0, (0, 0, 0, 0)),
        "tk_convolution_widened": _conv("conv_2d", (8, 3, 3, 8), 0, (1, 1, 1, 1)),
        "tk_convolution_packed": _conv("conv_2d", (8, 3, 3, 8), 0, (1, 1, 1, 1)),
        "tk_convolution_winograd": _conv("conv_2d", (8, 3, 3, 8), 0, (1, 1, 1, 1)),
        "tk_fully_connected_widened": _dense,
        "tk_fully_connected_packed": _dense,
        "tk_depthwise_3x3": _depthwise(3),
        "tk_depthwise_3x3_s2": _depthwise(3, 2),
        "tk_depthwise_5x5": _depthwise(5),
        "tk_depthwise_5x5_s2": _depthwise(5, 2),
        "tk_depthwise_7x7": _depthwise(7),
        "tk_depthwise_7x7_s2": _depthwise(7, 2),
        "tk_depthwise_any": _depthwise(2),
        "tk_add_affine": _add,
        "tk_mul_dsp": _with_row("mul", activation="none"),
        "tk_lookup_dsp": _of_input("relu6"),
        "tk_average_pool_2d_dsp": _pool("average_pool_2d"),
        "tk_max_pool_2d_dsp": _pool("max_pool_2d"),
        "tk_mean_dsp": _of_input("mean", axes=(1, 2), keep_dims=True, shape=(1, 1, 1, 8)),
    }
)


if __name__ == "__main__":
    sys.exit(main())
