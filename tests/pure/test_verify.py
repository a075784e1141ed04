"""`tinykd verify`: who is asked, what counts as equal, and how the first difference is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder, needs_oracle, needs_public_models, public_models, random_network
from pure import test_reference, test_reference_ops

from tinykd.commands.verify import command
from tinykd.errors import ConfigError, InternalError, ParityError, ToolchainError, UnsupportedModelError
from tinykd.export import explain, oracles, parity, reference
from tinykd.formats import tflite
from tinykd.formats.tflite import file as tflite_file
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Tensor
from tinykd.plan import plan_for_tflm, tflm_offsets

CASES = {
    **{name: ((1, 9, 8, 4), build) for name, build in test_reference.CASES.items()},
    **test_reference_ops.CASES,
}
INSTALLED = [name for name, row in oracles.ORACLES.items() if row.is_available]


def needs(name: str) -> Any:
    """Skip unless an oracle is installed."""
    row = oracles.ORACLES[name]
    return pytest.mark.skipif(not row.is_available, reason=f"{name} is not installed: {row.install}")


def network(seed: int = 3) -> Graph:
    """Three convolutions, a dense layer and a softmax: enough ops to point at one in the middle."""
    builder = Builder(np.random.default_rng(seed), (1, 8, 8, 3))
    builder.conv(6, activation="relu")
    builder.depthwise()
    builder.conv(5, (1, 1))
    builder.mean()
    builder.dense(4)
    builder.softmax()
    return builder.graph()


def changed(graph: Graph, tensor: str, at: tuple[int, ...], by: int) -> Graph:
    """Return the graph with one integer of a constant changed."""
    old = graph.tensor(tensor)
    assert old.data is not None
    data = old.data.copy()
    data[at] += by
    tensors = {**graph.tensors, tensor: Tensor(old.name, old.shape, old.dtype, old.quant, data)}
    return Graph(graph.name, tensors, graph.ops, graph.inputs, graph.outputs)


def verify(model: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """Run the command; raise what it raises, return its JSON."""
    done = CliRunner().invoke(command, [str(model), "--out", str(out), "--json", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The network as a file with its memory plan."""
    graph = network()
    path = tmp_path / "net.tflite"
    path.write_bytes(tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph))))
    return path


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("seed", [1, 3, 8])
def test_installed_oracles_agree(name: str, seed: int) -> None:
    """Random networks differ from no oracle by more than it is known to round otherwise."""
    # The QDQ ONNX file that onnxruntime reads has no form for every op.
    graph = random_network(seed, blocks=name != "onnxruntime").graph()
    x = parity.sample_inputs(graph, 6, seed)
    judge = oracles.make(name, graph, tflite_writer.write(graph))
    result = parity.compare_judge(graph, judge, x)
    assert (result.mismatches, result.first_mismatch) == (0, None)
    assert result.ops_checked == len(graph.ops)
    assert result.oracle == name
    assert result.values_checked >= 6 * sum(graph.tensor(op.outputs[0]).num_elements for op in graph.ops)


@needs_oracle
@pytest.mark.parametrize(("number", "what"), [(0, 1), (1, 1), (2, 2), (4, 1)])
def test_a_planted_fault_is_found_where_it_is(number: int, what: int) -> None:
    """One constant that differs in the oracle's file: that op is named, its element, both values, our arithmetic."""
    graph = network()
    op = graph.ops[number]
    tensor = graph.tensor(op.inputs[what])
    by = 4000 if tensor.dtype == "int32" else (90 if int(tensor.data.flat[0]) < 0 else -90)  # type: ignore[union-attr]
    faulty = changed(graph, tensor.name, (0,) * len(tensor.shape), by)
    x = parity.sample_inputs(graph, 5, 1)
    result = parity.compare(graph, tflite_writer.write(faulty), x)
    first = result.first_mismatch
    assert first is not None
    assert (first.op, first.kind, first.source, first.tensor) == (number, op.kind, op.source, op.outputs[0])
    sample = first.sample
    ours = reference.run(graph, x["input"], keep_all=True)[op.outputs[0]][sample][first.index]
    theirs = reference.run(faulty, x["input"], keep_all=True)[op.outputs[0]][sample][first.index]
    assert (first.reference, first.oracle) == (ours, theirs)
    assert first.arithmetic[-1][1] == f"{ours:,}"
    assert any(quantity == "accumulator" for quantity, _ in first.arithmetic)
    channel = first.index[-1]
    assert channel == 0, "the fault lies in the first output channel"


