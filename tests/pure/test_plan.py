"""The planner: valid by an independent checker, never below the bound, and honest when something is planted."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.errors import InternalError
from tinykd.export import oracle
from tinykd.formats import tflite, tflite_writer
from tinykd.ir import Graph, MemoryPlan, Op, Quant, Tensor, verify
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
