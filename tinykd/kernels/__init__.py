"""Which C kernel runs which op, and the constants that it is given. One row per kernel, the faster ones first.

`KERNELS` are portable C; `ARMV7EM` are those for cores with the DSP extension, which fall back on the portable ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from tinykd.errors import InternalError, UnsupportedModelError
from tinykd.ir import Graph, MemoryPlan, Op, op_label
from tinykd.kernels import dense, elementwise, reduce, resize, windows
from tinykd.kernels.armv7em import ARMV7EM
from tinykd.kernels.call import SCRATCH, Argument, Call, Cost, Kernel, always
from tinykd.kernels.engine import CYCLES_PER_BYTE, PORTABLE, Engine, OptimizeFor, engine_for, signature
from tinykd.kernels.moves import MOVING, Move, copy_calls, moves

__all__ = [
    "ARMV7EM",
    "KERNELS",
    "PORTABLE",
    "SCRATCH",
    "Argument",
    "Call",
    "Cost",
    "Engine",
    "Kernel",
    "Move",
    "OptimizeFor",
    "candidates",
    "engine_for",
    "moves",
    "planned_calls",
    "scratch_bytes",
    "select",
    "signature",
    "unique_arrays",
]

_FLOAT_EDGES = ("quantize", "dequantize")


def candidates(graph: Graph, op: Op, engine: Engine) -> tuple[Kernel, ...]:
    """Return the kernels that can run an op, the engine's choice first; none when nothing can."""
    portable = tuple(kernel for kernel in KERNELS.get(op.kind, ()) if kernel.applies(graph, op))
    if engine.isa == "portable":
        return portable
    found = [kernel for kernel in ARMV7EM.get(op.kind, ()) if kernel.applies(graph, op)]
    if len(found) > 1:
        wanted = engine.choices.get(signature(graph, op))
        price = CYCLES_PER_BYTE[engine.optimize_for]

        def rank(kernel: Kernel) -> tuple[bool, float]:
            assert kernel.cost is not None, f"{kernel.function} has no cost to choose by"
            cost = kernel.cost(graph, op)
            return kernel.variant != wanted, cost.cycles + price * cost.constant_bytes

        found.sort(key=rank)
    return (*found, *portable)


def select(graph: Graph, op: Op, where: str, engine: Engine = PORTABLE) -> tuple[Call, ...]:
    """Return the calls that carry out an op, in order, of the kernel that the engine prefers.

    Args:
        where: how errors name the op.
        engine: what the choice goes by.

    Raises:
        UnsupportedModelError: no kernel can, or a constant leaves the range that the kernels are proven for.
    """
    dtypes = {graph.tensor(name).dtype for name in (*op.inputs[:1], *op.outputs[:1])}
    if op.kind in _FLOAT_EDGES and dtypes != {"int8"}:
        raise UnsupportedModelError(
            f"{where}: converts {graph.tensor(op.inputs[0]).dtype} to {graph.tensor(op.outputs[0]).dtype}, which the "
            "host does, not the firmware",
            "tinykd optimize moves float edges to the host.",
        )
    found = candidates(graph, op, engine)
    if found:
        return found[0].calls(graph, op, where)
    raise UnsupportedModelError(
        f"{where}: the firmware has no kernel for it", f"Kernels exist for: {', '.join(sorted(KERNELS))}."
    )


def scratch_bytes(graph: Graph, engine: Engine) -> dict[int, int]:
    """Return the scratch memory of each op that needs some, by its index; an op that nothing can run needs none."""
    needed = {}
    for index, op in enumerate(graph.ops if engine.isa != "portable" else ()):
        try:
            size = max((call.scratch_bytes for call in select(graph, op, op_label(index, op), engine)), default=0)
        except UnsupportedModelError:
            continue
        if size:
            needed[index] = size
    return needed