@needs_oracle
def test_a_fault_in_the_memory_plan_is_found(model: Path, tmp_path: Path) -> None:
    """A plan whose buffers overlap computes wrong outputs: the file as it is differs, its activations do not."""
    graph = network()
    offsets = dict.fromkeys(tflm_offsets(plan_for_tflm(graph)), 0)
    result = parity.compare(graph, tflite_writer.write(graph, offsets), parity.sample_inputs(graph, 3, 0))
    assert result.first_mismatch is not None
    assert result.first_mismatch.place == "output of the file"
    assert result.first_mismatch.op == len(graph.ops) - 1


@needs("litert")
def test_litert_may_round_dense_layers_once_and_nothing_else() -> None:
    """Differences of one step in FULLY_CONNECTED are explained; a second step, or another op, is a mismatch."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 8))
    builder.conv(8)
    builder.dense(200)
    graph = builder.graph()
    x = parity.sample_inputs(graph, 40, 2)
    result = parity.compare_judge(graph, oracles.make("litert", graph, tflite_writer.write(graph)), x)
    assert result.status == parity.EXPLAINED
    assert result.max_steps == {"fully_connected": 1.0}
    assert result.reasons.keys() == {"fully_connected"}
    weights = graph.ops[1].inputs[1]
    faulty = tflite_writer.write(changed(graph, weights, (7, 3), 60 if graph.tensor(weights).data[7, 3] < 0 else -60))
    again = parity.compare_judge(graph, oracles.make("litert", graph, faulty), x)
    assert again.first_mismatch is not None
    assert (again.first_mismatch.op, again.first_mismatch.index) == (1, (7,))


@pytest.mark.parametrize("steps", [1, 2])
def test_ops_of_inexact_oracles_are_compared_on_their_own_inputs(steps: int) -> None:
    """A judge whose first op is a step off does not accuse the ops behind it; two steps are one too many."""
    graph = network()

    class Off:
        name, version, exact = "off", "1", False

        def reset(self) -> None: ...

        def run(self, inputs: parity.Values) -> parity.Values:
            values = reference.run(graph, inputs["input"], keep_all=True)
            first = graph.ops[0].outputs[0]
            values[first] = np.minimum(values[first], 127 - steps) + np.int8(steps)
            later = Graph(graph.name, graph.tensors, graph.ops[1:], (first,), graph.outputs)
            return {**values, **reference.run(later, values[first], keep_all=True), **inputs}

        def final(self, inputs: parity.Values) -> parity.Values:
            return {}

        def allowed(self, op: Op) -> tuple[int, str]:
            return (1, "told") if op.kind == "conv_2d" else (0, "")

    result = parity.compare_judge(graph, Off(), parity.sample_inputs(graph, 4, 0))
    assert result.max_steps == {"conv_2d": float(steps)}
    if steps == 1:
        assert (result.mismatches, result.status, result.reasons) == (0, parity.EXPLAINED, {"conv_2d": "told"})
        assert result.explained > 0
    else:
        assert result.status == parity.DIFFERS
        assert result.first_mismatch is not None
        assert result.first_mismatch.op == 0


def test_an_explanation_that_disagrees_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic that is shown must lead to the reference's value; otherwise nothing is shown."""
    graph = network()
    monkeypatch.setattr(explain, "explain", lambda *args: explain.Explanation(value=1000))

    class Wrong(oracles.LiteJudge):
        name, version, exact = "wrong", "1", True

        def __init__(self) -> None: ...

        def run(self, inputs: parity.Values) -> parity.Values:
            values = reference.run(graph, inputs["input"], keep_all=True)
            return {name: value ^ 1 if name != "input" else value for name, value in values.items()}

        def reset(self) -> None: ...

        def allowed(self, op: Op) -> tuple[int, str]:
            return 0, ""

    with pytest.raises(InternalError, match="op 0 .*its explanation 1000"):
        parity.compare_judge(graph, Wrong(), parity.sample_inputs(graph, 1, 0))


@needs_oracle
def test_the_json_keeps_its_keys_and_lists_everybody(model: Path, tmp_path: Path) -> None:
    """The promised keys tell the judge's result; `oracles` tells who else was asked and who is missing."""
    result = verify(model, tmp_path / "run", "--samples", "3")
    assert set(result) >= {"oracle", "ops_checked", "values_checked", "mismatches", "first_mismatch", "oracles"}
    assert (result["oracle"], result["mismatches"], result["first_mismatch"]) == ("tflite-micro", 0, None)
    assert [row["oracle"] for row in result["oracles"]] == list(oracles.ORACLES)
    for row in result["oracles"]:
        assert row["status"] in ("equal", "explained", "missing")
        assert row["status"] != "missing" or row["install"].startswith("pip install ")
        assert (row["status"] == "missing") == (row["oracle"] not in INSTALLED)


@needs_oracle
def test_only_those_that_are_named_are_asked(model: Path, tmp_path: Path) -> None:
    """--oracle chooses; the top level then tells the first of them."""
    result = verify(model, tmp_path / "run", "--samples", "2", "--oracle", "tflite-micro")
    assert [row["oracle"] for row in result["oracles"]] == ["tflite-micro"]


