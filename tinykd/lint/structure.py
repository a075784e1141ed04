"""Rules about ops that need not be there, or cost more than they look."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import Graph, Op, Tensor, op_macs, spatial_padding
from tinykd.lint.base import ERROR, NOTE, WARNING, Finding, Model, Rule, bypassed, can_be_bypassed, macs_of

_OPTIMIZE = "tinykd optimize MODEL.tflite -o OUT.tflite"
_PADDED = ("conv_2d", "depthwise_conv_2d")


def pad_op(model: Model) -> Iterator[Finding]:
    """Find PAD ops."""
    for index, op in enumerate(model.graph.ops):
        if op.kind != "pad":
            continue
        price = model.price_of_a_copy(index)
        readers = [model.graph.ops[i].kind for i in model.graph.consumers().get(op.outputs[0], [])]
        folds = spatial_padding(op) is not None and readers and all(kind in _PADDED for kind in readers)
        engine = "our engine folds it into the convolution" if folds else "no convolution can take it in"
        yield Finding(
            "pad-op",
            WARNING,
            index,
            f"copies {price['moved_bytes']:,} B to add a border ({_padding(op)}); {engine}, TFLite Micro does not",
            "Train with TensorFlow's SAME padding: (0, 1) where the stride is 2 and the size even, (1, 1) at stride 1; "
            f"{_OPTIMIZE} removes the ones that are SAME already.",
            price,
        )


def _padding(op: Op) -> str:
    return ", ".join(
        f"axis {axis}: {pair[0]} + {pair[1]}" for axis, pair in enumerate(op.attrs["paddings"]) if any(pair)
    )


def transpose_op(model: Model) -> Iterator[Finding]:
    """Find TRANSPOSE ops that move bytes."""
    for index, op in enumerate(model.graph.ops):
        if op.kind != "transpose" or _moves_nothing(model.graph, op):
            continue
        yield Finding(
            "transpose-op",
            WARNING,
            index,
            f"reorders the axes of {list(model.graph.tensor(op.inputs[0]).shape)} by {list(op.attrs['perm'])}: "
            "left over from a channels-first model",
            f"Export the model channels-last (NHWC); {_OPTIMIZE} joins transposes that cancel.",
            model.price_of_a_copy(index),
        )


def float_edge(model: Model) -> Iterator[Finding]:
    """Find conversions from and to other types than int8."""
    graph = model.graph
    for index, op in enumerate(graph.ops):
        if op.kind not in ("quantize", "dequantize"):
            continue
        source, target = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
        outside = target if op.kind == "dequantize" else source
        if outside.dtype == "int8":
            continue
        inside = source if op.kind == "dequantize" else target
        at_edge = outside.name in (*graph.inputs, *graph.outputs)
        price = {"ops": 1, "moved_bytes": inside.num_bytes}
        if at_edge or can_be_bypassed(graph, index):
            saved = model.tflm_arena - model.prices.tflm_arena(_without_edge(graph, index))
            price["arena_bytes"] = max(saved, 0)
        yield Finding(
            "float-edge",
            WARNING,
            index,
            f"converts {source.dtype} to {target.dtype} {'at the edge' if at_edge else 'in the middle'} of the model: "
            f"{outside.num_bytes:,} B of {outside.dtype} instead of {inside.num_bytes:,} B",
            "Convert with int8 inputs and outputs (inference_input_type = inference_output_type = tf.int8); "
            "our engine leaves the conversion to the host.",
            price,
        )


def _without_edge(graph: Graph, index: int) -> Graph:
    """Return the graph whose edge has the inner tensor's type."""
    op = graph.ops[index]
    ops = [other for i, other in enumerate(graph.ops) if i != index]
    if op.inputs[0] in graph.inputs and not ops:
        return graph
    inputs = tuple(op.outputs[0] if name == op.inputs[0] else name for name in graph.inputs)
    outputs = tuple(op.inputs[0] if name == op.outputs[0] else name for name in graph.outputs)
    if inputs == graph.inputs and outputs == graph.outputs:
        return bypassed(graph, index)
    return Graph(graph.name, graph.tensors, tuple(ops), inputs, outputs).with_ops(ops)


def _moves_nothing(graph: Graph, op: Op) -> bool:
    """Whether a transpose leaves every byte where it is: it only moves axes of length 1."""
    shape = graph.tensor(op.inputs[0]).shape
    long = [axis for axis in op.attrs["perm"] if shape[axis] > 1]
    return long == sorted(long)


