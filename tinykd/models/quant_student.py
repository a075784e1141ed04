"""A student as the device will run it: its lowered graph in torch, rounding to int8 in the loop, weights trainable.

The graph is the one that the exporter quantises: batch norm folded, activations fused, paddings as a `.tflite` spells
them. Weights, biases and activations are rounded with the exporter's own scales (`tinykd.ir.affine`), which follow from
the current weights and ranges anew in every step; gradients pass the rounding straight through (Bengio et al. 2013,
arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tinykd.errors import ArtifactError, UnsupportedModelError
from tinykd.ir import Graph, Op, Quant
from tinykd.ir.affine import (
    OUTPUT_CHANNEL_AXIS,
    WEIGHT_MAX,
    affine_parameters,
    fixed_quants,
    quant_sources,
    weight_scales,
)
from tinykd.ir.requant import QMAX, QMIN
from tinykd.models.graph_ops import KERNELS, activate, weights_to_graph, weights_to_torch

Range = tuple[float, float]
Grids = tuple[torch.Tensor, torch.Tensor]
"""Scales (float32) and zero points (int32) of all grids that activations are rounded to."""

# Ops that only move values, or choose among them.
_STAYS_ON_GRID = ("max_pool_2d", "pad", "reshape")


@dataclass(frozen=True)
class Lowered:
    """A student on its way to int8.

    Attributes:
        graph: float, after all passes.
        ranges: (low, high) of its activations on calibration images.
        input_quant: int8 parameters of the input.
    """

    graph: Graph
    ranges: Mapping[str, Range]
    input_quant: Quant


class QuantStudent(nn.Module):
    """Runs a lowered student on normalised (N, C, H, W) float32 images and returns logits (N, K).

    Args:
        lowered: the graph, its first ranges and its input's parameters.

    Attributes:
        range_names: the activations that have a range of their own, in the order of the rows of `ranges`.
        ranges: (ranges, 2) float64 buffer, low and high; moved by `follow` alone.
        fake_quant: False leaves all rounding out; the logits are then those of the float student.
        observe: while True, a forward pass in training mode leaves the smallest and largest values of these activations
            in `observed`, (ranges, 2) float64.

    Raises:
        UnsupportedModelError: an op that has no differentiable form.
    """

    def __init__(self, lowered: Lowered) -> None:
        super().__init__()
        self.graph = graph = lowered.graph
        self._kinds: dict[str, str] = {}
        for index, op in enumerate(graph.ops):
            if op.kind not in KERNELS:
                raise UnsupportedModelError(
                    f"op {index} ({op.kind}, {op.source}) cannot be trained with rounding in the loop",
                    "Leave `qat` out of the recipe.",
                )
            if op.kind in OUTPUT_CHANNEL_AXIS:
                self._kinds.update({op.inputs[1]: op.kind, op.inputs[2]: "bias"})
        self.weights = nn.ParameterList(
            weights_to_torch(kind, _constant(graph, name)) for name, kind in self._kinds.items()
        )
        self._index = {name: index for index, name in enumerate(self._kinds)}
        sources = quant_sources(graph)
        fixed = fixed_quants(graph, lowered.input_quant)
        self.range_names = tuple(name for name, source in sources.items() if name == source and name not in fixed)
        grids = {name: index for index, name in enumerate((*fixed, *self.range_names))}
        self._grid = {name: grids[source] for name, source in sources.items()}
        self.ranges: torch.Tensor
        self.fixed: torch.Tensor
        # float64, as the exporter computes.
        self.register_buffer("ranges", _to_rows(lowered.ranges[name] for name in self.range_names))
        self.register_buffer("fixed", _to_rows((q.scale, q.zero_point) for q in fixed.values()), persistent=False)
        self._last_used: list[list[str]] = [[] for _ in graph.ops]
        for name, readers in graph.consumers().items():
            if name in sources and name not in graph.outputs:
                self._last_used[readers[-1]].append(name)
        self.fake_quant = True
        self.observe = False
        self.observed: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, C, H, W) to logits (N, K)."""
        logits = next(value for name, value in self.activations(images) if name == self.graph.outputs[0])
        return logits.flatten(1)

    def activations(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and the value, (N, C, H, W) or (N, C), of every activation as it is computed."""
        grids = self.grids()
        seen: list[torch.Tensor] = []
        name = self.graph.inputs[0]
        values = {name: self._round(name, images, grids)}
        yield name, values[name]
        for index, op in enumerate(self.graph.ops):
            name = op.outputs[0]
            y = self._compute(op, [values[x] for x in op.inputs if x not in self._index], grids)
            if self.observe and self.training and name in self.range_names:
                seen.append(torch.stack(torch.aminmax(y.detach())))
                if len(seen) == len(self.range_names):
                    self.observed = torch.stack(seen).double()
            values[name] = y if op.kind in _STAYS_ON_GRID else self._round(name, y, grids)
            for used in self._last_used[index]:
                del values[used]
            yield name, values[name]

    def run_op(self, op: Op, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the rounded output of one op of the graph, given its input activations."""
        grids = self.grids()
        return self._round(op.outputs[0], self._compute(op, inputs, grids), grids)

    def parameters_of(self, op: Op, grids: Grids) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an op's weights and bias, rounded, as torch wants them."""
        weight, bias = (self.weights[self._index[name]] for name in op.inputs[1:3])
        if not self.fake_quant:
            return weight, bias
        input_scale = grids[0][self._grid[op.inputs[0]]].double()
        return round_weights(weight, bias, input_scale, OUTPUT_CHANNEL_AXIS[op.kind] is not None)

    def _compute(self, op: Op, inputs: Sequence[torch.Tensor], grids: Grids) -> torch.Tensor:
        """Return an op's output, fused activation included, before rounding."""
        if op.kind in OUTPUT_CHANNEL_AXIS:
            inputs = [*inputs, *self.parameters_of(op, grids)]
        y = KERNELS[op.kind](op, self.graph.tensor(op.outputs[0]).shape, inputs)
        return activate(y, op.attrs.get("activation", "none"))

    def _round(self, name: str, x: torch.Tensor, grids: Grids) -> torch.Tensor:
        """Round an activation to its grid; where it is clipped, it takes no gradient."""
        if not self.fake_quant:
            return x
        scale, zero_point = (values[self._grid[name]] for values in grids)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, QMIN, QMAX)

    @torch.no_grad()
    def follow(self, observed: torch.Tensor, momentum: float) -> None:
        """Move the ranges: `ranges = momentum * ranges + (1 - momentum) * observed`, (ranges, 2) each."""
        self.ranges.lerp_(observed, 1 - momentum)

    def grids(self) -> Grids:
        """Return scales and zero points: those of fixed grids first, then one for each range."""
        scales, zero_points = affine_parameters(self.ranges[:, 0], self.ranges[:, 1])
        return torch.cat((self.fixed[:, 0], scales)).float(), torch.cat((self.fixed[:, 1], zero_points)).int()

    def float_graph(self) -> Graph:
        """Return the lowered graph with the weights as they are now: what the exporter quantises."""
        tensors = dict(self.graph.tensors)
        for name, value in self.named_weights().items():
            tensors[name] = replace(tensors[name], data=value)
        return replace(self.graph, tensors=tensors)

    def named_weights(self) -> dict[str, np.ndarray]:
        """Return weights and biases by tensor name: float32, before rounding, laid out as in the graph."""
        return {
            name: weights_to_graph(kind, parameter)
            for (name, kind), parameter in zip(self._kinds.items(), self.weights, strict=True)
        }

    def named_ranges(self) -> dict[str, Range]:
        """Return (low, high) of each activation that has a range of its own, by tensor name."""
        return {name: (low, high) for name, (low, high) in zip(self.range_names, self.ranges.tolist(), strict=True)}

    @torch.no_grad()
    def load_named(self, weights: Mapping[str, np.ndarray], ranges: Mapping[str, Range]) -> None:
        """Take over weights and ranges as `named_weights` and `named_ranges` return them.

        Raises:
            ArtifactError: the names or shapes are not those of this graph.
        """
        shapes = {name: self.graph.tensor(name).shape for name in self._kinds}
        if {name: value.shape for name, value in weights.items()} != shapes or set(ranges) != set(self.range_names):
            raise ArtifactError(
                f"the weights that were trained with rounding are not those of '{self.graph.name}': names or shapes of "
                "tensors differ",
                "Another version of torch may name the tensors of the graph otherwise: train again with --restart.",
            )
        for (name, kind), parameter in zip(self._kinds.items(), self.weights, strict=True):
            parameter.copy_(weights_to_torch(kind, weights[name]))
        self.ranges.copy_(_to_rows(ranges[name] for name in self.range_names))