def test_a_missing_oracle_that_was_named_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5 with the command that installs it; not named, it is only listed; nobody at all is an error, too."""
    rows = {
        name: row.__class__(**{**row.__dict__, "module": "not_there_at_all"}) for name, row in oracles.ORACLES.items()
    }
    monkeypatch.setattr(oracles, "ORACLES", rows)
    with pytest.raises(ToolchainError, match=r"'litert' is not installed\n.*pip install ai-edge-litert"):
        verify(model, tmp_path / "run", "--oracle", "litert")
    with pytest.raises(ToolchainError, match="nobody is there to compare net with"):
        verify(model, tmp_path / "run")


def test_the_firmware_needs_a_board(model: Path, tmp_path: Path) -> None:
    """--oracle firmware without --board is a wrong command line, told before any work."""
    with pytest.raises(ConfigError, match="the firmware is built for a board"):
        verify(model, tmp_path / "run", "--oracle", "firmware")


@needs_oracle
def test_a_difference_exits_with_7_and_tells_the_arithmetic(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON is printed, and the error names op, element and both values, and lists the steps to ours."""
    real = reference.run

    def wrong(graph: Graph, *args: Any, **options: Any) -> dict[str, np.ndarray]:
        bias = graph.ops[2].inputs[2]
        return real(changed(graph, bias, (1,), 5000), *args, **options)

    graph = tflite.read(model)
    bias = graph.ops[2].inputs[2]
    faulty = changed(graph, bias, (1,), 5000)
    monkeypatch.setattr(reference, "run", wrong)
    monkeypatch.setattr("tinykd.commands.target.Target.graph", lambda self: graph)
    real_explain = explain.explain
    monkeypatch.setattr(explain, "explain", lambda g, *rest: real_explain(faulty, *rest))
    done = CliRunner().invoke(
        command, [str(model), "--out", str(tmp_path / "run"), "--json", "--samples", "2", "--oracle", "tflite-micro"]
    )
    assert isinstance(done.exception, ParityError)
    assert done.exception.exit_code == 7
    result = json.loads(done.stdout)
    assert result["first_mismatch"]["op"] == 2
    assert result["first_mismatch"]["index"][-1] == 1
    message = done.exception.message
    assert "differs from tflite-micro first at op 2 (conv_2d, conv_2d_2), sample 0, element [" in message
    assert "\n  accumulator: " in message
    assert "\n  clamped to [" in message


def test_samples_cover_the_extremes_of_every_input_type() -> None:
    """Lowest, highest and a checkerboard come first; float inputs reach beyond what their quantise op can represent."""
    graph = network()
    quant = graph.tensor("input").quant
    tensors = {**graph.tensors, "real": Tensor("real", (1, 8, 8, 3), "float32")}
    edge = Op("quantize", ("real",), ("input",), {}, "edge")
    graph = Graph("edges", tensors, (edge, *graph.ops), ("real",), graph.outputs)
    x = parity.sample_inputs(graph, 5, 0)["real"]
    assert (x.dtype, x.shape) == (np.float32, (5, 8, 8, 3))
    assert quant is not None
    assert np.all(x[0] / quant.scale + quant.zero_point < -128)
    assert np.all(x[1] / quant.scale + quant.zero_point > 127)
    assert len(np.unique(x[2])) == 2
    assert len(np.unique(x[3])) > 100


@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_are_judged_as_the_very_file(path: Path) -> None:
    """The reader's tensor names find the file's tensors, so that the oracle runs the file and not our copy of it."""
    graph = tflite.read(path)
    data = path.read_bytes()
    indices = tflite_file.tensor_indices(data)
    assert {name for op in graph.ops for name in op.outputs} <= indices.keys()
    facts = tflite_file.inspect(data)
    assert len(facts.versions) == len(graph.ops)
    assert (facts.num_bytes, facts.outside) == (len(data), {})
    for name in INSTALLED:
        judge = oracles.make(name, graph, data)
        result = parity.compare_judge(graph, judge, parity.sample_inputs(graph, 4, 0))
        assert result.mismatches == 0, (name, result.first_mismatch)


@needs_oracle
def test_a_plan_is_found_and_taken_out(model: Path) -> None:
    """`inspect` sees the memory plan of our files; without it the model is the same size and computes the same."""
    data = model.read_bytes()
    assert tflite_file.inspect(data).has_offline_plan
    plain = tflite_file.without_plan(data)
    assert not tflite_file.inspect(plain).has_offline_plan
    assert len(plain) == len(data)


