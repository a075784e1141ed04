"""`tinykd lint`: each rule finds what it is for, with a price that planning confirms; a clean model has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from pure.test_tflite_producers import dense
from tflite_files import FileOp, FileTensor, write_file

from tinykd.commands.lint import command, model_to_lint
from tinykd.commands.target import Target, resolve_target
from tinykd.errors import ConfigError, DoesNotFitError, InvalidModelError
from tinykd.export import parity
from tinykd.export.passes.remove_channels import remove_channels
from tinykd.formats import tflite
from tinykd.formats.tflite import file as tflite_file
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Quant, graph_macs, op_macs
from tinykd.lint import RULES, SEVERITIES, Finding, Model, check, chosen
from tinykd.lint.manual import manual
from tinykd.plan import plan_for_tflm

MAP = (1, 8, 8, 4)


def builder(seed: int = 0, shape: tuple[int, ...] = MAP, dtype: str = "int8") -> Builder:
    """A builder whose input has a harmless scale."""
    made = Builder(np.random.default_rng(seed), shape, dtype)
    if dtype == "int8":
        quantised(made, "input", 0.02, 0)
    return made


def quantised(made: Builder, name: str, scale: float, zero_point: int = 0) -> None:
    """Give a tensor another scale and zero point."""
    made.tensors[name] = replace(made.tensors[name], quant=Quant.per_tensor(scale, zero_point))


def model_of(graph: Graph, tmp_path: Path) -> Model:
    """What the rules see of a graph that was written to a file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_writer.write(graph))
    return model_to_lint(Target("model", path, tmp_path / "run", exported=False))


def found(graph: Graph, tmp_path: Path, rule: str) -> list[Finding]:
    """What one rule finds in a graph."""
    return check(model_of(graph, tmp_path), [RULES[rule]])


