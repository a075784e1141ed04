"""Bare images: every activation right on every core, the stack within its proof, kernels compiled once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, random_network
from sim.fakeboard import needs_unicorn

from tinykd.build.bare import MACHINE_FLAGS, build_kernels
from tinykd.commands.bare_stage import BareRun, run_bare
from tinykd.errors import DeviceError
from tinykd.export import reference
from tinykd.ir import Graph
from tinykd.kernels import engine_for
from tinykd.run.bare import BareMachine

pytestmark = [pytest.mark.arm_compiler, needs_unicorn]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Kernels by core, compiled when first asked for."""
    folder = tmp_path_factory.mktemp("kernels")
    return lambda core: build_kernels(core, folder / core)


def measure(graph: Graph, core: str, folder, kernels, expected=None) -> BareRun:
    """Run a graph on a core with extreme and random inputs, against the reference."""
    shape = graph.tensor(graph.inputs[0]).shape
    x = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
    expected = reference.run(graph, x, keep_all=True) if expected is None else expected
    return run_bare(graph, core, engine_for(core), folder, x, expected, kernels(core))


def padded_network() -> Builder:
    """Convolutions whose windows leave the map on every side, an ADD and a classifier."""
    builder = Builder(np.random.default_rng(5), (1, 7, 6, 3))
    builder.conv(5, (3, 5), (1, 1), activation="relu")
    start = builder.x
    builder.conv(5, (2, 3), (1, 1), (2, 2))
    builder.depthwise(1, (5, 3), (1, 1))
    builder.add(start)
    builder.mean()
    builder.dense(4)
    builder.softmax()
    return builder


@pytest.mark.parametrize("core", MACHINE_FLAGS)
def test_activations_and_stack_on_every_core(core, tmp_path, kernels):
    """Every activation equals the reference; what the stack was painted to show is what the call graphs allow."""
    run = measure(padded_network().graph(), core, tmp_path, kernels)
    assert (run.wrong, len(run.ops)) == ((), 7)
    assert 0 < run.stack_bytes <= run.sizes.stack_bytes
    assert sum(op.instructions for op in run.ops) < run.instructions < 1.01 * sum(op.instructions for op in run.ops)


def test_a_wrong_activation_is_named(tmp_path, kernels):
    """The comparison sees one wrong value of one op, and only that."""
    graph = random_network(3).graph()
    x = np.random.default_rng(0).integers(-128, 128, graph.tensor(graph.inputs[0]).shape, dtype=np.int8)
    expected = dict(reference.run(graph, x, keep_all=True))
    name = graph.ops[0].outputs[0]
    expected[name] = expected[name] ^ np.int8(1)
    assert measure(graph, "cortex-m7", tmp_path, kernels, expected).wrong == (name,)


def test_kernels_are_compiled_once_and_again_when_their_source_changed(tmp_path):
    """Untouched objects stay; a missing or stale file is made again, and what no source belongs to goes."""
    folder = build_kernels("cortex-m4", tmp_path / "kernels")
    objects = {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}
    assert objects == {path: path.stat().st_mtime_ns for path in build_kernels("cortex-m4", folder).rglob("*.o")}
    source = folder / "lib/tk_kernels/src/tk_copy.c"
    source.write_text("#error not ours\n")
    strange = folder / "objects/lib/tk_kernels/src/tk_gone.o"
    strange.write_bytes(b"")
    build_kernels("cortex-m4", folder)
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}
    changed = [path.name for path in objects if objects[path] != again[path]]
    assert (changed, set(again)) == (["tk_copy.o"], set(objects))


def test_an_instruction_that_the_core_lacks_is_a_fault(tmp_path, kernels):
    """Code for a Cortex-M7 does not run on the emulated Cortex-M0+: portable means what the core can do."""
    graph = random_network(3).graph()
    run = measure(graph, "cortex-m7", tmp_path, kernels)
    machine = BareMachine(run.model.machine.firmware.path, "cortex-m0plus")
    with pytest.raises(DeviceError, match="tk_"):
        for op in range(run.model.num_ops):
            machine.call("tk_model_run_op", op)


def test_state_is_forgotten_between_inferences(tmp_path, kernels):
    """An inference of a model with memory starts from the empty state, however often it ran."""
    builder = Builder(np.random.default_rng(0), (1, 9))
    builder.svdf(6, rank=2, memory=4)
    graph = replace(builder.graph(), name="memory")
    run = measure(graph, "cortex-m7", tmp_path, kernels)
    x = np.full(9, 90, np.int8)
    size = graph.tensor(graph.outputs[0]).num_bytes
    assert run.wrong == ()
    assert run.model.run(x, size) == run.model.run(x, size)