@needs("onnxruntime")
@pytest.mark.parametrize("case", CASES)
def test_the_exported_onnx_computes_every_op_within_a_step(case: str) -> None:
    """What the QDQ writer can say is compared with onnxruntime; what it cannot say is refused with a reason."""
    shape, build = CASES[case]
    builder = Builder(np.random.default_rng(1), shape)
    build(builder)
    graph = builder.graph()
    try:
        judge = oracles.make("onnxruntime", graph, tflite_writer.write(graph))
        result = parity.compare_judge(graph, judge, parity.sample_inputs(graph, 8, 1))
    except UnsupportedModelError as error:
        assert any(word in case for word in ("svdf", "relu6", "dequantize", "arg max", "resize with both")), (
            error.message
        )
        return
    assert result.mismatches == 0, result.first_mismatch
    assert result.values_checked > 0


@needs("litert")
@pytest.mark.parametrize("case", CASES)
def test_litert_computes_every_op_as_the_reference_does(case: str) -> None:
    """What is known to differ is explained; nothing else differs. Models that LiteRT refuses are told as refused."""
    shape, build = CASES[case]
    builder = Builder(np.random.default_rng(1), shape)
    build(builder)
    graph = builder.graph()
    try:
        judge = oracles.make("litert", graph, tflite_writer.write(graph))
        result = parity.compare_judge(graph, judge, parity.sample_inputs(graph, 8, 1))
    except UnsupportedModelError as error:
        assert "litert" in error.message
        assert any(word in case for word in ("svdf", "without bias", "beyond its kernels")), error.message
        return
    assert result.mismatches == 0, result.first_mismatch
    assert set(result.max_steps) <= {"fully_connected", "relu6"}


@needs_oracle
def test_the_state_of_earlier_inferences_goes_into_the_arithmetic() -> None:
    """A fault that only an old state shows is found at a later sample, and explained from the state before it."""
    builder = Builder(np.random.default_rng(4), (1, 24))
    builder.svdf(6, memory=4)
    graph = builder.graph()
    x = parity.sample_inputs(graph, 12, 3)
    assert parity.compare(graph, tflite_writer.write(graph), x, stream=True).mismatches == 0
    time = graph.ops[0].inputs[2]
    weights = graph.tensor(time).data
    assert weights is not None
    faulty = tflite_writer.write(changed(graph, time, (2, 0), -600 if weights[2, 0] > 0 else 600))
    result = parity.compare(graph, faulty, x, stream=True)
    assert result.first_mismatch is not None
    assert result.first_mismatch.sample >= 3
    assert result.first_mismatch.index == (2,)
    assert result.first_mismatch.arithmetic[-1][1] == f"{result.first_mismatch.reference:,}"
    # From the reset state each, no inference has a state that old.
    assert parity.compare(graph, faulty, x).mismatches == 0


@needs_oracle
def test_graphs_with_several_inputs_and_outputs_are_compared() -> None:
    """Each part of a split and each output counts; a fault behind the second input is found there."""
    builder = Builder(np.random.default_rng(6), (1, 6, 6, 4))
    builder.add(builder.input("other", (1, 6, 6, 4)))
    parts = builder.split((1, 3), 3)
    builder.x = parts[1]
    last = builder.conv(2)
    graph = builder.graph(outputs=(parts[0], last))
    x = parity.sample_inputs(graph, 6, 0)
    assert set(x) == {"input", "other"}
    result = parity.compare(graph, tflite_writer.write(graph), x)
    assert (result.mismatches, result.ops_checked) == (0, 3)
    # Every activation once, and the two outputs once more, as the file under its own plan gives them.
    assert result.values_checked == 6 * 36 * (4 + 4 + 2 + 1 + 2)
    bias = graph.ops[2].inputs[2]
    found = parity.compare(graph, tflite_writer.write(changed(graph, bias, (1,), 9000)), x).first_mismatch
    assert found is not None
    assert (found.op, found.tensor, found.index[-1]) == (2, last, 1)


@needs_oracle
def test_float_edges_are_compared_as_floats() -> None:
    """QUANTIZE and DEQUANTIZE at the edges are compared like any op, floats to the last bit."""
    builder = Builder(np.random.default_rng(7), (1, 6, 6, 3), "float32")
    builder.quantize()
    builder.conv(4)
    builder.dequantize()
    graph = builder.graph()
    result = parity.compare(graph, tflite_writer.write(graph), parity.sample_inputs(graph, 6, 0))
    assert (result.mismatches, result.ops_checked) == (0, 3)
    bias = graph.ops[1].inputs[2]
    found = parity.compare(
        graph, tflite_writer.write(changed(graph, bias, (2,), 9000)), parity.sample_inputs(graph, 6, 0)
    ).first_mismatch
    assert found is not None
    assert (found.op, found.kind) == (1, "conv_2d")
