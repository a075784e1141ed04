"""The rule of each op's output shapes, by examples worked out by hand, and what each rule refuses."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, random_network

from tinykd.errors import InvalidModelError
from tinykd.ir import (
    SPECS,
    Graph,
    Op,
    Quant,
    Tensor,
    difference,
    op_macs,
    output_shapes,
    shapes,
    spatial_padding,
    verify,
)

UNIT = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}
POOL = {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 1, 1, 0), "activation": "none"}
CUT = {"begin": (0, 1, 4), "end": (1, 4, -1), "strides": (1, 2, -2), "shrink_axes": ()}


def make(kind, inputs, outputs=((1, 1),), state=None, **attrs):
    """Return a graph of one op over tensors of the given shapes; input `state` is a variable."""
    tensors = {}
    names = []
    for number, shape in enumerate(inputs):
        name = "" if shape is None else f"i{number}"
        names.append(name)
        if name:
            tensors[name] = Tensor(name, tuple(shape), "int8", variable=number == state)
    written = tuple(f"o{number}" for number in range(len(outputs)))
    tensors.update({name: Tensor(name, tuple(shape), "int8") for name, shape in zip(written, outputs, strict=True)})
    edges = tuple(name for name in names if name and not tensors[name].variable)
    return Graph("shapes", tensors, (Op(kind, tuple(names), written, attrs),), edges, written)


# (graph, expected output shapes, MACs)
RULES = {
    "conv": (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 3), (5,)], **UNIT), [(1, 7, 7, 5)], 7 * 7 * 5 * 18),
    "conv without bias": (make("conv_2d", [(1, 9, 8, 3), (5, 1, 1, 3), None], **UNIT), [(1, 9, 8, 5)], 72 * 15),
    "conv stride, dilation, padding": (
        make(
            "conv_2d",
            [(1, 9, 8, 1), (2, 3, 2, 1)],
            **{**UNIT, "stride": (2, 3), "dilation": (2, 1), "padding": (1, 0, 0, 2)},
        ),
        [(1, 3, 3, 2)],
        3 * 3 * 2 * 6,
    ),
    "depthwise": (make("depthwise_conv_2d", [(1, 4, 5, 3), (1, 2, 3, 6), (6,)], **UNIT), [(1, 3, 3, 6)], 54 * 6),
    "transpose conv": (
        make(
            "transpose_conv",
            [(1, 3, 2, 4), (5, 3, 2, 4), (5,)],
            stride=(2, 3),
            padding=(1, 2, 0, -1),
            activation="none",
        ),
        [(1, 4, 6, 5)],
        3 * 2 * 4 * 3 * 2 * 5,
    ),
    "dense": (make("fully_connected", [(1, 2, 6), (4, 12), (4,)], [(1, 4)], activation="none"), [(1, 4)], 48),
    "dense rows": (make("fully_connected", [(1, 2, 6), (4, 6)], [(1, 2, 4)], activation="none"), [(1, 2, 4)], 48),
    "svdf": (
        make("svdf", [(1, 7), (6, 7), (6, 4), (3,), (1, 24)], state=4, rank=2, activation="relu"),
        [(1, 3)],
        6 * 7 + 6 * 4,
    ),
    "add": (make("add", [(1, 4, 1, 3), (1, 1, 5, 3)], activation="none"), [(1, 4, 5, 3)], 0),
    "prelu": (make("prelu", [(1, 4, 5, 3), (3,)]), [(1, 4, 5, 3)], 0),
    "average pool": (make("average_pool_2d", [(1, 5, 4, 3)], **POOL), [(1, 3, 3, 3)], 0),
    "max pool": (make("max_pool_2d", [(1, 5, 4, 3)], **POOL), [(1, 3, 3, 3)], 0),
    "mean": (make("mean", [(1, 4, 5, 3)], axes=(1, 2), keep_dims=False), [(1, 3)], 0),
    "mean kept": (make("mean", [(1, 4, 5, 3)], axes=(3,), keep_dims=True), [(1, 4, 5, 1)], 0),
    "pad": (make("pad", [(1, 4, 3)], paddings=((0, 0), (1, 2), (0, 3)), value=None), [(1, 7, 6)], 0),
    "reshape": (make("reshape", [(1, 4, 3)], [(1, 2, 6)]), [(1, 2, 6)], 0),
    "transpose": (make("transpose", [(1, 4, 3, 2)], perm=(0, 3, 1, 2)), [(1, 2, 4, 3)], 0),
    "concatenation": (make("concatenation", [(1, 4, 3), (1, 2, 3), (1, 1, 3)], axis=1), [(1, 7, 3)], 0),
    "split": (make("split", [(1, 4, 3)], [(1, 1, 3), (1, 3, 3)], axis=1), [(1, 1, 3), (1, 3, 3)], 0),
    "slice": (make("strided_slice", [(1, 5, 6)], **CUT), [(1, 2, 3)], 0),
    "slice dropped": (
        make("strided_slice", [(1, 5, 6)], begin=(0, 2, 0), end=(1, 3, 6), strides=(1, 1, 4), shrink_axes=(1,)),
        [(1, 2)],
        0,
    ),
    "resize": (
        make("resize_nearest_neighbor", [(1, 4, 5, 3)], [(1, 7, 2, 3)], align_corners=False, half_pixel_centers=True),
        [(1, 7, 2, 3)],
        0,
    ),
    "arg max": (make("arg_max", [(1, 4, 3)], axis=2), [(1, 4)], 0),
    "softmax": (make("softmax", [(1, 4, 3)], beta=1.0), [(1, 4, 3)], 0),
    "batch norm": (make("batch_norm", [(1, 4, 3), (3,), (3,), (3,), (3,)], epsilon=1e-3), [(1, 4, 3)], 0),
}


@pytest.mark.parametrize("case", RULES)
def test_shapes_and_macs(case):
    """Each op's output shapes and its multiply-accumulates follow from inputs, weights and attributes."""
    graph, expected, macs = RULES[case]
    op = graph.ops[0]
    assert output_shapes(graph, op) == tuple(expected)
    shaped = {
        **graph.tensors,
        **{name: Tensor(name, shape, "int8") for name, shape in zip(op.outputs, expected, strict=True)},
    }
    whole = Graph(graph.name, shaped, graph.ops, graph.inputs, graph.outputs)
    assert op_macs(verify(whole), op) == macs


