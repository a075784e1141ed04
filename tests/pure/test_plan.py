"""The planner: valid by an independent checker, never below the bound, and honest when something is planted."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opmix import joins

from tinykd.errors import InternalError
from tinykd.export import oracle, reference
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, MemoryPlan, Op, Quant, Tensor, verify
from tinykd.kernels import planned_calls
from tinykd.plan import chart, check, plan_for_tflm, plan_graph, tflm_offsets
from tinykd.plan.allocate import allocate
from tinykd.plan.liveness import Buffer

QUANT = Quant.per_tensor(0.1, 0)


def _branchy(seed: int, num_ops: int) -> Graph:
    """A random graph of reshapes and additions with long-lived branches."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(1, 40))]
    names, ops = ["t0"], []
    for index in range(1, num_ops + 1):
        first = int(rng.integers(0, len(names)))
        twins = [i for i, size in enumerate(sizes) if size == sizes[first] and i != first]
        if twins and rng.integers(0, 2):
            op = Op("add", (names[first], names[int(rng.choice(twins))]), (f"t{index}",), {"activation": "none"})
        else:
            op = Op("reshape", (names[first],), (f"t{index}",), {})
        names.append(f"t{index}")
        sizes.append(sizes[first])
        ops.append(op)
    tensors = {name: Tensor(name, (1, size), "int8", QUANT) for name, size in zip(names, sizes, strict=True)}
    return verify(Graph("branchy", tensors, tuple(ops), ("t0",), (names[-1],)))


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_are_planned_at_or_above_the_bound(seed):
    """A plan passes the checker, is not below the lower bound, and the checker's own bound agrees."""
    graph = random_network(seed).graph()
    for plan in (plan_graph(graph), plan_for_tflm(graph), plan_graph(graph, 32)):
        assert plan.arena_bytes >= plan.lower_bound_bytes
        assert check(graph, plan) == plan.lower_bound_bytes
        assert all(item.offset % plan.alignment_bytes == 0 for item in plan.placements)


