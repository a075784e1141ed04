"""The other int8 passes: what each does, where it must not, and that all of them together change no output."""

import numpy as np
import pytest
from graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted, silence

from tinykd.errors import InternalError
from tinykd.export import reference
from tinykd.export.optimize import optimize, size_of
from tinykd.export.passes import (
    INT8_PASSES,
    float_edges_to_host,
    fold_constants,
    fold_pad,
    for_engine,
    fuse_clamps,
    merge_moves,
    pad_to_same,
    remove_dead_ops,
    remove_identities,
    share_duplicates,
    undo_concat_split,
)
from tinykd.export.passes.value_ranges import value_ranges
from tinykd.export.proof import proving_inputs
from tinykd.ir import Graph, Op, Quant, Tensor, difference, verify

OTHER = Quant.per_tensor(0.031, 5)
PLAIN = {"stride": (1, 1), "padding": (0, 0, 0, 0), "activation": "none"}


def net(shape=(1, 6, 6, 4)):
    """A network without ops."""
    return Builder(np.random.default_rng(4), shape)


def emit(builder, kind, shape, *more, quant=None, inputs=None, **attrs):
    """Add an op that keeps its input's parameters unless others are named."""
    own = quant or builder.tensors[builder.x].quant
    return builder._emit(kind, inputs or (builder.x, *more), shape, own, **attrs)


def constant(builder, name, data, quant=OTHER):
    """Add an int8 constant."""
    data = np.asarray(data, np.int8)
    builder.tensors[name] = Tensor(name, data.shape, "int8", quant, data)
    return name


def kinds(graph):
    """The op kinds in order."""
    return [op.kind for op in graph.ops]


def apply(step, graph):
    """Apply one pass; the edges and every output value must stay."""
    changed = verify(step(graph))
    same_outputs(graph, changed)
    assert (changed.inputs, changed.outputs) == (graph.inputs, graph.outputs)
    return changed


def same_outputs(first, second):
    """Both graphs give the same on extremes and noise."""
    inputs = proving_inputs(first, 30, 0)
    stream = bool(first.variables())
    before, after = (reference.run(graph, inputs, stream=stream) for graph in (first, second))
    for name in first.outputs:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_all_passes_together_change_no_output(seed):
    """Applied until nothing changes, on networks with pads, pools, residuals and planted channels."""
    graph = planted(seed)
    smaller, _ = optimize(graph)
    same_outputs(graph, smaller)
    sources = [op.source for op in graph.ops]
    assert [op.source for op in smaller.ops] == [
        source for source in sources if source in {o.source for o in smaller.ops}
    ]


def test_the_result_does_not_get_smaller_again():
    """A fixed point: the passes leave it alone, and it is the same each time."""
    first, steps = optimize(planted(11))
    again, nothing = optimize(first)
    assert difference(first, again) is None and not any(step.changed for step in nothing)
    assert difference(first, optimize(planted(11))[0]) is None
    assert [step.name for step in steps] == [step.__name__ for step in INT8_PASSES]


def test_steps_add_up_to_the_difference():
    """What the passes say that they took is what is gone."""
    graph = planted(1)
    smaller, steps = optimize(graph)
    before, after = size_of(graph), size_of(smaller)
    for key in ("ops", "macs", "constant_bytes"):
        assert sum(getattr(step, key) for step in steps) == getattr(before, key) - getattr(after, key)
    assert before.macs > after.macs


def test_a_pass_that_never_ends_is_stopped():
    """A pass that changes the graph in each round is a bug, and is called one."""

    def restless(graph):
        ops = [Op(op.kind, op.inputs, tuple(f"{name}'" for name in op.outputs), op.attrs) for op in graph.ops]
        tensors = {t.name: t for t in (Tensor(n, *_rest(graph, n)) for op in ops for n in op.outputs)}
        return Graph(graph.name, {**graph.tensors, **tensors}, tuple(ops), graph.inputs, ops[-1].outputs)

    def _rest(graph, name):
        tensor = graph.tensor(name[:-1])
        return tensor.shape, tensor.dtype, tensor.quant

    builder = net()
    builder.mean()
    with pytest.raises(InternalError, match="changed an edge"):
        optimize(builder.graph(), [restless])


