"""Measures what the parts of the firmware take, core by core, for the planner: `python -m tinykd.build.footprint`.

It builds one firmware without ops and one for each kernel, and writes the differences to `tinykd/plan/footprint.toml`.
Run it after every change of the firmware, the code generator or the compiler; `tests/toolchain` notices when it is due.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import tinykd
from tinykd.board import Board, load_board
from tinykd.build import BuildResult, build, compiler_version
from tinykd.build.size import Sizes, read_sizes
from tinykd.ir import Graph, MemoryPlan, Op, Placement, Quant, Tensor, spatial_paddings, verify
from tinykd.kernels import KERNELS

TABLE = Path(tinykd.__file__).resolve().parent / "plan" / "footprint.toml"
REFERENCE_BOARDS: Mapping[str, str] = MappingProxyType({"cortex-m4": "nucleo-f412", "cortex-m7": "nucleo-f746"})
# Enough ops of one kind that the cost of one more shows beside alignment.
_MANY = 5


def measure(board: Board, folder: Path) -> dict[str, Any]:
    """Build the sample models for a board below `folder` and return one core's row of the table, sizes in bytes."""
    base, sizes = _build(board, folder / "empty", _chain(0, None))
    row: dict[str, Any] = {
        "text": sizes.text_bytes,
        "rodata": sizes.rodata_bytes - sizes.model_bytes,
        "model": sizes.model_bytes,
        "data": sizes.data_bytes,
        "bss": sizes.bss_bytes - sizes.arena_bytes,
        "stack": base.stack_bytes_max,
        "kernels": {},
    }
    for function, make in sorted(_SAMPLES.items()):
        one, one_sizes = _build(board, folder / f"{function}-1", _chain(1, make))
        _, many_sizes = _build(board, folder / f"{function}-{_MANY}", _chain(_MANY, make))
        per_op = round((many_sizes.text_bytes - one_sizes.text_bytes) / (_MANY - 1))
        row["kernels"][function] = {
            "text": one_sizes.text_bytes - sizes.text_bytes - per_op,
            "rodata": one_sizes.rodata_bytes - one_sizes.model_bytes - row["rodata"],
            "text_per_op": per_op,
            "params": one_sizes.objects["tk_model_params_000"],
            "stack": one.stack_bytes_max,
        }
    return row


def render(rows: Mapping[str, Mapping[str, Any]], compiler: str) -> str:
    """Return the table as TOML."""
    lines = [
        "# What the parts of the firmware take, in bytes. Written by `python -m tinykd.build.footprint`; do not edit.",
        "# text, rodata, model (its constants), data, bss (without the arena), stack: of a firmware without ops.",
        "# kernels: code and constants of each, once; code per op; size of an op's parameter block; the proven",
        "# stack of a firmware with such ops.",
        "",
        f'compiler = "{compiler}"',
        f'tinykd = "{tinykd.__version__}"',
    ]
    for core, row in sorted(rows.items()):
        lines += ["", f"[{core}]"]
        lines += [f"{key} = {value}" for key, value in row.items() if key != "kernels"]
        lines += ["", f"[{core}.kernels]"]
        lines += [
            f"{name} = {{ {', '.join(f'{key} = {value}' for key, value in facts.items())} }}"
            for name, facts in row["kernels"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure every core and rewrite the table."""
    known = {kernel.function for kernels in KERNELS.values() for kernel in kernels}
    if known != set(_SAMPLES):
        sys.stderr.write(f"sample models are missing or superfluous: {sorted(known ^ set(_SAMPLES))}\n")
        return 1
    rows = {}
    with tempfile.TemporaryDirectory(prefix="tinykd-footprint-") as temporary:
        for core, name in REFERENCE_BOARDS.items():
            rows[core] = measure(load_board(name), Path(temporary) / core)
    TABLE.write_text(render(rows, compiler_version()))
    sys.stdout.write(f"wrote {TABLE}\n")
    return 0


def _build(board: Board, folder: Path, graph: Graph) -> tuple[BuildResult, Sizes]:
    placements, offset = [], 0
    for tensor in graph.tensors.values():
        if not tensor.is_constant:
            placements.append(Placement(tensor.name, offset, tensor.num_bytes, -1, len(graph.ops)))
            offset += (tensor.num_bytes + 3) // 4 * 4
    plan = MemoryPlan(tuple(placements), offset, offset, 4, 0)
    result = build(graph, plan, board, folder, model_sha256="00" * 32, builder="gcc")
    return result, read_sizes(result.elf)


_Sample = Callable[[str, dict[str, Tensor]], tuple[str, tuple[str, ...], dict[str, Any]]]
_QUANT = Quant.per_tensor(0.05, 3)
_SHAPE = (1, 8, 8, 8)


def _chain(count: int, make: _Sample | None) -> Graph:
    """Return a model of `count` equal ops in a row; every activation is (1, 8, 8, 8)."""
    tensors = {"x0": Tensor("x0", _SHAPE, "int8", _QUANT)}
    ops = []
    for index in range(count):
        assert make is not None
        kind, inputs, attrs = make(f"x{index}", tensors)
        name = f"x{index + 1}"
        quant = Quant.per_tensor(1 / 256, -128) if kind == "softmax" else _QUANT
        shape = tuple(attrs.pop("shape", _SHAPE))
        tensors[name] = Tensor(name, shape, "int8", quant)
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
    }
)


if __name__ == "__main__":
    sys.exit(main())
