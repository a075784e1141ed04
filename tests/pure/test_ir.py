"""The IR's invariants: each broken rule is found and named."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, random_network

from tinykd.errors import InvalidModelError
from tinykd.ir import Op, Quant, Tensor, activation_range, graph_macs, same_padding, verify


def _graph():
    builder = Builder(np.random.default_rng(0), (1, 6, 6, 2))
    builder.conv(4)
    builder.depthwise()
    builder.mean()
    builder.dense(3)
    return builder.graph()


def _with_tensor(graph, key, **change):
    return replace(graph, tensors={**graph.tensors, key: replace(graph.tensors[key], **change)})


def _with_op(graph, index, **change):
    ops = list(graph.ops)
    ops[index] = replace(ops[index], **change)
    return replace(graph, ops=tuple(ops))


BROKEN = {
    "before anything writes it": lambda g: replace(g, ops=g.ops[::-1]),
    "nothing writes the output": lambda g: replace(g, ops=g.ops[:-1]),
    "unknown kind": lambda g: _with_op(g, 0, kind="conv"),
    "attributes": lambda g: _with_op(g, 0, attrs={}),
    "is not in the tensor table": lambda g: _with_op(g, 0, inputs=("nowhere", *g.ops[0].inputs[1:])),
    "already has a value": lambda g: _with_op(g, 1, outputs=g.ops[0].outputs),
    "must be at least 1": lambda g: _with_tensor(g, "conv_2d_0", shape=(1, 6, 0, 4)),
    "unknown dtype": lambda g: _with_tensor(g, "conv_2d_0", dtype="int4"),
    "but holds": lambda g: _with_tensor(g, "w0", data=np.zeros((1, 1), np.int8)),
    "the output .* has shape": lambda g: _with_tensor(g, "conv_2d_0", shape=(1, 5, 6, 4)),
    "positive and finite": lambda g: _with_tensor(g, "conv_2d_0", quant=Quant((0.0,), (0,))),
    "but no axis": lambda g: _with_tensor(g, "w0", quant=Quant((1.0, 1.0), (0, 0))),
    "along axis": lambda g: _with_tensor(g, "w0", quant=Quant((1.0, 1.0), (0, 0), 0)),
    "the bias has shape": lambda g: _with_tensor(g, "b0", shape=(2,), data=np.zeros(2, np.int32), quant=None),
    "unknown activation": lambda g: _with_op(g, 0, attrs={**g.ops[0].attrs, "activation": "gelu"}),
    "filed under": lambda g: _with_tensor(g, "conv_2d_0", name="other"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_broken_rule_is_named(rule):
    """verify() refuses a graph that breaks one rule, and its message names the rule."""
    graph = verify(_graph())
    with pytest.raises(InvalidModelError, match=rule):
        verify(BROKEN[rule](graph))


def test_macs_are_counted_per_op():
    """Convolution, depthwise and dense MACs follow from the shapes; everything else counts zero."""
    assert graph_macs(_graph()) == 6 * 6 * 4 * 9 * 2 + 6 * 6 * 4 * 9 + 4 * 3


def test_same_padding_puts_the_odd_element_last():
    """TensorFlow's SAME: stride 2 on an even size pads only behind."""
    assert same_padding(32, 3, 2) == (0, 1)
    assert same_padding(33, 3, 2) == (1, 1)
    assert same_padding(32, 1, 2) == (0, 0)
    assert same_padding(9, 3, 1, dilation=2) == (2, 2)


def test_activation_ranges():
    """RELU cuts at the zero point, RELU6 also at six, both within int8."""
    quant = Quant.per_tensor(0.05, -100)
    assert activation_range(quant, "none") == (-128, 127)
    assert activation_range(quant, "relu") == (-100, 127)
    assert activation_range(quant, "relu6") == (-100, 20)
    assert activation_range(Quant.per_tensor(1e-30, 0), "relu6") == (0, 127)


def test_with_ops_drops_what_nothing_names():
    """Tensors that no op and no edge names disappear from the table."""
    graph = _graph()
    extra = Tensor("unused", (1,), "int8", Quant.per_tensor(1.0, 0))
    assert "unused" not in graph.with_ops(graph.ops, {**graph.tensors, "unused": extra}).tensors


def test_graphs_are_immutable():
    """The tensor table cannot be changed in place."""
    graph = random_network(0).graph()
    with pytest.raises(TypeError):
        graph.tensors["x"] = None
    with pytest.raises(AttributeError):
        graph.ops = ()
    assert isinstance(graph.ops[0], Op)
