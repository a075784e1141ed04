"""A bad line on purpose: damages what passes through any other transport."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tinykd.run.transport.base import Transport


@dataclass(frozen=True)
class Faults:
    """What goes wrong, in both directions. Probabilities are for each byte unless another unit is named.

    Attributes:
        drop: the byte is lost.
        flip: one of its bits is inverted.
        duplicate: it comes twice.
        split: bytes arrive in pieces of random length.
        delay: for each read: what is there arrives only after the next time-out.
        restart: for each write: the device is reset after it (the inner transport needs `restart`).
        stuck_after_bytes: the device falls silent after having sent so many bytes; None: never.
    """

    drop: float = 0.0
    flip: float = 0.0
    duplicate: float = 0.0
    split: bool = False
    delay: float = 0.0
    restart: float = 0.0
    stuck_after_bytes: int | None = None


class FaultyTransport:
    """Any transport behind a bad line. The same seed gives the same faults for the same traffic."""

    def __init__(self, inner: Transport, faults: Faults, seed: int = 0) -> None:
        self.inner: Any = inner
        self.faults = faults
        self.name = f"{inner.name} with faults"
        self.counter_unit = inner.counter_unit
        self.counter = inner.counter
        self._random = random.Random(seed)
        self._late = b""
        self._sent_bytes = 0

    def write(self, data: bytes) -> None:
        """Send what is left of the bytes."""
        data = self._damage(data)
        while data:
            count = self._random.randint(1, len(data)) if self.faults.split else len(data)
            self.inner.write(data[:count])
            data = data[count:]
        if self._random.random() < self.faults.restart:
            self.inner.restart()

    def read(self, timeout_s: float) -> bytes:
        """Return what is left of the bytes that came, with those that were late."""
        data, self._late = self._late, b""
        fresh = self.inner.read(0.0 if data else timeout_s)
        limit = self.faults.stuck_after_bytes
        if limit is not None:
            fresh = fresh[: max(0, limit - self._sent_bytes)]
        self._sent_bytes += len(fresh)
        fresh = self._damage(fresh)
        if fresh and self._random.random() < self.faults.delay:
            self._late = fresh
            return data
        if fresh and self.faults.split:
            count = self._random.randint(1, len(fresh))
            self._late = fresh[count:]
            fresh = fresh[:count]
        return data + fresh

    def close(self) -> None:
        """Close the inner transport."""
        self.inner.close()

    def _damage(self, data: bytes) -> bytes:
        faults, chance = self.faults, self._random.random
        if not (faults.drop or faults.flip or faults.duplicate):
            return data
        out = bytearray()
        for byte in data:
            if chance() < faults.drop:
                continue
            if chance() < faults.flip:
                byte ^= 1 << self._random.randrange(8)
            out.append(byte)
            if chance() < faults.duplicate:
                out.append(byte)
        return bytes(out)
