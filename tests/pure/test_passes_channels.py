"""Dead and constant channels: what leaves, what must stay, and that no kept value changes by one bit."""

import numpy as np
import pytest
from graphs import Builder, needs_oracle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planted import edit, planted, run_all, silence, unread

from tinykd.export.passes.remove_channels import kept_channels, remove_channels
from tinykd.export.passes.value_ranges import value_ranges
from tinykd.export.proof import prove, proving_inputs
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, graph_macs, verify

SEEDS = st.integers(0, 10_000)
ONE_BY_ONE = {"kernel": (1, 1)}
FULL = Quant.per_tensor(0.05, -7)


def start(channels=6, size=7, quant=FULL):
    """A network whose first convolution has `channels` channels and the output parameters `quant`."""
    builder = Builder(np.random.default_rng(3), (1, size, size, 3))
    builder.conv(channels, (3, 3))
    requantise(builder, quant)
    return builder


def requantise(builder, quant):
    """Give the latest activation other parameters."""
    tensor = builder.tensors[builder.x]
    builder.tensors[builder.x] = type(tensor)(tensor.name, tensor.shape, tensor.dtype, quant)


def inputs(graph, count=60):
    """Extremes and noise for a graph of one input."""
    return proving_inputs(graph, count, 0)[graph.inputs[0]]


def removed(graph):
    """The graph without its dead and constant channels, after comparing every kept value with the reference's."""
    smaller = verify(remove_channels(graph))
    assert [graph.tensor(n).shape for n in (*graph.inputs, *graph.outputs)] == [
        smaller.tensor(n).shape for n in (*smaller.inputs, *smaller.outputs)
    ]
    x, kept = inputs(graph), kept_channels(graph)
    before, after = run_all(graph, x), run_all(smaller, x)
    for op in smaller.ops:
        for name in op.outputs:
            np.testing.assert_array_equal(after[name], before[name][..., kept[name]], err_msg=name)
    assert [op.source for op in smaller.ops] == [op.source for op in graph.ops]
    return smaller


def channels(graph):
    """The channels of each activation in order of the ops."""
    return [graph.tensor(op.outputs[0]).shape[-1] for op in graph.ops]


@settings(max_examples=60, deadline=None)
@given(SEEDS)
@example(0)
def test_every_kept_value_of_a_planted_network_stays(seed):
    """Whatever is constant, saturated or unread, with any padding, pool or residual: nothing that stays changes."""
    removed(planted(seed))


def test_planted_networks_lose_channels():
    """The property above is not empty: most planted networks get smaller."""
    graphs = [planted(seed) for seed in range(40)]
    assert sum(graph_macs(remove_channels(graph)) < graph_macs(graph) for graph in graphs) >= 30


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_bounds_hold_every_value(seed):
    """No activation of the reference leaves its bounds, on extremes and noise."""
    graph = planted(seed)
    bounds = value_ranges(graph)
    for name, values in run_all(graph, inputs(graph)).items():
        assert (values >= bounds[name].low).all() and (values <= bounds[name].high).all(), name


def test_bounds_of_a_sum_are_reached():
    """The bounds of a convolution's first layer are exact: some input takes each accumulator to its end."""
    builder = Builder(np.random.default_rng(5), (1, 1, 1, 4))
    builder.conv(8, (1, 1))
    graph = builder.graph()
    every = np.array(np.meshgrid(*[[-128, 127]] * 4)).reshape(4, -1).T.reshape(-1, 1, 1, 4).astype(np.int8)
    values, bounds = run_all(graph, every)[graph.outputs[0]], value_ranges(graph)[graph.outputs[0]]
    np.testing.assert_array_equal(values.min(axis=0), bounds.low[0])
    np.testing.assert_array_equal(values.max(axis=0), bounds.high[0])


def test_a_constant_goes_into_the_bias_of_a_convolution_without_padding():
    """A 1x1 convolution reads constants of any value: they leave, whatever the value."""
    builder = start()
    silence(builder, 0, [1, 4], 900)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [4, 5]


