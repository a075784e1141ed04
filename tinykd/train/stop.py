"""What a stopped training raises. Importing this module does not import torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class StopRequested(BaseException):
    """SIGINT or SIGTERM arrived; the checkpoint is written. Not an Exception, so that no handler swallows it.

    `signal_number` is the signal.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; continues from {checkpoint}")
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into an entry of the list, so that the step under way is finished and saved.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield received
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)
