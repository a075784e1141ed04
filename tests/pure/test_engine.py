"""Which kernel the engine takes, and the scratch memory that it is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder

import tinykd.kernels
from tinykd.build import generate
from tinykd.errors import InternalError, TinykdError
from tinykd.ir import Graph, Op
from tinykd.kernels import (
    ARMV7EM,
    KERNELS,
    PORTABLE,
    SCRATCH,
    Argument,
    Call,
    Cost,
    Engine,
    Kernel,
    candidates,
    engine_for,
    scratch_bytes,
    select,
    signature,
)
from tinykd.plan import check, plan_graph

FAST = Engine("armv7em")


def _dense(outputs: int = 3, inputs: int = 5) -> Graph:
    builder = Builder(np.random.default_rng(0), (1, inputs))
    builder.dense(outputs)
    return builder.graph()


def _three_ops() -> Graph:
    """A residual block: the input of the second op lives through it."""
    builder = Builder(np.random.default_rng(1), (1, 6, 6, 4))
    builder.conv(4)
    start = builder.x
    builder.conv(4)
    builder.add(start)
    return builder.graph()


def _kernel(variant: str, instructions: float, constant_bytes: int, scratch: int = 0, applies: bool = True) -> Kernel:
    """A stand-in for a kernel of the table, told by its variant."""

    def calls(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
        arguments = (Argument(op.inputs[0]), Argument(op.outputs[0]), *([SCRATCH] if scratch else []))
        return (Call(f"tk_{variant}", "tk_any_t", {"count": 1}, arguments, scratch_bytes=scratch),)

    return Kernel(
        f"tk_{variant}", lambda graph, op: applies, calls, variant, lambda graph, op: Cost(instructions, constant_bytes)
    )


@pytest.fixture
def table(monkeypatch):
    """Replaces the fast kernels of a kind by stand-ins."""

    def put(kind: str, *kernels: Kernel) -> None:
        monkeypatch.setattr(tinykd.kernels, "ARMV7EM", {kind: kernels})

    return put


def _names(graph: Graph, engine: Engine) -> list[str]:
    return [kernel.function for kernel in candidates(graph, graph.ops[0], engine)]


def test_cores_with_the_extension_have_the_fast_kernels():
    """M4 and M7 have the DSP extension; others, and cores that nobody knows, get portable C and no choices."""
    assert [engine_for(core).isa for core in ("cortex-m4", "cortex-m7")] == ["armv7em"] * 2
    for core in ("cortex-m0plus", "cortex-m3", "riscv"):
        assert engine_for(core, "speed") == Engine("portable", "speed")
    assert Engine() == PORTABLE


@pytest.mark.parametrize(
    ("goal", "order"),
    [
        ("speed", ["quick", "even", "small"]),
        ("balanced", ["even", "quick", "small"]),
        ("size", ["small", "even", "quick"]),
    ],
)
def test_a_goal_weighs_instructions_against_bytes(table, goal, order):
    """Three kernels are ranked by each goal's price of a byte; the portable ones come behind, in their order."""
    table("fully_connected", _kernel("small", 90_000, 100), _kernel("quick", 1000, 2000), _kernel("even", 9000, 1000))
    graph = _dense()
    portable = [kernel.function for kernel in KERNELS["fully_connected"]]
    assert _names(graph, Engine("armv7em", goal)) == [*(f"tk_{name}" for name in order), *portable]


def test_what_does_not_apply_is_no_candidate(table):
    """A kernel that cannot run the op is left out however cheap it is; its cost is never asked for."""
    never = replace(_kernel("never", 0, 0, applies=False), cost=None)
    table("fully_connected", never, _kernel("able", 10, 10))
    assert _names(_dense(), FAST)[0] == "tk_able"
    table("fully_connected", never)
    assert _names(_dense(), FAST) == [kernel.function for kernel in KERNELS["fully_connected"]]


def test_a_measured_choice_wins_over_the_estimate(table):
    """A choice for exactly this op's sizes is taken; one for others, and one that does not apply, are not."""
    table("fully_connected", _kernel("first", 10, 10), _kernel("second", 20, 10))
    graph, other = _dense(), _dense(outputs=4)
    name = signature(graph, graph.ops[0])
    assert name != signature(other, other.ops[0])
    assert _names(graph, replace(FAST, choices={name: "second"}))[:2] == ["tk_second", "tk_first"]
    assert _names(other, replace(FAST, choices={name: "second"}))[0] == "tk_first"
    assert _names(graph, replace(FAST, choices={name: "absent"}))[0] == "tk_first"


