"""Rules about quantisation: what saturates, overflows, or throws bits away."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tinykd.errors import InvalidModelError
from tinykd.ir import Graph, Op, Quant, requantization
from tinykd.lint.base import ERROR, NOTE, WARNING, Finding, Model, Rule, bias_of, weights_of

FEWEST_VALUES = 128
"""An activation that can reach fewer of its 256 values loses more than one bit."""
NARROW_WEIGHT = 8
"""Channels whose largest weight is below it use less than 4 of 8 bits (sign included)."""
GAIN_BITS = 0.5
ADD_RATIO = 16
SOFTMAX_STEP = 0.5
SOFTMAX_SPAN = 4.0
_RECALIBRATE = "Calibrate with more or other images (tinykd export RUN --calibration percentile), or train with `qat`."


def _layers(graph: Graph) -> Iterator[tuple[int, Op, np.ndarray]]:
    """Yield (index, op, weights by output channel) of the layers with constant weights."""
    for index, op in enumerate(graph.ops):
        weights = weights_of(graph, op)
        if weights is not None:
            yield index, op, weights


def _quant(graph: Graph, name: str) -> Quant | None:
    return graph.tensor(name).quant


def _largest_sums(graph: Graph, op: Op, weights: np.ndarray) -> np.ndarray:
    """Return for each output channel how large its accumulator can become, int64."""
    quant = _quant(graph, op.inputs[0])
    zero = 0 if quant is None else quant.zero_point
    sums = np.abs(weights.astype(np.int64)).sum(axis=1) * max(127 - zero, zero + 128)
    bias = bias_of(graph, op)
    return sums if bias is None else sums + np.abs(bias.astype(np.int64))


def accumulator_overflow(model: Model) -> Iterator[Finding]:
    """Find layers whose sum of products can leave int32."""
    for index, op, weights in _layers(model.graph):
        sums = _largest_sums(model.graph, op, weights)
        if sums.max() >= 1 << 31:
            channel = int(sums.argmax())
            yield Finding(
                "accumulator-overflow",
                ERROR,
                index,
                f"the sum of output channel {channel} can reach {int(sums[channel]):,}, beyond int32 (2,147,483,647)",
                "Look for a wrong bias scale; the layer has no defined result on any runtime.",
            )


def left_shift(model: Model) -> Iterator[Finding]:
    """Find layers whose accumulators are multiplied by one or more."""
    for index, op, weights in _layers(model.graph):
        try:
            constants = requantization(model.graph, op)
        except InvalidModelError:
            continue
        shift = max(constants.shifts)
        if shift <= 0:
            continue
        channel = constants.shifts.index(shift)
        reach = int(_largest_sums(model.graph, op, weights)[channel]) << shift
        wraps = reach >= 1 << 31
        yield Finding(
            "left-shift",
            ERROR if wraps else WARNING,
            index,
            f"output channel {channel} multiplies its sum by {2**shift / 2:g} or more (shift {shift}): the output's "
            "scale is finer than input and weights can tell apart"
            + (f", and the shifted sum can reach {reach:,}, beyond int32" if wraps else ""),
            _RECALIBRATE,
        )


def lost_output(model: Model) -> Iterator[Finding]:
    """Find output channels whose factor is so small that no input moves them."""
    for index, op, weights in _layers(model.graph):
        try:
            constants = requantization(model.graph, op)
        except InvalidModelError:
            continue
        sums = _largest_sums(model.graph, op, weights).astype(np.float64)
        factors = np.array(constants.multipliers) * 2.0 ** (np.array(constants.shifts, np.float64) - 31)
        bias = bias_of(model.graph, op)
        moving = sums - (0 if bias is None else np.abs(bias))
        # Channels without weights, and those that nobody needs, are told by constant-channels.
        kept = model.kept_channels.get(op.outputs[0], np.ones(len(sums), bool))
        still = np.flatnonzero((moving * factors < 0.5) & (moving > 0) & kept)
        if len(still):
            yield Finding(
                "lost-output",
                WARNING,
                index,
                f"{len(still)} of {len(sums)} output channels move by less than half a step, whatever the input "
                f"(channel {still[0]}: {moving[still[0]] * factors[still[0]]:.3g} steps)",
                _RECALIBRATE,
            )


def bias_scale(model: Model) -> Iterator[Finding]:
    """Find biases on another grid than that of the sums, and biases at the end of int32."""
    for index, op, _ in _layers(model.graph):
        bias = bias_of(model.graph, op)
        if bias is None:
            continue
        if np.abs(bias.astype(np.int64)).max() >= (1 << 31) - 1:
            channel = int(np.abs(bias.astype(np.int64)).argmax())
            yield Finding(
                "bias-scale",
                WARNING,
                index,
                f"the bias of output channel {channel} is {int(bias[channel]):,}: it saturated when it was quantised",
                "Its weight scale is far too small; prune or equalise the channel before quantising.",
            )
        x, weights, own = (_quant(model.graph, op.inputs[number]) for number in (0, 1, 2))
        if x is None or weights is None or own is None:
            continue
        count = max(len(own.scales), len(weights.scales))
        wanted = x.scale * np.array(weights.scales * (count // len(weights.scales)))
        found = np.array(own.scales * (count // len(own.scales)))
        if len(wanted) != len(found):
            continue
        off = np.abs(found / wanted - 1)
        if off.max() > 0.01:
            channel = int(off.argmax())
            yield Finding(
                "bias-scale",
                WARNING,
                index,
                f"the bias of output channel {channel} has scale {found[channel]:.4g}; runtimes take it for "
                f"input scale * weight scale = {wanted[channel]:.4g}",
                "The converter wrote a wrong scale; quantise the bias again with that product.",
            )


def few_values(model: Model) -> Iterator[Finding]:
    """Find activations that can reach only a part of their 256 values."""
    graph = model.graph
    fixed = ("softmax", "logistic", "tanh", "arg_max", "dequantize", "reshape", "transpose", "pad", "strided_slice")
    for index, op in enumerate(graph.ops):
        if op.kind in fixed:
            continue
        for name in op.outputs:
            if name not in model.reach:
                continue
            low, high = model.reach[name]
            count = high - low + 1
            if 1 < count < FEWEST_VALUES:
                yield Finding(
                    "few-values",
                    WARNING,
                    index,
                    f"its output can only be {low} to {high}: {count} of 256 values, "
                    f"{math.log2(256 / count):.1f} bits lost",
                    "Choose its range from what it can reach: with RELU from 0 on (zero point -128). " + _RECALIBRATE,
                )


def unused_half(model: Model) -> Iterator[Finding]:
    """Find fused clamps that leave a large part of the output's range unused."""
    for index, op in enumerate(model.graph.ops):
        activation, quant = op.attrs.get("activation", "none"), _quant(model.graph, op.outputs[0])
        if activation not in ("relu", "relu6") or quant is None:
            continue
        below = quant.zero_point + 128
        top = 127 if activation == "relu" else min(127, quant.zero_point + round(6 / quant.scale))
        used = top - quant.zero_point + 1
        if below < 26 and used > 230:
            continue
        yield Finding(
            "unused-half",
            WARNING,
            index,
            f"{activation} leaves {used} of 256 values (zero point {quant.zero_point}, scale {quant.scale:.4g}): "
            f"{math.log2(256 / max(used, 1)):.1f} bits lost",
            "Calibrate behind the activation, not before it: its range begins at 0, the zero point is -128.",
        )


