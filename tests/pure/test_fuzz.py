"""Random int8 models: what the writer writes is read back, and the reference equals TFLite Micro on all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check
from fuzzing.hunt import Catch, hunt
from fuzzing.judge import IsolatedTflm, JudgeDiedError
from fuzzing.kinds import KINDS, int8_kinds
from fuzzing.record import Failure, dumps, graph_from_dict, graph_to_dict, loads
from graphs import Builder, needs_oracle, random_network

from tinykd.export import reference
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, difference

SEED = 4
MODELS_PER_KIND = 7
REGRESSIONS = sorted((Path(__file__).resolve().parents[1] / "regression" / "fuzz").glob("*.json"))


@pytest.fixture(scope="module")
def judge():
    """TFLite Micro in a process of its own, for all tests here."""
    judge = IsolatedTflm()
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def catches(judge) -> dict[str, Catch]:
    """What each kind's hunt brought."""
    return {}


def test_every_kind_of_an_int8_graph_is_drawn():
    """A new row of the IR's table needs a strategy before it is taken in."""
    assert set(KINDS) == int8_kinds()


@needs_oracle
@pytest.mark.parametrize("kind", KINDS)
def test_random_models(kind, judge, catches):
    """Every model drawn around a kind is read back unchanged, and every activation equals TFLite Micro's."""
    print(f"seed {SEED}: python -m benchmarks.fuzz --kind {kind} --seed {SEED} --count {MODELS_PER_KIND}")
    catch = catches[kind] = hunt(kind, SEED, MODELS_PER_KIND, tuple(KINDS), judge)
    assert catch.failure is None, f"{catch.failure.rule}: {catch.failure.problem}\n{graph_to_dict(catch.failure.graph)}"
    assert catch.graphs == MODELS_PER_KIND


@needs_oracle
def test_enough_models(catches):
    """At least 200 models were examined, and each op kind came up in several."""
    if set(catches) != set(KINDS):
        pytest.skip("counts what the whole file examines")
    assert sum(catch.graphs for catch in catches.values()) >= 200
    total = sum((catch.ops for catch in catches.values()), Counter())
    assert all(total[kind] >= MODELS_PER_KIND for kind in KINDS), total


@needs_oracle
def test_the_same_seed_draws_the_same_models(judge):
    """A hunt can be repeated, and another seed draws other models."""
    first, again, other = (hunt("conv_2d", seed, 6, ("conv_2d", "reshape"), judge) for seed in (1, 1, 2))
    assert first.ops == again.ops != other.ops


@needs_oracle
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_was_found_stays_mended(path, judge):
    """A graph that once broke a rule keeps it now."""
    failure = loads(path.read_text(encoding="utf-8"))
    assert failure.found.startswith("python -m benchmarks.fuzz")
    problem = check.examine(failure.rule, failure.graph, judge, failure.inputs)
    assert problem is None, problem.text


@pytest.mark.parametrize("seed", range(5))
def test_records_keep_the_whole_graph(seed):
    """A saved failure holds the very graph and inputs, however they were made."""
    builder = random_network(seed)
    graph = builder.graph()
    failure = Failure("equals TFLM", 'it said "no"', graph, {"input": builder.inputs(2)}, "python -m benchmarks.fuzz")
    again = loads(dumps(failure))
    assert dumps(again) == dumps(failure)
    assert difference(graph, again.graph) is None
    assert [op.source for op in again.graph.ops] == [op.source for op in graph.ops]
    assert np.array_equal(again.inputs["input"], failure.inputs["input"])
    assert again.inputs["input"].dtype == np.int8
    assert replace(again, graph=graph, inputs=None) == replace(failure, inputs=None)
    assert difference(graph, graph_from_dict(graph_to_dict(graph))) is None


@needs_oracle
def test_a_planted_mistake_is_found_and_shrunk(judge, monkeypatch):
    """A reference that rounds one op wrongly is caught, and reduced to that one op on a small tensor."""
    honest = reference.KERNELS["add"]

    def wrong(graph, op, values, *rest):
        return honest(graph, op, values, *rest) ^ np.int8(1)

    monkeypatch.setattr(reference, "KERNELS", {**reference.KERNELS, "add": wrong})
    catch = hunt("add", 0, 10, ("add", "reshape"), judge)
    assert catch.failure is not None
    assert catch.failure.rule == "equals TFLM"
    assert [op.kind for op in catch.failure.graph.ops] == ["add"]
    assert sum(tensor.num_elements for tensor in catch.failure.graph.tensors.values()) <= 3
    assert check.examine("equals TFLM", catch.failure.graph, judge, catch.failure.inputs) is not None
    monkeypatch.undo()
    assert check.examine("equals TFLM", catch.failure.graph, judge, catch.failure.inputs) is None