def round_weights(
    weight: torch.Tensor, bias: torch.Tensor, input_scale: torch.Tensor, per_channel: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and bias as their int8 and int32 integers stand for them, float32; gradients pass unchanged.

    Weights are never clipped: the scale follows the largest of them.

    Args:
        weight: float32, output channels first.
        bias: float32 (Cout,).
        input_scale: 0-d float64, of the op's input.
        per_channel: one scale for each output channel instead of one for all.
    """
    with torch.no_grad():
        rows, bias_magnitude = weight.flatten(1), bias.double().abs()
        # The extremes, exact in float32, are one pass over the weights.
        low, high = torch.aminmax(rows, dim=1) if per_channel else torch.aminmax(rows)
        magnitude = torch.maximum(-low, high).double()
        scale = weight_scales(magnitude, bias_magnitude if per_channel else bias_magnitude.amax(), input_scale)
        scale = scale.float().double()
        step = scale[:, None] if per_channel else scale
        integers = (rows.double() / step).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
        bias_step = scale * input_scale
        rounded = (integers * step).float().view_as(weight), ((bias.double() / bias_step).round() * bias_step).float()
    return _Straight.apply(weight, rounded[0]), _Straight.apply(bias, rounded[1])


class _Straight(torch.autograd.Function):
    """Forward: the rounded values. Backward: the gradient as it comes, for the values before rounding."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return rounded

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        return gradient, None


def _constant(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensor(name).data
    assert data is not None
    return data


def _to_rows(pairs: Iterable[tuple[float, float]]) -> torch.Tensor:
    return torch.tensor(list(pairs), dtype=torch.float64).reshape(-1, 2)