def planned_calls(graph: Graph, plan: MemoryPlan, engine: Engine = PORTABLE) -> list[tuple[Call, ...]]:
    """Return for each op of the graph the calls that are left once everything lies where the plan says.

    A block of bytes that goes to where it already is needs no call; an op without calls costs nothing on the device.

    Raises:
        UnsupportedModelError: see `select`.
        InternalError: the plan was made for another engine: an op's scratch memory is too small.
    """
    planned = {item.op: item.num_bytes for item in plan.scratch}

    def stays(call: Call) -> bool:
        if not call.is_move:
            return False
        source, target = call.arguments[:2]
        if graph.tensor(source.tensor).is_constant:
            return False
        return plan.offset(source.tensor) + source.offset == plan.offset(target.tensor) + target.offset

    rows = []
    for index, op in enumerate(graph.ops):
        calls = select(graph, op, op_label(index, op), engine)
        needed = max((call.scratch_bytes for call in calls), default=0)
        if needed > planned.get(index, 0):
            raise InternalError(
                f"plan of '{graph.name}': {op_label(index, op)} needs {needed} B of scratch memory, the plan has "
                f"{planned.get(index, 0)} B: it was made for another engine"
            )
        rows.append(tuple(call for call in calls if not stays(call)))
    return rows


def unique_arrays(named: Iterable[tuple[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays that differ, by the first name of each, and under which of these names each one stands."""
    arrays: dict[str, np.ndarray] = {}
    by_content: dict[tuple[str, bytes], str] = {}
    names: dict[str, str] = {}
    for name, array in named:
        first = by_content.setdefault((array.dtype.name, array.tobytes()), name)
        names[name] = first
        arrays.setdefault(first, array)
    return arrays, names


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "conv_2d": (
            Kernel("tk_conv_2d_1x1", windows.is_pointwise, windows.conv("tk_conv_2d_1x1", 0)),
            Kernel("tk_conv_2d", always, windows.conv("tk_conv_2d", 0)),
        ),
        "depthwise_conv_2d": (
            Kernel("tk_depthwise_conv_2d_m1", windows.has_multiplier_one, windows.conv("tk_depthwise_conv_2d_m1", 3)),
            Kernel("tk_depthwise_conv_2d", always, windows.conv("tk_depthwise_conv_2d", 3)),
        ),
        "transpose_conv": (Kernel("tk_transpose_conv", always, windows.transpose_conv),),
        "fully_connected": (
            Kernel("tk_fully_connected", dense.has_one_row, dense.fully_connected),
            Kernel("tk_conv_2d_1x1", always, dense.rows),
        ),
        "svdf": (Kernel("tk_svdf", always, dense.svdf),),
        "add": (
            Kernel("tk_add", elementwise.has_equal_shapes, elementwise.add),
            Kernel("tk_add_broadcast", always, elementwise.add_or_sub("tk_add_broadcast")),
        ),
        "sub": (Kernel("tk_sub", always, elementwise.add_or_sub("tk_sub")),),
        "mul": (Kernel("tk_mul", always, elementwise.mul),),
        "maximum": (Kernel("tk_maximum", always, elementwise.extreme("tk_maximum")),),
        "minimum": (Kernel("tk_minimum", always, elementwise.extreme("tk_minimum")),),
        "prelu": (Kernel("tk_prelu", always, elementwise.prelu),),
        **{
            kind: (Kernel("tk_lookup", always, elementwise.lookup),)
            for kind in ("logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "quantize")
        },
        "average_pool_2d": (Kernel("tk_average_pool_2d", always, windows.pool("tk_average_pool_2d")),),
        "max_pool_2d": (Kernel("tk_max_pool_2d", always, windows.pool("tk_max_pool_2d")),),
        "mean": (
            Kernel("tk_mean", reduce.averages_rows, reduce.mean),
            Kernel("tk_mean_axes", always, reduce.mean_axes),
        ),
        "pad": (
            Kernel("tk_pad", windows.pads_map, windows.pad),
            Kernel("tk_pad_nd", always, windows.pad_nd),
        ),
        **{kind: (Kernel("tk_copy", always, copy_calls),) for kind in MOVING},
        "resize_nearest_neighbor": (Kernel("tk_resize_nearest", always, resize.resize_nearest),),
        "softmax": (Kernel("tk_softmax", always, reduce.softmax),),
        "arg_max": (Kernel("tk_arg_max", always, reduce.arg_max),),
    }
)
