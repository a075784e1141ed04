"""How training shows itself: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class Progress:
    """Shows nothing; the base of the others. Calls come in the order start, (step..., epoch)..., finish."""

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """A training of `epochs` begins, at `first_step` when it was resumed."""

    def step(self, step: int, loss: float | None) -> None:
        """The 0-based `step` is done; `loss` is its loss, or None when it was not looked at."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done; `record` is its line of metrics.jsonl."""

    def finish(self, summary: str) -> None:
        """The training is done."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """Give the terminal back; also called after an error."""


class PlainProgress(Progress):
    """One line for each epoch, at most one in two seconds, to a text stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.title, self.epochs, self.shown_at = "", 0, 0.0

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Print what begins."""
        self.title, self.epochs, self.shown_at = title, epochs, 0.0
        resumed = f", continued at step {first_step}" if first_step else ""
        print(f"{title}: {epochs} epochs of {steps_per_epoch} steps{resumed}", file=self.stream, flush=True)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch unless one was printed a moment ago."""
        now = time.monotonic()
        if now - self.shown_at < 2 and record["epoch"] != self.epochs:
            return
        self.shown_at = now
        print(f"  epoch {record['epoch']}/{self.epochs}  {_figures(record)}", file=self.stream, flush=True)

    def finish(self, summary: str) -> None:
        """Print the summary."""
        print(summary, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print the text."""
        print(text, file=self.stream, flush=True)


class RichProgress(Progress):
    """A live bar with speed, remaining time and the last epoch's figures."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True)
        self.columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.make_bar = Bar
        self.bar: Any = None
        self.task: Any = None

    def start(self, title: str, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Open the bar."""
        self.close()
        self.bar = self.make_bar(*self.columns, console=self.console)
        self.bar.start()
        self.task = self.bar.add_task(title, total=epochs * steps_per_epoch, completed=first_step, figures="")

    def step(self, step: int, loss: float | None) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=step + 1)

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the epoch's figures beside the bar."""
        self.bar.update(self.task, figures=f"epoch {record['epoch']}  {_figures(record)}")

    def finish(self, summary: str) -> None:
        """Close the bar and print the summary."""
        self.close()
        self.console.print(summary, highlight=False)

    def note(self, text: str) -> None:
        """Print above the bar."""
        self.console.print(text, highlight=False)

    def close(self) -> None:
        """Close the bar if one is open."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _figures(record: dict[str, Any]) -> str:
    val = record.get("top1_val")
    shown = f"loss {record['loss']:.3f}  train {record['top1_train']:.1%}"
    return f"{shown}  val {val:.1%}" if val is not None else shown


def make_progress(stream: TextIO | None = None) -> Progress:
    """Return a bar when standard error is a terminal and rich is installed, plain lines otherwise."""
    if stream is None and sys.stderr.isatty():
        try:
            return RichProgress()
        except ImportError:
            return PlainProgress()
    return PlainProgress(stream)
