"""Which network each step of network augmentation trains around the student, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from tinykd.config import NetAugConfig, TrainConfig
from tinykd.models.taps import tap_shapes
from tinykd.models.widths import KINDS, Kind, Slot, list_slots, resolve_widths

_STREAM = 101
"""Keeps the draws of widths apart from others that are made from the same seed and step."""


RELEASED = {"mcunet": (1.0, 1.6, 2.2), "mobilenetv3": (1.0, 2.0, 3.0), "resnet8": (1.0, 1.6, 2.2)}
"""Factors of widths by the start of the student's name, as in the scripts released with the paper; resnet8 is our own.
All others have (1, 1.8, 2.6)."""


def with_widths(config: NetAugConfig, student: str) -> NetAugConfig:
    """Return the configuration with the factors of widths filled in for a student of this name."""
    if config.width is not None:
        return config
    found = next((factors for start, factors in RELEASED.items() if student.startswith(start)), (1.0, 1.8, 2.6))
    return config.model_copy(update={"width": list(found)})


def kinds_at(config: NetAugConfig, train: TrainConfig, epoch: int) -> tuple[Kind, ...]:
    """Return what is augmented in the 0-based epoch.

    ("width", "expand") is the paper's random mode, ("expand",) has widths fixed at the student's (`min_w` in the
    released code), ("width",) has expansions fixed (`min_e`), () is plain training.
    """
    remaining = train.epochs - epoch
    stop_width = config.stop_width_epochs
    if stop_width is None:
        stop_width = round((train.epochs - train.warmup_epochs) / 2)
    if config.alpha == 0 or remaining <= config.stop_epochs:
        return ()
    stops = {"width": stop_width, "expand": config.stop_expand_epochs}
    return tuple(kind for kind in KINDS if remaining > stops[kind])


def draw_widths(
    slots: Sequence[Slot], config: NetAugConfig, kinds: Sequence[Kind], seed: tuple[int, ...]
) -> dict[str, int]:
    """Return path -> channels of an augmented network: for each slot of these kinds a factor drawn uniformly.

    A pure function of its arguments: with (training seed, step) as the seed, every process draws the same network, and
    a resumed training the one that it would have drawn.
    """
    rng = np.random.default_rng((_STREAM, *seed))
    choices = _choices(config)
    factors = {
        slot.path: choices[slot.kind][rng.integers(len(choices[slot.kind]))]
        for slot in slots
        if slot.kind and slot.kind in kinds
    }
    return resolve_widths(slots, factors)


def largest_widths(slots: Sequence[Slot], config: NetAugConfig, kinds: Sequence[Kind] = KINDS) -> dict[str, int]:
    """Return path -> channels of the widest network in which these kinds are augmented."""
    most = {kind: max(factors) for kind, factors in _choices(config).items()}
    return resolve_widths(slots, {slot.path: most[slot.kind] for slot in slots if slot.kind in kinds and slot.kind})


def _choices(config: NetAugConfig) -> dict[Kind, list[float]]:
    assert config.width is not None, "with_widths fills them in"
    return {"width": config.width, "expand": config.expand}


def macs_by_widths(
    plain: nn.Module, slots: Sequence[Slot], input_shape: tuple[int, ...]
) -> Callable[[Mapping[str, int]], int]:
    """Return a function that maps the widths of a network to its multiply-accumulates for one image.

    Args:
        plain: the student, left as it is.
        slots: all of its layers.
        input_shape: (C, H, W).
    """
    shapes = tap_shapes(plain, [f"{slot.path}:output" for slot in slots], input_shape)
    terms: list[tuple[int, str | None, str]] = []
    for slot in slots:
        layer = plain.get_submodule(slot.path)
        kernel = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
        products = kernel * math.prod(shapes[f"{slot.path}:output"][1:])
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if slot.reads is None:
            products *= input_shape[0]
        terms.append((products, None if depthwise else slot.reads, slot.path))

    def macs(widths: Mapping[str, int]) -> int:
        return sum(products * (1 if reads is None else widths[reads]) * widths[path] for products, reads, path in terms)

    return macs


def pass_cost(
    plain: nn.Module,
    config: NetAugConfig,
    input_shape: tuple[int, ...],
    kinds: Sequence[Kind] = KINDS,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the multiply-accumulates of an augmented pass over those of the student's: of the mean and the widest.

    Args:
        plain: the student, left as it is.
        config: the lists of factors.
        input_shape: (C, H, W).
        kinds: what is augmented.
        draws: networks that the mean is taken over; the widest one is computed and not drawn.
        seed: of the draws.
    """
    slots = list_slots(plain)
    macs = macs_by_widths(plain, slots, input_shape)
    base = macs(resolve_widths(slots, {}))
    drawn = sum(macs(draw_widths(slots, config, kinds, (seed, number))) for number in range(draws))
    return drawn / draws / base, macs(largest_widths(slots, config, kinds)) / base
