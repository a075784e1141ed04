"""Elementwise ops, pooling and means for Armv7E-M, in the emulator and as C on the host, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder
from hostmodel import run_sanitized
from sim.fakeboard import needs_unicorn

from tinykd.build.bare import build_bare
from tinykd.export import reference
from tinykd.ir import Graph, Quant, add_params
from tinykd.kernels import Engine, candidates, planned_calls
from tinykd.kernels.armv7em.elementwise import AFFINE_SHIFT, affine_sum
from tinykd.plan import plan_graph
from tinykd.run.bare import BareModel

ENGINE = Engine("armv7em")
_VALUES = np.arange(-128, 128, dtype=np.int8)
_ALL_PAIRS = np.stack([np.repeat(_VALUES, 256), np.tile(_VALUES, 256)]).reshape(1, 512, 256, 1)


def _halves(seed: int, shape: tuple[int, ...]) -> tuple[Builder, str]:
    """A model whose newest tensor is the first half of its input; the name is the second half's, of another scale."""
    builder = Builder(np.random.default_rng(seed), (1, 2 * shape[0], *shape[1:]))
    _, second = builder.split(shape[:1] * 2, 1)
    builder.tensors[second] = replace(builder.tensors[second], quant=builder.quant())
    return builder, second


def _sum(kind: str, shape: tuple[int, ...], activation: str, seed: int) -> Builder:
    builder, second = _halves(seed, shape)
    scale = max(builder.scale(builder.x), builder.scale(second)) * float(builder.rng.uniform(0.3, 3.0))
    # A RELU6 that limits at its upper end only, others at both ends or at none.
    quant = Quant.per_tensor(0.05, -128) if activation == "relu6" else builder.quant(scale)
    builder._emit(kind, (builder.x, second), None, quant, activation=activation)
    return builder


def _product(shape: tuple[int, ...], other: tuple[int, ...], activation: str, seed: int) -> Builder:
    builder = Builder(np.random.default_rng(seed), (1, *shape))
    builder.mul(builder.constant(other), activation)
    if seed % 2:
        builder._emit("mul", (builder.constant(other), builder.x), None, None, activation="none")
    return builder


def _table(count: int) -> Builder:
    builder = Builder(np.random.default_rng(count), (1, count))
    builder.unary("tanh")
    return builder


def _pool(kind: str, shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], same: bool) -> Builder:
    builder = Builder(np.random.default_rng(sum(shape)), (1, *shape))
    builder.pool(kind, kernel, stride, same, "relu6" if stride == (1, 2) else "none")
    return builder


def _mean(shape: tuple[int, ...], seed: int) -> Builder:
    builder = Builder(np.random.default_rng(seed), (1, *shape))
    builder.mean(quant=builder.quant(builder.scale("input") * float(builder.rng.uniform(1.05, 3.0))))
    return builder


# (H, W, C), window, stride, SAME: channels of every remainder by 4, windows of one row, of full width, in the padding's
# corner, and as large as sums of 16 bits allow.
_WINDOWS = (
    ((8, 8, 8), (8, 8), (8, 8), False),
    ((16, 16, 4), (16, 16), (1, 1), False),
    ((5, 7, 5), (2, 2), (2, 2), True),
    ((6, 6, 6), (3, 3), (2, 2), False),
    ((7, 5, 7), (3, 3), (1, 2), True),
    ((4, 9, 13), (1, 5), (1, 1), True),
    ((9, 1, 4), (4, 1), (3, 1), True),
    ((3, 4, 40), (5, 2), (1, 1), True),
)
# Sizes of every kind: less than a turn of eight, whole turns, and more.
_SUMS = (
    ("add", (1, 1, 1), "relu"),
    ("sub", (1, 1, 7), "none"),
    ("add", (2, 2, 2), "relu6"),
    ("sub", (3, 3, 1), "relu6"),
    ("add", (1, 4, 5), "relu_n1_to_1"),
    ("add", (4, 6, 11), "none"),
    ("sub", (4, 6, 11), "relu"),
)

CASES = {
    **{
        f"{kind} {shape} {activation}": ("tk_add_affine", lambda a=(kind, shape, activation, index): _sum(*a))
        for index, (kind, shape, activation) in enumerate(_SUMS)
    },
    **{
        f"{kind} {window}": (f"tk_{kind}_dsp", lambda a=(kind, *window): _pool(*a))
        for kind, windows in (("average_pool_2d", _WINDOWS), ("max_pool_2d", _WINDOWS[2:6]))
        for window in windows
    },
    **{
        f"mul {shape} {other}": ("tk_mul_dsp", lambda a=(shape, other, activation, index): _product(*a))
        for index, (shape, other, activation) in enumerate(
            (
                ((3, 2, 7), (7,), "none"),
                ((3, 2, 8), (3, 2, 8), "relu6"),
                ((2, 3, 5), (2, 1, 5), "relu"),
                ((1, 1, 6), (6,), "relu_n1_to_1"),
                ((1, 1, 1), (1,), "none"),
            )
        )
    },
    **{f"tanh {count}": ("tk_lookup_dsp", lambda a=count: _table(a)) for count in (7, 260)},
    **{
        f"mean {shape}": ("tk_mean_dsp", lambda a=(shape, index): _mean(*a))
        for index, shape in enumerate(((1, 2, 4), (3, 2, 5), (7, 7, 6), (16, 16, 7)))
    },
}


def _samples(builder: Builder) -> np.ndarray:
    """Inputs of both extremes, and random ones."""
    x = builder.inputs(6)
    x[0], x[1] = -128, 127
    return x


