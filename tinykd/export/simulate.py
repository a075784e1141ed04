"""Runs a float graph op by op with the rounding of its int8 twin switched on where it is wanted.

Fake quantisation in float32: within a step of the integers (the integer reference is the judge of accuracy), but fast,
and any part of the network can be rounded alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinykd.errors import InternalError
from tinykd.export import float_reference
from tinykd.export.float_reference import Values
from tinykd.ir import Graph, Quant, Tensor
from tinykd.ir.requant import QMAX, QMIN

IMAGES = 64
"""Most images that the parts of quantisation which need whole activations work on."""
# What those parts may hold at once; an activation is there in up to three versions.
_BUDGET_BYTES = 48 << 20
_VERSIONS = 3
_LEAST_IMAGES = 8
# Images whose windows are unrolled side by side.
_CHUNK = 16


def round_to_grid(x: np.ndarray, quant: Quant) -> np.ndarray:
    """Return x as the int8 grid represents it, float32."""
    scale, zero = np.float32(quant.scale), quant.zero_point
    rounded = np.rint(x * np.float32(1 / quant.scale))
    np.clip(rounded, QMIN - zero, QMAX - zero, out=rounded)
    rounded *= scale
    return rounded.astype(np.float32, copy=False)


def dequantised(tensor: Tensor) -> np.ndarray:
    """Return the real values of a quantised constant, float32."""
    if tensor.data is None or tensor.quant is None:
        raise InternalError(f"tensor '{tensor.name}' is no quantised constant")
    quant = tensor.quant
    shape = [1] * len(tensor.shape)
    if quant.axis is not None:
        shape[quant.axis] = -1
    scales, zeros = np.array(quant.scales).reshape(shape), np.array(quant.zero_points).reshape(shape)
    return ((tensor.data.astype(np.float64) - zeros) * scales).astype(np.float32)


def peak_elements(graph: Graph) -> int:
    """Return the most activation elements of one image that are alive at once."""
    consumers = graph.consumers()
    alive = {name: graph.tensor(name).num_elements for name in graph.inputs}
    peak = sum(alive.values())
    for index, op in enumerate(graph.ops):
        alive.update({name: graph.tensor(name).num_elements for name in op.outputs})
        peak = max(peak, sum(alive.values()))
        for name in op.inputs:
            if name in alive and consumers[name][-1] == index and name not in graph.outputs:
                del alive[name]
    return peak


def take_images(graph: Graph, x: np.ndarray, count: int = IMAGES) -> np.ndarray:
    """Return at most `count` of the images x (N, ...), evenly spread, and as many as memory allows."""
    affordable = max(_LEAST_IMAGES, _BUDGET_BYTES // (4 * _VERSIONS * peak_elements(graph)))
    count = min(len(x), count, affordable)
    return x[np.arange(count) * len(x) // count]


def halves(graph: Graph, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that decide and those that judge, taken as by `take_images`: every other one each."""
    taken = take_images(graph, x)
    return (taken, taken) if len(taken) < 2 else (taken[::2], taken[1::2])


class Simulation:
    """A float graph and what its int8 twin rounds.

    Args:
        graph: float, after all passes.
        int8: the same graph, quantised; names of tensors are the same.

    Attributes:
        quants: parameters of each int8 activation; a caller may try others.
    """

    def __init__(self, graph: Graph, int8: Graph) -> None:
        self.graph = graph
        tensors = dict(graph.tensors)
        self.quants: dict[str, Quant] = {}
        for name, tensor in int8.tensors.items():
            if tensor.is_constant and tensor.quant is not None:
                tensors[name] = _as_float(tensor)
            elif tensor.dtype == "int8" and tensor.quant is not None:
                self.quants[name] = tensor.quant
        # An op's constants may have other names in the int8 graph, where ops round one to grids of their own.
        ops = tuple(replace(op, inputs=twin.inputs) for op, twin in zip(graph.ops, int8.ops, strict=True))
        self.rounded = replace(graph, tensors=tensors, ops=ops)
        self._last_use = {name: readers[-1] for name, readers in graph.consumers().items()}

    def start(self, x: np.ndarray, *, rounded: bool) -> Values:
        """Return the values before the first op, for images x float32 (N, ...)."""
        name = self.graph.inputs[0]
        return {name: self.round(name, x) if rounded else x}

    def round(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return an activation as its grid represents it."""
        return round_to_grid(value, self.quants[name]) if name in self.quants else value

    def compute(self, values: Values, index: int, *, rounded: bool, activation: bool = True) -> tuple[np.ndarray, ...]:
        """Return the outputs of op `index` before rounding, from rounded or float constants.

        Without `activation`, the fused activation function is left out.
        """
        graph = self.rounded if rounded else self.graph
        op = graph.ops[index]
        if not activation:
            op = replace(op, attrs={**op.attrs, "activation": "none"})
        inputs = {name: values[name] for name in op.inputs if name in values}
        count = len(next(iter(inputs.values())))
        parts = [
            float_reference.run_op(graph, op, {name: value[i : i + _CHUNK] for name, value in inputs.items()})
            for i in range(0, count, _CHUNK)
        ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def step(self, values: Values, index: int, *, rounded: bool) -> Values:
        """Return the values after op `index`, without those that nothing reads any more; `values` stays as it is."""
        op = self.graph.ops[index]
        outputs = self.compute(values, index, rounded=rounded)
        if rounded:
            outputs = tuple(self.round(name, y) for name, y in zip(op.outputs, outputs, strict=True))
        return self.after(values, index, outputs)

    def after(self, values: Values, index: int, outputs: Sequence[np.ndarray]) -> Values:
        """Return the values once op `index` has given `outputs`."""
        op = self.graph.ops[index]
        following = {**values, **dict(zip(op.outputs, outputs, strict=True))}
        for name in op.inputs:
            if self._last_use.get(name) == index and name not in self.graph.outputs:
                following.pop(name, None)
        return following

    def finish(self, values: Values, index: int, *, rounded: bool) -> np.ndarray:
        """Run ops `index` and after; return all outputs side by side, float32 (N, elements)."""
        for later in range(index, len(self.graph.ops)):
            values = self.step(values, later, rounded=rounded)
        return np.concatenate([values[name].reshape(len(values[name]), -1) for name in self.graph.outputs], axis=1)

    def run(self, x: np.ndarray, *, rounded: bool) -> np.ndarray:
        """Return the outputs of images x float32 (N, ...), side by side (N, elements)."""
        return self.finish(self.start(x, rounded=rounded), 0, rounded=rounded)


def _as_float(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, "float32", None, dequantised(tensor))


def sqnr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the signal-to-quantisation-noise ratio in dB: 10 log10(sum of wanted² / sum of (wanted - got)²).

    Exact copies give 200 dB, silence with noise gives -200 dB.
    """
    noise = float(np.sum((wanted.astype(np.float64) - got) ** 2))
    signal = float(np.sum(wanted.astype(np.float64) ** 2))
    if noise == 0:
        return 200.0
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -200.0, 200.0))


def mean_squared_error(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the mean of (wanted - got)²."""
    return float(np.mean((wanted.astype(np.float64) - got) ** 2))
