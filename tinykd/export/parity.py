"""Compares the NumPy reference with the other links of the parity chain, activation by activation.

`compare` asks the judge, TFLite Micro; `compare_judge` asks anybody, and says which values may differ and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tinykd.errors import InternalError
from tinykd.export import explain, reference
from tinykd.export.oracles import Judge, TflmJudge, Values
from tinykd.ir import Graph, Op, Tensor, op_label

ORACLE_NAME = "tflite-micro"
CHUNK_SAMPLES = 16
EQUAL, EXPLAINED, DIFFERS = "equal", "explained", "differs"


@dataclass(frozen=True)
class Mismatch:
    """The first element that differs: where it is, both values, and how ours came about.

    Attributes:
        op, kind, source, tensor: the op and the output that it wrote.
        sample, index: which input, and which element of the output (without the batch axis).
        reference, oracle: our value and the other one's.
        place: "activation", or "output of the file" where only the file with its memory plan differs.
        arithmetic: (quantity, value) of each step that led to our value.
    """

    op: int
    kind: str
    source: str
    tensor: str
    sample: int
    index: tuple[int, ...]
    reference: float
    oracle: float
    place: str = "activation"
    arithmetic: tuple[tuple[str, str], ...] = ()

    def describe(self, oracle: str = ORACLE_NAME) -> str:
        """Return one sentence for people."""
        return (
            f"op {self.op} ({self.kind}, {self.source}), sample {self.sample}, element {list(self.index)}: "
            f"reference {self.reference:g}, {oracle} {self.oracle:g}"
            + (f" ({self.place})" if self.place != "activation" else "")
        )


@dataclass(frozen=True)
class Parity:
    """What was compared with one other computation, and what differed.

    Attributes:
        samples, ops_checked, values_checked: how much was compared.
        mismatches: values that differ by more than they may.
        first_mismatch: the first of them in the order of samples and ops.
        oracle, version: whose values they were.
        exact: whether whole inferences were compared (else each op on the oracle's own inputs).
        explained: values that differ as they are known to.
        max_steps: op kind -> the largest difference that was seen, for kinds that differ.
        reasons: op kind -> why it may differ, for those that did.
    """

    samples: int
    ops_checked: int
    values_checked: int
    mismatches: int
    first_mismatch: Mismatch | None
    oracle: str = ORACLE_NAME
    version: str = ""
    exact: bool = True
    explained: int = 0
    max_steps: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`EQUAL`, `EXPLAINED` (differs only where it is known to) or `DIFFERS`."""
        if self.mismatches:
            return DIFFERS
        return EXPLAINED if self.explained else EQUAL

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this comparison."""
        return {**asdict(self), "status": self.status}


def compare(graph: Graph, model: bytes, x: np.ndarray | Values, *, stream: bool = False) -> Parity:
    """Compare every activation of an int8 graph with TFLite Micro's, and the outputs of the very file.

    Args:
        graph: the graph that `model` holds.
        model: the `.tflite`; it computes its activations without its memory plan (kept tensors need places of their
            own), and its outputs a second time as it is.
        x: inputs (N, ...), or input name -> inputs (N, ...).
        stream: the inputs are consecutive inferences of a model with variables.

    Raises:
        ToolchainError: the oracle is not installed.
    """
    return compare_judge(graph, TflmJudge(graph, model), x, stream=stream)


def compare_judge(graph: Graph, judge: Judge, x: np.ndarray | Values, *, stream: bool = False) -> Parity:
    """Compare the reference with a judge; see `Judge` for what is compared, and `compare` for the arguments."""
    inputs = x if isinstance(x, dict) else {graph.inputs[0]: x}
    count = len(next(iter(inputs.values())))
    tally = _Tally(graph, judge, stream)
    # State goes on from input to input, which only one long batch can follow.
    size = count if stream else CHUNK_SAMPLES
    for start in range(0, count, max(size, 1)):
        part = {name: value[start : start + size] for name, value in inputs.items()}
        theirs, finals = _judged(graph, judge, part, stream)
        ours = reference.run(graph, part, keep_all=True, stream=stream)
        tally.add(start, ours, theirs, finals)
    return tally.parity(count)


def sample_inputs(graph: Graph, count: int, seed: int) -> Values:
    """Return inputs (count, ...) by name: the lowest and highest values, a checkerboard, then seeded uniform noise.

    Float inputs are spread over the range that the op that quantises them can represent.
    """
    rng = np.random.default_rng(seed)
    return {name: _one_input(graph, name, count, rng) for name in graph.inputs}


def test_inputs(graph: Graph, count: int, seed: int) -> np.ndarray:
    """Return `sample_inputs` of a graph with one input."""
    return sample_inputs(graph, count, seed)[graph.inputs[0]]


def _one_input(graph: Graph, name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    tensor = graph.tensor(name)
    shape = _sample_shape(tensor)
    if tensor.dtype == "float32":
        low, high = _float_range(graph, name)
        noise = rng.uniform(low, high, (count, *shape)).astype(np.float32)
    else:
        limits = np.iinfo(tensor.dtype)
        low, high = limits.min, limits.max
        noise = rng.integers(low, high + 1, (count, *shape)).astype(tensor.dtype)
    flat = noise.reshape(count, -1)
    extremes = [
        np.full(flat.shape[1], low),
        np.full(flat.shape[1], high),
        np.where(np.arange(flat.shape[1]) % 2, high, low),
    ]
    for row, extreme in zip(flat, extremes, strict=False):
        row[:] = extreme
    return noise


def _float_range(graph: Graph, name: str) -> tuple[float, float]:
    for op in graph.ops:
        if op.kind == "quantize" and op.inputs[0] == name:
            quant = graph.tensor(op.outputs[0]).quant
            if quant is not None:
                # A little beyond both ends, where quantising saturates.
                return (quant.scale * (-132 - quant.zero_point), quant.scale * (131 - quant.zero_point))
    return -1.0, 1.0


def _sample_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of one sample of a tensor, as the reference gives it: without a batch axis of 1."""
    return tensor.shape[1:] if tensor.shape[:1] == (1,) else tensor.shape


def _judged(graph: Graph, judge: Judge, part: Values, stream: bool) -> tuple[Values, Values]:
    """Return the judge's activations and second outputs for a batch of inputs, stacked."""
    runs: list[Values] = []
    finals: list[Values] = []
    for sample in range(len(next(iter(part.values())))):
        if graph.variables() and (not stream or not sample):
            judge.reset()
        one = {name: value[sample].reshape(graph.tensor(name).shape) for name, value in part.items()}
        runs.append(judge.run(one))
        finals.append(judge.final(one))
    return _stacked(graph, runs), _stacked(graph, finals)


def _stacked(graph: Graph, runs: list[Values]) -> Values:
    shapes = {name: _sample_shape(graph.tensor(name)) for name in runs[0]}
    return {name: np.stack([run[name].reshape(shape) for run in runs]) for name, shape in shapes.items()}


class _Tally:
    """Counts differences of one comparison, and keeps the first."""

    def __init__(self, graph: Graph, judge: Judge, stream: bool) -> None:
        self.graph, self.judge, self.stream = graph, judge, stream
        self.values = self.mismatches = self.explained = 0
        self.ops: set[int] = set()
        self.first: tuple[tuple[int, int], Mismatch] | None = None
        self.max_steps: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def add(self, start: int, ours: Values, theirs: Values, finals: Values) -> None:
        """Compare one batch, whose first input has the number `start`."""
        for number, op in enumerate(self.graph.ops):
            names = [name for name in op.outputs if name in theirs]
            if not names:
                continue
            mine, read = ours, ours
            if not self.judge.exact:
                if any(name not in theirs for name in _activations(self.graph, op)):
                    continue
                mine = _run_op(self.graph, op, theirs, self.stream)
                read = {**mine, **theirs}
            self.ops.add(number)
            for name in names:
                self._compare(start, number, op, name, mine[name], theirs[name], read, "activation")
                if name in finals:
                    self._compare(start, number, op, name, ours[name], finals[name], ours, "output of the file")

    def _compare(
        self,
        start: int,
        number: int,
        op: Op,
        name: str,
        mine: np.ndarray,
        their: np.ndarray,
        read: Values,
        place: str,
    ) -> None:
        their = their.reshape(mine.shape)
        self.values += mine.size
        if mine.dtype == their.dtype and np.array_equal(mine, their):
            return
        difference = np.abs(mine.astype(np.float64) - their.astype(np.float64))
        difference[np.isnan(difference)] = np.inf
        steps, reason = self.judge.allowed(op)
        wrong = difference > steps
        explained = int(((difference > 0) & ~wrong).sum())
        self.mismatches += int(wrong.sum())
        self.explained += explained
        if difference.any():
            self.max_steps[op.kind] = max(self.max_steps.get(op.kind, 0), float(difference.max()))
        if explained:
            self.reasons[op.kind] = reason
        if not wrong.any():
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        order = (start + at[0], number)
        if self.first is None or order < self.first[0]:
            self.first = (order, self._mismatch(number, op, name, start, at, mine, their, read, place))

    def _mismatch(
        self,
        number: int,
        op: Op,
        name: str,
        start: int,
        at: tuple[int, ...],
        mine: np.ndarray,
        their: np.ndarray,
        read: Values,
        place: str,
    ) -> Mismatch:
        sample = {key: value[at[0]] for key, value in read.items() if not self.graph.tensor(key).variable}
        if self.stream and at[0]:
            # A variable's value is told after each inference: this one began with what the last one left.
            sample |= {key: value[at[0] - 1] for key, value in read.items() if self.graph.tensor(key).variable}
        arithmetic: tuple[tuple[str, str], ...] = ()
        if op.kind in explain.EXPLAINERS:
            told = explain.explain(self.graph, op, sample, at[1:], op.outputs.index(name))
            arithmetic = tuple((step.quantity, step.text) for step in told.steps)
            if told.value != mine[at]:
                raise InternalError(
                    f"{op_label(number, op)}: the reference computed {mine[at]} and its explanation {told.value}"
                )
        value, other = mine[at].item(), their[at].item()
        return Mismatch(number, op.kind, op.source, name, start + at[0], at[1:], value, other, place, arithmetic)

    def parity(self, samples: int) -> Parity:
        """Return the result."""
        return Parity(
            samples,
            len(self.ops),
            self.values,
            self.mismatches,
            None if self.first is None else self.first[1],
            self.judge.name,
            self.judge.version,
            self.judge.exact,
            self.explained,
            self.max_steps,
            self.reasons,
        )


def _activations(graph: Graph, op: Op) -> Iterator[str]:
    """Yield the inputs of an op that are computed, not constant and not its own memory."""
    for name in dict.fromkeys(op.inputs):
        if name and not graph.tensor(name).is_constant and not graph.tensor(name).variable:
            yield name


def _run_op(graph: Graph, op: Op, values: Values, stream: bool) -> Values:
    """Return what the reference computes for one op on given inputs, and its variables after each."""
    inputs = tuple(_activations(graph, op))
    tensors = {name: graph.tensor(name) for name in (*op.inputs, *op.outputs) if name}
    single = Graph(graph.name, tensors, (op,), inputs, op.outputs)
    return reference.run(single, {name: values[name] for name in inputs}, keep_all=True, stream=stream)