def with_constant(made: Builder, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a constant in place of the old one."""
    data = made.tensors[name].data
    assert data is not None
    new = data.copy()
    change(new)
    made.tensors[name] = replace(made.tensors[name], data=new)


def clean() -> Builder:
    """A model that no rule has anything to say about: RELU from zero on, aligned channels, tight scales."""
    made = builder()
    for _ in range(2):
        name = made.conv(8, activation="relu")
        quantised(made, name, 0.05, -128)
        full_scale(made)
        # The next bias belongs to the product of its input's scale and its weights'.
    mean = made.mean()
    quantised(made, mean, 0.03, -128)
    quantised(made, made.dense(4), 0.05, 3)
    full_scale(made)
    return made


def full_scale(made: Builder) -> None:
    """Let the weights of the last op reach 127 in each channel, and put its bias on the grid of the sums."""
    op = made.ops[-1]

    def widen(data: np.ndarray) -> None:
        data.reshape(len(data), -1)[:, 0] = 127

    with_constant(made, op.inputs[1], widen)
    weights, x = made.tensors[op.inputs[1]].quant, made.tensors[op.inputs[0]].quant
    assert weights is not None
    assert x is not None
    scales = tuple(float(np.float32(scale * x.scale)) for scale in weights.scales)
    bias = made.tensors[op.inputs[2]]
    made.tensors[op.inputs[2]] = replace(bias, quant=Quant(scales, (0,) * len(scales), None if len(scales) == 1 else 0))


def test_a_clean_model_has_no_errors_and_no_warnings(tmp_path: Path) -> None:
    """Nothing is made up; what is left are notes."""
    findings = check(model_of(clean().graph(), tmp_path), chosen())
    assert [item for item in findings if item.severity != "note"] == []


def pad_model() -> Builder:
    """A map that is held twice because of a PAD."""
    made = builder(1)
    made.conv(16)
    made.pad((1, 1, 1, 1))
    made.conv(8, same=False)
    return made


def test_pads_cost_what_planning_without_them_saves(tmp_path: Path) -> None:
    """The arena price is the plan with the op less the plan of the same network with padding in the convolution."""
    graph = pad_model().graph()
    (item,) = found(graph, tmp_path, "pad-op")
    conv = graph.ops[2]
    merged = replace(
        conv, inputs=(graph.ops[0].outputs[0], *conv.inputs[1:]), attrs={**conv.attrs, "padding": (1,) * 4}
    )
    without = graph.with_ops([graph.ops[0], merged])
    saved = plan_for_tflm(graph).arena_bytes - plan_for_tflm(without).arena_bytes
    assert saved > 0
    assert item.price == {"ops": 1, "moved_bytes": 10 * 10 * 16, "arena_bytes": saved}
    assert (item.op, item.severity) == (1, "warning")
    assert "our engine folds it" in item.message


def test_a_pad_before_an_op_that_moves_bytes_has_no_arena_price(tmp_path: Path) -> None:
    """Without the pad the op behind it has no meaning: what is moved is told, the arena is not guessed."""
    made = builder(1)
    made.pad((1, 1, 1, 1))
    made.reshape((1, 400))
    (item,) = found(made.graph(), tmp_path, "pad-op")
    assert item.price == {"ops": 1, "moved_bytes": 400}
    assert "no convolution can take it in" in item.message


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_are_looked_at_without_a_fault(seed: int, tmp_path: Path) -> None:
    """Every rule copes with every op, and no price is negative."""
    for item in check(model_of(random_network(seed).graph(), tmp_path), chosen()):
        assert all(value >= 0 for value in item.price.values())


def test_a_transpose_is_told_unless_it_moves_nothing(tmp_path: Path) -> None:
    """Reordering real axes costs bytes; reordering axes of length 1 is an op that gives its input back."""
    made = builder(2, (1, 6, 1, 8))
    made.transpose((0, 3, 2, 1))
    made.transpose((0, 2, 1, 3))
    graph = made.graph()
    (item,) = found(graph, tmp_path, "transpose-op")
    assert (item.op, item.price["moved_bytes"]) == (0, 48)
    (other,) = found(graph, tmp_path, "redundant-op")
    assert (other.op, other.message) == (1, "transposes axes of length 1: no byte moves")


def test_float_edges_cost_their_floats(tmp_path: Path) -> None:
    """Both conversions at the edges are told, with the arena of a model that has int8 there."""
    made = builder(3, (1, 16, 16, 4), "float32")
    made.quantize(Quant.per_tensor(0.02, 0))
    made.conv(2)
    made.dequantize()
    graph = made.graph()
    first, last = found(graph, tmp_path, "float-edge")
    assert (first.op, last.op) == (0, 2)
    inner = Graph("inner", graph.tensors, graph.ops[1:], graph.ops[0].outputs, graph.outputs).with_ops(graph.ops[1:])
    assert first.price["arena_bytes"] == plan_for_tflm(graph).arena_bytes - plan_for_tflm(inner).arena_bytes > 0
    assert "at the edge" in first.message
    assert "4,096 B of float32 instead of 1,024 B" in first.message


def dead_channel_model() -> Builder:
    """A first layer with two constant channels that a second one reads."""
    made = builder(4)
    made.conv(8, (1, 1), activation="relu")

    def silence(data: np.ndarray) -> None:
        data[[2, 5]] = 0

    with_constant(made, made.ops[0].inputs[1], silence)
    made.conv(4, (1, 1))
    return made


def test_constant_channels_cost_what_removing_them_saves(tmp_path: Path) -> None:
    """The MACs of all findings add up to what the exact pass takes away, the bytes to the weights and biases."""
    graph = dead_channel_model().graph()
    items = found(graph, tmp_path, "constant-channels")
    smaller = remove_channels(graph)
    assert [item.op for item in items] == [0, 1]
    assert sum(item.price["macs"] for item in items) == graph_macs(graph) - graph_macs(smaller) == 64 * (2 * 4 + 2 * 4)
    assert [item.price["constant_bytes"] for item in items] == [2 * 4 + 2 * 4, 2 * 4]
    assert items[0].message.startswith("2 of 8 output channels are constant or unread: 25% of its work")
    assert items[1].message.startswith("2 of 8 input channels")


def test_an_op_that_nobody_needs_is_dead(tmp_path: Path) -> None:
    """It costs its MACs and its constants."""
    made = builder(5)
    made.conv(4)
    made.x = "input"
    made.conv(6, (1, 1))
    (item,) = found(made.graph(), tmp_path, "dead-op")
    assert (item.op, item.price) == (0, {"ops": 1, "macs": 64 * 4 * 36, "constant_bytes": 4 * 36 + 4 * 4})


def test_identities_and_flattening(tmp_path: Path) -> None:
    """A reshape to the same shape gives its input back; one that flattens for a dense layer is only a note."""
    made = builder(6)
    made.conv(4)
    made.reshape(MAP)
    made.reshape((1, 256))
    made.dense(3)
    graph = made.graph()
    assert [(item.op, item.severity) for item in found(graph, tmp_path, "redundant-op")] == [(1, "warning")]
    assert [(item.op, item.severity) for item in found(graph, tmp_path, "flatten-op")] == [(2, "note")]


def test_requantising_is_a_note(tmp_path: Path) -> None:
    """QUANTIZE between int8 tensors of different scale is told, of equal scale it is redundant."""
    made = builder(7)
    made.quantize(Quant.per_tensor(0.05, 3))
    made.quantize(Quant.per_tensor(0.05, 3))
    graph = made.graph()
    assert [item.op for item in found(graph, tmp_path, "requantize-op")] == [0]
    assert [item.op for item in found(graph, tmp_path, "redundant-op")] == [1]


def test_an_activation_of_its_own_is_told_where_it_could_be_fused(tmp_path: Path) -> None:
    """RELU behind a convolution without one, but not where somebody else reads the convolution."""
    made = builder(8)
    before = made.conv(4)
    made.unary("relu")
    assert [item.op for item in found(made.graph(), tmp_path, "separate-activation")] == [1]
    made.add(before)
    assert found(made.graph(), tmp_path, "separate-activation") == []


def test_general_kernels_are_named(tmp_path: Path) -> None:
    """A depthwise convolution with two outputs per input misses the fast kernel; with one it does not."""
    made = builder(9)
    made.depthwise(1)
    made.depthwise(2)
    (item,) = found(made.graph(), tmp_path, "slow-kernel")
    assert (item.op, item.price["macs"]) == (1, op_macs(made.graph(), made.graph().ops[1]))
    assert "tk_depthwise_conv_2d, not on tk_depthwise_conv_2d_m1" in item.message


def test_sums_beyond_int32_are_errors(tmp_path: Path) -> None:
    """A bias at the end of int32 overflows, saturated, and our engine refuses the op; one below half does not."""
    made = builder(10)
    made.conv(4)

    def largest(data: np.ndarray) -> None:
        data[3] = (1 << 31) - 1

    with_constant(made, made.ops[0].inputs[2], largest)
    graph = made.graph()
    (item,) = found(graph, tmp_path, "accumulator-overflow")
    assert (item.severity, item.op) == ("error", 0)
    assert "output channel 3" in item.message
    assert [item.severity for item in found(graph, tmp_path, "no-kernel")] == ["error"]
    assert any("saturated" in item.message for item in found(graph, tmp_path, "bias-scale"))
    with_constant(made, made.ops[0].inputs[2], lambda data: data.__setitem__(3, 1 << 30))
    assert found(made.graph(), tmp_path, "accumulator-overflow") == []


def scaled_weights(factor: float, seed: int = 11) -> Builder:
    """A convolution whose weight scales are multiplied."""
    made = builder(seed)
    made.conv(4)
    name = made.ops[0].inputs[1]
    quant = made.tensors[name].quant
    assert quant is not None
    scales = tuple(float(np.float32(scale * factor)) for scale in quant.scales)
    made.tensors[name] = replace(made.tensors[name], quant=Quant(scales, quant.zero_points, quant.axis))
    return made


def test_factors_above_one_and_their_wrapping(tmp_path: Path) -> None:
    """A left shift is a warning, and an error where the shifted sum can leave int32."""
    assert found(scaled_weights(1).graph(), tmp_path, "left-shift") == []
    (item,) = found(scaled_weights(1e3).graph(), tmp_path, "left-shift")
    assert item.severity == "warning"
    (item,) = found(scaled_weights(1e6).graph(), tmp_path, "left-shift")
    assert item.severity == "error"
    assert "beyond int32" in item.message


def test_outputs_that_cannot_move(tmp_path: Path) -> None:
    """A factor so small that the largest sum is below half a step is told; a usual one is not."""
    assert found(scaled_weights(1).graph(), tmp_path, "lost-output") == []
    made = scaled_weights(1)
    name = made.ops[0].inputs[1]
    quant = made.tensors[name].quant
    assert quant is not None
    scales = (*quant.scales[:3], float(np.float32(1e-9)))
    made.tensors[name] = replace(made.tensors[name], quant=Quant(scales, quant.zero_points, 0))
    model = model_of(made.graph(), tmp_path)
    nothing_removed = replace(model.prices, kept_channels=lambda graph: {})
    (item,) = check(replace(model, prices=nothing_removed), [RULES["lost-output"]])
    assert "1 of 4 output channels" in item.message
    assert "channel 3" in item.message


def test_biases_on_another_grid(tmp_path: Path) -> None:
    """A bias scale that is not input scale * weight scale is told; 1 % may differ."""
    made = scaled_weights(1)
    full_scale(made)
    assert found(made.graph(), tmp_path, "bias-scale") == []
    bias = made.ops[0].inputs[2]
    quant = made.tensors[bias].quant
    assert quant is not None
    wrong = Quant((*quant.scales[:2], quant.scales[2] * 1.1, quant.scales[3]), quant.zero_points, quant.axis)
    made.tensors[bias] = replace(made.tensors[bias], quant=wrong)
    (item,) = found(made.graph(), tmp_path, "bias-scale")
    assert "output channel 2" in item.message


def test_activations_that_reach_a_few_values(tmp_path: Path) -> None:
    """Bounds of the sums give the reachable values; the bits lost are told."""
    made = scaled_weights(1)
    assert found(made.graph(), tmp_path, "few-values") == []
    low, high = -4, 5
    model = model_of(made.graph(), tmp_path)
    prices = replace(model.prices, reach=lambda graph: {graph.outputs[0]: (low, high)})
    (item,) = check(replace(model, prices=prices), [RULES["few-values"]])
    assert "10 of 256 values, 4.7 bits lost" in item.message
    (item,) = found(scaled_weights(1e-3).graph(), tmp_path, "few-values")
    assert item.op == 0


def test_a_zero_point_in_the_middle_behind_a_relu(tmp_path: Path) -> None:
    """RELU with zero point 0 leaves half; with -128 nothing is lost; RELU6 with a coarse scale cuts off the top."""
    for zero_point, scale, used in ((0, 0.05, 128), (-128, 0.05, None), (-128, 0.4, 16)):
        made = builder(12)
        quantised(made, made.conv(4, activation="relu" if scale < 0.1 else "relu6"), scale, zero_point)
        items = found(made.graph(), tmp_path, "unused-half")
        assert [f"leaves {used} of 256 values" in item.message for item in items] == ([True] if used else [])


def test_one_scale_for_channels_of_different_size(tmp_path: Path) -> None:
    """Channels below 4 bits are counted, the gain of a scale each is told in bits; per channel there is neither."""
    for per_channel in (False, True):
        made = builder(13)
        made.conv(4, per_channel=per_channel)

        def shrink(data: np.ndarray) -> None:
            data[0] = 127
            data[1] = 7
            data[2] = 8
            data[3] = 127

        with_constant(made, made.ops[0].inputs[1], shrink)
        narrow = found(made.graph(), tmp_path, "narrow-channels")
        coarse = found(made.graph(), tmp_path, "per-tensor-weights")
        if per_channel:
            assert (narrow, coarse) == ([], [])
        else:
            assert "1 of 4 output channels" in narrow[0].message
            gain = (np.log2(127 / 7) + np.log2(127 / 8)) / 4
            assert f"{gain:.1f} more bits" in coarse[0].message
            assert coarse[0].severity == "warning"


@pytest.mark.parametrize(("scale", "severity"), [(0.6, "warning"), (0.4, None), (0.02, None), (0.01, "note")])
def test_softmax_inputs(scale: float, severity: str | None, tmp_path: Path) -> None:
    """Steps above 0.5 are too coarse, a span below 4 too narrow; beta counts."""
    made = builder(14, (1, 10))
    quantised(made, "input", scale / 2)
    made.softmax(2.0)
    items = found(made.graph(), tmp_path, "softmax-scale")
    assert [item.severity for item in items] == ([severity] if severity else [])


def test_sums_of_very_different_scales(tmp_path: Path) -> None:
    """The finer operand is named, and how many steps of the output it is worth."""
    made = builder(15)
    quantised(made, "input", 0.001)
    other = made.conv(4)
    quantised(made, other, 0.1)
    quantised(made, made.add("input"), 0.2)
    (item,) = found(made.graph(), tmp_path, "operand-scales")
    assert "operand 2 has a scale 100 times finer" in item.message
    assert "1.3 steps" in item.message
    quantised(made, "input", 0.01)
    assert found(made.graph(), tmp_path, "operand-scales") == []


def test_pools_over_the_whole_map_and_odd_channels(tmp_path: Path) -> None:
    """A global average pool is a note; six input channels leave two over, whose MACs are the price."""
    made = builder(16, (1, 8, 8, 6))
    made.conv(8)
    made.pool("average_pool_2d", (8, 8), (8, 8))
    graph = made.graph()
    assert [item.op for item in found(graph, tmp_path, "whole-map-pool")] == [1]
    (item,) = found(graph, tmp_path, "channel-alignment")
    assert item.price == {"macs": 64 * 8 * 9 * 2}
    assert op_macs(graph, graph.ops[0]) == 64 * 8 * 9 * 6


def test_what_the_file_carries(tmp_path: Path) -> None:
    """Constants behind the flatbuffer are errors; newer versions, unread bytes, dense layers per channel are notes."""
    made = builder(17)
    made.conv(4)
    made.dense(3, per_channel=True)
    model = model_of(made.graph(), tmp_path)
    assert [item.op for item in check(model, [RULES["per-channel-dense"]])] == [1]
    for rule in ("buffers-outside", "op-version", "unused-data"):
        assert check(model, [RULES[rule]]) == []
    file = replace(
        model.file,
        outside={"w": 5000},
        unused={"old": 300},
        spare_buffers={9: 40},
        metadata={"TFLITE_METADATA": 1000, "OfflineMemoryAllocation": 9000},
        versions={0: ("CONV_2D", 5), 1: model.file.versions[1]},
    )
    other = replace(model, file=file)
    (item,) = check(other, [RULES["buffers-outside"]])
    assert (item.severity, item.op) == ("error", None)
    (item,) = check(other, [RULES["op-version"]])
    assert "CONV_2D has version 5 although version 3" in item.message
    (item,) = check(other, [RULES["unused-data"]])
    assert item.price == {"constant_bytes": 300 + 40 + 1000}


@needs_oracle
def test_a_real_file_with_constants_outside_is_judged(tmp_path: Path) -> None:
    """The wheel computes nonsense from such a file: lint calls it an error, and verify finds values that differ."""
    path = tmp_path / "outside.tflite"
    path.write_bytes(dense(outside=True))
    facts = tflite_file.inspect(path.read_bytes())
    assert sum(facts.outside.values()) > 0
    result, error = lint(path, "--strict", "--select", "buffers-outside")
    assert isinstance(error, DoesNotFitError)
    assert result["errors"] == 1
    graph = tflite.read(path)
    assert parity.compare(graph, path.read_bytes(), parity.sample_inputs(graph, 4, 0)).mismatches > 0
    inside = tmp_path / "inside.tflite"
    inside.write_bytes(dense())
    assert tflite_file.inspect(inside.read_bytes()).outside == {}
    assert lint(inside, "--strict", "--select", "buffers-outside")[1] is None


def test_unread_constants_of_a_real_file_are_counted(tmp_path: Path) -> None:
    """A constant that no op reads is named with its bytes, which are the price."""
    weights = np.arange(12, dtype=np.int8).reshape(3, 4)
    tensors = [
        FileTensor("x", (1, 4)),
        FileTensor("w", (3, 4), data=weights),
        FileTensor("y", (1, 3)),
        FileTensor("old", (1, 400), data=np.arange(400).astype(np.int8).reshape(1, 400)),
    ]
    op = FileOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    path = tmp_path / "unread.tflite"
    path.write_bytes(write_file(tensors, [op], [0], [2]))
    (row,) = lint(path, "--select", "unused-data")[0]["findings"]
    assert row["price"] == {"constant_bytes": 400}
    assert "(old)" in row["message"]


def test_constants_that_are_stored_twice(tmp_path: Path) -> None:
    """Equal bytes in two buffers are told; tensors that share a buffer are not."""
    made = builder(18)
    made.conv(4)
    made.conv(4)
    first, second = (op.inputs[1] for op in made.ops)
    made.tensors[second] = replace(made.tensors[second], data=made.tensors[first].data)
    model = model_of(made.graph(), tmp_path)
    names = {name: number for number, name in enumerate(model.file.buffer_of)}
    apart = replace(model, file=replace(model.file, buffer_of=names))
    (item,) = check(apart, [RULES["duplicate-constants"]])
    assert item.price == {"constant_bytes": 4 * 36}
    together = replace(model, file=replace(model.file, buffer_of=dict.fromkeys(names, 3)))
    assert check(together, [RULES["duplicate-constants"]]) == []


def test_a_plan_in_the_file_is_asked_for_where_it_pays(tmp_path: Path) -> None:
    """The price is what TFLite Micro's own planner takes more; with a plan in the file, or no gain, nothing is said."""
    model = model_of(clean().graph(), tmp_path)
    worse = replace(model, prices=replace(model.prices, tflm_heads=lambda graph: (1512, 1000)))
    (item,) = check(worse, [RULES["offline-plan"]])
    assert item.price == {"arena_bytes": 512}
    equal = replace(model, prices=replace(model.prices, tflm_heads=lambda graph: (1000, 1000)))
    unknown = replace(model, prices=replace(model.prices, tflm_heads=lambda graph: None))
    planned = replace(worse, file=replace(model.file, metadata={"OfflineMemoryAllocation": 20}))
    for other in (equal, unknown, planned):
        assert check(other, [RULES["offline-plan"]]) == []


@needs_oracle
@needs_public_models
def test_the_public_models_are_read_as_experts_read_them() -> None:
    """vww_96: 45 % of the MACs feed constant channels, and TFLite Micro plans 73,728 B where 55,296 B are enough."""
    path = next(path for path in public_models() if "vww_96" in path.name)
    model = model_to_lint(resolve_target(path))
    findings = check(model, chosen())
    macs = sum(item.price["macs"] for item in findings if item.rule == "constant-channels")
    assert graph_macs(model.graph) - macs <= 4_130_000
    assert graph_macs(model.graph) - macs == graph_macs(remove_channels(model.graph))
    (plan,) = (item for item in findings if item.rule == "offline-plan")
    assert plan.price == {"arena_bytes": 73_728 - 55_296}


@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_facts_of_public_files(path: Path) -> None:
    """Every op has a version, every tensor of the graph a buffer, and nothing lies outside."""
    data = path.read_bytes()
    graph, facts = tflite.read(path), tflite_file.inspect(data)
    assert len(facts.versions) == len(graph.ops)
    assert all(version >= 1 for _, version in facts.versions.values())
    constants = {name for name, tensor in graph.tensors.items() if tensor.is_constant}
    assert constants <= facts.buffer_of.keys()
    assert (facts.outside, facts.num_bytes) == ({}, len(data))


def lint(path: Path, *arguments: str) -> tuple[dict[str, Any], BaseException | None]:
    """Run the command; return its JSON and what it raised."""
    done = CliRunner().invoke(command, [str(path), "--json", *arguments], standalone_mode=False)
    return (json.loads(done.stdout) if done.stdout else {}), done.exception


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """The model with a PAD as a file."""
    path = tmp_path / "padded.tflite"
    path.write_bytes(tflite_writer.write(pad_model().graph()))
    return path


def test_the_json_lists_findings_with_their_places(padded: Path) -> None:
    """Counts agree with the findings; each one names its op and where it came from; findings alone are no failure."""
    result, error = lint(padded)
    assert error is None
    for severity in SEVERITIES:
        assert result[f"{severity}s"] == sum(row["severity"] == severity for row in result["findings"])
    (row,) = (row for row in result["findings"] if row["rule"] == "pad-op")
    graph = tflite.read(padded)
    assert (row["op"], row["kind"], row["source"]) == (1, "pad", graph.ops[1].source)
    assert [SEVERITIES.index(item["severity"]) for item in result["findings"]] == sorted(
        SEVERITIES.index(item["severity"]) for item in result["findings"]
    )
    assert result["rules"] == list(RULES)


def test_rules_are_selected_and_ignored(padded: Path) -> None:
    """Only what is asked for is looked for; a misspelt rule is answered with the nearest."""
    assert {row["rule"] for row in lint(padded, "--select", "pad-op, float-edge")[0]["findings"]} == {"pad-op"}
    assert "pad-op" not in {row["rule"] for row in lint(padded, "--ignore", "pad-op")[0]["findings"]}
    _, error = lint(padded, "--select", "pad-ops")
    assert isinstance(error, ConfigError)
    assert "Did you mean 'pad-op'?" in error.message


def test_strict_fails_on_warnings_and_not_on_notes(padded: Path) -> None:
    """Exit code 3 with the counts; the JSON is printed all the same."""
    result, error = lint(padded, "--strict", "--select", "pad-op")
    assert isinstance(error, DoesNotFitError)
    assert error.exit_code == 3
    assert "0 errors and 1 warnings" in error.message
    assert result["warnings"] == 1
    assert lint(padded, "--strict", "--select", "float-edge")[1] is None


def test_a_file_that_cannot_be_read_gets_the_readers_error(tmp_path: Path) -> None:
    """Lint adds nothing to it: exit code 4."""
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x00" * 100)
    _, error = lint(path)
    assert isinstance(error, InvalidModelError)


def test_the_sarif_log_keeps_to_the_standard(padded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SARIF 2.1.0: version, rules by index, levels, artifacts by index and hash, a logical location for each op."""
    made = pad_model()
    made.pool("average_pool_2d", (8, 8), (8, 8))
    padded.write_bytes(tflite_writer.write(made.graph()))
    monkeypatch.chdir(padded.parent)
    log_file = tmp_path / "logs" / "lint.sarif"
    result, error = lint(padded, "--sarif", str(log_file))
    assert error is None
    log = json.loads(log_file.read_text())
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "tinykd"
    assert [rule["id"] for rule in driver["rules"]] == list(RULES)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["fullDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    (artifact,) = run["artifacts"]
    assert artifact["location"]["uri"] == "padded.tflite"
    assert artifact["hashes"]["sha-256"] == result["model_sha256"]
    assert artifact["length"] == padded.stat().st_size
    assert run["invocations"] == [{"executionSuccessful": True}]
    assert len(run["results"]) == len(result["findings"])
    assert len({entry["ruleIndex"] for entry in run["results"]}) > 1
    for entry, row in zip(run["results"], result["findings"], strict=True):
        assert driver["rules"][entry["ruleIndex"]]["id"] == entry["ruleId"] == row["rule"]
        assert entry["level"] == row["severity"]
        assert row["message"] in entry["message"]["text"]
        (location,) = entry["locations"]
        assert location["physicalLocation"]["artifactLocation"] == {"uri": "padded.tflite", "index": 0}
        if row["op"] is not None:
            (logical,) = location["logicalLocations"]
            assert logical["name"] == row["source"]
            assert logical["fullyQualifiedName"] == f"{row['op']}/{row['kind']}/{row['source']}"
        assert entry["properties"] == {"mend": row["mend"], "price": row["price"]}
        assert entry["partialFingerprints"]["ruleAndSource/v1"]


def test_a_model_elsewhere_is_named_by_its_whole_path(padded: Path, tmp_path: Path) -> None:
    """Outside the working folder the log has a file URI."""
    log_file = tmp_path / "lint.sarif"
    lint(padded, "--sarif", str(log_file), "--select", "pad-op")
    uri = json.loads(log_file.read_text())["runs"][0]["artifacts"][0]["location"]["uri"]
    assert uri == padded.resolve().as_uri()


def test_people_see_prices_and_mends(padded: Path) -> None:
    """The table has rule, op, message, mend and price, and the counts; --list-rules needs no model."""
    done = CliRunner().invoke(command, [str(padded)], standalone_mode=False, env={"COLUMNS": "160"})
    assert done.exception is None
    for text in ("pad-op", "1 pad", "B of arena", "B moved", "Train with TensorFlow's SAME padding", "warning"):
        assert text in done.stdout
    rules = CliRunner().invoke(command, ["--list-rules"], standalone_mode=False)
    assert rules.exception is None
    assert all(name in rules.stdout for name in RULES)
    nothing = CliRunner().invoke(command, [], standalone_mode=False)
    assert isinstance(nothing.exception, ConfigError)


def test_the_manual_is_what_the_rules_say() -> None:
    """docs/lint.md is generated; every rule is on it."""
    page = Path(__file__).parents[2] / "docs" / "lint.md"
    if not page.is_file():
        pytest.skip("docs/ is not part of this installation")
    assert page.read_text(encoding="utf-8") == manual()
    assert all(f"### {name}\n" in manual() for name in RULES)


def test_rules_say_what_they_are() -> None:
    """Ids are unique and lower case, each has a reason, and no finding is worse than its rule says."""
    assert len(RULES) >= 25
    for name, rule in RULES.items():
        assert name == rule.id == name.lower()
        assert rule.title
        assert rule.why.endswith(".")
        assert rule.severity in SEVERITIES
