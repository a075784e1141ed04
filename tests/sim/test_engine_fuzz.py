"""Random models run as generated C on emulated cores: every activation, and every byte that an op touches."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check, device
from fuzzing.device import CONFIGURATIONS, Device, Emulated, expected_of
from fuzzing.hunt import hunt
from fuzzing.kinds import DEVICE_KINDS
from fuzzing.record import graph_to_dict, loads
from graphs import Builder
from sim.fakeboard import needs_arm_gcc, needs_unicorn

import tinykd.build.bare
from tinykd.ir import Graph
from tinykd.kernels import PORTABLE
from tinykd.resources import find_resource

pytestmark = [needs_unicorn, needs_arm_gcc]
SEED = 5
HUNTS = (
    ("conv_2d", "cortex-m7:any", 8),
    ("depthwise_conv_2d", "cortex-m4:any", 8),
    ("conv_2d", "cortex-m4:speed", 6),
    ("depthwise_conv_2d", "cortex-m7:size", 6),
    ("fully_connected", "cortex-m7:balanced", 6),
    ("add", "cortex-m7:any", 4),
    ("conv_2d", "cortex-m0plus:balanced", 3),
)
REGRESSIONS = sorted((Path(__file__).resolve().parents[1] / "regression" / "engine").glob("*.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the kernels of each core are kept."""
    return tmp_path_factory.mktemp("engine_fuzz")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "configuration", "count"), HUNTS)
def test_random_models(kind, configuration, count, folder):
    """On each core and for each goal, random models compute the reference's activations and touch only their own."""
    print(f"python -m benchmarks.fuzz --engine --on {configuration} --kind {kind} --seed {SEED} --count {count}")
    catch = hunt(kind, SEED, count, DEVICE_KINDS, Emulated(configuration, folder), 4, wide=True)
    assert catch.failure is None, f"{catch.failure.problem}\n{graph_to_dict(catch.failure.graph)}"
    assert catch.graphs == count


def test_every_configuration_is_among_them():
    """The cores and goals of the nightly run are those of these tests; together they are 40 models or more."""
    assert {configuration for _, configuration, _ in HUNTS} >= set(CONFIGURATIONS)
    assert sum(count for *_, count in HUNTS) >= 40


@pytest.mark.parametrize("configuration", ["cortex-m7:any", "cortex-m7:speed", "cortex-m7:size"])
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_kept_graphs(path, configuration, folder):
    """Graphs that once went wrong on a device, and ones that are hard, are right whatever kernels run them."""
    failure = loads(path.read_text(encoding="utf-8"))
    problem = check.examine(failure.rule, failure.graph, Emulated(configuration, folder), failure.inputs)
    assert problem is None, problem.text


def _lookup() -> Graph:
    builder = Builder(np.random.default_rng(0), (1, 3, 5))
    builder.unary("relu")
    return builder.graph()


FAULTS = {
    "a wrong value": ("y[i] = zero[x[i]];", "y[i] = zero[x[i]] ^ (i == 14);", "element 14 is"),
    "an output that is not written": ("i < p->count", "i < p->count - 1", "element 14 is"),
    "a write behind its output": ("i < p->count", "i <= p->count", "changes byte 31 of the arena"),
    "a write that changes nothing": ("y[i] = zero", "((volatile int8_t *)y)[-1] = y[-1]; y[i] = zero", "1 B at"),
    "a read behind its input": ("y[i] = zero", "(void)*(volatile const int8_t *)(x + i + 1); y[i] = zero", "reads 1 B"),
    "a read behind its table": (
        "y[i] = zero",
        "(void)*(volatile const int8_t *)(zero + 128); y[i] = zero",
        "reads 1 B",
    ),
    "what lies there before": ("y[i] = zero[x[i]];", "y[i] = (int8_t)(zero[x[i]] ^ (y[i] & 1));", "element"),
    "a register that it does not own": ("y[i] = zero", '__asm__ volatile("mov r9, #7"); y[i] = zero', "restore r9"),
    "a pair of words at an odd address": (
        "y[i] = zero",
        '__asm__ volatile("ldrd r2, r3, [%0]" ::"r"(x + 1) : "r2", "r3", "memory"); y[i] = zero',
        ": ldrd at",
    ),
    "a deep stack": (
        "y[i] = zero",
        "volatile int8_t deep[4096]; deep[0] = zero[x[i]]; y[i] = deep[0] + 0 * zero",
        "B of st",
    ),
}


@pytest.fixture(scope="module")
def firmware(tmp_path_factory) -> Path:
    """A copy of the firmware to change."""
    root = tmp_path_factory.mktemp("firmware")
    shutil.copytree(find_resource("firmware"), root, dirs_exist_ok=True)
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, firmware, folder, monkeypatch):
    """Whatever a kernel does that it must not is told."""
    old, new, told = FAULTS[fault]
    source = firmware / "lib" / "tk_kernels" / "src" / "tk_lookup.c"
    honest = source.read_text()
    assert honest.count(old) == 1
    source.write_text(honest.replace(old, new))
    monkeypatch.setattr(tinykd.build.bare, "find_resource", lambda name: firmware)
    try:
        found = Device(graph := _lookup(), "cortex-m3", PORTABLE, folder / "faults")
    finally:
        source.write_text(honest)
    inputs = check.sample_inputs(graph)
    result = found.first_fault(inputs, expected_of(graph, inputs), watched=4)
    assert result is not None
    assert told in result.text


def test_what_is_sound_is_not_a_fault(folder):
    """The same model with the kernel as it is has no fault."""
    graph = _lookup()
    inputs = check.sample_inputs(graph)
    assert Device(graph, "cortex-m3", PORTABLE, folder).first_fault(inputs, expected_of(graph, inputs)) is None


def test_any_kernel_comes_up_where_any_may():
    """The choices for `any` differ from graph to graph, and are the same for the same one."""
    chosen: Counter[str] = Counter()
    for size in range(1, 25):
        builder = Builder(np.random.default_rng(size), (1, 4))
        builder.dense(size)
        graph = builder.graph()
        choices = device.engine_of("cortex-m7", device.ANY_VARIANT, graph).choices
        assert choices == device.engine_of("cortex-m7", device.ANY_VARIANT, graph).choices
        chosen.update(choices.values())
    assert min(chosen["widened"], chosen["packed"]) > 3


def test_what_the_host_does_is_left_to_it():
    """Conversions at the edges are not the device's: what they write becomes an input, further inputs are kept."""
    builder = Builder(np.random.default_rng(0), (1, 3, 5))
    builder.unary("relu")
    builder.dequantize()
    part = device.device_part(builder.graph())
    assert part is not None
    assert [op.kind for op in part.ops] == ["relu"]
    assert part.outputs == (part.ops[0].outputs[0],)
    lone = Builder(np.random.default_rng(0), (1, 3, 5))
    lone.dequantize()
    assert device.device_part(lone.graph()) is None
