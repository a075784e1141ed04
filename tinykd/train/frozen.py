"""A teacher's forward pass without gradient, at the speed that the CPU allows.

In eager mode every convolution converts its operands to and from the library's own layout, and batch norm is a pass of
its own. A frozen graph keeps that layout from end to end, with batch norm and activations inside the convolutions:
in mixed precision the weights are converted once. Results differ from eager mode by rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tinykd.models.taps import record
from tinykd.models.teacher import Teacher

_WARM_UP = 3
"""Calls after which the runtime has made its choices; before, rounding could differ, and a resumed run would."""

_TOLERANCE = {False: 1e-3, True: 0.05}
"""Largest difference from eager mode, relative to the largest value, before eager mode is used instead: in float32, and
in mixed precision, where folding batch norm rounds other numbers to 8 bits."""


class FrozenTeacher:
    """Runs a teacher and records its taps; on the CPU through a frozen graph where the model allows it.

    Args:
        teacher: in eval mode, its parameters without gradient.
        taps: resolved taps to return.
    """

    def __init__(self, teacher: Teacher, taps: Sequence[str]) -> None:
        self.teacher, self.taps = teacher, tuple(taps)
        self._graph: torch.jit.ScriptModule | None = None
        self._shape: torch.Size | None = None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return logits (N, K) and tap -> feature for images (N, C, H, W)."""
        if self._shape != images.shape:
            self._shape = images.shape
            self._graph = _freeze(self.teacher, self.taps, images) if images.device.type == "cpu" else None
        outputs = _run(self.teacher, self.taps, images) if self._graph is None else self._graph(images)
        return outputs[0], dict(zip(self.taps, outputs[1:], strict=True))


class _Recorded(nn.Module):
    def __init__(self, teacher: Teacher, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.teacher, self.taps = teacher, taps
        super().train(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _run(self.teacher, self.taps, images)


def _run(teacher: Teacher, taps: tuple[str, ...], images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with record(teacher.model, taps) as found:
        logits = teacher(images)
    return (logits, *(found[tap] for tap in taps))


def _freeze(teacher: Teacher, taps: tuple[str, ...], images: torch.Tensor) -> torch.jit.ScriptModule | None:
    """Return the frozen graph, or None where the model cannot be traced or the graph computes something else."""
    expected = _run(teacher, taps, images)
    mixed = torch.is_autocast_enabled("cpu")
    try:
        with warnings.catch_warnings(), _traceable_autocast(mixed):
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(_Recorded(teacher, taps), images, check_trace=False)
            graph = torch.jit.optimize_for_inference(torch.jit.freeze(traced.eval()))
            for _ in range(_WARM_UP):
                outputs = graph(images)
    except RuntimeError:
        return None
    for found, wanted in zip(outputs, expected, strict=True):
        difference = float((found.float() - wanted.float()).abs().max())
        if not difference <= _TOLERANCE[mixed] * max(1e-6, float(wanted.abs().max())):
            return None
    return graph


def _traceable_autocast(mixed: bool) -> torch.autocast:
    """Return the autocast that is on, without its cache of converted weights, which a trace cannot hold."""
    dtype = torch.get_autocast_dtype("cpu") if mixed else torch.bfloat16
    return torch.autocast("cpu", dtype=dtype, enabled=mixed, cache_enabled=False)
