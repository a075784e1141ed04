"""Cycles from instructions: the Cortex-M4's table, the Cortex-M7's range, and the sums that profiles are made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("capstone", reason="needs capstone: tinykd[sim]")

from tinykd.run import cycles
from tinykd.run.cycles import Cycles, cortex_m4, cortex_m7, decode, estimate
from tinykd.run.profile import profile
from tinykd.run.transport.base import BlockCount, InstructionCounts

# (source, code, cycles of the Cortex-M4, cycles of the Cortex-M7)
BLOCKS = [
    # The examples of ARM DDI 0439, section 3.3.2.
    ("ldr r0,[r1]; ldr r1,[r2]", "08681168", (3, 3), (1, 2)),
    ("ldr r0,[r1,r2]; str r0,[r3,#20]", "88585861", (3, 3), (2, 3)),
    ("ldr r0,[r1,r2]; str r1,[r3,r2]", "88589950", (3, 3), (1, 2)),
    ("ldr r0,[r1,r5]; ldr r1,[r2]; ldr r2,[r3,#4]", "485911685a68", (4, 4), (2, 3)),
    # What it says in words.
    ("ldr r0,[r1]; ldr r2,[r0]", "08680268", (4, 4), (2, 3)),
    ("adds r1,#4; ldr r0,[r1]", "04310868", (4, 4), (2, 2)),
    ("strb r0,[r1]", "0870", (1, 1), (1, 1)),
    ("str r0,[r1,r2]", "8850", (2, 2), (1, 1)),
    ("str r0,[r1]; ldr r2,[r3]", "08601a68", (3, 3), (1, 2)),
    # Its table.
    ("ldmia r0!,{r1-r4}", "1ec8", (5, 5), (2, 4)),
    ("ldrd r0,r1,[r2],#8", "f2e80201", (3, 3), (1, 2)),
    ("push {r4-r7,lr}", "f0b5", (6, 6), (3, 5)),
    ("smlad r0,r1,r2,r0; smmlar r3,r0,r4,r5; ssat r3,#8,r3,asr #4", "21fb020050fb145323f30713", (3, 3), (3, 4)),
    ("sdiv r0,r1,r2", "91fbf2f0", (2, 12), (2, 12)),
    ("it ge; addge r0,r1,r2", "a8bf8818", (1, 2), (1, 2)),
    ("vdiv.f32 s0,s1,s2", "80ee810a", (14, 14), (14, 14)),
    ("tbb [pc,r0]", "dfe800f0", (2, 2), (1, 1)),
    # Pairs: units and registers.
    ("adds r0,#1; adds r1,#1", "01300131", (2, 2), (1, 2)),
    ("ldr r0,[r1]; adds r2,r0,#1", "0868421c", (3, 3), (2, 3)),
    ("ldr r0,[r1]; adds r2,r3,#1", "08685a1c", (3, 3), (1, 2)),
    ("str r0,[r1]; str r2,[r3]", "08601a60", (2, 2), (2, 2)),
    ("ldrd r0,r1,[r2]; ldr r3,[r4]", "d2e900012368", (5, 5), (2, 3)),
    ("smlad r0,r1,r2,r0; smlad r3,r1,r2,r3", "21fb020021fb0233", (2, 2), (2, 2)),
    ("smlad r0,r1,r2,r0; adds r3,r0,#1", "21fb0200431c", (2, 2), (2, 3)),
    ("smlad r0,r1,r2,r0; smlad r0,r3,r4,r0", "21fb020023fb0400", (2, 2), (2, 2)),
    ("sxtb16 r0,r1; sxtb16 r2,r3,ror #8", "2ffa81f02ffa93f2", (2, 2), (2, 2)),
    ("cmp r0,#1; bne .", "0128fed1", (2, 2), (1, 2)),
    ("adds r0,#1; subs r1,#1; bne .", "01300139fed1", (3, 3), (2, 3)),
]


@pytest.mark.parametrize(("source", "code", "m4", "m7"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_a_block_takes_what_its_instructions_take(source, code, m4, m7):
    """Cycles follow ARM DDI 0439 on the Cortex-M4, and the rules of docs/profile.md on the Cortex-M7."""
    instructions = decode(bytes.fromhex(code))
    assert len(instructions) == source.count(";") + 1
    assert cortex_m4(instructions) == Cycles(*m4)
    assert cortex_m7(instructions) == Cycles(*m7)


@pytest.mark.parametrize(("core", "jump"), [("cortex-m4", (1, 3)), ("cortex-m7", (0, 1))])
def test_only_what_jumps_refills_the_pipeline(core, jump):
    """A branch that is not taken costs one cycle, each one that is taken the refill on top."""
    branch = bytes.fromhex("fed1")
    found = estimate([BlockCount("f", branch, 10, 4)], core)
    assert found == Cycles(10 + 4 * jump[0], 10 + 4 * jump[1])


@given(st.binary(min_size=2, max_size=40), st.sampled_from(["cortex-m4", "cortex-m7"]))
def test_whatever_runs_has_a_cost(code, core):
    """Any bytes are taken for code without a fault; a range is a range; two instructions a cycle are the most."""
    found = estimate([BlockCount("f", code, 1, 0)], core)
    assert 0 <= found.low <= found.middle <= found.high
    # An IT may be free; nothing else is.
    free = sum(item.unit == "it" for item in decode(code))
    assert found.low >= (len(decode(code)) - free) / 2


def test_a_profile_splits_the_same_instructions_twice():
    """Ops and functions are two cuts through the same blocks: both sum to all instructions, and to all cycles."""
    add, load = bytes.fromhex("01300131"), bytes.fromhex("08681168")
    blocks = (
        (BlockCount("tk_op_000", add, 1, 1), BlockCount("kernel", load, 50, 49)),
        (BlockCount("tk_op_001", add, 1, 1), BlockCount("kernel", load, 20, 19), BlockCount("helper", add, 7, 0)),
        (BlockCount("loop", add, 3, 3),),
    )
    per_op = tuple(sum(block.instructions for block in part) for part in blocks)
    found = profile(InstructionCounts(sum(per_op), per_op[:2], per_op[2], blocks), "cortex-m4")
    assert found is not None
    assert [(cost.function, cost.instructions) for cost in found.by_function] == [
        ("kernel", 140),
        ("helper", 14),
        ("loop", 6),
        ("tk_op_000", 2),
        ("tk_op_001", 2),
    ]
    assert sum(per_op) == sum(cost.instructions for cost in found.by_function)
    assert sum(cost.cycles.high for cost in found.by_function) == found.total.high
    assert found.per_op[0] == Cycles(2 + 1 + 50 * 3 + 49, 2 + 3 + 50 * 3 + 3 * 49)
    loop = cycles.estimate(blocks[2], "cortex-m4")
    assert found.total.low == sum(part.low for part in found.per_op) + loop.low


def test_without_blocks_there_is_no_profile():
    """An emulator that counts, but does not say what, gives no cycles."""
    assert profile(InstructionCounts(10, (10,), 0), "cortex-m7") is None
