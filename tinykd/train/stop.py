"""What a stopped training raises. Importing this module does not import torch."""

from __future__ import annotations

import signal
from pathlib import Path


class StopRequested(BaseException):
    """SIGINT or SIGTERM arrived; the checkpoint is written. Not an Exception, so that no handler swallows it.

    `signal_number` is the signal.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; continues from {checkpoint}")
        self.signal_number = signal_number