def constant_channels(model: Model) -> Iterator[Finding]:
    """Find channels that have one value whatever the input, or that nobody reads."""
    graph, kept = model.graph, model.kept_channels
    for index, op in enumerate(graph.ops):
        if not op_macs(graph, op) or op.kind == "svdf":
            continue
        inputs, outputs = kept.get(op.inputs[0]), kept.get(op.outputs[0])
        gone_in = 0 if inputs is None else int((~inputs).sum())
        gone_out = 0 if outputs is None else int((~outputs).sum())
        if not gone_in and not gone_out:
            continue
        macs = op_macs(graph, op)
        left = _share(outputs) * (1.0 if op.kind == "depthwise_conv_2d" else _share(inputs))
        weights = graph.tensor(op.inputs[1])
        bytes_left = round(weights.num_bytes * left)
        bias = 4 * gone_out if len(op.inputs) > 2 and op.inputs[2] else 0
        told = [f"{gone_out} of {graph.tensor(op.outputs[0]).shape[-1]} output channels"] if gone_out else []
        told += [f"{gone_in} of {graph.tensor(op.inputs[0]).shape[-1]} input channels"] if gone_in else []
        yield Finding(
            "constant-channels",
            WARNING,
            index,
            f"{' and '.join(told)} are constant or unread: {1 - left:.0%} of its work",
            f"{_OPTIMIZE} removes them without changing a bit of the output.",
            {"macs": macs - round(macs * left), "constant_bytes": weights.num_bytes - bytes_left + bias},
        )


def _share(mask: np.ndarray | None) -> float:
    return 1.0 if mask is None else float(mask.mean())


def dead_op(model: Model) -> Iterator[Finding]:
    """Find ops whose results no output depends on."""
    graph = model.graph
    needed = {*graph.outputs, *graph.variables()}
    live: set[int] = set()
    for index in range(len(graph.ops) - 1, -1, -1):
        op = graph.ops[index]
        if needed & {*op.outputs} or any(name in graph.variables() for name in op.inputs if name):
            live.add(index)
            needed |= {name for name in op.inputs if name}
    for index, op in enumerate(graph.ops):
        if index not in live:
            constants = {name for name in op.inputs if name and graph.tensor(name).is_constant}
            yield Finding(
                "dead-op",
                WARNING,
                index,
                "no output depends on it",
                f"{_OPTIMIZE} removes it.",
                {
                    "ops": 1,
                    "macs": macs_of(graph, index),
                    "constant_bytes": sum(graph.tensor(name).num_bytes for name in constants),
                },
            )


def redundant_op(model: Model) -> Iterator[Finding]:
    """Find ops that give their input back."""
    for index, op in enumerate(model.graph.ops):
        reason = _gives_input(model.graph, op)
        if reason:
            price = model.price_of_a_copy(index)
            yield Finding("redundant-op", WARNING, index, reason, f"{_OPTIMIZE} removes it.", price)


def flatten_op(model: Model) -> Iterator[Finding]:
    """Find reshapes whose only purpose is to flatten for a dense layer."""
    graph = model.graph
    for index, op in enumerate(graph.ops):
        y = op.outputs[0]
        readers = graph.consumers().get(y, [])
        if op.kind != "reshape" or _gives_input(graph, op) or y in graph.outputs or not readers:
            continue
        rows = graph.tensor(y).shape[:-1]
        if all(graph.ops[i].kind == "fully_connected" for i in readers) and set(rows) == {1}:
            yield Finding(
                "flatten-op",
                NOTE,
                index,
                "flattens for a dense layer, which reads any shape; our engine skips it, TFLite Micro copies",
                "Harmless when it is small; leave the flatten out where the converter lets you.",
                model.price_of_a_copy(index),
            )


def _gives_input(graph: Graph, op: Op) -> str:
    x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
    same = _same(x, y)
    if op.kind == "reshape" and same:
        return "reshapes to the shape that is there"
    if op.kind == "transpose" and _moves_nothing(graph, op):
        return "transposes axes of length 1: no byte moves"
    if op.kind == "quantize" and same:
        return "requantises to the parameters that are there"
    if op.kind in ("concatenation", "split") and len(op.inputs) == len(op.outputs) == 1:
        return f"{op.kind} of one part"
    if op.kind == "strided_slice" and same and all(step == 1 for step in op.attrs["strides"]):
        return "slices the whole"
    if op.kind == "pad" and same:
        return "pads by nothing"
    return ""


def _same(x: Tensor, y: Tensor) -> bool:
    return (x.shape, x.dtype, x.quant) == (y.shape, y.dtype, y.quant)


def requantize_op(model: Model) -> Iterator[Finding]:
    """Find QUANTIZE ops between int8 tensors of different scale."""
    for index, op in enumerate(model.graph.ops):
        x, y = model.graph.tensor(op.inputs[0]), model.graph.tensor(op.outputs[0])
        if op.kind == "quantize" and (x.dtype, y.dtype) == ("int8", "int8") and x.quant != y.quant:
            yield Finding(
                "requantize-op",
                NOTE,
                index,
                "changes the scale of an int8 tensor, which rounds once more",
                "Give the operands of a concatenation, a maximum or a split one range in calibration or training.",
                model.price_of_a_copy(index),
            )