@given(st.integers(0, 10_000), st.integers(1, 25))
@settings(max_examples=80, deadline=None)
def test_branchy_graphs_are_planned_soundly(seed, num_ops):
    """Graphs with many values alive at once are planned soundly, with and without aliasing."""
    graph = _branchy(seed, num_ops)
    aliased, copied = plan_graph(graph), plan_graph(graph, alias=False)
    assert aliased.lower_bound_bytes <= copied.lower_bound_bytes


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
@settings(deadline=None)
def test_buffers_that_live_together_never_overlap(rows):
    """The allocator keeps buffers with overlapping lives apart, whatever their sizes."""
    buffers = [Buffer((str(i),), size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(rows)]
    offsets = allocate(buffers, 4, 0)
    for i, first in enumerate(buffers):
        for j, second in enumerate(buffers[:i]):
            if first.overlaps(second):
                assert offsets[i] + first.num_bytes <= offsets[j] or offsets[j] + second.num_bytes <= offsets[i]


def test_the_same_graph_gives_the_same_plan():
    """Planning is deterministic, and the plan survives its JSON form."""
    graph = random_network(7).graph()
    plan = plan_graph(graph)
    assert plan == plan_graph(graph)
    assert MemoryPlan.from_dict(plan.to_dict()) == plan


def test_reshape_shares_its_input():
    """A RESHAPE costs our engine no memory; TFLite Micro needs a copy."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 8))
    builder.reshape((1, 128))
    graph = builder.graph()
    assert plan_graph(graph).arena_bytes == 128
    assert plan_for_tflm(graph).arena_bytes == 256


def _sound_plan() -> tuple[Graph, MemoryPlan]:
    builder = Builder(np.random.default_rng(1), (1, 6, 6, 4))
    builder.conv(4)
    start = builder.x
    builder.conv(4)
    builder.add(start)
    builder.mean()
    return builder.graph(), plan_graph(builder.graph())


def _moved(plan: MemoryPlan, tensor: str, **change) -> MemoryPlan:
    return replace(plan, placements=tuple(replace(p, **change) if p.tensor == tensor else p for p in plan.placements))


@given(st.integers(0, 100_000), st.integers(1, 18))
@settings(max_examples=120, deadline=None)
def test_joins_and_splits_are_placed_soundly(seed, num_ops):
    """Any mixture of joins, splits, slices and branches gives a plan that the checker accepts, never above copying."""
    graph = joins(seed, num_ops).graph()
    plan = plan_graph(graph)
    assert check(graph, plan) == plan.lower_bound_bytes
    assert plan.lower_bound_bytes <= plan_graph(graph, alias=False).lower_bound_bytes


@given(st.integers(0, 100_000), st.integers(1, 18), st.data())
@settings(max_examples=120, deadline=None)
def test_a_shared_piece_at_a_wrong_offset_is_found(seed, num_ops, data):
    """A piece of a whole that is moved to where the whole has something else is refused."""
    builder = joins(seed, num_ops)
    graph = builder.graph()
    plan = plan_graph(graph)
    views = [item for item in plan.placements if item.alias_of is not None]
    assume(views)
    item = data.draw(st.sampled_from(views))
    step = data.draw(st.sampled_from([-8, -4, 4, 8]))
    values = reference.run(graph, builder.inputs(3), keep_all=True)
    inside = item.offset + step - plan.offset(item.alias_of)
    there = values[item.alias_of].reshape(3, -1)[:, max(inside, 0) : inside + item.num_bytes]
    assume(not np.array_equal(there, values[item.tensor].reshape(3, -1)))
    broken = replace(plan, arena_bytes=plan.arena_bytes + 8)
    with pytest.raises(InternalError):
        check(graph, _moved(broken, item.tensor, offset=item.offset + step))


def test_a_piece_that_only_claims_to_share_is_found():
    """A view of a part, moved to where no harm is done because nobody reads there any more, is still a false claim."""
    builder = Builder(np.random.default_rng(0), (1, 8))
    part = builder.unary("relu", builder.tensors["input"].quant)
    builder._emit("concatenation", ("input", part, "input"), quant=builder.tensors["input"].quant, axis=1)
    builder.x = part
    view = builder.reshape((1, 1, 8))
    builder.unary("relu")
    graph = builder.graph()
    plan = plan_graph(graph)
    with pytest.raises(InternalError, match=r"'reshape_2' at \d+ is not what 'concatenation_1'"):
        check(graph, _moved(plan, view, offset=plan.offset(view) - 8))


def test_a_join_along_the_first_long_axis_costs_nothing():
    """Two computed maps are written straight into their join; parts of a split are views; no call is left."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 8))
    quant = builder.tensors["input"].quant
    top, bottom = builder.split((1, 3), 1)
    first = builder.unary("relu", quant)
    builder.x = bottom
    builder.unary("relu", quant)
    builder.concatenate((first,), 1)
    graph = builder.graph()
    plan = plan_graph(graph)
    where = {item.tensor: item for item in plan.placements}
    assert [len(calls) for calls in planned_calls(graph, plan)] == [0, 1, 1, 0]
    assert (where[top].alias_of, where[bottom].alias_of) == ("input", "input")
    assert where[bottom].offset - where["input"].offset == 32
    assert where[first].offset - where[builder.x].offset == 96
    assert plan.arena_bytes == plan.lower_bound_bytes == 256


SHARING = {
    "a part used in two joins": (lambda b, p: (b.concatenate((p,), 1), b.concatenate((p,), 1)), 1),
    "the model's input": (lambda b, p: b.concatenate(("input",), 1), 1),
    "the same part twice": (lambda b, p: b.concatenate((b.x,), 1), 1),
    "an axis that is not the first long one": (lambda b, p: b.concatenate((p,), 2), 2),
    "a constant": (lambda b, p: b.concatenate((b.constant((1, 4, 4, 8), b.tensors[p].quant),), 1), 1),
}


@pytest.mark.parametrize("case", SHARING)
def test_what_cannot_be_in_two_places_is_copied(case):
    """A part that has another home already is copied into a join, by exactly as many calls as it takes."""
    join, calls = SHARING[case]
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 8))
    quant = builder.tensors["input"].quant
    part = builder.unary("relu", quant)
    builder.x = "input"
    builder.unary("relu", quant)
    join(builder, part)
    graph = builder.graph()
    assert sum(map(len, planned_calls(graph, plan_graph(graph))[2:])) == calls


def test_a_part_that_would_begin_off_the_alignment_is_copied():
    """Parts of 3 bytes: the first is in place, the second would begin at byte 3 and is copied."""
    builder = Builder(np.random.default_rng(0), (1, 3))
    quant = builder.tensors["input"].quant
    second = builder.unary("relu", quant)
    builder.x = "input"
    builder.unary("relu", quant)
    builder.concatenate((second,), 1)
    graph = builder.graph()
    assert list(map(len, planned_calls(graph, plan_graph(graph)))) == [1, 1, 1]


