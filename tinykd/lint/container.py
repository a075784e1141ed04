"""Rules about the file around the graph: what stock runtimes need of it, and bytes that it carries for nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tinykd.formats.tflite.ops import codec_of
from tinykd.lint.base import ERROR, NOTE, WARNING, Finding, Model, Rule

SPARE_BYTES = 256
"""Unused bytes below it are not worth a word: every converter leaves a few."""
SHARED_BYTES = 16
_OPTIMIZE = "tinykd optimize MODEL.tflite -o OUT.tflite"
_PER_CHANNEL_DENSE = 12


def buffers_outside(model: Model) -> Iterator[Finding]:
    """Find constants that are stored behind the flatbuffer."""
    if model.file.outside:
        total = sum(model.file.outside.values())
        first = next(iter(model.file.outside))
        yield Finding(
            "buffers-outside",
            ERROR,
            None,
            f"{len(model.file.outside)} constants ({total:,} B, '{first}' among them) lie behind the flatbuffer; stock "
            "TFLite Micro reads them as empty and computes nonsense without a word",
            f"{_OPTIMIZE} writes them inside.",
        )


def op_version(model: Model) -> Iterator[Finding]:
    """Find ops whose version is newer than what they use."""
    newer: dict[str, tuple[int, int, list[int]]] = {}
    for index, op in enumerate(model.graph.ops):
        name, version = model.file.versions.get(index, ("", 0))
        lowest = codec_of(model.graph, op).version_of(model.graph, op)
        if version > lowest and len(model.file.versions) == len(model.graph.ops):
            newer.setdefault(name, (version, lowest, []))[2].append(index)
    for name, (version, lowest, ops) in newer.items():
        yield Finding(
            "op-version",
            NOTE,
            ops[0],
            f"{name} has version {version} although version {lowest} says all that it needs ({len(ops)} ops): older "
            "runtimes refuse the file",
            f"{_OPTIMIZE} writes the lowest version.",
        )


def per_channel_dense(model: Model) -> Iterator[Finding]:
    """Find dense layers with one weight scale per output channel."""
    graph = model.graph
    ops = []
    for index, op in enumerate(graph.ops):
        quant = graph.tensor(op.inputs[1]).quant if op.kind == "fully_connected" else None
        if quant is not None and len(quant.scales) > 1:
            ops.append(index)
    if ops:
        yield Finding(
            "per-channel-dense",
            NOTE,
            ops[0],
            f"{len(ops)} dense layers have a scale per output channel, which needs FULLY_CONNECTED version "
            f"{_PER_CHANNEL_DENSE}: TFLite Micro before 2024 refuses the model",
            "Keep it where the runtime is new; else quantise dense layers per tensor.",
        )


def unused_data(model: Model) -> Iterator[Finding]:
    """Find bytes that no op reads."""
    unused = sum(model.file.unused.values())
    spare = sum(model.file.spare_buffers.values())
    metadata = {name: size for name, size in model.file.metadata.items() if size > SPARE_BYTES}
    parts = []
    if unused > SPARE_BYTES:
        parts.append(f"{unused:,} B in constants that no op reads ({', '.join(list(model.file.unused)[:3])})")
    if spare > SPARE_BYTES:
        parts.append(f"{spare:,} B in buffers that nothing names")
    plan = "OfflineMemoryAllocation"
    parts += [f"{size:,} B of metadata '{name}'" for name, size in metadata.items() if name != plan]
    total = unused + spare + sum(size for name, size in metadata.items() if name != plan)
    if parts:
        yield Finding(
            "unused-data",
            NOTE,
            None,
            f"the file carries {'; '.join(parts)}",
            f"{_OPTIMIZE} writes only what is needed.",
            {"constant_bytes": total},
        )


def duplicate_constants(model: Model) -> Iterator[Finding]:
    """Find constants that are stored more than once."""
    seen: dict[bytes, set[int]] = {}
    twice = 0
    names = []
    for tensor in model.graph.tensors.values():
        buffer = model.file.buffer_of.get(tensor.name)
        if tensor.data is None or tensor.num_bytes < SHARED_BYTES or buffer is None:
            continue
        stored = seen.setdefault(tensor.data.tobytes(), set())
        if stored and buffer not in stored:
            twice += tensor.num_bytes
            names.append(tensor.name)
        stored.add(buffer)
    if twice:
        yield Finding(
            "duplicate-constants",
            NOTE,
            None,
            f"{len(names)} constants hold the bytes of another one ('{names[0]}' among them)",
            f"{_OPTIMIZE} shares them.",
            {"constant_bytes": twice},
        )


def offline_plan(model: Model) -> Iterator[Finding]:
    """Find files without a memory plan for which TFLite Micro's own plan is larger than it need be."""
    if model.file.has_offline_plan:
        return
    heads = model.prices.tflm_heads(model.graph)
    if heads is None or heads[0] <= heads[1]:
        return
    yield Finding(
        "offline-plan",
        WARNING,
        None,
        f"TFLite Micro's own planner needs {heads[0]:,} B for activations; {heads[1]:,} B are enough with a "
        "plan in the file",
        f"{_OPTIMIZE} writes the plan; unmodified TFLite Micro follows it.",
        {"arena_bytes": heads[0] - heads[1]},
    )


RULES = (
    Rule(
        "buffers-outside",
        "Constants behind the flatbuffer",
        "ai-edge-quantizer stores large constants after the flatbuffer. LiteRT reads them there, TFLite Micro does "
        "not.",
        buffers_outside,
        ERROR,
    ),
    Rule(
        "offline-plan",
        "No memory plan where it would pay",
        "TFLite Micro plans greedily at start-up. A plan in the file's metadata (OfflineMemoryAllocation) replaces "
        "that. The price is measured with the tflite-micro wheel; without it the rule is silent.",
        offline_plan,
        WARNING,
    ),
    Rule(
        "op-version",
        "Op version newer than needed",
        "A runtime refuses versions that it does not know, even where the op uses nothing new.",
        op_version,
        NOTE,
    ),
    Rule(
        "per-channel-dense",
        "Dense layers with a scale per channel",
        "Convolutions per channel run everywhere; dense layers per channel only on new runtimes.",
        per_channel_dense,
        NOTE,
    ),
    Rule(
        "unused-data",
        "Bytes that no op reads",
        "Unread constants, orphaned buffers and converter metadata take flash. Below 256 B nothing is said.",
        unused_data,
        NOTE,
    ),
    Rule(
        "duplicate-constants",
        "The same constant twice",
        "Two tensors can share one buffer of the file; some converters write it again for each.",
        duplicate_constants,
        NOTE,
    ),
)
