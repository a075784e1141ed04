"""Teachers: frozen models, fed with the student's input whatever their own normalisation, and their weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tinykd.errors import DataError


class Teacher(nn.Module):
    """A frozen model that takes the student's normalised images.

    It is always in eval mode, also after `.train()`, and its parameters take no gradient.

    Args:
        model: maps (N, C, H, W) float32 to logits.
        mean_level, std_level: the student's normalisation.
        mean, std: the model's own, on 0..1, one number or one per channel; None when it is the student's.
    """

    def __init__(
        self,
        model: nn.Module,
        mean_level: int = 0,
        std_level: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.model = model.requires_grad_(False)
        self.own_normalisation = mean is not None and std is not None
        if mean is not None and std is not None:
            # ((x * std_level + mean_level) / 255 - mean) / std, as one scale and one shift per channel.
            own_mean, own_std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
            self.register_buffer("scale", std_level / 255 / own_std, persistent=False)
            self.register_buffer("shift", (mean_level / 255 - own_mean) / own_std, persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map the student's input (N, C, H, W) to logits (N, K)."""
        return self.model(x * self.scale + self.shift if self.own_normalisation else x)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (.safetensors, or a PyTorch file of tensors only) into `model`.

    A `module.` prefix and a surrounding {"state_dict": ...} are taken off; pickled code is never run.

    Raises:
        DataError: unreadable, not a state dict, or names and shapes that differ from the model's.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"weights file {path} cannot be read: {first}", "It must be .safetensors, or a PyTorch file of tensors."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"weights file {path} holds no state dict (names with tensors)")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        faults = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if names
        ]
        raise DataError(
            f"weights file {path} does not fit the model: {'; '.join(faults)}",
            "Check teacher.model and its args, and that the data set has the classes it was trained on.",
        )
    model.load_state_dict(state, strict=False)
