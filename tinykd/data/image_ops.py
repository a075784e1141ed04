"""The image operations of AutoAugment on batches of uint8 planes, each image with its own operation and strength.

Results equal those of Pillow, which defined these operations for the paper, level by level: the same fixed-point
sampling, the same truncation. Ranges of the magnitudes are those of the paper's table 6; what enters from outside an
image is black. Enhancements (Brightness, Color, Contrast, Sharpness) are signed, around the factor 1, and translations
are a share of the side (150 of the paper's 331 pixels), both as torchvision has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

BINS = 10
"""Magnitudes are 0 to 9."""

_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_LOOKUPS = ("Brightness", "Posterize", "Solarize", "Invert")
_FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")
_OTHERS = ("AutoContrast", "Equalize", "Contrast", "Color", "Sharpness")

Strength = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of each image: the operation's place among those of its kernel, the magnitude, and 1 for a negative sign."""


def magnitude_value(op: str, level: int, negative: bool, height: int, width: int) -> float:
    """Return the strength of an operation: a slope, pixels, degrees, an enhancement's factor, bits or a threshold."""
    largest = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * width,
        "TranslateY": 150 / 331 * height,
        "Rotate": 30.0,
        **dict.fromkeys(_FACTORS, 0.9),
    }
    if op == "Posterize":
        return 8 - round(level / ((BINS - 1) / 4))
    if op == "Solarize":
        return float(torch.linspace(255, 0, BINS)[level])
    if op not in largest:
        return 0.0
    value = float(torch.linspace(0, largest[op], BINS)[level]) * (-1 if negative else 1)
    return 1 + value if op in _FACTORS else value