@needs_oracle
def test_a_writer_that_forgets_something_is_found(judge, monkeypatch):
    """A file that lost an attribute is caught by reading it back."""
    honest = tflite_writer.write

    def forgetful(graph: Graph, *rest):
        ops = [replace(op, attrs={**op.attrs, "beta": 1.0}) if op.kind == "softmax" else op for op in graph.ops]
        return honest(replace(graph, ops=tuple(ops)), *rest)

    monkeypatch.setattr(tflite_writer, "write", forgetful)
    catch = hunt("softmax", 0, 10, ("softmax", "reshape"), judge)
    assert catch.failure is not None
    assert catch.failure.rule == "round trip"
    assert "beta" in catch.failure.problem


@needs_oracle
def test_a_pass_that_changes_an_output_is_found(judge, monkeypatch):
    """An exact pass that is not, one that grows the model, and one that stops are each caught."""
    honest = check.optimize

    def clamped(graph):
        ops = [replace(op, attrs={"activation": "relu"}) if op.kind == "add" else op for op in graph.ops]
        return replace(graph, ops=tuple(ops)), []

    def grown(graph):
        smaller, steps = honest(graph)
        return _with_a_useless_layer(smaller), steps

    def stopped(graph):
        raise ValueError("no rule for this")

    for wrong, told in ((clamped, "instead of"), (grown, "MACs became"), (stopped, "ValueError: no rule")):
        monkeypatch.setattr(check, "optimize", wrong)
        catch = hunt("add", 0, 10, ("add", "reshape"), judge, most_ops=2)
        assert catch.failure is not None
        assert catch.failure.rule == "optimized"
        assert told in catch.failure.problem


def _with_a_useless_layer(graph: Graph) -> Graph:
    source = graph.tensor(graph.inputs[0])
    weights = Tensor(
        "w", (1, source.num_elements), "int8", Quant.per_tensor(1.0, 0), np.ones((1, source.num_elements), np.int8)
    )
    tensors = {**graph.tensors, "w": weights, "idle": Tensor("idle", (1, 1), "int8", Quant.per_tensor(1.0, 0))}
    op = Op("fully_connected", (source.name, "w"), ("idle",), {"activation": "none"}, "idle")
    return replace(graph, tensors=tensors, ops=(*graph.ops, op))


@needs_oracle
def test_a_model_that_kills_the_runtime_is_named(judge):
    """TFLite Micro's abort ends its own process only; the next model gets a new one."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 2))
    # The output's multiplier of an ADD must be below one: TFLite aborts.
    builder.tensors["input"] = replace(builder.tensors["input"], quant=builder.quant(1000.0))
    builder.add("input")
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=builder.quant(1e-6))
    graph = builder.graph()
    with pytest.raises(JudgeDiedError, match="ended its process"):
        judge.load(graph, tflite_writer.write(graph))
    good = random_network(1).graph()
    assert check.equals_tflm(good, judge) is None


@needs_oracle
def test_the_nightly_run_fails_when_an_op_never_comes_up(tmp_path):
    """`python -m benchmarks.fuzz` counts each op, keeps its figures, and is no success while one was never drawn."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "fuzz.py").is_file():
        pytest.skip("benchmarks/ is not part of this installation")
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--kind", "tanh", "--most-ops", "1", "--count", "3"]
    done = subprocess.run([*command, "--jobs", "1", "--out", str(out)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "3 models without a difference, 0 with one" in done.stdout
    assert "never drawn: add, " in done.stdout
    record = json.loads(out.read_text())
    assert (record["models"], record["differences"], record["ops"]["tanh"], record["ops"]["add"]) == (3, 0, 3, 0)
    assert {"command", "seed", "python", "hypothesis", "tflite-micro"} <= set(record["provenance"])