def test_sharing_that_keeps_a_large_whole_alive_is_given_up():
    """A small slice of a large map is copied when the map would otherwise stay through the peak."""
    builder = Builder(np.random.default_rng(0), (1, 16, 8, 8))
    builder.unary("relu")
    builder.strided_slice((0, 0, 0, 0), (1, 1, 8, 8), (1, 1, 1, 1))
    small = builder.x
    builder.resize((12, 8))
    builder.unary("relu")
    builder.strided_slice((0, 0, 0, 0), (1, 1, 8, 8), (1, 1, 1, 1))
    builder.add(small)
    graph = builder.graph()
    plan = plan_graph(graph)
    assert next(item for item in plan.placements if item.tensor == small).alias_of is None
    assert plan.arena_bytes == 2048


def _with_memory() -> Builder:
    builder = Builder(np.random.default_rng(1), (1, 9))
    builder.svdf(6, rank=2, memory=4)
    builder.dense(300)
    builder.svdf(5)
    return builder


def test_variables_live_for_good():
    """Each state has bytes of its own through all ops, and a plan that lends them to somebody is refused."""
    graph = _with_memory().graph()
    plan = plan_graph(graph)
    states = [item for item in plan.placements if graph.tensor(item.tensor).variable]
    assert [(item.first_op, item.last_op) for item in states] == [(-1, 2), (-1, 2)]
    with pytest.raises(InternalError, match="next inference"):
        check(graph, _moved(plan, states[0].tensor, offset=plan.offset(graph.ops[1].outputs[0]) + 200))


@needs_oracle
def test_tflite_micro_keeps_variables_to_itself():
    """TFLite Micro places variables beside our plan, which leaves them out, and computes what it does with its own."""
    builder = _with_memory()
    graph, x = builder.graph(), builder.inputs(4)
    plan = plan_for_tflm(graph)
    assert set(tflm_offsets(plan)) == {"input", *(name for op in graph.ops for name in op.outputs)}
    ours = oracle.Oracle(tflite_writer.write(graph, tflm_offsets(plan)))
    own = oracle.Oracle(tflite_writer.write(graph))
    assert np.array_equal(ours.outputs(x), own.outputs(x))
    assert np.array_equal(ours.outputs(x), reference.run_output(graph, x))


PLANTED = {
    "overlap": lambda plan: _moved(plan, "conv_2d_1", offset=plan.offset("conv_2d_0")),
    "misalignment": lambda plan: _moved(plan, "mean_3", offset=plan.offset("mean_3") + 1),
    "outside": lambda plan: replace(plan, arena_bytes=plan.arena_bytes - 4),
    "negative": lambda plan: _moved(plan, "mean_3", offset=-4),
    "missing": lambda plan: replace(plan, placements=plan.placements[:-1]),
    "false bound": lambda plan: replace(plan, lower_bound_bytes=plan.lower_bound_bytes + 4),
    "false alias": lambda plan: _moved(plan, "conv_2d_1", alias_of="conv_2d_0", offset=plan.offset("conv_2d_0")),
    "wrong size": lambda plan: _moved(plan, "mean_3", num_bytes=1),
    "overwritten skip": lambda plan: _moved(plan, "add_2", offset=plan.offset("conv_2d_0")),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_checker_finds_planted_faults(fault):
    """The independent checker refuses every kind of broken plan."""
    graph, plan = _sound_plan()
    check(graph, plan)
    with pytest.raises(InternalError):
        check(graph, PLANTED[fault](plan))


@needs_oracle
@pytest.mark.parametrize("seed", range(12))
def test_tflite_micro_follows_our_plan(seed):
    """Unmodified TFLite Micro with our offsets gives the same outputs as with its own plan."""
    builder = random_network(seed)
    graph, x = builder.graph(), builder.inputs(3)
    ours = oracle.Oracle(tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph))))
    own = oracle.Oracle(tflite_writer.write(graph))
    assert np.array_equal(ours.outputs(x), own.outputs(x))


@needs_oracle
@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_reach_the_bound(path):
    """On the public models plan and bound are equal, and stock TFLite Micro uses exactly the planned head."""
    graph = tflite.read(path)
    plan = plan_for_tflm(graph)
    assert plan_graph(graph).gap_bytes == plan.gap_bytes == 0
    assert oracle.Oracle(tflite_writer.write(graph, tflm_offsets(plan))).arena().head_bytes == plan.arena_bytes


def test_the_chart_marks_one_peak():
    """The text chart has a row per computing op and marks the peak once."""
    graph, plan = _sound_plan()
    rows = chart.rows(graph, plan)
    assert len(rows) == len(graph.ops)
    assert sum("peak" in row[3] for row in rows) == 1