def _layers_of_one_scale(graph: Graph) -> Iterator[tuple[int, Op, np.ndarray]]:
    """Yield layers whose output channels share a weight scale, with the largest magnitude of each channel's weights."""
    for index, op, weights in _layers(graph):
        quant = _quant(graph, op.inputs[1])
        if quant is not None and len(quant.scales) == 1 and len(weights) > 1:
            yield index, op, np.abs(weights.astype(np.int64)).max(axis=1)


def narrow_channels(model: Model) -> Iterator[Finding]:
    """Find layers with one weight scale in which some channels use only a few bits."""
    for index, _, reach in _layers_of_one_scale(model.graph):
        narrow = np.flatnonzero((reach < NARROW_WEIGHT) & (reach > 0))
        if len(narrow):
            widest = int(reach.argmax())
            yield Finding(
                "narrow-channels",
                WARNING,
                index,
                f"{len(narrow)} of {len(reach)} output channels have no weight beyond ±{NARROW_WEIGHT - 1} (less than "
                f"4 bits), since channel {widest} sets the scale for all",
                "Quantise per channel, or equalise the layers before quantising.",
            )


def per_tensor_weights(model: Model) -> Iterator[Finding]:
    """Find layers that would gain from one weight scale per output channel."""
    for index, op, reach in _layers_of_one_scale(model.graph):
        gain = float(np.log2(127 / np.clip(reach, 1, 127))[reach > 0].mean()) if (reach > 0).any() else 0.0
        if gain < GAIN_BITS:
            continue
        dense = op.kind == "fully_connected"
        yield Finding(
            "per-tensor-weights",
            NOTE if dense else WARNING,
            index,
            f"one scale for {len(reach)} output channels; one each would give {gain:.1f} more bits on average",
            "Quantise the weights per output channel"
            + (" (op version 12: runtimes before 2024 refuse it)." if dense else ": every runtime takes it."),
        )