def test_every_kind_has_a_rule():
    """No row of the table is without a shape rule, and the examples above reach every rule that is not shared."""
    assert set(shapes._RULES) == set(SPECS)
    tried = {shapes._RULES[graph.ops[0].kind] for graph, _, _ in RULES.values()}
    assert tried == set(shapes._RULES.values())


def _transposed(inputs, stride=(2, 2)):
    return make("transpose_conv", inputs, stride=stride, padding=(0, 0, 0, 0), activation="none")


def _slice(**change):
    return make("strided_slice", [(1, 5, 6)], **{**CUT, **change})


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (make("conv_2d", [(1, 9, 8), (5, 3, 2, 3)], **UNIT), r"takes \(1, H, W, C\)"),
        (make("conv_2d", [(2, 9, 8, 3), (5, 3, 2, 3)], **UNIT), r"takes \(1, H, W, C\)"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 3)], **UNIT), "takes 4 dimensions"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 2)], **UNIT), "do not suit 3 input channels"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 3), (4,)], **UNIT), r"bias has shape \[4\] instead of \[5\]"),
        (make("conv_2d", [(1, 9, 8, 3), None], **UNIT), "its input 1 is missing"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 3)], **{**UNIT, "stride": (0, 1)}), "at least 1"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 3)], **{**UNIT, "dilation": (1, 0)}), "at least 1"),
        (make("conv_2d", [(1, 9, 8, 3), (5, 3, 2, 3)], **{**UNIT, "padding": (0, 0, -1, 0)}), "at least 0"),
        (make("depthwise_conv_2d", [(1, 9, 8, 3), (1, 3, 3, 4)], **UNIT), "do not suit 3 input channels"),
        (make("depthwise_conv_2d", [(1, 9, 8, 3), (3, 3, 3, 3)], **UNIT), "do not suit 3 input channels"),
        (make("depthwise_conv_2d", [(1, 9, 8, 3), (1, 3, 3, 6), (3,)], **UNIT), "bias has shape"),
        (_transposed([(1, 4, 4, 3), (3, 2, 2, 2)]), "do not suit 3 input channels"),
        (_transposed([(1, 4, 4, 3), (5, 2, 2, 3), (3,)]), "bias has shape"),
        (_transposed([(1, 4, 4, 3), (5, 2, 2, 3)], (1, 0)), "at least 1"),
        (make("fully_connected", [(1, 7), (4, 6)], [(1, 4)], activation="none"), "no rows of 6"),
        (make("fully_connected", [(1, 2, 6), (4, 6)], [(1, 4)], activation="none"), r"instead of \[2, 4\]"),
        (make("fully_connected", [(1, 2, 6), (4, 6)], [(1, 4, 2)], activation="none"), r"instead of \[2, 4\]"),
        (make("svdf", [(1, 7), (6, 8), (6, 4), None, (1, 24)], state=4, rank=2, activation="none"), "feature weights"),
        (make("svdf", [(1, 7), (6, 7), (5, 4), None, (1, 24)], state=4, rank=2, activation="none"), "time weights"),
        (make("svdf", [(1, 7), (6, 7), (6, 4), None, (1, 24)], state=4, rank=4, activation="none"), "rank 4"),
        (make("svdf", [(1, 7), (6, 7), (6, 4), None, (1, 23)], state=4, rank=2, activation="none"), r"state \[1, 23\]"),
        (make("svdf", [(1, 7), (6, 7), (6, 4), None, (1, 24)], rank=2, activation="none"), "state"),
        (make("svdf", [(1, 7), (6, 7), (6, 4), (6,), (1, 24)], state=4, rank=2, activation="none"), "bias has shape"),
        (make("mul", [(1, 4, 2, 3), (1, 3, 2, 3)], activation="none"), "do not broadcast"),
        (make("average_pool_2d", [(1, 4, 3)], **POOL), r"takes \(1, H, W, C\)"),
        (make("max_pool_2d", [(1, 4, 4, 3)], **{**POOL, "kernel": (0, 1)}), "at least 1"),
        (make("mean", [(1, 4, 3)], axes=(), keep_dims=False), "must be sorted"),
        (make("mean", [(1, 4, 3)], axes=(2, 1), keep_dims=False), "must be sorted"),
        (make("mean", [(1, 4, 3)], axes=(0, 1), keep_dims=False), "not the batch"),
        (make("mean", [(1, 4, 3)], axes=(3,), keep_dims=False), "must be sorted"),
        (make("pad", [(1, 4, 3)], paddings=((0, 0), (1, 2)), value=None), "one pair per axis"),
        (make("pad", [(1, 4)], paddings=((0, 0), (1, -2)), value=None), "none negative"),
        (make("reshape", [(1, 4, 3)], [(1, 11)]), "12 elements cannot become"),
        (make("transpose", [(1, 4, 3)], perm=(0, 1, 1)), "no permutation"),
        (make("concatenation", [(1, 4, 3), (1, 4, 2)], axis=1), "cannot be joined along axis 1"),
        (make("concatenation", [(1, 4, 3), (1, 4)], axis=1), "cannot be joined"),
        (make("concatenation", [(1, 4), (1, 4)], axis=2), "cannot be joined"),
        (make("split", [(1, 4, 3)], [(1, 1, 3), (1, 2, 3)], axis=1), r"\[1, 2\] do not add up to 4"),
        (make("split", [(1, 4, 3)], [(1, 4)], axis=1), "cannot be cut"),
        (_slice(strides=(1, 0, -1)), "leave the input"),
        (_slice(begin=(0, 5, 5)), "leave the input"),
        (_slice(end=(1, 6, -1)), "leave the input"),
        (_slice(end=(1, 4)), "one of each per axis"),
        (_slice(shrink_axes=(1,)), "must have length 1"),
        (
            make(
                "resize_nearest_neighbor",
                [(1, 4, 5, 3)],
                [(1, 7, 2, 4)],
                align_corners=False,
                half_pixel_centers=False,
            ),
            "cannot be resized",
        ),
        (make("arg_max", [(1, 4, 3)], axis=3), "axis 3"),
    ],
)
def test_what_does_not_go_together_is_refused(graph, message):
    """Operands that no output shape suits are refused by rule, and verify() names the op."""
    with pytest.raises(InvalidModelError, match=message):
        output_shapes(graph, graph.ops[0])
    with pytest.raises(InvalidModelError, match=rf"op 0 \({graph.ops[0].kind}, o0\)"):
        verify(graph)


