"""What the choice of a kernel depends on beside the op: the core's instructions, and what speed may cost in flash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from tinykd.ir import Graph, Op
from tinykd.kernels.tuning import measured_choices

Isa = Literal["portable", "armv7em"]
OptimizeFor = Literal["speed", "balanced", "size"]

CYCLES_PER_BYTE: Mapping[str, float] = MappingProxyType({"speed": 1e-6, "balanced": 16.0, "size": 1e9})
"""How many cycles of an inference one byte of constants is worth to each goal."""

_ISAS: Mapping[str, Isa] = MappingProxyType({"cortex-m4": "armv7em", "cortex-m7": "armv7em"})


@dataclass(frozen=True)
class Engine:
    """How the code of a model is made.

    Attributes:
        isa: "armv7em": Cortex-M4 and Cortex-M7 with the DSP extension; "portable": C for every core, and for the host.
        optimize_for: what a choice between kernels of equal results goes by.
        choices: variants that a measurement found best: `signature` of an op -> `Kernel.variant`. Others are estimated.
    """

    isa: Isa = "portable"
    optimize_for: OptimizeFor = "balanced"
    choices: Mapping[str, str] = field(default_factory=dict)


PORTABLE = Engine()


def engine_for(core: str, optimize_for: OptimizeFor = "balanced") -> Engine:
    """Return the engine for a core ("cortex-m7"), with what `tinykd tune` measured for its kernels."""
    isa = _ISAS.get(core, "portable")
    return Engine(isa, optimize_for, {} if isa == "portable" else measured_choices(optimize_for))


def signature(graph: Graph, op: Op) -> str:
    """Return what the costs of an op's kernels depend on: kind, sizes, stride, padding."""
    shapes = ["x".join(map(str, graph.tensor(name).shape)) for name in (*op.inputs[:2], *op.outputs[:1]) if name]
    window = [f"{key}{'x'.join(map(str, op.attrs[key]))}" for key in ("kernel", "stride", "padding") if key in op.attrs]
    return " ".join([op.kind, *shapes, *window])
