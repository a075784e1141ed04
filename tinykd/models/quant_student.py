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
    QUANT_KEEPERS,
    QUANT_SHARERS,
    WEIGHT_MAX,
    activation_quant,
    affine_parameters,
    constant_ranges,
    fixed_quants,
    quant_sources,
    shared_ranges,
    weight_scales,
)
from tinykd.ir.requant import QMAX, QMIN
from tinykd.models.graph_ops import KERNELS, activate, constant_to_torch, split, weights_to_graph, weights_to_torch

Range = tuple[float, float]
Grids = tuple[torch.Tensor, torch.Tensor]
"""Scales (float32) and zero points (int32) of all grids that activations are rounded to."""

# Ops that only move values, or choose among them; averages round, and 6 need not lie on a grid.
_STAYS_ON_GRID = tuple(kind for kind in QUANT_KEEPERS + QUANT_SHARERS if kind not in ("average_pool_2d", "relu6"))


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
            if op.kind not in KERNELS and op.kind != "split":
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
        given, ranged = shared_ranges(graph, sources, fixed)
        groups = {group: index for index, group in enumerate(ranged)}
        owners = {name: groups[group] for group, names in ranged.items() for name in names}
        self.range_names = tuple(name for name in sources if name in owners)
        grids = {name: index for index, name in enumerate(fixed)}
        self._grid = {
            name: grids[given[source]] if source in given else len(fixed) + groups[source]
            for name, source in sources.items()
        }
        bounds = constant_ranges(graph, sources)
        self.ranges: torch.Tensor
        self.fixed: torch.Tensor
        self.owned_by: torch.Tensor
        self.bounds: torch.Tensor
        # float64, as the exporter computes.
        self.register_buffer("ranges", _to_rows(lowered.ranges[name] for name in self.range_names))
        self.register_buffer("fixed", _to_rows((q.scale, q.zero_point) for q in fixed.values()), persistent=False)
        # Which group each range belongs to, and what the group's constants need.
        self.register_buffer("owned_by", torch.tensor([owners[name] for name in self.range_names]), persistent=False)
        nothing = (torch.inf, -torch.inf)
        self.register_buffer("bounds", _to_rows(bounds.get(group, nothing) for group in groups), persistent=False)
        self._constants = _Constants(graph)
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
            y = self._compute(op, self._inputs(op, values, grids), grids)
            for name, part in zip(op.outputs, y, strict=True):
                if self.observe and self.training and name in self.range_names:
                    seen.append(torch.stack(torch.aminmax(part.detach())))
                    if len(seen) == len(self.range_names):
                        self.observed = torch.stack(seen).double()
                values[name] = part if _stays_on_grid(op) else self._round(name, part, grids)
                yield name, values[name]
            for used in self._last_used[index]:
                del values[used]

    def run_op(self, op: Op, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the rounded output of one op of the graph, given its input activations."""
        grids = self.grids()
        given = dict(zip((name for name in op.inputs if name in self._grid), inputs, strict=True))
        return self._round(op.outputs[0], self._compute(op, self._inputs(op, given, grids), grids)[0], grids)

    def parameters_of(self, op: Op, grids: Grids) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an op's weights and bias, rounded, as torch wants them."""
        weight, bias = (self.weights[self._index[name]] for name in op.inputs[1:3])
        if not self.fake_quant:
            return weight, bias
        input_scale = grids[0][self._grid[op.inputs[0]]].double()
        return round_weights(weight, bias, input_scale, OUTPUT_CHANNEL_AXIS[op.kind] is not None)

    def _inputs(self, op: Op, values: Mapping[str, torch.Tensor], grids: Grids) -> list[torch.Tensor]:
        """Return an op's operands: activations, constants rounded to their grids, but no weights."""
        operands = []
        for position, name in enumerate(op.inputs):
            if name in values:
                operands.append(values[name])
            elif name not in self._index:
                constant = self._constants.get(op, position, self.fake_quant)
                operands.append(self._round(op.outputs[0], constant, grids) if op.kind in QUANT_SHARERS else constant)
        return operands

    def _compute(self, op: Op, inputs: Sequence[torch.Tensor], grids: Grids) -> tuple[torch.Tensor, ...]:
        """Return an op's outputs, fused activation included, before rounding."""
        shapes = [self.graph.tensor(name).shape for name in op.outputs]
        if op.kind == "split":
            return split(op, shapes, inputs[0])
        if op.kind in OUTPUT_CHANNEL_AXIS:
            inputs = [*inputs, *self.parameters_of(op, grids)]
        y = KERNELS[op.kind](op, shapes[0], inputs)
        return (activate(y, op.attrs.get("activation", "none")),)

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
        """Return scales and zero points: those of fixed grids first, then one for each group of activations."""
        # The range of a group is the union of its owners' ranges, and reaches its constants.
        low = self.bounds[:, 0].scatter_reduce(0, self.owned_by, self.ranges[:, 0], "amin")
        high = self.bounds[:, 1].scatter_reduce(0, self.owned_by, self.ranges[:, 1], "amax")
        scales, zero_points = affine_parameters(low, high)
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


class _Constants(nn.Module):
    """The constant operands of a graph's ops, as torch wants them, and rounded as the exporter rounds them."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], int] = {}
        for op in graph.ops:
            if op.kind in OUTPUT_CHANNEL_AXIS:
                continue
            for position, name in enumerate(op.inputs):
                data = graph.tensor(name).data
                if data is None:
                    continue
                index = len(self._places)
                self._places[op.outputs[0], position] = index
                value = constant_to_torch(data, len(graph.tensor(op.outputs[0]).shape))
                quant = activation_quant(float(data.min()), float(data.max()))
                rounded = torch.fake_quantize_per_tensor_affine(value, quant.scale, quant.zero_point, QMIN, QMAX)
                shared = op.kind in QUANT_SHARERS
                self.register_buffer(f"real{index}", value, persistent=False)
                self.register_buffer(f"rounded{index}", value if shared else rounded, persistent=False)

    def get(self, op: Op, position: int, rounded: bool) -> torch.Tensor:
        """Return a constant operand; one that shares its grid with activations is rounded by the caller."""
        return self.get_buffer(f"{'rounded' if rounded else 'real'}{self._places[op.outputs[0], position]}")


def _stays_on_grid(op: Op) -> bool:
    return op.kind in _STAYS_ON_GRID and op.attrs.get("value") is None


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
