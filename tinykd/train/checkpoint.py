"""Checkpoints of an unfinished training: one safetensors file with every tensor, and the rest as JSON in its header.

One file, replaced atomically, can be neither half old nor half new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tinykd.artifact import write_bytes
from tinykd.errors import ArtifactError

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name ("group/name") and JSON-able facts."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one group under their own names."""
        prefix = f"{name}/"
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(path: Path, groups: dict[str, dict[str, torch.Tensor]], facts: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written; the previous checkpoint stays.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    header = {"tinykd": json.dumps({"version": VERSION, **facts}, sort_keys=True)}
    write_bytes(path, save(tensors, metadata=header))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None when there is none.

    Raises:
        ArtifactError: it is broken or of another version.
    """
    if not path.is_file():
        return None
    hint = f"Delete {path} to train from the start."
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["tinykd"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"checkpoint {path} cannot be read: {error}", hint) from error
    if facts.pop("version", None) != VERSION:
        raise ArtifactError(f"checkpoint {path} comes from another version of tinykd", hint)
    return Checkpoint(tensors, facts)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and JSON-able facts."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, members in state["state"].items():
        for name, value in members.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], facts: dict[str, Any]
) -> None:
    """Undo `optimizer_state` on an optimizer over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    for index, members in facts["numbers"].items():
        state.setdefault(int(index), {}).update(members)
    optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
