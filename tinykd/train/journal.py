"""What a training writes down as it goes: `metrics.jsonl` and `tensorboard/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinykd.artifact import write_bytes

METRICS = "metrics.jsonl"


class Journal:
    """`metrics.jsonl` and, when tensorboard is installed, `tensorboard/`: one record for each epoch.

    Without a folder (in all processes but the first) nothing is written.
    """

    def __init__(self, folder: Path | None, epochs_done: int) -> None:
        self.folder = folder
        self.epochs_done = epochs_done
        self.board: Any = None

    def __enter__(self) -> Journal:
        if self.folder is None:
            return self
        path = self.folder / METRICS
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        # What was written after the checkpoint will be written again.
        write_bytes(path, b"".join(lines[: self.epochs_done]))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return self
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.epochs_done + 1)
        return self

    def write(self, record: dict[str, Any]) -> None:
        """Add the record of one epoch."""
        if self.folder is None:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in record.items():
                if name not in ("epoch", "step") and value is not None:
                    self.board.add_scalar(name, value, record["epoch"])

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()