def test_a_portable_engine_takes_no_fast_kernel(table):
    """Choices and goals do not matter to portable C."""
    table("fully_connected", _kernel("first", 10, 10))
    graph = _dense()
    engine = Engine("portable", "speed", {signature(graph, graph.ops[0]): "first"})
    assert (
        _names(graph, engine) == _names(graph, PORTABLE) == [kernel.function for kernel in KERNELS["fully_connected"]]
    )


def test_signatures_tell_apart_what_costs_differ_by():
    """Kind, sizes, stride and padding are in a signature; weights and scales are not."""

    def of(seed: int, stride: int = 1, same: bool = True, channels: int = 4) -> str:
        builder = Builder(np.random.default_rng(seed), (1, 9, 9, 3))
        builder.conv(channels, stride=(stride, stride), same=same)
        graph = builder.graph()
        return signature(graph, graph.ops[0])

    assert of(0) == of(1)
    assert len({of(0), of(0, stride=2), of(0, same=False), of(0, channels=5)}) == 4
    graph = _three_ops()
    op = graph.ops[0]
    others = ({"stride": (2, 1)}, {"stride": (1, 2)}, {"padding": (0, 2, 1, 1)}, {"padding": (1, 1, 2, 0)}, {})
    assert len({signature(graph, replace(op, attrs={**op.attrs, **change})) for change in others}) == len(others)


@pytest.mark.parametrize("kind", sorted(ARMV7EM))
def test_rows_of_the_fast_table_can_be_told_apart(kind):
    """Kernels for the same op have variants, names and costs of their own, and portable C behind them."""
    rows = ARMV7EM[kind]
    assert KERNELS[kind]
    assert len({kernel.function for kernel in rows}) == len(rows)
    together = [row for row in rows if row.variant or row.cost]
    assert len({(kernel.variant, kernel.function) for kernel in together}) == len(together)


def test_scratch_is_counted_for_ops_that_need_it(table):
    """Each op's largest need by its index; portable engines need none."""
    table("conv_2d", _kernel("fast", 1, 1, scratch=50))
    graph = _three_ops()
    assert scratch_bytes(graph, FAST) == {0: 50, 1: 50}
    assert scratch_bytes(graph, PORTABLE) == {}


def test_scratch_lies_beside_what_lives_and_raises_the_bound(table):
    """Scratch memory is aligned, lives for its op only, and the plan's bound, peak and arena know of it."""
    table("conv_2d", _kernel("fast", 1, 1, scratch=198))
    graph = _three_ops()
    plan, plain = plan_graph(graph, engine=FAST), plan_graph(graph)
    assert [(item.op, item.num_bytes) for item in plan.scratch] == [(0, 198), (1, 198)]
    assert all(item.offset % 4 == 0 for item in plan.scratch)
    # Three maps of 144 B during the sum; two and the scratch memory during each convolution.
    assert (plain.lower_bound_bytes, plan.lower_bound_bytes) == (3 * 144, 2 * 144 + 200)
    assert plan.arena_bytes == check(graph, plan) == 488
    assert (plain.peak_op, plan.peak_op, plain.scratch) == (2, 0, ())


def _scratch(plan, index: int, **change):
    items = list(plan.scratch)
    items[index] = replace(items[index], **change)
    return replace(plan, scratch=tuple(items))