IDENTITIES = {
    "reshape": {},
    "pad": {"paddings": ((0, 0),) * 4, "value": None},
    "quantize": {},
    "concatenation": {"axis": 3},
    "split": {"axis": 1},
    "strided_slice": {"begin": (0,) * 4, "end": (1, 6, 6, 4), "strides": (1,) * 4, "shrink_axes": ()},
    "transpose": {"perm": (0, 1, 2, 3)},
    "resize_nearest_neighbor": {"align_corners": False, "half_pixel_centers": True},
    "max_pool_2d": {"kernel": (1, 1), **PLAIN},
    "average_pool_2d": {"kernel": (1, 1), **PLAIN},
}


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("last", [False, True], ids=["within", "at the output"])
def test_identities_leave(kind, last):
    """Whatever gives back its input goes; an output keeps its name."""
    builder = net()
    builder.conv(4)
    emit(builder, kind, (1, 6, 6, 4), **IDENTITIES[kind])
    if not last:
        builder.conv(3)
    assert kinds(apply(remove_identities, builder.graph())) == ["conv_2d"] * (1 if last else 2)


def test_an_identity_between_input_and_output_stays():
    """The edges have names of their own: an op has to carry the value from one to the other."""
    builder = net()
    emit(builder, "reshape", (1, 6, 6, 4))
    assert kinds(apply(remove_identities, builder.graph())) == ["reshape"]


def test_an_identity_whose_input_is_an_output_too_stays():
    """Both names are promised to the caller."""
    builder = net()
    first = builder.conv(4)
    emit(builder, "reshape", (1, 6, 6, 4))
    graph = builder.graph()
    graph = verify(Graph("two", graph.tensors, graph.ops, graph.inputs, (first, builder.x)))
    assert kinds(apply(remove_identities, graph)) == ["conv_2d", "reshape"]


@pytest.mark.parametrize("kind", ["reshape", "quantize"])
def test_other_parameters_are_no_identity(kind):
    """The same integers under another scale, and integers changed for it, are no no-ops."""
    builder = net()
    builder.conv(4)
    emit(builder, kind, (1, 6, 6, 4), quant=OTHER)
    builder.conv(3)
    assert kinds(apply(remove_identities, builder.graph())) == ["conv_2d", kind, "conv_2d"]


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("transpose", {"perm": (0, 2, 1, 3)}),
        ("strided_slice", {"begin": (0, 5, 0, 0), "end": (1, -1, 6, 4), "strides": (1, -1, 1, 1), "shrink_axes": ()}),
        ("max_pool_2d", {"kernel": (1, 1), **PLAIN, "activation": "relu"}),
        ("max_pool_2d", {"kernel": (3, 3), **PLAIN, "padding": (1, 1, 1, 1)}),
    ],
)
def test_equal_shapes_are_not_enough(kind, attrs):
    """A transpose, a flip, a clamp or a window of the same shape stays."""
    builder = net()
    builder.conv(4)
    builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", OTHER)
    emit(builder, kind, (1, 6, 6, 4), **attrs)
    builder.conv(3)
    assert kinds(apply(remove_identities, builder.graph())) == ["conv_2d", kind, "conv_2d"]


@pytest.mark.parametrize(("activation", "left"), [("relu", 1), ("none", 2)])
def test_a_clamp_that_the_values_cannot_reach_leaves(activation, left):
    """A RELU behind a RELU changes nothing that can occur; behind a plain convolution it does."""
    builder = net()
    builder.conv(4, activation=activation)
    builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", OTHER)
    emit(builder, "relu", (1, 6, 6, 4))
    assert len(apply(remove_identities, builder.graph()).ops) == left


def test_moves_in_a_row_become_one():
    """Reshapes, transposes and pads merge with their own kind."""
    builder = net()
    builder.pad((1, 0, 0, 1))
    builder.pad((0, 2, 1, 0))
    emit(builder, "transpose", (1, 9, 4, 8), perm=(0, 1, 3, 2))
    emit(builder, "transpose", (1, 8, 9, 4), perm=(0, 3, 1, 2))
    emit(builder, "reshape", (1, 72, 4))
    emit(builder, "reshape", (1, 288))
    graph = apply(merge_moves, builder.graph())
    assert kinds(graph) == ["pad", "transpose", "reshape"]
    assert graph.ops[0].attrs["paddings"] == ((0, 0), (1, 2), (1, 1), (0, 0))
    assert graph.ops[1].attrs["perm"] == (0, 2, 1, 3)


