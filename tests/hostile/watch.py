"""Reads broken files in a child process under limits of time and memory, and says how each one ended."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hostile.mutate import Base, mutate
from tinykd.errors import TinykdError

SECONDS = 5.0
"""For one file."""
IMPORT_SECONDS = 60.0
MEMORY_BYTES = 1 << 30
"""Beyond what the interpreter and its libraries take before the first file."""
GOOD = ("graph", "InvalidModelError", "UnsupportedModelError", "ConfigError")
"""How a broken file may end: it still reads, or an error of ours says why not."""


@dataclass(frozen=True)
class Ending:
    """How one file ended.

    Attributes:
        base: the whole file's name.
        mutation: what was done to it.
        seed: which gives the broken file again: `mutate(base, seed)`.
        outcome: one of GOOD, or "hang", "crash", "out of memory", or the name of another exception.
        detail: the error's text.
        seconds: how long it took.
    """

    base: str
    mutation: str
    seed: int
    outcome: str
    detail: str
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether it ended as it should."""
        return self.outcome in GOOD


class _TooSlowError(BaseException):
    """Not an Exception: no handler of the reader may take it for a broken file."""


def endings(
    read: Callable[[bytes], object],
    bases: Sequence[Base],
    seeds: range,
    *,
    prepare: Callable[[], object] | None = None,
    seconds: float = SECONDS,
) -> Iterator[Ending | int]:
    """Yield how each mutation of the bases ended (in turns), and at the end the child's peak memory in bytes.

    Args:
        read: an importable function that reads the bytes of a file and raises TinykdError or returns.
        bases: whole files; mutation `seed` breaks `bases[seed % len(bases)]`.
        seeds: of the mutations.
        prepare: called first in the child, without limits: for imports, which are no part of what a file costs.
        seconds: allowed for one file.
    """
    context = multiprocessing.get_context("spawn")
    start, peak = seeds.start, 0
    while start < seeds.stop:
        pipe, theirs = context.Pipe(duplex=False)
        work = (theirs, read, list(bases), range(start, seeds.stop), prepare, seconds)
        child = context.Process(target=_serve, args=work, daemon=True)
        child.start()
        theirs.close()
        outcome = "crash"
        try:
            while start < seeds.stop:
                # Until its first answer the child imports; later a silence means that no signal reaches it.
                if not pipe.poll(IMPORT_SECONDS + 4 * seconds):
                    outcome = "hang"
                    child.kill()
                    break
                ending = pipe.recv()
                yield ending
                start = ending.seed + 1
            else:
                peak = max(peak, pipe.recv())
        except EOFError:
            pass
        child.join()
        if start < seeds.stop:
            base = bases[start % len(bases)]
            yield Ending(base.name, mutate(base, start)[0], start, outcome, f"exit code {child.exitcode}", seconds)
            start += 1
    yield peak


def _serve(
    pipe: Connection,
    read: Callable[[bytes], object],
    bases: list[Base],
    seeds: range,
    prepare: Callable[[], object] | None,
    seconds: float,
) -> None:
    signal.signal(signal.SIGALRM, _stop)
    if prepare is not None:
        prepare()
    before = _address_space_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_BYTES, before + MEMORY_BYTES))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = _peak_bytes()
    for seed in seeds:
        base = bases[seed % len(bases)]
        kind, data = mutate(base, seed)
        pipe.send(_ending(read, base, data, kind, seed, seconds))
    pipe.send(_peak_bytes() - start)
    pipe.close()


def _ending(read: Callable[[bytes], object], base: Base, data: bytes, kind: str, seed: int, seconds: float) -> Ending:
    started, outcome, detail = time.perf_counter(), "graph", ""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        read(data)
    except _TooSlowError:
        outcome = "hang"
    except TinykdError as error:
        outcome, detail = type(error).__name__, str(error)
    except MemoryError as error:
        outcome, detail = "out of memory", str(error)
    except Exception as error:  # whatever else escapes is what the test is after
        outcome, detail = type(error).__name__, str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Ending(base.name, kind, seed, outcome, detail, time.perf_counter() - started)


def _stop(signum: int, frame: object) -> None:
    raise _TooSlowError


def _address_space_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _peak_bytes() -> int:
    # Not getrusage's: that one survives exec, and a new process begins with the peak of the one that made it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
