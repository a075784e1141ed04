"""The kernels for Cortex-M4 and M7 on the host, where their inner loops are C: under AddressSanitizer and UBSan."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from fuzzing.check import sample_inputs
from fuzzing.device import ANY_VARIANT, device_part, engine_of, expected_of, single_ended
from fuzzing.kinds import DEVICE_KINDS, graphs
from graphs import needs_public_models, public_models, random_network
from hostmodel import HostModel, run_sanitized
from hypothesis import HealthCheck, Phase, given, settings
from opmix import MODELS

from tinykd.commands.target import resolve_target
from tinykd.export import reference
from tinykd.ir import Graph
from tinykd.kernels import PORTABLE, Engine, engine_for

pytestmark = pytest.mark.host_compiler
CORE = "cortex-m7"
SEED = 6
DRAWN = (("conv_2d", 8), ("depthwise_conv_2d", 8), ("fully_connected", 4), ("add", 4), ("average_pool_2d", 3))


def _sanitized_difference(graph: Graph, engine: Engine, folder: Path) -> str | None:
    """Return where the output of the last op differs from the reference's; further inputs of the graph are 0."""
    inputs = {name: x * (name == graph.inputs[0]) for name, x in sample_inputs(graph).items()}
    ended = single_ended(graph)
    found = run_sanitized(ended, inputs[graph.inputs[0]], folder, engine)
    wanted = np.asarray(expected_of(graph, inputs)[ended.outputs[0]]).reshape(found.shape)
    return None if np.array_equal(found, wanted) else f"{ended.ops[-1].kind}: {np.argwhere(found != wanted)[:3]}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), DRAWN)
def test_random_models_under_sanitizers(kind, count, tmp_path):
    """No kernel that may be chosen reads or writes out of bounds or runs into undefined behaviour."""
    seen = []

    @hypothesis.seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(kind, DEVICE_KINDS, 3, wide=True))
    def examine(graph: Graph) -> None:
        part = device_part(graph)
        if part is None:
            return
        seen.append(part)
        folder = tmp_path / str(len(seen))
        assert _sanitized_difference(part, engine_of(CORE, ANY_VARIANT, part), folder) is None

    examine()
    assert len(seen) >= count // 2


@pytest.mark.parametrize("name", MODELS)
def test_every_op_under_sanitizers(name, tmp_path):
    """Models that together contain every op keep to their memory with the engine's own choices."""
    graph = MODELS[name](31).graph()
    assert _sanitized_difference(graph, engine_for(CORE), tmp_path) is None


@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("seed", range(200, 204))
def test_every_activation_of_a_random_network(seed, goal, tmp_path):
    """Every activation equals the reference's, whatever is optimised for; one inference leaves nothing to the next."""
    builder = random_network(seed)
    graph, x = builder.graph(), builder.inputs(4)
    x[0], x[1] = -128, 127
    expected = reference.run(graph, x, keep_all=True)
    model = HostModel(graph, tmp_path, engine=engine_for(CORE, goal))
    for index, sample in enumerate(x):
        for name, value in model.run(sample).items():
            assert np.array_equal(value.reshape(-1), expected[name][index].reshape(-1)), f"sample {index}, {name}"


@pytest.mark.slow
@needs_public_models
@pytest.mark.parametrize("engine", [PORTABLE, engine_for(CORE)], ids=["portable", CORE])
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_under_sanitizers(path, engine, tmp_path):
    """One inference of a public model with the portable kernels, and with those for the DSP extension."""
    graph = resolve_target(path).engine_graph()
    shape = graph.tensor(graph.inputs[0]).shape
    x = np.random.default_rng(3).integers(-128, 128, (1, *shape[1:])).astype(np.int8)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, engine), reference.run_output(graph, x).reshape(1, -1))