def softmax_scale(model: Model) -> Iterator[Finding]:
    """Find softmax inputs that are too coarse or too narrow."""
    for index, op in enumerate(model.graph.ops):
        quant = _quant(model.graph, op.inputs[0])
        if op.kind != "softmax" or quant is None:
            continue
        step = quant.scale * op.attrs["beta"]
        if step > SOFTMAX_STEP:
            yield Finding(
                "softmax-scale",
                WARNING,
                index,
                f"one step of its input (scale {quant.scale:.4g}) multiplies the odds by {math.exp(min(step, 50)):.3g}",
                "Clip the logits' range in calibration; classes beyond the largest few do not matter.",
            )
        elif 255 * step < SOFTMAX_SPAN:
            yield Finding(
                "softmax-scale",
                NOTE,
                index,
                f"its input spans {255 * step:.2g}: no class can be more than {math.exp(255 * step):.3g} times as "
                "likely as another",
                "The logits' range was clipped; calibrate it with minmax.",
            )


def operand_scales(model: Model) -> Iterator[Finding]:
    """Find sums of operands of very different scale."""
    for index, op in enumerate(model.graph.ops):
        if op.kind not in ("add", "sub"):
            continue
        quants = [_quant(model.graph, name) for name in op.inputs]
        output = _quant(model.graph, op.outputs[0])
        if None in quants or output is None:
            continue
        scales = [quant.scale for quant in quants if quant is not None]
        ratio = max(scales) / min(scales)
        if ratio < ADD_RATIO:
            continue
        small = int(np.argmin(scales))
        yield Finding(
            "operand-scales",
            WARNING,
            index,
            f"operand {small + 1} has a scale {ratio:.0f} times finer: all of its 256 values together are "
            f"{256 * scales[small] / output.scale:.1f} steps of the output",
            "Normalise the branches alike before they are added (a BatchNorm at the end of each).",
        )