def test_a_value_that_is_read_elsewhere_is_not_merged_away():
    """The middle of two reshapes that something else reads stays."""
    builder = net()
    first = emit(builder, "reshape", (1, 36, 4))
    emit(builder, "reshape", (1, 6, 24))
    builder.x = emit(builder, "reshape", (1, 36, 4))
    builder.add(first)
    assert kinds(apply(merge_moves, builder.graph())) == ["reshape", "reshape", "add"]


def test_pads_of_different_values_do_not_merge():
    """The inner border keeps its value."""
    builder = net()
    builder.pad((1, 1, 1, 1))
    emit(builder, "pad", (1, 10, 8, 4), paddings=((0, 0), (1, 1), (0, 0), (0, 0)), value=9)
    assert kinds(apply(merge_moves, builder.graph())) == ["pad", "pad"]


def test_moves_of_axes_of_length_one_are_reshapes():
    """A transpose that keeps the order of elements, and a mean of single elements, move nothing."""
    builder = net((1, 1, 5, 3))
    emit(builder, "transpose", (5, 1, 1, 3), perm=(2, 0, 1, 3))
    emit(builder, "reshape", (1, 1, 5, 3))
    emit(builder, "mean", (1, 5, 3), axes=(1,), keep_dims=False)
    graph = builder.graph()
    assert kinds(apply(merge_moves, graph)) == ["reshape"]


def test_a_mean_that_changes_scale_is_no_reshape():
    """Over one element it still requantises."""
    builder = net((1, 1, 1, 3))
    builder.mean()
    builder.tensors[builder.x] = Tensor(builder.x, (1, 3), "int8", OTHER)
    assert kinds(apply(merge_moves, builder.graph())) == ["mean"]


def split_and_join(order, axis=3, parts=(1, 3)):
    """SPLIT into parts along an axis, CONCATENATION in the given order, then a convolution."""
    builder = net()
    builder.conv(4)
    x, shape = builder.x, [1, 6, 6, 4]
    names = []
    for number, size in enumerate(parts):
        shape[axis] = size
        names.append(builder.activation(f"part{number}", tuple(shape), builder.tensors[x].quant))
    builder.ops.append(Op("split", (x,), tuple(names), {"axis": axis}, "split"))
    emit(builder, "concatenation", (1, 6, 6, 4), inputs=tuple(names[i] for i in order), axis=axis)
    builder.conv(2)
    return builder.graph()


def test_what_is_split_and_joined_again_is_left_whole():
    """CONCATENATION of all parts in order is the value before the SPLIT; then the SPLIT is dead."""
    graph = apply(undo_concat_split, split_and_join((0, 1)))
    assert kinds(graph) == ["conv_2d", "split", "conv_2d"]
    assert kinds(apply(remove_dead_ops, graph)) == ["conv_2d", "conv_2d"]


def test_parts_in_another_order_stay():
    """A shuffle of channels is not an identity."""
    assert len(apply(undo_concat_split, split_and_join((1, 0), parts=(2, 2))).ops) == 4


def test_what_is_joined_and_split_again_is_read_directly():
    """SPLIT at the seams of a CONCATENATION gives its inputs, and the CONCATENATION is dead; elsewhere it stays."""
    for sizes, left in (((4, 3), ["conv_2d", "conv_2d", "conv_2d", "conv_2d", "concatenation"]), ((3, 4), None)):
        builder = net()
        x, quant = builder.x, OTHER
        names = []
        for channels in (4, 3):
            builder.x = x
            name = builder.conv(channels)
            builder.tensors[name] = Tensor(name, (1, 6, 6, channels), "int8", quant)
            names.append(name)
        emit(builder, "concatenation", (1, 6, 6, 7), inputs=tuple(names), axis=3)
        parts = [builder.activation(f"part{i}", (1, 6, 6, size), quant) for i, size in enumerate(sizes)]
        builder.ops.append(Op("split", (builder.x,), tuple(parts), {"axis": 3}, "split"))
        ends = []
        for part in parts:
            builder.x = part
            end = builder.conv(2)
            builder.tensors[end] = Tensor(end, (1, 6, 6, 2), "int8", quant)
            ends.append(end)
        emit(builder, "concatenation", (1, 6, 6, 4), inputs=tuple(ends), axis=3)
        graph = remove_dead_ops(apply(undo_concat_split, builder.graph()))
        assert kinds(graph) == (left or kinds(builder.graph()))


