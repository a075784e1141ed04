"""Benchmark: streams inputs to a device, compares its outputs with the host's, and measures what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinykd.board import Board
from tinykd.errors import ConfigError, DeviceError
from tinykd.run.profile import cycles_dict, profile
from tinykd.run.protocol import Info
from tinykd.run.session import Session
from tinykd.run.transport.base import InstructionCounts

Int8 = npt.NDArray[np.int8]
Outputs = npt.NDArray[np.int8] | npt.NDArray[np.int32]


@dataclass(frozen=True)
class Bench:
    """What a benchmark found.

    Attributes:
        result: the JSON object of `tinykd bench`.
        outputs: int8 or int32 (samples, elements), of the device.
    """

    result: dict[str, Any]
    outputs: Outputs


@dataclass(frozen=True)
class _Cost:
    """What one profiled inference took: instructions on an emulator, then with `counts`, or cycles on a board."""

    total: int
    per_op: tuple[int, ...]
    counts: InstructionCounts | None = None


def run_bench(
    session: Session,
    board: Board,
    *,
    model_sha256: str,
    ops: Sequence[Mapping[str, Any]],
    inputs: Int8,
    reference: Outputs,
    labels: npt.NDArray[np.int64] | None = None,
    profile_samples: int = 3,
    on_sample: Callable[[int], None] = lambda done: None,
) -> Bench:
    """Run every input on the device and compare.

    Args:
        session: with the device; HELLO is sent here.
        board: the board that it is, or that is emulated.
        model_sha256: the model that must answer.
        ops: the generated sequence: mappings with `op` (0, 1, ..), `kind`, `source`, `macs` and `kernel`.
        inputs: (samples, input_bytes), at least one sample.
        reference: (samples, elements), what the host computed; the device's bytes are read as its dtype. Each sample
            stands for itself: a device whose model has memory forgets before each.
        labels: (samples,), or None when there are no right answers.
        profile_samples: for how many samples, the first ones, each op is measured.
        on_sample: called after each sample with the number done.

    Raises:
        DeviceError: the device fails, runs another model, or has other sizes than the model.
    """
    if not len(inputs) or len(inputs) != len(reference):
        raise ConfigError(f"bench: {len(inputs)} inputs and {len(reference)} reference outputs")
    started = time.perf_counter()
    identity = session.hello()
    session.require_model(model_sha256)
    info = session.info()
    _check_sizes(info, inputs, reference, len(ops), session)
    outputs = np.empty_like(reference)
    cycles: list[int] = []
    profiles: list[_Cost] = []
    for index, sample in enumerate(inputs):
        data = np.ascontiguousarray(sample).tobytes()
        profiled = index < profile_samples
        counter = session.transport.counter if profiled else None
        if counter is not None:
            counter.start()
        raw, invoked = session.infer(data, info.output_bytes, fresh=info.state_bytes > 0)
        if counter is not None:
            profiles.append(_cost(counter.stop(), len(ops)))
        elif session.transport.counter_unit == "cycles":
            cycles.append(invoked.cycles)
            if profiled:
                profiles.append(_Cost(invoked.cycles, tuple(session.profile(info.num_ops))))
        outputs[index] = np.frombuffer(raw, outputs.dtype.newbyteorder("<"))
        on_sample(index + 1)
    if cycles and not any(cycles):
        raise DeviceError(
            f"{session.transport.name}: the cycle counter of '{identity.board}' stands still",
            "tk_hal_cycles of this board's HAL must count; see firmware/include/tk_hal.h.",
        )
    result: dict[str, Any] = {
        "board": board.name,
        "transport": session.transport.name,
        "engine": identity.engine,
        "model_sha256": identity.model_sha256,
        "firmware_version": info.firmware_version,
        "samples": len(inputs),
        **_compare(outputs, reference, labels),
        **_latency(board, info, profiles, cycles, ops),
        "macs": sum(int(op["macs"]) for op in ops),
        "repeats": session.repeats,
        "device_restarts": session.restarts_seen,
        "seconds": round(time.perf_counter() - started, 3),
    }
    stack_bytes = getattr(session.transport, "stack_bytes_measured", None)
    if stack_bytes is not None:
        result["stack_bytes_measured"] = stack_bytes
    return Bench(result, outputs)


def _check_sizes(info: Info, inputs: Int8, reference: Outputs, num_ops: int, session: Session) -> None:
    found = (info.input_bytes, info.output_bytes, info.num_ops)
    wanted = (inputs.shape[1], reference.shape[1] * reference.itemsize, num_ops)
    if found != wanted:
        raise DeviceError(
            f"{session.transport.name}: the firmware has {found[0]} B of input, {found[1]} B of output and {found[2]} "
            f"ops; the model has {wanted[0]}, {wanted[1]} and {wanted[2]}",
            "Build and flash the firmware again.",
        )


def _cost(counts: InstructionCounts, num_ops: int) -> _Cost:
    if len(counts.per_op) != num_ops:
        raise DeviceError(f"the firmware has {len(counts.per_op)} op functions, the build lists {num_ops} ops")
    return _Cost(counts.total, counts.per_op, counts)


def predicted_classes(outputs: Outputs) -> npt.NDArray[np.int64]:
    """Return the class (samples,) that each output names: its largest element, or what a model's own ARG_MAX says."""
    if outputs.dtype == np.int32 and outputs.shape[1] == 1:
        return outputs[:, 0].astype(np.int64)
    return outputs.argmax(axis=1)


