"""The engine on the public models: every activation, code, stack and memory, in the emulator.

`python -m benchmarks.public_models --engine` is the long form: every core and goal, 50 inputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fuzzing.device import Device, expected_of
from graphs import needs_public_models, public_models
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.build.bare import bare_sizes
from tinykd.commands.target import resolve_target
from tinykd.export import oracle
from tinykd.kernels import engine_for

pytestmark = [needs_unicorn, needs_arm_gcc, needs_public_models]
CORE, GOAL = "cortex-m7", "balanced"
CODE_LIMIT_BYTES, STACK_LIMIT_BYTES = 30_000, 2048
HEAP = {"malloc", "calloc", "realloc", "free", "_sbrk", "_malloc_r"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the kernels are kept between the models."""
    return tmp_path_factory.mktemp("engine_parity")


@pytest.mark.slow
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_a_public_model_on_the_engine(path, folder):
    """Each activation is the reference's and each op changes only its own bytes, whatever lies in the rest; outputs are
    TFLite Micro's; stack, code and memory keep to their bounds, and the stack that is used to the one that is proven.
    """
    graph = resolve_target(path).engine_graph()
    device = Device(graph, CORE, engine_for(CORE, GOAL), folder)
    shape = graph.tensor(graph.inputs[0]).shape
    x = np.random.default_rng(2).integers(-128, 128, (3, *shape[1:])).astype(np.int8)
    inputs = {graph.inputs[0]: x[:1]}
    expected = expected_of(graph, inputs)
    assert device.first_fault(inputs, expected) is None
    found = np.stack([device.infer(sample) for sample in x])
    assert np.array_equal(found[0], np.asarray(expected[graph.outputs[0]]).reshape(-1))
    if oracle.is_available():
        assert np.array_equal(found, oracle.Oracle(path.read_bytes()).outputs(x).reshape(len(x), -1))
    sizes = bare_sizes(device.elf, device.kernels)
    assert 0 < device.stack_bytes <= sizes.stack_bytes <= STACK_LIMIT_BYTES
    assert sizes.code_bytes <= CODE_LIMIT_BYTES
    assert not HEAP & set(device.symbols)
