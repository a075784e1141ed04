"""Compares the NumPy reference with TFLite Micro, activation by activation, and names the first difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinykd.export import reference
from tinykd.export.oracle import Oracle
from tinykd.formats import tflite, tflite_writer
from tinykd.ir import Graph

ORACLE_NAME = "tflite-micro"


@dataclass(frozen=True)
class Mismatch:
    """The first element that differs: where it is, and both values."""

    op: int
    kind: str
    source: str
    tensor: str
    sample: int
    index: tuple[int, ...]
    reference: int
    oracle: int

    def describe(self) -> str:
        """Return one sentence for people."""
        return (
            f"op {self.op} ({self.kind}, {self.source}), sample {self.sample}, element {list(self.index)}: "
            f"reference {self.reference}, {ORACLE_NAME} {self.oracle}"
        )


@dataclass(frozen=True)
class Parity:
    """What was compared, and what differed."""

    samples: int
    ops_checked: int
    values_checked: int
    mismatches: int
    first_mismatch: Mismatch | None

    def to_dict(self) -> dict[str, Any]:
        """Return the `verify` JSON object."""
        return {"oracle": ORACLE_NAME, **asdict(self)}


def compare(graph: Graph, model: bytes, x: np.ndarray) -> Parity:
    """Compare every activation of an int8 graph with TFLite Micro's, and the outputs of the very file.

    Args:
        graph: the graph that `model` holds.
        model: the `.tflite`; its output is compared as it is. For the activations between, the graph is written
            again without its memory plan, since preserved tensors need an arena of their own.
        x: int8 inputs (N, ...).

    Raises:
        ToolchainError: the oracle is not installed.
    """
    plain = tflite_writer.write(graph)
    names = list(tflite.read_bytes(plain, graph.name).tensors)
    keeper, original = Oracle(plain, keep_all=True), Oracle(model)
    values = mismatches = 0
    first: Mismatch | None = None
    for sample, inputs in enumerate(x):
        ours = reference.run(graph, inputs[None], keep_all=True)
        keeper.invoke(inputs)
        final = original.invoke(inputs)
        for number, op in enumerate(graph.ops):
            name = op.outputs[0]
            mine = ours[name]
            pairs = [keeper.tensor(names.index(name))]
            if name == graph.outputs[0]:
                pairs.append(final)
            for theirs in pairs:
                theirs = theirs.reshape(mine.shape)
                values += mine.size
                wrong = np.argwhere(mine != theirs)
                mismatches += len(wrong)
                if len(wrong) and first is None:
                    at = tuple(int(i) for i in wrong[0])
                    first = Mismatch(number, op.kind, op.source, name, sample, at[1:], int(mine[at]), int(theirs[at]))
    return Parity(len(x), len(graph.ops), values, mismatches, first)


def test_inputs(graph: Graph, count: int, seed: int) -> np.ndarray:
    """Return int8 inputs (count, ...): all -128, all 127, a checkerboard, then seeded uniform noise."""
    shape = graph.tensor(graph.inputs[0]).shape[1:]
    noise = np.random.default_rng(seed).integers(-128, 128, (count, *shape)).astype(np.int8)
    flat = noise.reshape(count, -1)
    extremes = [
        np.full(flat.shape[1], -128),
        np.full(flat.shape[1], 127),
        np.where(np.arange(flat.shape[1]) % 2, 127, -128),
    ]
    for row, extreme in zip(flat, extremes, strict=False):
        row[:] = extreme
    return noise