@pytest.mark.parametrize(
    ("first", "clamp", "fused"),
    [("none", "relu", "relu"), ("none", "relu6", "relu6"), ("relu", "relu6", "relu6"), ("relu6", "relu", "relu6")],
)
def test_a_clamp_of_its_own_is_fused(first, clamp, fused):
    """RELU and RELU6 in the producer's parameters become its activation, after the one that it has."""
    builder = net()
    builder.conv(4, activation=first)
    # A quantised 6 of 125 is below the end of the range: RELU and RELU6 differ.
    builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", Quant.per_tensor(0.05, 5))
    emit(builder, clamp, (1, 6, 6, 4))
    graph = apply(fuse_clamps, builder.graph())
    assert [(op.kind, op.attrs["activation"]) for op in graph.ops] == [("conv_2d", fused)]
    assert graph.ops[0].source == "conv_2d_0"


def test_a_clamp_that_rescales_is_not_fused():
    """Requantising twice rounds twice: no single factor repeats it."""
    builder = net()
    builder.conv(4)
    emit(builder, "relu", (1, 6, 6, 4), quant=OTHER)
    assert kinds(apply(fuse_clamps, builder.graph())) == ["conv_2d", "relu"]


def test_a_clamp_that_names_another_scale_is_not_fused():
    """RELU6 clamps integers and leaves the scale to its output: the producer would requantise to that one."""
    builder = net()
    builder.conv(4)
    builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", Quant.per_tensor(0.01, 5))
    emit(builder, "relu6", (1, 6, 6, 4), quant=Quant.per_tensor(0.012, 5))
    assert kinds(apply(fuse_clamps, builder.graph())) == ["conv_2d", "relu6"]


def test_a_clamp_of_a_value_that_is_read_elsewhere_is_not_fused():
    """The other reader needs the value before the clamp."""
    builder = net()
    first = builder.conv(4)
    emit(builder, "relu", (1, 6, 6, 4))
    builder.add(first)
    assert kinds(apply(fuse_clamps, builder.graph())) == ["conv_2d", "relu", "add"]


def padded_conv(padding, stride, kernel=(3, 3), size=6, kind="conv"):
    """PAD and a VALID convolution."""
    builder = net((1, size, size, 4))
    builder.pad(padding)
    make = builder.conv if kind == "conv" else builder.depthwise
    make(**({"channels": 3} if kind == "conv" else {}), kernel=kernel, stride=(stride, stride), same=False)
    return builder


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_a_pad_that_is_same_goes_into_the_convolution(kind):
    """What TensorFlow's SAME pads, the op pads itself: (0, 1) at stride 2 on even sizes, (1, 1) at stride 1."""
    for padding, stride in (((0, 1, 0, 1), 2), ((1, 1, 1, 1), 1)):
        graph = apply(pad_to_same, padded_conv(padding, stride, kind=kind).graph())
        assert len(graph.ops) == 1 and graph.ops[0].attrs["padding"] == padding


def test_a_pad_that_a_file_cannot_say_stays_there_and_goes_in_our_engine():
    """(1, 1) at stride 2 on even sizes, as PyTorch pads, is neither SAME nor VALID."""
    graph = padded_conv((1, 1, 1, 1), 2).graph()
    assert kinds(apply(pad_to_same, graph)) == ["pad", "conv_2d"]
    assert kinds(apply(fold_pad, graph)) == ["conv_2d"] == kinds(for_engine(graph))
    assert for_engine(graph).ops[0].attrs["padding"] == (1, 1, 1, 1)


