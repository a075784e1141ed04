"""The links of the parity chain that need more than a host and a file: a device, and a run's training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from tinykd.artifact import read_manifest
from tinykd.commands.target import Target
from tinykd.ir import Graph, Op, tensor_quant
from tinykd.train import QAT_WEIGHTS

if TYPE_CHECKING:
    from tinykd.board import Board
    from tinykd.models.quant_student import QuantStudent
    from tinykd.run.activations import DeviceJudge

Values = dict[str, np.ndarray]
FAKE_QUANT, FIRMWARE = "fake-quant", "firmware"


class FakeQuantJudge:
    """The student as it was trained with rounding in the loop: torch's fake quantisation, float between the grids."""

    name, exact = FAKE_QUANT, False

    def __init__(self, student: QuantStudent, graph: Graph) -> None:
        import torch

        self.version = f"torch {torch.__version__}"
        self._student, self._graph = student, graph

    def reset(self) -> None:
        """Do nothing: students have no variables."""

    def run(self, inputs: Values) -> Values:
        """Return the activations that the int8 graph has under the same name, as its integers."""
        import torch

        name = self._graph.inputs[0]
        quant = tensor_quant(self._graph.tensor(name))
        real = (inputs[name].astype(np.float32) - quant.zero_point) * np.float32(quant.scale)
        values = dict(inputs)
        with torch.no_grad():
            for key, value in self._student.activations(torch.from_numpy(real.transpose(0, 3, 1, 2).copy())):
                if key not in self._graph.tensors or key == name:
                    continue
                tensor = self._graph.tensor(key)
                quant = tensor_quant(tensor)
                array = value.numpy().astype(np.float64)
                array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
                integers = np.rint(array / quant.scale) + quant.zero_point
                values[key] = np.clip(integers, -128, 127).astype(np.int8).reshape(tensor.shape)
        return values

    def final(self, inputs: Values) -> Values:
        """Return {}: there is one computation only."""
        return {}

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return one step: the op's sum is rounded from float."""
        return 1, "computed in float and rounded once"


def has_fake_quant(target: Target) -> bool:
    """Whether a target is a run whose `.tflite` was made from training with rounding in the loop."""
    return target.exported and bool(read_manifest(target.folder / "export", "export").config.get("qat"))


def fake_quant_judge(target: Target, graph: Graph) -> FakeQuantJudge:
    """Return the run's student as training rounded it; see `has_fake_quant`."""
    from tinykd.commands.export_stage import FLOAT_ONNX, STUDENT
    from tinykd.export import convert
    from tinykd.models.load import load_model
    from tinykd.train.qat import load_quantised

    run = target.folder
    _, spec = load_model(run / "train" / STUDENT)
    float_graph = convert.lower((run / "export" / FLOAT_ONNX).read_bytes(), target.name)
    input_quant = convert.Normalization(spec.mean_level, spec.std_level).input_quant()
    return FakeQuantJudge(load_quantised(run / "train" / QAT_WEIGHTS, float_graph, input_quant), graph)


@contextmanager
def device_judge(
    target: Target, graph: Graph, board: Board, sim: str, port: str | None, optimize_for: str | None = None
) -> Iterator[DeviceJudge]:
    """Build the firmware and open it in an emulator, or on the board at a serial port ("auto" looks for it).

    Args:
        graph: the target's `engine_graph`.
        optimize_for: what kernels are chosen by; None: as the run's recipe says, else "balanced".

    Raises:
        DoesNotFitError, ToolchainError: from the build.
        DeviceError: the device failed, or runs another model.
    """
    from tinykd.commands.pipeline import ensure_build, ensure_plan, goal_of
    from tinykd.run.activations import DeviceJudge
    from tinykd.run.session import open_session
    from tinykd.run.transport import open_emulator, open_serial

    goal = goal_of(target, optimize_for)
    built = ensure_build(target, board, optimize_for=goal)
    plan, _ = ensure_plan(target, board, goal)
    where = None if port == "auto" else port
    transport = open_emulator(sim, built.elf, board) if port is None else open_serial(board, where)
    with open_session(transport, baud=board.baud) as session:
        session.require_model(target.sha256())
        yield DeviceJudge(session, target.engine_graph(), plan, [op.graph_op for op in built.ops])