PLANTED = {
    "on the op's input": lambda plan: _scratch(plan, 0, offset=plan.offset("input")),
    "on the op's output": lambda plan: _scratch(plan, 0, offset=plan.offset("conv_2d_0")),
    "on what a later op reads": lambda plan: _scratch(plan, 1, offset=plan.offset("conv_2d_0")),
    "in the middle of a map": lambda plan: _scratch(plan, 1, offset=plan.offset("conv_2d_1") + 100),
    "beyond the arena": lambda plan: _scratch(plan, 0, offset=plan.arena_bytes - 48),
    "before the arena": lambda plan: _scratch(plan, 0, offset=-4),
    "of no size": lambda plan: _scratch(plan, 0, num_bytes=0),
    "not aligned": lambda plan: replace(_scratch(plan, 0, offset=plan.arena_bytes + 2), arena_bytes=1 << 10),
    "of no op": lambda plan: _scratch(plan, 0, op=3),
    "of an op before the first": lambda plan: _scratch(plan, 0, op=-1),
    "twice for an op": lambda plan: _scratch(plan, 0, op=1),
    "grown over a neighbour": lambda plan: _scratch(plan, 0, offset=0, num_bytes=plan.arena_bytes),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_checker_finds_scratch_memory(table, fault):
    """Scratch memory that somebody else needs, or that lies where no memory is, is refused."""
    table("conv_2d", _kernel("fast", 1, 1, scratch=50))
    graph = _three_ops()
    plan = plan_graph(graph, engine=FAST)
    check(graph, plan)
    with pytest.raises(InternalError):
        check(graph, PLANTED[fault](plan))


def test_scratch_over_what_nobody_needs_any_more_is_sound(table):
    """The place of a map whose last reader is done serves as scratch memory: the arena holds what is needed at once."""
    table("add", _kernel("fast", 1, 1, scratch=144))
    graph = _three_ops()
    plan = plan_graph(graph, engine=FAST)
    assert plan.scratch[0].op == 2
    # The model's input is not needed any more.
    assert plan.arena_bytes == plan.lower_bound_bytes == 4 * 144


def test_sharing_is_given_up_where_scratch_memory_needs_the_place(table):
    """A slice of a large map is a view of it, unless the map would then lie there while scratch memory is needed."""
    builder = Builder(np.random.default_rng(0), (1, 16, 8, 8))
    builder.unary("relu")
    builder.strided_slice((0, 0, 0, 0), (1, 1, 8, 8), (1, 1, 1, 1))
    small = builder.x
    builder.conv(8, (1, 1))
    builder.add(small)
    graph = builder.graph()

    def slice_is_a_view() -> bool:
        plan = plan_graph(graph, engine=FAST)
        assert plan.arena_bytes == plan.lower_bound_bytes == 2048
        return next(item for item in plan.placements if item.tensor == small).alias_of is not None

    table("conv_2d", _kernel("fast", 1, 1, scratch=800))
    assert slice_is_a_view()
    table("conv_2d", _kernel("fast", 1, 1, scratch=1800))
    assert not slice_is_a_view()


def test_the_lower_bound_of_a_plan_cannot_ignore_scratch(table):
    """A plan that claims a bound above what is needed with its scratch memory is refused."""
    table("conv_2d", _kernel("fast", 1, 1, scratch=50))
    graph = _three_ops()
    plan = plan_graph(graph, engine=FAST)
    with pytest.raises(InternalError, match="lower bound"):
        check(graph, replace(plan, lower_bound_bytes=plan.lower_bound_bytes + 4))


def test_the_generated_call_gets_the_planned_scratch(table):
    """SCRATCH becomes the op's offset in the arena; a plan without it, or with less, is refused."""
    table("conv_2d", _kernel("fast", 1, 1, scratch=50))
    graph = _three_ops()
    plan = plan_graph(graph, engine=FAST)
    text = generate(graph, plan, "00" * 32, FAST).files["tk_model.c"]
    for index, output in enumerate(("conv_2d_0", "conv_2d_1")):
        scratch = plan.scratch_offset(index)
        assert f"tk_arena + {plan.offset(output)}, tk_arena + {scratch});" in text
    for broken in (plan_graph(graph), _scratch(plan, 0, num_bytes=48)):
        with pytest.raises((TinykdError, KeyError)):
            generate(graph, broken, "00" * 32, FAST)


@pytest.mark.parametrize("goal", ["speed", "balanced", "size"])
def test_costs_are_those_of_the_constants(goal):
    """The bytes that a choice is made by are the bytes of the arrays that the code gets."""
    builder = Builder(np.random.default_rng(3), (1, 9, 7, 6))
    for channels, kernel in ((5, (3, 3)), (8, (1, 1)), (7, (5, 3))):
        builder.conv(channels, kernel, activation="relu6")
    builder.depthwise(kernel=(3, 3))
    builder.dense(9)
    graph = builder.graph()
    engine, seen = Engine("armv7em", goal), 0
    for op in graph.ops:
        for kernel in candidates(graph, op, engine):
            if kernel.cost is not None:
                arrays = (array for call in kernel.calls(graph, op, "") for array in call.arrays.values())
                assert kernel.cost(graph, op).constant_bytes == sum(array.nbytes for array in arrays), kernel.function
                assert kernel.cost(graph, op).instructions > 0
                seen += 1
    assert seen > 5


def test_the_engine_takes_its_first_candidate():
    """`select` returns the calls of the first candidate."""
    graph = _dense()
    op = graph.ops[0]
    for engine in (PORTABLE, FAST):
        first = candidates(graph, op, engine)[0]
        assert [call.function for call in select(graph, op, "", engine)] == [first.function]
