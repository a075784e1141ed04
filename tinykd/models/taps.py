"""Taps: feature maps of any model by module path, without editing the model.

A tap is `path`, `path:output` (the same) or `path:input`: what the submodule at `path` returns or receives. For the
networks of the registry there are names: `@stem`, `@stages` (each stage's end), `@stage2`, `@last` (the last stage),
`@preacts`, `@preact2`, `@last_preact` (the same before the activation) and `@pooled`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tinykd.errors import ConfigError, nearest
from tinykd.models.backbone import Backbone

ALIASES = ("@stem", "@stages", "@stage<n>", "@last", "@preacts", "@preact<n>", "@last_preact", "@pooled")


def resolve_taps(model: nn.Module, taps: str | Iterable[str], name: str) -> tuple[str, ...]:
    """Return taps as `path:input` or `path:output`, names like `@stages` written out.

    Args:
        model: the model whose submodules the taps name.
        taps: one tap or several.
        name: what the model is called in errors.

    Raises:
        ConfigError: a path or name that the model does not have.
    """
    resolved: list[str] = []
    for tap in (taps,) if isinstance(taps, str) else taps:
        resolved += _expand(model, tap, name) if tap.startswith("@") else [_check_path(model, tap, name)]
    return tuple(resolved)


def _expand(model: nn.Module, alias: str, name: str) -> list[str]:
    if not isinstance(model, Backbone):
        raise ConfigError(f"{name} has no named stages: give taps by module path instead of '{alias}'")
    where = model.stage_taps()
    known: dict[str, tuple[str, ...]] = {
        "@stem": (where.stem,),
        "@stages": where.stages,
        "@last": where.stages[-1:],
        "@preacts": where.preacts,
        "@last_preact": where.preacts[-1:],
        "@pooled": (where.pooled,),
    }
    numbered = re.fullmatch(r"@(stage|preact)(\d+)", alias)
    if numbered:
        places = where.stages if numbered[1] == "stage" else where.preacts
        number = int(numbered[2])
        if not 1 <= number <= len(places):
            raise ConfigError(f"{name} has no tap '{alias}': its stages are 1 to {len(places)}")
        return [_check_path(model, places[number - 1], name)]
    if alias not in known:
        raise ConfigError(f"{name} has no tap '{alias}'.{nearest(alias, known)} Known: {', '.join(ALIASES)}")
    return [_check_path(model, path, name) for path in known[alias]]


def _check_path(model: nn.Module, tap: str, name: str) -> str:
    path, _, end = tap.partition(":")
    if end not in ("", "input", "output"):
        raise ConfigError(f"{name}: tap '{tap}' must end in ':input' or ':output', not ':{end}'")
    modules = dict(model.named_modules())
    if path not in modules or not path:
        raise ConfigError(f"{name} has no module '{path}'.{nearest(path, [key for key in modules if key])}")
    return f"{path}:{end or 'output'}"


@contextmanager
def record(model: nn.Module, taps: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the tensors at resolved taps while the block runs the model; of several calls the last one stays.

    Yields:
        A dict that is filled as the model runs: tap -> tensor, with its place in the autograd graph.
    """
    found: dict[str, torch.Tensor] = {}
    handles = []
    for tap in dict.fromkeys(taps):
        path, _, end = tap.partition(":")
        module = model.get_submodule(path)

        def note(_: nn.Module, inputs: Any, output: Any, tap: str = tap, end: str = end) -> None:
            found[tap] = inputs[0] if end == "input" else output

        handles.append(module.register_forward_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tap_shapes(model: nn.Module, taps: Iterable[str], input_shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    """Return the shape behind each resolved tap, without the batch dimension, for one input shape (C, H, W).

    The model runs once in eval mode without gradient, on its own device; mode and random state stay as they were.
    """
    first = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), record(model, taps) as found:
            model(torch.zeros((2, *input_shape), device=first.device))
    finally:
        for module, training in was_training.items():
            module.training = training
    return {tap: tuple(tensor.shape[1:]) for tap, tensor in found.items()}
