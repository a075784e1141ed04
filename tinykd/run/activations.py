"""Reads every activation of a device: runs its ops one by one and looks into the arena after each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinykd.errors import UnsupportedModelError
from tinykd.ir import DTYPES, Graph, MemoryPlan, Op
from tinykd.run.session import Session

Values = dict[str, np.ndarray]


class DeviceJudge:
    """A device as a link of the parity chain: its activations are compared whole, from the input to the output.

    Args:
        session: an open session with a device that runs `graph`.
        graph: what the firmware was generated from; one input and one output.
        plan: where its activations lie.
        steps: which of the graph's ops each step of the firmware computes; ops without a step find their outputs in
            place.

    Raises:
        UnsupportedModelError: the firmware has another number of steps.
    """

    exact = True

    def __init__(self, session: Session, graph: Graph, plan: MemoryPlan, steps: Sequence[int]) -> None:
        identity = session.identity or session.hello()
        self.name = f"firmware ({identity.board}, {session.transport.name})"
        self.version = session.info().firmware_version
        if session.info().num_ops != len(steps):
            raise UnsupportedModelError(f"the firmware runs {session.info().num_ops} ops instead of {len(steps)}")
        self._session, self._graph, self._plan = session, graph, plan
        self._step_of = {op: step for step, op in enumerate(steps)}
        self._placed = {item.tensor for item in plan.placements}

    def reset(self) -> None:
        """Restart the device, which puts its variables back to where they start."""
        self._session.reset()

    def run(self, inputs: Values) -> Values:
        """Return every activation, each read right after the op that wrote it."""
        values = dict(inputs)
        self._session.load(inputs[self._graph.inputs[0]].tobytes())
        for index, op in enumerate(self._graph.ops):
            if index in self._step_of:
                self._session.invoke(self._step_of[index], 1)
            values.update({name: self._read(name) for name in op.outputs if name in self._placed})
        return values

    def final(self, inputs: Values) -> Values:
        """Return the output of one whole inference, as RESULT gives it.

        With variables it is that of the inference that `run` made op by op: another one would begin where it ended.
        """
        name = self._graph.outputs[0]
        tensor = self._graph.tensor(name)
        if self._graph.variables():
            data = self._session.result(tensor.num_bytes)
        else:
            data, _ = self._session.infer(inputs[self._graph.inputs[0]].tobytes(), tensor.num_bytes)
        return {name: np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)}

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return (0, ""): nothing may differ."""
        return 0, ""

    def _read(self, name: str) -> np.ndarray:
        tensor = self._graph.tensor(name)
        data = self._session.activation(self._plan.offset(name), tensor.num_bytes)
        return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)