def test_pads_stay_where_folding_is_not_exact():
    """Before a pool, with another value, with other parameters, over channels, or read by something else too."""
    pool = net()
    pool.pad((1, 1, 1, 1))
    pool.pool("max_pool_2d", (3, 3), (1, 1))
    value = net()
    emit(value, "pad", (1, 8, 8, 4), paddings=((0, 0), (1, 1), (1, 1), (0, 0)), value=3)
    value.conv(3, same=False)
    depth = net()
    emit(depth, "pad", (1, 6, 6, 6), paddings=((0, 0), (0, 0), (0, 0), (1, 1)), value=None)
    depth.conv(3)
    scale = padded_conv((1, 1, 1, 1), 1)
    scale.tensors["pad_0"] = Tensor("pad_0", (1, 8, 8, 4), "int8", OTHER)
    both = padded_conv((1, 1, 1, 1), 1)
    both.x = "pad_0"
    both.pool("max_pool_2d")
    for builder in (pool, value, depth, scale):
        graph = builder.graph()
        assert kinds(apply(fold_pad, graph)) == kinds(graph)
    graph = both.graph()
    graph = verify(Graph("both", graph.tensors, graph.ops, graph.inputs, ("conv_2d_1", both.x)))
    assert kinds(apply(fold_pad, graph)) == kinds(graph)


def test_equal_constants_and_equal_ops_are_kept_once():
    """Two convolutions with equal weights of their own on one input are one; other biases make two."""
    for bias_differs in (False, True):
        builder = net()
        builder.conv(4)
        twin = dict(zip(("w1", "b1"), ("w0", "b0"), strict=True))
        for new, old in twin.items():
            tensor = builder.tensors[old]
            data = tensor.data.copy()
            data.flat[0] += 7 if bias_differs and new == "b1" else 0
            builder.tensors[new] = Tensor(new, tensor.shape, tensor.dtype, tensor.quant, data)
        first = builder.x
        op = builder.ops[0]
        builder._emit("conv_2d", ("input", "w1", "b1"), (1, 6, 6, 4), builder.tensors[first].quant, **op.attrs)
        builder.add(first)
        graph = apply(share_duplicates, builder.graph())
        assert kinds(graph) == (["conv_2d", "conv_2d", "add"] if bias_differs else ["conv_2d", "add"])
        assert ("w1" in graph.tensors) is False


def test_equal_ops_with_outputs_of_other_parameters_are_two():
    """The same sums requantised to another scale are other values; so is another attribute."""
    builder = net()
    first = builder.conv(4, activation="relu")
    op = builder.ops[0]
    second = builder._emit("conv_2d", op.inputs, (1, 6, 6, 4), OTHER, **op.attrs)
    third = builder._emit(
        "conv_2d", op.inputs, (1, 6, 6, 4), builder.tensors[first].quant, **{**op.attrs, "activation": "none"}
    )
    builder.x = first
    builder.add(second)
    builder.add(third)
    assert len(apply(share_duplicates, builder.graph()).ops) == 5


def test_dead_ops_leave_and_shared_states_stay():
    """What no output depends on goes."""
    builder = net()
    builder.conv(4)
    kept = builder.x
    builder.conv(5)
    builder.mean()
    builder.x = kept
    assert kinds(apply(remove_dead_ops, builder.graph())) == ["conv_2d"]


def test_ops_on_constants_are_computed():
    """A chain of ops on a constant becomes a constant operand of the op that reads it."""
    builder = net()
    x = builder.x
    builder.x = constant(builder, "c", np.arange(24).reshape(1, 2, 3, 4))
    emit(builder, "reshape", (1, 1, 6, 4))
    emit(builder, "quantize", (1, 1, 6, 4), quant=Quant.per_tensor(0.02, -1))
    c = builder.x
    builder.x = x
    builder._emit("add", (x, c), (1, 6, 6, 4), activation="none")
    graph = verify(fold_constants(builder.graph()))
    assert kinds(graph) == ["add"]
    folded = graph.tensor(graph.ops[0].inputs[1])
    # 0.031 * (q - 5) = 0.02 * (q' + 1)
    np.testing.assert_array_equal(folded.data.reshape(-1), np.floor((np.arange(24) - 5) * 0.031 / 0.02 + 0.5) - 1)


def test_two_constant_branches_are_computed_where_they_meet():
    """An op keeps one operand that is computed: of constants only, nothing would be left to run."""
    builder = net()
    first = builder.conv(4)
    builder.conv(4)
    for index in (0, 1):
        silence(builder, index, [0, 1, 2, 3], 800)
    builder.add(first)
    graph = builder.graph()
    assert kinds(apply(fold_constants, graph)) == kinds(graph)