def whole_map_pool(model: Model) -> Iterator[Finding]:
    """Find AVERAGE_POOL_2D over the whole map."""
    for index, op in enumerate(model.graph.ops):
        x = model.graph.tensor(op.inputs[0])
        if op.kind == "average_pool_2d" and tuple(op.attrs["kernel"]) == x.shape[1:3] and x.shape[1] * x.shape[2] > 1:
            yield Finding(
                "whole-map-pool",
                NOTE,
                index,
                f"averages the whole map of {x.shape[1]}x{x.shape[2]} on the input's scale; MEAN has a scale of its "
                "own",
                "Export global average pooling as MEAN: means reach less far than single values, so its scale is "
                "finer.",
            )


def channel_alignment(model: Model) -> Iterator[Finding]:
    """Find convolutions whose channels do not fill whole words."""
    for index, op, weights in _layers(model.graph):
        if op.kind not in ("conv_2d", "fully_connected"):
            continue
        depth = model.graph.tensor(op.inputs[1]).shape[-1]
        rest = depth % 4
        if not rest or depth < 4:
            continue
        from_rest = model.graph.tensor(op.outputs[0]).num_elements * (weights.shape[1] // depth) * rest
        yield Finding(
            "channel-alignment",
            NOTE,
            index,
            f"{depth} input channels: the last {rest} of each pixel do not fill a 32-bit word and are taken one by one",
            f"Use a multiple of 4: {depth - rest} or {depth + 4 - rest} channels.",
            {"macs": from_rest},
        )


RULES = (
    Rule(
        "accumulator-overflow",
        "Sum that can leave int32",
        "The result is undefined in C and differs between runtimes. The bound counts every product at its worst.",
        accumulator_overflow,
        ERROR,
    ),
    Rule(
        "left-shift",
        "Factor of one or more",
        "A layer's sums are finer than its output, so the factor between them is far below 1. A factor above 1 makes "
        "steps that the output cannot fill, and its left shift can wrap around.",
        left_shift,
        ERROR,
    ),
    Rule(
        "lost-output",
        "Output that cannot move",
        "The factor from sums to output is so small that no input moves the output by half a step.",
        lost_output,
        WARNING,
    ),
    Rule(
        "bias-scale",
        "Bias on the wrong grid",
        "Runtimes add the bias to the sums as it is. A scale other than input scale * weight scale is a converter's "
        "mistake, and a value at the end of int32 was clipped.",
        bias_scale,
        WARNING,
    ),
    Rule(
        "few-values",
        "Activation that reaches only a few values",
        "Weights, bias and clamp bound what the layer can give. Fewer than 128 of 256 values lose more than one bit.",
        few_values,
        WARNING,
    ),
    Rule(
        "unused-half",
        "Range that a fused activation cuts off",
        "A zero point in the middle behind a RELU leaves all values below it unused.",
        unused_half,
        WARNING,
    ),
    Rule(
        "narrow-channels",
        "Channels with less than 4 bits",
        "With one scale for the layer, its largest channel decides, and small channels round to a handful of values.",
        narrow_channels,
        WARNING,
    ),
    Rule(
        "per-tensor-weights",
        "One weight scale where one per channel is better",
        "The gain is the mean over channels of log2(127 / largest weight).",
        per_tensor_weights,
        WARNING,
    ),
    Rule(
        "softmax-scale",
        "Softmax input too coarse or too narrow",
        "Steps of more than 0.5 make probabilities jump; a span below 4 keeps every class likely.",
        softmax_scale,
        WARNING,
    ),
    Rule(
        "operand-scales",
        "Sum of very different scales",
        "ADD brings both operands to the coarser scale; the finer one keeps only its upper bits.",
        operand_scales,
        WARNING,
    ),
    Rule(
        "whole-map-pool",
        "Global average pooling on the input's scale",
        "AVERAGE_POOL_2D cannot change the scale, MEAN can. They round differently, so a finished model keeps the one "
        "it has.",
        whole_map_pool,
        NOTE,
    ),
    Rule(
        "channel-alignment",
        "Channel count that is no multiple of 4",
        "Fast kernels load four int8 values as one word. The price is the MACs that are left over.",
        channel_alignment,
        NOTE,
    ),
)
