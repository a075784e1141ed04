"""The arithmetic that `tinykd verify` shows leads to the very value that the reference computes, for every op kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from graphs import Builder, random_network
from pure import test_reference, test_reference_ops

from tinykd.errors import UnsupportedModelError
from tinykd.export import parity, reference
from tinykd.export.explain import EXPLAINERS, explain
from tinykd.ir import Graph, Op

ELEMENTS = 24


CASES = {
    **{name: ((1, 9, 8, 4), build) for name, build in test_reference.CASES.items()},
    **test_reference_ops.CASES,
}


def check(graph: Graph, samples: int = 2, seed: int = 0, stream: bool = False) -> set[str]:
    """Explain random elements of every op's outputs; return the kinds that were met."""
    rng = np.random.default_rng(seed)
    x = {name: value[-samples:] for name, value in parity.sample_inputs(graph, samples + 2, seed).items()}
    values = reference.run(graph, x, keep_all=True, stream=stream)
    for op in graph.ops:
        for output, name in enumerate(op.outputs):
            want = values[name]
            for flat in rng.choice(want.size, min(ELEMENTS, want.size), replace=False):
                at = tuple(int(i) for i in np.unravel_index(flat, want.shape))
                sample = {key: value[at[0]] for key, value in values.items() if not graph.tensor(key).variable}
                if stream and at[0]:
                    sample |= {key: values[key][at[0] - 1] for key in graph.variables()}
                told = explain(graph, op, sample, at[1:], output)
                assert told.value == want[at], (op.kind, at, told.steps)
                assert told.steps, op.kind
    return {op.kind for op in graph.ops}


def small(seed: int, shape: tuple[int, ...] = (1, 6, 7, 3)) -> Builder:
    """A builder with an input of `shape`."""
    return Builder(np.random.default_rng(seed), shape)


@pytest.mark.parametrize("seed", range(12))
def test_explanations_reach_the_references_values(seed: int) -> None:
    """On random networks, each element is recomputed from the op's inputs to the same integer."""
    check(random_network(seed).graph(), seed=seed)


@pytest.mark.parametrize("case", CASES)
def test_each_op_is_explained_to_the_references_value(case: str) -> None:
    """Every op kind, with the awkward parameters that the reference is held against TFLite Micro with."""
    shape, build = CASES[case]
    builder = Builder(np.random.default_rng(1), shape)
    build(builder)
    check(builder.graph())


