"""The worst-case stack, proven from the compiler's call graphs (gcc's `-fcallgraph-info=su`).

The bound is the deepest path from the reset handler, plus one exception: the frame that the core pushes when it enters
the fault handler, and the handler's own. Nothing here is measured, so nothing depends on what a test happened to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinykd.errors import InternalError, ToolchainError

ENTRY = "tk_reset_handler"
FAULT = "tk_fault_handler"

# Extended frame with floating-point registers, 26 words, and up to 4 bytes to align it (ARM DDI 0403E, section B1.5.7).
EXCEPTION_FRAME_BYTES = 26 * 4 + 4

# Functions of the C library come without call graphs. Those below call nothing else and save at most nine registers
# (36 B) in newlib for ARMv7-M; the allowance leaves room for other builds of it.
LIBRARY_ALLOWANCE_BYTES = 64
LIBRARY_LEAVES = frozenset(
    {"memcpy", "memset", "memmove", "memcmp", "strlen", "__aeabi_memcpy", "__aeabi_memset", "__aeabi_uldivmod"}
    # ARMv6-M only: at most seven registers (28 B) in libgcc, nothing called but handlers of a division by zero.
    | {"__aeabi_idiv", "__aeabi_idivmod", "__aeabi_uidiv", "__aeabi_uidivmod", "__aeabi_lmul", "__clzsi2"}
)

_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "((?:[^"\\]|\\.)*)"')
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_FRAME = re.compile(r"(\d+) bytes \(([a-z,]+)\)")


@dataclass
class CallGraph:
    """Functions by title, with the bytes of their frames and the titles that they call."""

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class StackBound:
    """The worst case and the path that reaches it, outermost function first with each function's frame in bytes."""

    total_bytes: int
    path: tuple[tuple[str, int], ...]


def read_call_graphs(paths: Iterable[Path]) -> CallGraph:
    """Read gcc's `.ci` files and join them into one graph.

    Raises:
        ToolchainError: a file is missing or not in the expected form, or a frame's size is unknown at compile time.
    """
    graph = CallGraph()
    for path in paths:
        try:
            text = path.read_text()
        except OSError as error:
            raise ToolchainError(
                f"the compiler left no call graph {path.name}: {error.strerror or error}",
                "tinykd needs gcc 10 or newer (-fcallgraph-info).",
            ) from error
        for line in text.splitlines():
            if match := _NODE.match(line):
                frame = _FRAME.search(match[2])
                if frame is None:
                    continue
                if "dynamic" in frame[2] and "bounded" not in frame[2]:
                    raise ToolchainError(f"{match[1]} has a stack frame of unknown size ({frame[2]})")
                graph.frames[match[1]] = int(frame[1])
                graph.calls.setdefault(match[1], set())
            elif match := _EDGE.match(line):
                graph.calls.setdefault(match[1], set()).add(match[2])
    return graph


def bound(graph: CallGraph) -> StackBound:
    """Return the worst case of the firmware.

    Raises:
        InternalError: recursion, a call through a pointer, or a library function of unknown depth.
    """
    main = deepest(graph, ENTRY)
    fault = deepest(graph, FAULT)
    exception = ("(exception frame)", EXCEPTION_FRAME_BYTES)
    path = (*main.path, exception, *fault.path)
    return StackBound(main.total_bytes + EXCEPTION_FRAME_BYTES + fault.total_bytes, path)


def deepest(graph: CallGraph, entry: str) -> StackBound:
    """Return the deepest path from a function; raises InternalError as `bound`, and where `entry` is unknown."""
    if entry not in graph.frames:
        raise InternalError(f"the call graphs do not contain {entry}")
    done: dict[str, StackBound] = {}
    _visit(graph, entry, (), done)
    return done[entry]


def _visit(graph: CallGraph, name: str, callers: tuple[str, ...], done: dict[str, StackBound]) -> None:
    if name in done:
        return
    short = name.rpartition(":")[2]
    if name in callers:
        raise InternalError(f"stack: recursion through {' -> '.join((*callers, name))}: the firmware must not recurse")
    if name not in graph.frames:
        if name == "__indirect_call":
            raise InternalError(f"stack: {callers[-1]} calls through a pointer; no bound can be proven")
        if short not in LIBRARY_LEAVES:
            raise InternalError(
                f"stack: nothing is known of '{short}', which {callers[-1]} calls",
                "Add it to LIBRARY_LEAVES in tinykd/build/stack.py after looking at its frame.",
            )
        done[name] = StackBound(LIBRARY_ALLOWANCE_BYTES, ((short, LIBRARY_ALLOWANCE_BYTES),))
        return
    worst = StackBound(0, ())
    for callee in sorted(graph.calls.get(name, ())):
        _visit(graph, callee, (*callers, name), done)
        if done[callee].total_bytes > worst.total_bytes:
            worst = done[callee]
    frame = graph.frames[name]
    done[name] = StackBound(frame + worst.total_bytes, ((short, frame), *worst.path))


def frames_by_function(graph: CallGraph) -> Mapping[str, int]:
    """Return the frame of every function by its short name; the larger one where two files share a name."""
    frames: dict[str, int] = {}
    for name, size in graph.frames.items():
        short = name.rpartition(":")[2]
        frames[short] = max(size, frames.get(short, 0))
    return frames
