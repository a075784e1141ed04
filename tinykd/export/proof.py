"""Proves that two `.tflite` files compute the same: both run on inputs that are chosen to tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.export import oracle, parity, reference
from tinykd.formats import tflite
from tinykd.ir import Graph

ORACLE_NAME, REFERENCE_NAME = "tflite-micro", "numpy-reference"
Inputs = dict[str, np.ndarray]
# All lowest, all highest, a checkerboard.
_PLAIN_EXTREMES = 3
_Run = Callable[[Inputs], list[np.ndarray]]


@dataclass(frozen=True)
class Proof:
    """What was compared, and what differed.

    Attributes:
        oracle: who computed both sides: "tflite-micro", or "numpy-reference" where that is not installed or refuses
            the original.
        samples, values: inputs that both were given, output values compared.
        mismatches: values that differ.
        first_mismatch: one sentence about the first of them, or None.
    """

    oracle: str
    samples: int
    values: int
    mismatches: int
    first_mismatch: str | None


def prove(original: bytes, changed: bytes, inputs: Inputs) -> Proof:
    """Run two `.tflite` files with the same edges on the same inputs, and compare every output value.

    Samples follow one another without a reset: state that a model keeps between inferences is part of what is compared.

    Args:
        inputs: input name -> (N, *shape without the batch).

    Raises:
        UnsupportedModelError: TFLite Micro takes the original but refuses the changed file.
    """
    name, runs = ORACLE_NAME, _oracle_runs(original, changed)
    if runs is None:
        name, runs = REFERENCE_NAME, [_reference_run(model) for model in (original, changed)]
    graph = tflite.read_bytes(original)
    ours, theirs = (run(inputs) for run in runs)
    values = mismatches = 0
    first = None
    for edge, old, new in zip(graph.outputs, ours, theirs, strict=True):
        values += old.size
        wrong = np.argwhere(old != new.reshape(old.shape))
        mismatches += len(wrong)
        if len(wrong) and first is None:
            at = tuple(int(i) for i in wrong[0])
            found = new.reshape(old.shape)[at]
            first = f"output '{edge}', sample {at[0]}, element {list(at[1:])}: {found} instead of {old[at]}"
    return Proof(name, len(next(iter(inputs.values()))), values, mismatches, first)


def _oracle_runs(original: bytes, changed: bytes) -> list[_Run] | None:
    """Return how TFLite Micro runs each file, or None where it is not installed or refuses the original."""
    if not oracle.is_available():
        return None
    try:
        first = oracle.Oracle(original)
    except UnsupportedModelError:
        return None
    return [_oracle_run(original, first), _oracle_run(changed, oracle.Oracle(changed))]


def _oracle_run(model: bytes, interpreter: oracle.Oracle) -> _Run:
    graph = tflite.read_bytes(model)

    def run(inputs: Inputs) -> list[np.ndarray]:
        count = len(next(iter(inputs.values())))
        samples = []
        for sample in range(count):
            values = [inputs[name][sample].reshape(graph.tensor(name).shape) for name in graph.inputs]
            samples.append(interpreter.invoke_many(values, len(graph.outputs)))
        shapes = [graph.tensor(name).shape[1:] for name in graph.outputs]
        return [
            np.stack(outputs).reshape(count, *shape)
            for outputs, shape in zip(zip(*samples, strict=True), shapes, strict=True)
        ]

    return run


def _reference_run(model: bytes) -> _Run:
    graph = tflite.read_bytes(model)

    def run(inputs: Inputs) -> list[np.ndarray]:
        values = reference.run(graph, inputs, stream=bool(graph.variables()))
        return [values[name] for name in graph.outputs]

    return run


def proving_inputs(graph: Graph, count: int, seed: int) -> Inputs:
    """Return inputs that show differences: extremes first, each channel alone at an extreme among them, then noise.

    Up to half of the samples are extremes: all lowest, all highest, a checkerboard, then one channel highest among
    lowest and lowest among highest. Every other sample of the noise is the same at every position.

    Returns:
        input name -> (count, *shape without the batch), of the input's type.
    """
    inputs = parity.sample_inputs(graph, count, seed)
    for x in inputs.values():
        if count > _PLAIN_EXTREMES and x.ndim > 1:
            _spread_channels(x, (count + 1) // 2)
    return inputs


def _spread_channels(x: np.ndarray, most_extremes: int) -> None:
    lowest, highest = x[0].copy(), x[1].copy()
    row = _PLAIN_EXTREMES
    for channel in range(x.shape[-1]):
        alone = np.arange(x.shape[-1]) == channel
        for own, others in ((highest, lowest), (lowest, highest)):
            if row < most_extremes:
                x[row] = np.where(alone, own, others)
                row += 1
    flat = x.reshape(len(x), -1, x.shape[-1])
    flat[row::2] = flat[row::2, :1]