def separate_activation(model: Model) -> Iterator[Finding]:
    """Find RELU and RELU6 ops that their producer could do."""
    graph = model.graph
    producers, consumers = graph.producers(), graph.consumers()
    for index, op in enumerate(graph.ops):
        if op.kind not in ("relu", "relu6") or op.inputs[0] not in producers:
            continue
        before = graph.ops[producers[op.inputs[0]]]
        alone = len(consumers[op.inputs[0]]) == 1 and op.inputs[0] not in graph.outputs
        if alone and before.attrs.get("activation") == "none":
            yield Finding(
                "separate-activation",
                WARNING,
                index,
                f"an op of its own for what {before.kind} can do while it writes",
                f"{_OPTIMIZE} fuses it where that is exact; else place it right behind the {before.kind} in training.",
                model.price_of_a_copy(index),
            )


def slow_kernel(model: Model) -> Iterator[Finding]:
    """Find ops that run on a general kernel although a faster one exists for their kind."""
    for index, op in enumerate(model.graph.ops):
        try:
            chosen = model.prices.kernel(model.graph, op)
        except UnsupportedModelError:
            continue
        fastest = model.prices.fastest(op.kind)
        reason = _SLOW.get((op.kind, chosen))
        if not chosen or chosen == fastest or reason is None:
            continue
        yield Finding(
            "slow-kernel",
            NOTE,
            index,
            f"runs on {chosen}, not on {fastest}: {reason[0]}",
            reason[1],
            {"macs": op_macs(model.graph, op)},
        )


_SLOW = {
    ("depthwise_conv_2d", "tk_depthwise_conv_2d"): (
        "it has more than one output channel for each input channel",
        "Use a channel multiplier of 1, and widen with a 1x1 convolution.",
    ),
    ("add", "tk_add_broadcast"): (
        "its operands have different shapes",
        "Fold a constant operand into the bias of the layer before, in training.",
    ),
    ("mean", "tk_mean_axes"): ("it does not average over height and width", "Average over height and width."),
    ("pad", "tk_pad_nd"): ("it pads other axes than height and width", "Pad height and width only."),
}


def no_kernel(model: Model) -> Iterator[Finding]:
    """Find ops that our engine cannot run."""
    for index, op in enumerate(model.graph.ops):
        if op.kind in ("quantize", "dequantize") and not all(
            model.graph.tensor(name).dtype == "int8" for name in (op.inputs[0], op.outputs[0])
        ):
            continue
        try:
            model.prices.kernel(model.graph, op)
        except UnsupportedModelError as error:
            yield Finding(
                "no-kernel",
                ERROR,
                index,
                f"our engine cannot run it: {error.message}",
                error.next_step or "Run the model with TFLite Micro, or replace the op in training.",
            )


RULES = (
    Rule(
        "pad-op",
        "PAD as an op of its own",
        "PyTorch pads a stride-2 convolution on both sides; TFLite's SAME pads one side when the size is even, so "
        "converters put a PAD op before it. Stock TFLite Micro then holds the map twice. The arena price is planned "
        "with and without the op.",
        pad_op,
        WARNING,
    ),
    Rule(
        "transpose-op",
        "TRANSPOSE left over from a channels-first model",
        "Converters bracket what they cannot translate with transposes. Each one copies a whole map, byte by byte.",
        transpose_op,
        WARNING,
    ),
    Rule(
        "float-edge",
        "Input or output in float or another integer type",
        "A float input takes four times the bytes, and a microcontroller without an FPU converts it in software. The "
        "host can do it.",
        float_edge,
        WARNING,
    ),
    Rule(
        "constant-channels",
        "Channels that are constant or unread",
        "Pruned or dead channels keep their weights and MACs in the file. Their constant can go into the next bias "
        "exactly.",
        constant_channels,
        WARNING,
    ),
    Rule(
        "dead-op",
        "Op that no output depends on",
        "It is computed at every inference and thrown away.",
        dead_op,
        WARNING,
    ),
    Rule(
        "redundant-op",
        "Op that gives its input back",
        "Identities survive conversion: reshapes to the same shape, requantisations to the same scale. TFLite Micro "
        "copies the bytes.",
        redundant_op,
        WARNING,
    ),
    Rule(
        "flatten-op",
        "Reshape that only flattens for a dense layer",
        "FULLY_CONNECTED reads its input as rows whatever its shape; stock TFLite Micro copies for the reshape.",
        flatten_op,
        NOTE,
    ),
    Rule(
        "requantize-op",
        "QUANTIZE between int8 tensors",
        "Operands of a concatenation must share a scale; where calibration gave them different ones, the converter "
        "puts a requantisation in between, which copies and rounds.",
        requantize_op,
        NOTE,
    ),
    Rule(
        "separate-activation",
        "RELU that could be fused",
        "Convolutions, dense layers, additions and pools clamp while they write. As an op of its own, RELU reads and "
        "writes the map again.",
        separate_activation,
        WARNING,
    ),
    Rule(
        "slow-kernel",
        "Op on a general kernel",
        "Our engine has faster kernels for the common shapes; this op misses one by its shape or attributes.",
        slow_kernel,
        NOTE,
    ),
    Rule(
        "no-kernel",
        "Op that our engine cannot run",
        "The file is valid and TFLite Micro may run it, but `tinykd build` refuses it.",
        no_kernel,
        ERROR,
    ),
)