def _compare(outputs: Outputs, reference: Outputs, labels: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    predicted, expected = predicted_classes(outputs), predicted_classes(reference)
    differs = np.argwhere(outputs != reference)
    first = None
    if len(differs):
        sample, element = (int(value) for value in differs[0])
        device, host = int(outputs[sample, element]), int(reference[sample, element])
        first = {"sample": sample, "element": element, "device": device, "host": host}
    return {
        "top1": None if labels is None else float(np.mean(predicted == labels)),
        "top1_host": None if labels is None else float(np.mean(expected == labels)),
        "agree": float(np.mean(predicted == expected)),
        "outputs_equal": not len(differs),
        "samples_different": len(np.unique(differs[:, 0])),
        "first_mismatch": first,
    }


def _latency(
    board: Board, info: Info, profiles: list[_Cost], cycles: list[int], ops: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Instructions make an estimate, cycles a measurement; the profile shown is the one of the median inference."""
    median = sorted(profiles, key=lambda cost: cost.total)[(len(profiles) - 1) // 2] if profiles else None
    result: dict[str, Any] = {
        "clock_hz": info.clock_hz,
        "latency_kind": "measured" if cycles else "estimated",
        "latency_us": None,
        "profiled_samples": len(profiles),
        "instructions_per_inference": None,
        "instructions_min": None,
        "instructions_max": None,
        "instructions_overhead": None,
        "cycles_per_instruction": None,
        **cycles_dict(None),
        "per_op": [
            {key: op[key] for key in ("op", "kind", "source", "macs", "kernel")} | {"instructions": None} for op in ops
        ],
        "by_function": None,
    }
    if cycles:
        result.update(_measured(median, cycles, result["per_op"]))
    elif median is not None:
        result.update(_estimated(board, median, [cost.total for cost in profiles], result["per_op"]))
    typical = result["estimated_cycles"] if not cycles else result["cycles_per_inference"]
    if typical is not None:
        result["latency_us"] = round(typical / info.clock_hz * 1e6, 3)
    return result


def _measured(median: _Cost | None, cycles: list[int], per_op: list[dict[str, Any]]) -> dict[str, Any]:
    for index, row in enumerate(per_op):
        row["cycles"] = median.per_op[index] if median else None
    return {
        "cycles_per_inference": statistics.median(cycles),
        "cycles_min": min(cycles),
        "cycles_max": max(cycles),
    }


def _estimated(board: Board, median: _Cost, totals: list[int], per_op: list[dict[str, Any]]) -> dict[str, Any]:
    found = None if median.counts is None else profile(median.counts, board.core)
    for index, row in enumerate(per_op):
        row["instructions"] = median.per_op[index]
        row.update(cycles_dict(found.per_op[index] if found else None))
    return {
        "instructions_per_inference": median.total,
        "instructions_min": min(totals),
        "instructions_max": max(totals),
        "instructions_overhead": median.total - sum(median.per_op),
        "cycles_per_instruction": round(found.total.middle / median.total, 4) if found else None,
        **cycles_dict(found.total if found else None),
        "by_function": [cost.to_dict() for cost in found.by_function] if found else None,
    }