def test_outputs_are_held_to_their_own_number_and_shapes():
    """Every output of an op is compared, not only the first, and an op has as many as its kind has."""
    good = make("split", [(1, 4, 3)], [(1, 1, 3), (1, 3, 3)], axis=1)
    tensors = {**good.tensors, "o1": Tensor("o1", (1, 3, 2), "int8")}
    with pytest.raises(InvalidModelError, match="the output 'o1' has shape"):
        verify(Graph("split", tensors, good.ops, good.inputs, good.outputs))
    with pytest.raises(InvalidModelError, match="2 outputs; it has 1 to 1"):
        verify(make("softmax", [(1, 4)], [(1, 4), (1, 4)], beta=1.0))
    with pytest.raises(InvalidModelError, match="3 inputs; it takes 2 to 2"):
        verify(make("add", [(1, 4), (1, 4), (1, 4)], [(1, 4)], activation="none"))


def test_only_an_op_that_owns_it_changes_a_variable():
    """A variable is read before anything writes it, and no op's output."""
    graph = make("svdf", [(1, 7), (6, 7), (6, 4), (3,), (1, 24)], [(1, 3)], state=4, rank=2, activation="relu")
    assert verify(graph).variables() == ("i4",)
    write = Op("reshape", ("i0",), ("i4",), {})
    with pytest.raises(InvalidModelError, match="already has a value"):
        verify(Graph("state", graph.tensors, (write, *graph.ops), graph.inputs, graph.outputs))