def test_a_constant_goes_into_the_bias_of_a_valid_convolution():
    """So does a larger kernel that never leaves the map."""
    builder = start()
    silence(builder, 0, [1, 4], 900)
    builder.conv(5, (3, 3), same=False)
    assert channels(removed(builder.graph())) == [4, 5]


def test_the_zero_point_leaves_a_padded_convolution():
    """A channel that always holds the zero point adds nothing inside the map, as padding adds nothing outside."""
    builder = start()
    silence(builder, 0, [0, 5], 0)
    builder.conv(5, (3, 3))
    assert channels(removed(builder.graph())) == [4, 5]


def test_another_constant_stays_before_a_padded_convolution():
    """At the border some taps see padding: a constant adds another number there, and no bias can say that."""
    builder = start()
    silence(builder, 0, [0, 5], 900)
    builder.conv(5, (3, 3))
    assert channels(removed(builder.graph())) == [6, 5]


def test_padding_at_the_end_only_is_a_border_too():
    """TensorFlow's SAME at stride 2 pads the last row and column alone: a constant other than the zero point stays."""
    builder = start(size=8)
    silence(builder, 0, [0, 5], 900)
    builder.conv(5, (3, 3), (2, 2))
    assert builder.ops[-1].attrs["padding"] == (0, 1, 0, 1)
    assert channels(removed(builder.graph())) == [6, 5]


def test_a_constant_leaves_a_padded_convolution_whose_border_taps_vanish():
    """Where every tap but the centre is zero, all positions get the same number."""
    builder = start()
    silence(builder, 0, [2], 900)
    builder.conv(5, (3, 3))

    def centre_only(data):
        centre = data[:, 1, 1, 2].copy()
        data[:, :, :, 2] = 0
        data[:, 1, 1, 2] = centre

    edit(builder, "w1", centre_only)
    assert channels(removed(builder.graph())) == [5, 5]


def test_border_taps_must_vanish_for_every_reader_of_the_channel():
    """One output with a border tap keeps the channel for all."""
    builder = start()
    silence(builder, 0, [2], 900)
    builder.conv(5, (3, 3))

    def centre_only(data):
        centre = data[:, 1, 1, 2].copy()
        data[:4, :, :, 2] = 0
        data[:, 1, 1, 2] = centre

    edit(builder, "w1", centre_only)
    assert channels(removed(builder.graph())) == [6, 5]


@pytest.mark.parametrize("same", [True, False])
def test_a_depthwise_convolution_carries_constants_on(same):
    """VALID: constant in, constant out, both leave. SAME: the border differs, both stay."""
    builder = start()
    silence(builder, 0, [1, 2], 900)
    builder.depthwise(same=same)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == ([6, 6, 5] if same else [4, 4, 5])


def test_all_channels_of_a_depthwise_multiplier_leave_together():
    """With two outputs for each input, one constant output of the two is not enough."""
    builder = start()
    builder.depthwise(multiplier=2)
    silence(builder, 1, [0, 1, 4], 0)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [5, 10, 5]


def test_a_saturating_channel_is_constant():
    """A bias beyond what the inputs can undo leaves one clamped value."""
    builder = start()
    edit(builder, "b0", lambda data: data.__setitem__([0, 3], 1 << 24))
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [4, 5]


def test_an_unread_channel_leaves_with_all_that_feeds_only_it():
    """Zero weights in the reader free the channel, and then the channels that only it had read."""
    builder = start()
    builder.conv(4, (1, 1))
    unread(builder, 1, [])
    edit(builder, "w1", lambda data: data[:3].__setitem__((..., [0, 1]), 0))
    builder.conv(5, (3, 3))
    unread(builder, 2, [3])
    assert channels(removed(builder.graph())) == [4, 3, 5]


def test_inputs_of_a_constant_output_are_unread():
    """A saturated channel of the output keeps its value without the channels that only it reads."""
    builder = start()
    builder.conv(4, (1, 1))
    edit(builder, "b1", lambda data: data.__setitem__(2, -(1 << 26)))
    edit(builder, "w1", lambda data: data[[0, 1, 3]].__setitem__((..., 5), 0))

    def only_for_two(data):
        data[[0, 1, 3], :, :, 5] = 0

    edit(builder, "w1", only_for_two)
    assert channels(removed(builder.graph())) == [5, 4]