@pytest.mark.parametrize("kind", ["add", "mul", "maximum"])
def test_a_branch_that_is_constant_becomes_an_operand(kind):
    """A convolution of which each channel has one value is one value per channel, and its ops are dead."""
    builder = net()
    builder.conv(4)
    x = builder.x
    builder.tensors[x] = Tensor(x, (1, 6, 6, 4), "int8", OTHER)
    builder.conv(4)
    builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", OTHER)
    silence(builder, 1, [0, 1, 2, 3], 800)
    attrs = {} if kind == "maximum" else {"activation": "none"}
    emit(builder, kind, (1, 6, 6, 4), x, quant=OTHER, **attrs)
    builder.conv(3)
    graph = remove_dead_ops(apply(fold_constants, builder.graph()))
    assert kinds(graph) == ["conv_2d", kind, "conv_2d"]
    assert graph.tensor(graph.ops[1].inputs[0]).shape == (1, 1, 1, 4)


def test_a_branch_with_one_live_value_is_computed():
    """One channel that varies, or a constant that differs from place to place, is no operand."""
    for silent, same in (([0, 1, 2], False), ([0, 1, 2, 3], True)):
        builder = net()
        builder.conv(4)
        x = builder.x
        builder.conv(4)
        builder.tensors[builder.x] = Tensor(builder.x, (1, 6, 6, 4), "int8", OTHER)
        silence(builder, 1, silent, 800)
        if same:
            builder.depthwise()
            silence(builder, 2, [0], 100)
        builder.add(x)
        graph = builder.graph()
        if same:
            some = value_ranges(graph)["depthwise_conv_2d_2"].fixed_channels()
            assert some.any() and not some.all()
        assert kinds(apply(fold_constants, graph)) == kinds(graph)


def test_a_constant_output_is_still_computed():
    """An output of the graph is written by an op, whatever it holds."""
    builder = net()
    builder.conv(2)
    silence(builder, 0, [0, 1], 300)
    assert kinds(apply(fold_constants, builder.graph())) == ["conv_2d"]


def edged(uint8=False):
    """A network whose input is quantised and whose output is dequantised."""
    builder = net()
    builder.conv(3)
    builder.mean()
    graph = builder.graph()
    image = Tensor("image", (1, 6, 6, 4), "uint8", Quant.per_tensor(0.02, 128)) if uint8 else None
    tensors = {
        **graph.tensors,
        "image": image or Tensor("image", (1, 6, 6, 4), "float32"),
        "scores": Tensor("scores", (1, 3), "float32"),
    }
    first = Op("quantize", ("image",), ("input",), {}, "first")
    last = Op("dequantize", graph.outputs, ("scores",), {}, "last")
    return verify(Graph("edged", tensors, (first, *graph.ops, last), ("image",), ("scores",)))


@pytest.mark.parametrize("uint8", [False, True])
def test_conversions_at_the_edges_go_to_the_host(uint8):
    """The integers between are what the host gives and takes: the rest is untouched."""
    graph = edged(uint8)
    inner = verify(float_edges_to_host(graph))
    assert (inner.inputs, inner.outputs, kinds(inner)) == (("input",), ("mean_1",), ["conv_2d", "mean"])
    inputs = proving_inputs(graph, 20, 0)
    every = reference.run(graph, inputs, keep_all=True)
    np.testing.assert_array_equal(
        reference.run(inner, every["input"])["mean_1"],
        every["mean_1"],
    )


def test_the_passes_keep_float_edges():
    """`optimize` without being asked leaves the interface as it is."""
    graph = edged()
    smaller, _ = optimize(graph)
    assert kinds(smaller) == kinds(graph)
    same_outputs(graph, smaller)


def test_a_float_input_that_two_ops_quantise_stays():
    """Two grids are two conversions: the host would have to send both."""
    graph = edged()
    second = Tensor("second", (1, 6, 6, 4), "int8", OTHER)
    ops = (*graph.ops, Op("quantize", ("image",), ("second",), {}, "again"))
    two = verify(Graph("two", {**graph.tensors, "second": second}, ops, graph.inputs, ("scores", "second")))
    inner = float_edges_to_host(two)
    assert inner.inputs == ("image",) and inner.outputs == ("mean_1", "second")