@pytest.mark.parametrize("sizes", [((3, 3, 3), 1), ((1, 2, 5), 2), ((3, 1), 3)])
def test_each_part_of_a_split_is_explained(sizes: tuple[Sequence[int], int]) -> None:
    """An element of a later part comes from behind the earlier ones."""
    builder = small(2, (1, 9, 8, 4))
    outputs = builder.split(*sizes)
    assert check(builder.graph(outputs=outputs)) == {"split"}


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16", "int32", "int8"])
def test_quantising_every_type_is_explained(dtype: str) -> None:
    """QUANTIZE from floats and from other integers, and back to floats."""
    builder = Builder(np.random.default_rng(8), (1, 40), dtype)
    builder.quantize()
    builder.dequantize()
    assert check(builder.graph(), samples=6) == {"quantize", "dequantize"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_state_of_an_svdf_is_part_of_the_arithmetic(stream: bool) -> None:
    """Consecutive inferences start from what the one before left, others from the reset state."""
    builder = small(4, (1, 24))
    builder.svdf(6, rank=2, memory=4)
    assert check(builder.graph(), samples=5, stream=stream) == {"svdf"}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_windows_with_padding_stride_and_dilation(same: bool, stride: tuple[int, int]) -> None:
    """Taps outside the input are left out, strides and dilations are followed on both axes, multipliers find theirs."""
    builder = small(3, (1, 9, 9, 3))
    builder.conv(4, (3, 2), stride, (1, 2) if stride == (1, 1) else (1, 1), same, "relu")
    builder.depthwise(2, (2, 3), (1, 1), (2, 1) if same else (1, 1), same, "relu6")
    builder.pool("average_pool_2d", (2, 2), (1, 1), same, "relu")
    builder.pool("max_pool_2d", (2, 1), (1, 1), same, "relu6")
    assert check(builder.graph()) == {"conv_2d", "depthwise_conv_2d", "average_pool_2d", "max_pool_2d"}


def test_a_clamp_and_a_left_shift_are_told() -> None:
    """A factor above one shifts left, and the clamp's bounds are those of the fused activation."""
    builder = small(5)
    builder.conv(2, activation="relu")
    graph = builder.graph()
    op = graph.ops[0]
    weights = graph.tensor(op.inputs[1])
    assert weights.quant is not None
    quant = type(weights.quant)(tuple(400.0 for _ in weights.quant.scales), weights.quant.zero_points, 0)
    tensors = {**graph.tensors, weights.name: type(weights)(weights.name, weights.shape, "int8", quant, weights.data)}
    graph = Graph("loud", tensors, graph.ops, graph.inputs, graph.outputs)
    x = np.random.default_rng(1).integers(-128, 128, (6, 7, 3)).astype(np.int8)
    told = explain(graph, op, {"input": x}, (2, 3, 1))
    quantities = [step.quantity for step in told.steps]
    assert any(quantity.startswith("after the left shift by") for quantity in quantities)
    zero = max(-128, graph.tensor(op.outputs[0]).quant.zero_point)  # type: ignore[union-attr]
    assert f"clamped to [{zero}, 127]" in quantities
    assert told.value == reference.run(graph, x[None])[op.outputs[0]][0, 2, 3, 1]


def test_a_convolution_tells_accumulator_bias_and_both_roundings() -> None:
    """The steps are those of docs/spec-int8.md, in their order, and the accumulator is sum plus bias."""
    builder = small(4)
    builder.conv(3)
    graph = builder.graph()
    x = np.full((6, 7, 3), 100, np.int8)
    told = explain(graph, graph.ops[0], {"input": x}, (0, 0, 2))
    texts = {step.quantity: step.text for step in told.steps}
    assert list(texts)[:5] == [
        "products inside the input",
        "sum of (x - zero point) * weight",
        "its largest product",
        "bias",
        "accumulator",
    ]
    number = {key: int(texts[key].replace(",", "")) for key in ("sum of (x - zero point) * weight", "bias")}
    assert int(texts["accumulator"].replace(",", "")) == sum(number.values())
    assert texts["products inside the input"].startswith("12 of 27;")
    assert any(key.startswith("after the high multiplication") for key in texts)
    assert any(key.startswith("after the rounding shift by") for key in texts)


def test_softmax_of_a_far_value_says_that_it_does_not_count() -> None:
    """Differences below the least one that counts give -128, and the explanation says so."""
    builder = small(6, (1, 4))
    builder.tensors["input"] = type(builder.tensors["input"])(
        "input", (1, 4), "int8", type(builder.tensors["input"].quant)((1.0,), (0,))
    )
    builder.softmax()
    graph = builder.graph()
    x = np.array([127, -128, 100, 127], np.int8)
    told = explain(graph, graph.ops[0], {"input": x}, (1,))
    assert told.value == -128
    assert told.steps[-1].quantity == "too small to count"
    assert check(graph) == {"softmax"}


def test_an_unknown_kind_is_refused() -> None:
    """Ops without an explanation say so instead of inventing one."""
    graph = small(7).graph
    with pytest.raises(UnsupportedModelError, match="has no explanation"):
        explain(graph, Op("batch_norm", ("input",), ("y",), {}, "bn"), {}, (0,))  # type: ignore[arg-type]


def test_every_op_of_the_reference_can_be_explained() -> None:
    """There is an explanation for each op that the reference computes."""
    assert reference.KERNELS.keys() == EXPLAINERS.keys()