def test_both_sides_of_a_residual_leave_together():
    """A channel that is constant on both sides of an addition leaves them and the sum."""
    builder = start()
    silence(builder, 0, [1, 3], 0)
    first = builder.x
    builder.conv(6, (3, 3))
    silence(builder, 1, [1], 500)
    builder.add(first)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [5, 5, 5, 5]


def test_a_residual_keeps_a_channel_that_lives_on_one_side():
    """Constant on one side is not enough: the sum still varies."""
    builder = start()
    first = builder.x
    builder.conv(6, (3, 3))
    silence(builder, 1, [0, 1, 2], 0)
    builder.add(first)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [6, 6, 6, 5]


def test_constants_leave_through_pools_and_means():
    """Max pool, average pool and mean of a constant are constants; a flattened map goes with its weights."""
    builder = start(size=8)
    silence(builder, 0, [1, 3], 700)
    builder.pool("max_pool_2d", same=True)
    builder.pool("average_pool_2d", same=True)
    builder.reshape((1, 2 * 2 * 6))
    builder.dense(3)
    smaller = removed(builder.graph())
    assert channels(smaller) == [4, 4, 4, 16, 3]


def test_a_flattened_channel_is_one_group():
    """Weights that are zero for some positions of a channel do not free it; for all positions they do."""
    builder = start(size=2)
    builder.reshape((1, 2 * 2 * 6))
    builder.dense(3)

    def some(data):
        data[:, [0, 6, 12]] = 0
        data[:, [1, 7, 13, 19]] = 0

    edit(builder, "w2", some)
    assert channels(removed(builder.graph())) == [5, 20, 3]


def test_a_mean_lets_constants_leave():
    """MEAN over height and width keeps channels apart."""
    builder = start()
    silence(builder, 0, [0], 700)
    builder.mean()
    builder.dense(3)
    assert channels(removed(builder.graph())) == [5, 5, 3]


def test_a_pad_makes_a_constant_vary():
    """PAD writes the real 0 around the map: a channel of that value leaves, any other stays."""
    builder = start()
    silence(builder, 0, [0], 0)
    silence(builder, 0, [1], 700)
    builder.pad((1, 1, 1, 1))
    builder.conv(5, (3, 3), same=False)
    assert channels(removed(builder.graph())) == [5, 5, 5]


def test_softmax_and_the_edges_keep_their_channels():
    """The output is what users see: constant channels of it stay, and those of a softmax's input."""
    builder = start()
    builder.mean()
    builder.dense(4)
    silence(builder, 2, [0, 1], 400)
    builder.softmax()
    assert channels(removed(builder.graph())) == [6, 6, 4, 4]


def test_an_unread_input_channel_stays():
    """The graph's input keeps its shape."""
    builder = start()
    unread(builder, 0, [2])
    assert removed(builder.graph()).tensor("input").shape == (1, 7, 7, 3)


def test_a_tensor_keeps_one_channel_at_least():
    """A map that is constant altogether keeps one channel, and every value stays."""
    builder = start()
    silence(builder, 0, list(range(6)), 300)
    builder.conv(5, (1, 1))
    assert channels(removed(builder.graph())) == [1, 5]


def test_a_bias_that_would_overflow_is_left_alone():
    """The constant's share does not fit the reader's int32 bias: the channel stays."""
    builder = start()
    silence(builder, 0, [1], 900)
    builder.conv(5, (1, 1))
    edit(builder, "b1", lambda data: data.__setitem__(slice(None), (1 << 31) - 1))
    graph = builder.graph()
    bounds = value_ranges(graph)[graph.outputs[0]]
    assert not bounds.fixed_channels().any(), "wrapping sums reach every value of the clamp"
    assert [kept_channels(graph)[op.outputs[0]].sum() for op in graph.ops] == [6, 5]