def blend(degenerate: torch.Tensor, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return `degenerate + factor * (x - degenerate)`, cut to 0..255 and truncated: uint8, broadcast.

    Args:
        degenerate, x: integer levels 0..255.
        factor: float32.
    """
    distance = (x.int() - degenerate.int()).float() * factor
    return (degenerate.float() + distance).clamp_(0, 255).to(torch.uint8)


class ImageOps:
    """All operations for images of one size on one device.

    `names` are the operations in the order of their numbers; the last one is the identity.
    """

    names = (*_WARPS, *_LOOKUPS, *_OTHERS, "Identity")

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width, self.device = height, width, device

        def table(ops: tuple[str, ...], make: Callable[[str, float], object], dtype: torch.dtype) -> torch.Tensor:
            rows = [
                [
                    [make(op, magnitude_value(op, level, bool(s), height, width)) for s in (0, 1)]
                    for level in range(BINS)
                ]
                for op in ops
            ]
            return torch.tensor(rows, dtype=dtype, device=device)

        # Indexed by operation, magnitude, sign.
        self.matrices = table(_WARPS, lambda op, value: _fixed_matrix(op, value, height, width), torch.int64)
        self.lookups = table(_LOOKUPS, _fixed_lookup, torch.uint8)
        self.factors = table(_OTHERS, lambda op, value: value, torch.float32)
        # Warps share one kernel, and so do fixed look-up tables; each other operation has its own.
        others = (_auto_contrast, _equalize, _contrast, _color, _sharpness)
        self.kernels: list[Callable[[torch.Tensor, Strength], torch.Tensor]] = [
            self._warp,
            self._look_up,
            *(partial(self._compute, other) for other in others),
        ]
        numbers = [*[0] * len(_WARPS), *[1] * len(_LOOKUPS), *range(2, len(self.kernels) + 1)]
        places = [*range(len(_WARPS)), *range(len(_LOOKUPS)), *range(len(others) + 1)]
        self.kernel_of = torch.tensor(numbers, device=device)
        self.place_of = torch.tensor(places, device=device)

    def apply(self, x: torch.Tensor, op: torch.Tensor, magnitude: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Return images with one operation each.

        Args:
            x: (N, C, H, W) uint8, contiguous; not changed.
            op: (N,) int64 index into `names`.
            magnitude: (N,) int64, 0..9.
            negative: (N,) int64, 1 turns the direction of a warp and makes an enhancement a reduction.
        """
        kernel = self.kernel_of[op]
        order = torch.argsort(kernel, stable=True)
        counts = torch.bincount(kernel, minlength=len(self.kernels) + 1).tolist()
        out = x.clone()
        start = 0
        for run, count in zip(self.kernels, counts, strict=False):  # the last count is the identity's
            rows = order[start : start + count]
            start += count
            if count:
                out[rows] = run(x[rows], (self.place_of[op[rows]], magnitude[rows], negative[rows]))
        return out

    def _warp(self, x: torch.Tensor, strength: Strength) -> torch.Tensor:
        """Sample the nearest pixel in fixed point of 16 fractional bits, as Pillow's affine transform does."""
        a = self.matrices[strength][:, :, None, None]
        column = torch.arange(self.width, device=self.device)
        row = torch.arange(self.height, device=self.device)[:, None]
        source_x = (a[:, 2] + a[:, 0] * column + a[:, 1] * row) >> 16
        source_y = (a[:, 5] + a[:, 3] * column + a[:, 4] * row) >> 16
        inside = (source_x >= 0) & (source_x < self.width) & (source_y >= 0) & (source_y < self.height)
        place = torch.where(inside, source_y * self.width + source_x, 0).flatten(1)
        moved = x.flatten(2).gather(2, place[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        return moved * inside[:, None]

    def _look_up(self, x: torch.Tensor, strength: Strength) -> torch.Tensor:
        return _use_table(x, self.lookups[strength][:, None])

    def _compute(
        self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, strength: Strength
    ) -> torch.Tensor:
        return function(x, self.factors[strength])


def _fixed_matrix(op: str, value: float, height: int, width: int) -> list[int]:
    """Return the map from output to input pixels, (x, y) -> (a0 x + a1 y + a2, a3 x + a4 y + a5), times 2^16."""
    a = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    if op == "ShearX":
        a[1] = value
    elif op == "ShearY":
        a[3] = value
    elif op == "TranslateX":
        a[2] = -float(int(value))
    elif op == "TranslateY":
        a[5] = -float(int(value))
    else:
        angle = -math.radians(value)
        # Pillow rounds to 15 digits, so that a right angle is one.
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        x, y = width / 2, height / 2
        a = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    # Pixels are sampled at their centres.
    a[2] += (a[0] + a[1]) * 0.5
    a[5] += (a[3] + a[4]) * 0.5
    return [math.floor(number * 65536 + 0.5) for number in a]


def _fixed_lookup(op: str, value: float) -> list[int]:
    """Return the new level of each level 0..255."""
    levels = torch.arange(256)
    if op == "Brightness":
        return blend(torch.zeros(()), levels, torch.tensor(value)).tolist()
    if op == "Posterize":
        return [level & -(1 << (8 - int(value))) for level in range(256)]
    if op == "Solarize":
        return [level if level < value else 255 - level for level in range(256)]
    return [255 - level for level in range(256)]


def _use_table(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Map levels through tables (N, 1 or C, 256) uint8."""
    count, channels = x.shape[:2]
    return table.expand(count, channels, 256).gather(2, x.flatten(2).long()).view_as(x)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Return the luma (N, 1, H, W) int32 of (N, C, H, W), as Pillow's mode L; one channel is its own."""
    if x.shape[1] != 3:
        return x[:, :1].int()
    red, green, blue = x.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _auto_contrast(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255."""
    low, high = x.flatten(2).amin(2, keepdim=True).double(), x.flatten(2).amax(2, keepdim=True).double()
    # A true division: torch computes `number / tensor` as a product with the reciprocal, which rounds twice.
    scale = torch.full_like(high, 255) / (high - low)
    levels = torch.arange(256, device=x.device, dtype=torch.float64)
    table = (levels * scale + -low * scale).clamp(0, 255)
    return _use_table(x, torch.where(high > low, table, levels).to(torch.uint8))


def _equalize(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Spread each channel's levels evenly by rank."""
    count, channels = x.shape[:2]
    flat = x.view(count * channels, -1).long()
    offset = 256 * torch.arange(len(flat), device=x.device)[:, None]
    histogram = torch.bincount((flat + offset).flatten(), minlength=256 * len(flat)).view(-1, 256)
    brightest = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (flat.shape[1] - brightest) // 255
    below = histogram.cumsum(1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return _use_table(x, table.to(torch.uint8).view(count, channels, 256))


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move levels away from the mean luma, or towards it."""
    mean = (_grey(x).flatten(1).double().mean(1) + 0.5).int()
    table = blend(mean[:, None], torch.arange(256, device=x.device), factor[:, None])
    return _use_table(x, table[:, None])


def _color(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move pixels away from their luma, or towards it; nothing to do for grey images."""
    return blend(_grey(x), x, factor.view(-1, 1, 1, 1)) if x.shape[1] == 3 else x


def _sharpness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move pixels away from the smoothed image, or towards it; the outermost pixels stay."""
    wide = x.int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    ring = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # Weights 1 around a 5, over 13, rounded to the nearest: 13 is odd, so there are no ties.
    total = ring + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = wide.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return blend(smooth, x, factor.view(-1, 1, 1, 1))
