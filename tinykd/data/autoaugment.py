"""AutoAugment (Cubuk et al., CVPR 2019, arXiv:1805.09501): learned policies for whole batches of uint8 images.

A policy is 25 sub-policies of two operations, each with a probability and a magnitude of 0 to 9. One sub-policy is
drawn for each image. The policies are tables from the paper's appendix; `random` is the baseline that learned policies
are to be measured by: two operations drawn evenly from the same set, the identity included, each at a magnitude drawn
evenly (RandAugment, arXiv:1909.13719, with TrivialAugment's random strength, arXiv:2103.10158).
"""

from __future__ import annotations

import torch

from tinykd.data.image_ops import BINS, ImageOps

# One sub-policy a line: operation, probability in tenths and magnitude ("-" where it has none), twice.
_CIFAR10 = """
Invert 1 -        Contrast 2 6
Rotate 7 2        TranslateX 3 9
Sharpness 8 1     Sharpness 9 3
ShearY 5 8        TranslateY 7 9
AutoContrast 5 -  Equalize 9 -
ShearY 2 7        Posterize 3 7
Color 4 3         Brightness 6 7
Sharpness 3 9     Brightness 7 9
Equalize 6 -      Equalize 5 -
Contrast 6 7      Sharpness 6 5
Color 7 7         TranslateX 5 8
Equalize 3 -      AutoContrast 4 -
TranslateY 4 3    Sharpness 2 6
Brightness 9 6    Color 2 8
Solarize 5 2      Invert 0 -
Equalize 2 -      AutoContrast 6 -
Equalize 2 -      Equalize 6 -
Color 9 9         Equalize 6 -
AutoContrast 8 -  Solarize 2 8
Brightness 1 3    Color 7 0
Solarize 4 5      AutoContrast 9 -
TranslateY 9 9    TranslateY 7 9
AutoContrast 9 -  Solarize 8 3
Equalize 8 -      Invert 1 -
TranslateY 7 9    AutoContrast 9 -
"""
_SVHN = """
ShearX 9 4        Invert 2 -
ShearY 9 8        Invert 7 -
Equalize 6 -      Solarize 6 6
Invert 9 -        Equalize 6 -
Equalize 6 -      Rotate 9 3
ShearX 9 4        AutoContrast 8 -
ShearY 9 8        Invert 4 -
ShearY 9 5        Solarize 2 6
Invert 9 -        AutoContrast 8 -
Equalize 6 -      Rotate 9 3
ShearX 9 4        Solarize 3 3
ShearY 8 8        Invert 7 -
Equalize 9 -      TranslateY 6 6
Invert 9 -        Equalize 6 -
Contrast 3 3      Rotate 8 4
Invert 8 -        TranslateY 0 2
ShearY 7 6        Solarize 4 8
Invert 6 -        Rotate 8 4
ShearY 3 7        TranslateX 9 3
ShearX 1 6        Invert 6 -
Solarize 7 2      TranslateY 6 7
ShearY 8 4        Invert 8 -
ShearX 7 9        TranslateY 8 3
ShearY 8 5        AutoContrast 7 -
ShearX 7 2        Invert 1 -
"""
_IMAGENET = """
Posterize 4 8     Rotate 6 9
Solarize 6 5      AutoContrast 6 -
Equalize 8 -      Equalize 6 -
Posterize 6 7     Posterize 6 6
Equalize 4 -      Solarize 2 4
Equalize 4 -      Rotate 8 8
Solarize 6 3      Equalize 6 -
Posterize 8 5     Equalize 10 -
Rotate 2 3        Solarize 6 8
Equalize 6 -      Posterize 4 6
Rotate 8 8        Color 4 0
Rotate 4 9        Equalize 6 -
Equalize 0 -      Equalize 8 -
Invert 6 -        Equalize 10 -
Color 6 4         Contrast 10 8
Rotate 8 8        Color 10 2
Color 8 8         Solarize 8 7
Sharpness 4 7     Invert 6 -
ShearX 6 5        Equalize 10 -
Color 4 0         Equalize 6 -
Equalize 4 -      Solarize 2 4
Solarize 6 5      AutoContrast 6 -
Invert 6 -        Equalize 10 -
Color 6 4         Contrast 10 8
Equalize 8 -      Equalize 6 -
"""

Step = tuple[str, float, int]
"""Operation, probability 0..1, magnitude 0..9 (0 where it has none)."""


def _parse(table: str) -> tuple[tuple[Step, Step], ...]:
    policy = []
    for line in table.split("\n"):
        words = line.split()
        if words:
            first, second = (
                (words[at], int(words[at + 1]) / 10, 0 if words[at + 2] == "-" else int(words[at + 2])) for at in (0, 3)
            )
            policy.append((first, second))
    return tuple(policy)


POLICIES = {"cifar10": _parse(_CIFAR10), "svhn": _parse(_SVHN), "imagenet": _parse(_IMAGENET)}
"""Name -> 25 sub-policies of two steps."""
RANDOM = "random"
PER_IMAGE = 2
"""Operations of one sub-policy."""


class AutoAugment:
    """A policy, ready to be applied to batches of one size after another, on any device.

    Args:
        policy: a key of `POLICIES`, or `RANDOM`.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._ops: dict[tuple[torch.device, int, int], ImageOps] = {}
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return changed images: uint8 (N, H, W, C) to the same; C is 1 or 3.

        The number of draws depends on N alone, so that the generator's state decides all that follows.
        """
        count, height, width, _ = images.shape
        key = images.device, height, width
        if key not in self._ops:
            self._ops[key] = ImageOps(height, width, images.device)
        x = images.permute(0, 3, 1, 2).contiguous()
        for op, magnitude, negative in zip(*self.draw(count, images.device, generator), strict=True):
            x = self._ops[key].apply(x, op, magnitude, negative)
        return x.permute(0, 2, 3, 1)

    def draw(
        self, count: int, device: torch.device, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (2, N) int64 operations (of `ImageOps.names`), magnitudes 0..9 and signs (1 is negative)."""
        if self.policy == RANDOM:
            op = torch.randint(len(ImageOps.names), (PER_IMAGE, count), generator=generator, device=device)
            magnitude = torch.randint(BINS, (PER_IMAGE, count), generator=generator, device=device)
        else:
            if device not in self._tables:
                self._tables[device] = _tabulate(POLICIES[self.policy], device)
            ops, chances, magnitudes = self._tables[device]
            chosen = torch.randint(len(ops), (count,), generator=generator, device=device)
            draw = torch.rand((PER_IMAGE, count), generator=generator, device=device)
            op = torch.where(draw < chances[chosen].T, ops[chosen].T, ImageOps.names.index("Identity"))
            magnitude = magnitudes[chosen].T
        return op, magnitude, torch.randint(2, (PER_IMAGE, count), generator=generator, device=device)


def _tabulate(
    policy: tuple[tuple[Step, Step], ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return operations, probabilities and magnitudes as (25, 2) tensors."""
    ops = [[ImageOps.names.index(step[0]) for step in pair] for pair in policy]
    chances = [[step[1] for step in pair] for pair in policy]
    magnitudes = [[step[2] for step in pair] for pair in policy]
    return (
        torch.tensor(ops, device=device),
        torch.tensor(chances, device=device),
        torch.tensor(magnitudes, device=device),
    )