def transposed(bias):
    """A convolution with a constant channel, and a transposed one of stride 2 that reads it."""
    builder = start()
    silence(builder, 0, [2], bias)
    weights = builder._weights((5, 3, 3, 6), 5, 0, 54)
    attrs = {"stride": (2, 2), "padding": (0, 1, 0, 1), "activation": "none"}
    builder._emit("transpose_conv", (builder.x, *weights), (1, 14, 14, 5), **attrs)
    return builder.graph()


def test_a_transposed_convolution_lets_only_the_zero_point_leave():
    """Each of its positions sums other taps: a constant adds another number to each, the zero point adds none."""
    assert channels(removed(transposed(0))) == [5, 5]
    assert channels(removed(transposed(900))) == [6, 5]


def test_what_a_mean_over_channels_reads_stays():
    """A mean over the channels needs each of them."""
    builder = start()
    silence(builder, 0, [1], 0)
    builder._emit("mean", (builder.x,), (1, 7, 7), axes=(3,), keep_dims=False)
    builder._emit("reshape", (builder.x,), (1, 49), builder.tensors[builder.x].quant)
    builder.dense(3)
    assert channels(removed(builder.graph()))[0] == 6


def test_a_transpose_of_places_keeps_channels_apart_and_one_of_channels_does_not():
    """With the channels last before and after, constants leave."""
    for perm, shape, left in (((0, 2, 1, 3), (1, 7, 7, 6), 5), ((0, 3, 2, 1), (1, 6, 7, 7), 6)):
        builder = start()
        silence(builder, 0, [1], 0)
        builder._emit("transpose", (builder.x,), shape, FULL, perm=perm)
        builder.conv(3, (1, 1))
        assert channels(removed(builder.graph()))[0] == left


def test_scales_go_with_their_channels():
    """What stays keeps its own scale: weights, biases and their parameters are cut alike."""
    builder = start()
    silence(builder, 0, [0, 2], 0)
    builder.depthwise()
    builder.conv(3, (1, 1))
    silence(builder, 1, [0, 2], 0)
    graph = builder.graph()
    smaller = removed(graph)
    kept = [1, 3, 4, 5]
    for name, axis in (("w0", 0), ("b0", 0), ("w1", 3), ("b1", 0)):
        old, new = graph.tensor(name).quant, smaller.tensor(name).quant
        assert new.scales == tuple(old.scales[i] for i in kept) and new.axis == axis, name


def test_constants_of_a_concatenation_are_cut():
    """What is joined to a map and read by nobody goes, channel by channel, and a constant that is empty goes whole."""
    builder = start(2)
    quant = builder.tensors[builder.x].quant
    names = [builder.x]
    for name, depth in (("first", 3), ("second", 1)):
        data = builder.rng.integers(-128, 128, (1, 7, 7, depth)).astype(np.int8)
        builder.tensors[name] = Tensor(name, data.shape, "int8", quant, data)
        names.append(name)
    builder._emit("concatenation", tuple(names), (1, 7, 7, 6), quant, axis=3)
    builder.conv(4, (3, 3))
    unread(builder, 2, [0, 3, 5])
    smaller = removed(builder.graph())
    assert channels(smaller) == [1, 3, 4]
    assert [smaller.tensor(name).shape[-1] for name in smaller.ops[1].inputs] == [1, 2]


def test_parts_of_a_split_and_a_slice_lose_their_own_channels():
    """SPLIT and STRIDED_SLICE along the channels keep what their readers read."""
    builder = start(8)
    x, quant = builder.x, builder.tensors[builder.x].quant
    parts = tuple(builder.activation(f"part{i}", (1, 7, 7, size), quant) for i, size in enumerate((3, 5)))
    builder.ops.append(Op("split", (x,), parts, {"axis": 3}, "split"))
    ends = []
    for number, part in enumerate(parts):
        builder.x = part
        ends.append(builder.conv(2, (3, 3)))
        unread(builder, 2 + number, [0, 2])
    builder.x = parts[1]
    attrs = {"begin": (0, 0, 0, 1), "end": (1, 7, 7, 4), "strides": (1, 1, 1, 1), "shrink_axes": ()}
    builder._emit("strided_slice", (parts[1],), (1, 7, 7, 3), quant, **attrs)
    builder.conv(2, (3, 3))
    unread(builder, 5, [1])
    graph = builder.graph()
    graph = verify(Graph("three", graph.tensors, graph.ops, graph.inputs, (*ends, builder.x)))
    smaller = removed(graph)
    assert [smaller.tensor(name).shape[-1] for name in parts] == [1, 3]
    assert (smaller.ops[4].attrs["begin"][-1], smaller.ops[4].attrs["end"][-1]) == (0, 2)


