"""TFLite Micro in a process of its own: a model that makes it abort ends that process, and gets a name."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from fuzzing.record import Values, graph_from_dict, graph_to_dict
from tinykd.ir import Graph, Op

SECONDS = 30.0
"""For one inference of a small graph; beyond it TFLite Micro hangs."""


class JudgeDiedError(Exception):
    """TFLite Micro aborted, crashed or hung on a model."""


class IsolatedTflm:
    """A judge for `parity.compare_judge` (its `TflmJudge`, reached through a pipe)."""

    name, exact, options = "tflite-micro", True, ""

    def __init__(self) -> None:
        self.version = ""
        self._process: Any = None
        self._pipe: Any = None

    def load(self, graph: Graph, model: bytes) -> None:
        """Take another model.

        Raises:
            JudgeDiedError: TFLite Micro ended its process.
            Exception: what TflmJudge raised.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._ask("load", graph_to_dict(graph), model)

    def run(self, inputs: Values) -> Values:
        """Return every activation of one inference."""
        return self._ask("run", inputs)  # type: ignore[no-any-return]

    def final(self, inputs: Values) -> Values:
        """Return the outputs of the file with the runtime's own memory plan."""
        return self._ask("final", inputs)  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Put variables back to where they start."""
        self._ask("reset")

    def allowed(self, op: Op) -> tuple[int, str]:
        """Return (0, ""): nothing may differ."""
        return 0, ""

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _ask(self, question: str, *arguments: Any) -> Any:
        code = None
        try:
            self._pipe.send((question, arguments))
            if self._pipe.poll(SECONDS):
                kind, answer = self._pipe.recv()
                if kind == "raised":
                    raise answer
                return answer
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
        self.close()
        how = f"hangs: no answer in {SECONDS:g} s" if code is None else f"ended its process (exit status {code})"
        raise JudgeDiedError(f"TFLite Micro {how} at '{question}'")


def _serve(pipe: Connection) -> None:
    """Answer questions until the other end closes."""
    from tinykd.export.oracles import TflmJudge

    judge: Any = None
    while True:
        try:
            question, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if question == "load":
                raw, model = arguments
                judge = TflmJudge(graph_from_dict(raw), model)
                pipe.send(("done", None))
            else:
                answer = getattr(judge, question)(*arguments)
                pipe.send(("done", dict(answer) if isinstance(answer, Mapping) else answer))
        except Exception as error:
            pipe.send(("raised", RuntimeError(f"{type(error).__name__}: {error}")))