def _graph(name: str) -> tuple[Graph, np.ndarray]:
    kernel, make = CASES[name]
    builder = make()
    graph = builder.graph()
    chosen = [candidates(graph, op, ENGINE)[0].function for op in graph.ops]
    assert kernel in chosen, chosen
    return graph, _samples(builder)


def _run(graph: Graph, x: np.ndarray, core: str, folder, kernels) -> np.ndarray:
    """Return the outputs (N, elements) of a model on a core in the emulator."""
    plan = plan_graph(graph, engine=ENGINE)
    num_ops = sum(map(bool, planned_calls(graph, plan, ENGINE)))
    model = BareModel(build_bare(graph, plan, core, folder, ENGINE, kernels=kernels(core)), core, num_ops)
    size = graph.tensor(graph.outputs[0]).num_bytes
    return np.stack([np.frombuffer(model.run(sample, size), np.int8) for sample in x])


@pytest.mark.host_compiler
@pytest.mark.parametrize("name", CASES)
def test_c_forms_equal_the_reference(name, tmp_path):
    """Under sanitizers, with nothing of the arena accessible but input and output."""
    graph, x = _graph(name)
    assert np.array_equal(run_sanitized(graph, x, tmp_path, ENGINE), reference.run_output(graph, x))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("name", CASES)
def test_cores_equal_the_reference(name, tmp_path, kernels):
    """Every output, on the M4 or on the M7."""
    graph, x = _graph(name)
    core = ("cortex-m4", "cortex-m7")[list(CASES).index(name) % 2]
    assert np.array_equal(_run(graph, x, core, tmp_path, kernels), reference.run_output(graph, x).reshape(len(x), -1))


@pytest.mark.arm_compiler
@needs_unicorn
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7"])
def test_all_pairs_of_a_sum(core, tmp_path, kernels):
    """All 65,536 pairs of inputs, added on the core."""
    builder = _sum("add", (256, 256, 1), "none", 5)
    graph = builder.graph()
    expected = reference.run_output(graph, _ALL_PAIRS).reshape(1, -1)
    assert np.array_equal(_run(graph, _ALL_PAIRS, core, tmp_path, kernels), expected)


def _sum_of(scales: tuple[float, float, float], zero_points: tuple[int, int, int], sign: int) -> Graph:
    """A sum or difference of all pairs of int8; scales and zero points of both operands and of the output."""
    builder, second = _halves(1, (256, 256, 1))
    quants = [Quant.per_tensor(*pair) for pair in zip(scales, zero_points, strict=True)]
    for name, quant in zip((builder.x, second), quants, strict=False):
        builder.tensors[name] = replace(builder.tensors[name], quant=quant)
    builder._emit("add" if sign > 0 else "sub", (builder.x, second), None, quants[2], activation="none")
    return builder.graph()


def _is_affine(graph: Graph, sign: int) -> bool:
    """Whether a sum has an affine function, which must then be right for all pairs."""
    found = affine_sum(add_params(graph, graph.ops[-1]), sign)
    if found is not None:
        sums = found.sums(_VALUES[:, None].astype(np.int64), _VALUES[None, :].astype(np.int64))
        assert np.abs(sums).max() < 1 << 31
        expected = reference.run_output(graph, _ALL_PAIRS).reshape(256, 256)
        assert np.array_equal(np.clip(sums >> AFFINE_SHIFT, -128, 127), expected)
    return found is not None


def test_random_scales_have_an_affine_sum():
    """For scales as they come, an affine function that equals TFLite Micro's for all pairs is found."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        scales = tuple(np.exp(rng.uniform(np.log(0.002), np.log(0.2), 2)))
        zero_points = tuple(map(int, rng.choice([-128, -3, 0, 17, 127], 3)))
        sign = int(rng.choice([1, -1]))
        assert _is_affine(_sum_of((*scales, max(scales) * float(rng.uniform(0.3, 3.0))), zero_points, sign), sign)


@pytest.mark.parametrize("scales", [(0.1, 0.1, 0.1), (0.1, 0.1, 0.2), (0.1, 0.05, 0.4), (0.25, 0.125, 0.5)])
@pytest.mark.parametrize("sign", [1, -1])
def test_halves_go_away_from_zero(scales, sign):
    """Scales whose sums lie half-way between outputs have an affine function, too: one that is a little too steep."""
    for zero_points in ((0, 0, 0), (3, -5, 7), (-128, -128, -128)):
        assert _is_affine(_sum_of(scales, zero_points, sign), sign)


@pytest.mark.parametrize("scales", [(0.05, 0.075, 0.1), (0.9, 0.1, 0.1)])
def test_a_sum_that_is_not_affine_stays_portable(scales):
    """TFLite Micro may round an operand before halves of the sum are decided; factors of 8 leave int32."""
    graph = _sum_of(scales, (0, 0, 0), 1)
    assert not _is_affine(graph, 1)
    assert candidates(graph, graph.ops[-1], ENGINE)[0].function == "tk_add"


def test_sums_beyond_int16_stay_portable():
    """A window of 272 positions, and a mean over as many, may sum beyond int16."""
    for kernel in ("average_pool_2d", "mean"):
        builder = Builder(np.random.default_rng(1), (1, 17, 16, 4))
        builder.pool(kernel, (17, 16), (1, 1)) if kernel != "mean" else builder.mean()
        graph = builder.graph()
        assert candidates(graph, graph.ops[0], ENGINE)[0].function == f"tk_{kernel}"