def test_channels_added_by_a_pad_leave_with_those_around():
    """PAD over the channels (a shortcut that widens) keeps as many as are read."""
    builder = start(4)
    quant = builder.tensors[builder.x].quant
    builder._emit("pad", (builder.x,), (1, 7, 7, 9), quant, paddings=((0, 0), (0, 0), (0, 0), (2, 3)), value=11)
    builder.conv(3, (3, 3))
    unread(builder, 2, [0, 3, 8])
    smaller = removed(builder.graph())
    assert channels(smaller) == [3, 6, 3]
    assert smaller.ops[1].attrs["paddings"][-1] == (1, 2)


def test_constant_operands_are_cut_with_their_channels():
    """One value per channel is cut, one value for all is not."""
    for shape in ((1, 1, 1, 6), (1,)):
        builder = start()
        silence(builder, 0, [2, 3], 0)
        data = np.full(shape, 5, np.int8)
        builder.tensors["c"] = Tensor("c", shape, "int8", FULL, data)
        builder._emit("mul", ("c", builder.x), (1, 7, 7, 6), activation="none")
        builder.conv(3, (1, 1))
        smaller = removed(builder.graph())
        assert channels(smaller) == [4, 4, 3]
        assert smaller.tensor(smaller.ops[1].inputs[0]).shape == ((1, 1, 1, 4) if len(shape) == 4 else (1,))


def test_an_operand_of_one_channel_serves_them_all():
    """Broadcast over the channels: it belongs to no single one, and stays."""
    builder = start()
    x = builder.x
    builder.conv(1, (1, 1))
    gate = builder.x
    silence(builder, 0, [2, 3], 0)
    edit(builder, "w1", lambda data: data.__setitem__((..., [0]), 0))
    builder._emit("mul", (x, gate), (1, 7, 7, 6), activation="none")
    builder.conv(3, (1, 1))
    unread(builder, 3, [0, 1])
    assert channels(removed(builder.graph())) == [3, 1, 3, 3]


def test_weights_that_two_ops_share_are_cut_for_each():
    """Two convolutions with the same weights, of which one loses a channel: the other keeps its own."""
    builder = start()
    silence(builder, 0, [1], 900)
    first = builder.x
    builder.conv(6, (1, 1))
    op = builder.ops[-1]
    builder.x = first
    builder.depthwise()
    second = builder._emit("conv_2d", (builder.x, *op.inputs[1:]), (1, 7, 7, 6), **op.attrs)
    builder.x = op.outputs[0]
    builder.add(second)
    graph = builder.graph()
    assert graph.ops[3].inputs[1] == graph.ops[1].inputs[1]
    removed(graph)


def test_a_reader_without_bias_gets_one():
    """The constant's share needs a bias where there was none."""
    builder = start()
    silence(builder, 0, [1], 900)
    builder.conv(5, (1, 1))
    last = builder.ops[-1]
    builder.ops[-1] = Op(last.kind, last.inputs[:2], last.outputs, last.attrs, last.source)
    smaller = removed(builder.graph())
    assert channels(smaller) == [5, 5] and len(smaller.ops[-1].inputs) == 3


@needs_oracle
@pytest.mark.parametrize("seed", range(8))
def test_tflite_micro_agrees(seed):
    """The smaller file computes what the original computes, in TFLite Micro itself."""
    from tinykd.export.passes import lower_padding

    graph = lower_padding(planted(seed))
    files = [tflite_writer.write(item) for item in (graph, remove_channels(graph))]
    proof = prove(*files, proving_inputs(graph, 40, seed))
    assert proof.oracle == "tflite-micro" and proof.values > 0 and proof.mismatches == 0