def test_spatial_padding_is_told_from_others():
    """Only a pad of H and W with the real 0 is one that a convolution can take over."""

    def pad(paddings, value=None):
        return Op("pad", ("x",), ("y",), {"paddings": paddings, "value": value})

    assert spatial_padding(pad(((0, 0), (1, 2), (3, 4), (0, 0)))) == (1, 2, 3, 4)
    assert spatial_padding(pad(((0, 0), (1, 2), (3, 4), (0, 0)), 5)) is None
    assert spatial_padding(pad(((0, 0), (1, 2), (3, 4), (0, 1)))) is None
    assert spatial_padding(pad(((1, 0), (1, 2), (3, 4), (0, 0)))) is None
    assert spatial_padding(pad(((0, 0), (1, 2), (3, 4)))) is None


def _changed(graph, what):
    op, name = graph.ops[0], graph.ops[0].outputs[0]
    tensor = graph.tensors[name]
    weights = graph.tensors[op.inputs[1]]
    assert weights.data is not None
    data = weights.data.copy()
    data.flat[0] ^= 1

    def with_tensor(new):
        return replace(graph, tensors={**graph.tensors, new.name: new})

    return {
        "the inputs are": lambda: replace(graph, inputs=(*graph.inputs, name)),
        "the outputs are": lambda: replace(graph, outputs=(*graph.outputs, name)),
        "ops": lambda: replace(graph, ops=graph.ops[:-1]),
        "kind": lambda: replace(graph, ops=(replace(op, kind="mul"), *graph.ops[1:])),
        r"op 0 \(conv_2d\): inputs": lambda: replace(graph, ops=(replace(op, inputs=op.inputs[:2]), *graph.ops[1:])),
        r"op 0 \(conv_2d\): outputs": lambda: replace(graph, ops=(replace(op, outputs=("z",)), *graph.ops[1:])),
        "attributes": lambda: replace(graph, ops=(replace(op, attrs={**op.attrs, "stride": (9, 9)}), *graph.ops[1:])),
        "tensors in one graph only": lambda: with_tensor(replace(tensor, name="another")),
        "shape": lambda: with_tensor(replace(tensor, shape=(1, 1))),
        "type": lambda: with_tensor(replace(tensor, dtype="int16")),
        "quantisation": lambda: with_tensor(replace(tensor, quant=Quant.per_tensor(1.25, 3))),
        "variable": lambda: with_tensor(replace(tensor, variable=True)),
        "constant": lambda: with_tensor(replace(weights, data=None)),
        "1 values differ": lambda: with_tensor(replace(weights, data=data)),
    }[what]()


@pytest.mark.parametrize(
    "what",
    [
        "the inputs are",
        "the outputs are",
        "ops",
        "kind",
        r"op 0 \(conv_2d\): inputs",
        r"op 0 \(conv_2d\): outputs",
        "attributes",
        "tensors in one graph only",
        "shape",
        "type",
        "quantisation",
        "variable",
        "constant",
        "1 values differ",
    ],
)
def test_graph_comparison_sees_each_change(what):
    """difference() names each thing in which two graphs can differ, whichever of them comes first."""
    builder = Builder(np.random.default_rng(0), (1, 6, 6, 2))
    builder.conv(4)
    builder.mean()
    graph = builder.graph()
    other = _changed(graph, what)
    assert difference(graph, graph) is None
    assert re.search(what, difference(graph, other) or "")
    assert difference(other, graph) is not None


def test_graph_comparison_looks_past_names_of_graphs_and_sources():
    """The graph's name and where its ops came from say nothing about what it computes."""
    graph = random_network(2).graph()
    other = replace(graph, name="other", ops=tuple(replace(op, source="elsewhere") for op in graph.ops))
    assert difference(graph, other) is None


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_are_positive_and_finite(scale):
    """No arithmetic of any op is defined for such a scale, of an activation or of one channel."""
    graph = make("fully_connected", [(1, 6), (4, 6)], [(1, 4)], activation="none")
    for name, quant in (("i0", Quant((scale,), (0,))), ("i1", Quant((1.0, scale, 1.0, 1.0), (0,) * 4, 0))):
        with pytest.raises(InvalidModelError, match=f"tensor '{name}': every scale must be positive and finite"):
            verify(replace(graph, tensors={**graph.tensors, name: replace(graph.tensors[name], quant=quant)}))
