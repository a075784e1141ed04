"""Random changes of a batch of images, on the device that holds them, drawn from one seeded generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tinykd.config import AugmentConfig
from tinykd.data.autoaugment import AutoAugment

CROP_TRIES = 10
"""So many crops are drawn for each image, and the first that fits is taken; where none fits, the whole image."""


class Augment:
    """Turns uint8 levels into the normalised, randomly changed input of a model.

    All random numbers come from the generator given to the call, in an order that depends on the configuration and
    the batch size alone: the same generator state gives the same batch.
    """

    def __init__(self, config: AugmentConfig, mean_level: int, std_level: float) -> None:
        self.config = config
        self.mean_level = mean_level
        self.std_level = std_level
        self.autoaugment = None if config.autoaugment is None else AutoAugment(config.autoaugment)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, H, W, C) to float32 (N, C, H, W), `(pixel - mean_level) / std_level`; nothing random."""
        return (_to_planes(images) - self.mean_level) / self.std_level

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Map uint8 (N, H, W, C) to float32 (N, C, H, W); what enters from outside an image is black (level 0)."""
        config = self.config
        if config.resized_crop:
            images = self._crop_and_resize(images, generator)
        if config.crop_padding or config.flip:
            images = self._crop_and_flip(images, generator)
        if self.autoaugment is not None:
            images = self.autoaugment(images, generator)
        x = _to_planes(images)
        if config.rotate_deg or config.translate or config.scale or config.shear_deg:
            x = self._warp(x, generator)
        if config.brightness:
            factor = 1 + (2 * self._uniform(x, generator) - 1) * config.brightness
            x = (x * factor[:, None, None, None]).clamp_(0, 255)
        if config.saturation:
            factor = 1 + (2 * self._uniform(x, generator) - 1) * config.saturation
            grey = _grey(x)
            x = (grey + factor[:, None, None, None] * (x - grey)).clamp_(0, 255)
        x = (x - self.mean_level) / self.std_level
        return self._cut_out(x, generator) if config.cutout else x

    @staticmethod
    def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(len(like), generator=generator, device=like.device)

    def _crop_and_resize(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Enlarge a random window of each image: area even in [resized_crop, 1], log of width to height even."""
        count, height, width, _ = images.shape
        draw = torch.rand((2, CROP_TRIES, count), generator=generator, device=images.device)
        place = torch.rand((2, count), generator=generator, device=images.device)
        least = self.config.resized_crop
        area = height * width * (least + (1 - least) * draw[0])
        ratio = torch.exp((2 * draw[1] - 1) * math.log(self.config.resized_crop_ratio))
        sides = torch.stack((torch.sqrt(area / ratio), torch.sqrt(area * ratio))).round()
        largest = torch.tensor((height, width), device=images.device)[:, None]
        fits = ((sides >= 1) & (sides <= largest[:, None])).all(0)
        first = fits.int().argmax(0)
        chosen = sides.gather(1, first.expand(2, 1, count)).squeeze(1)
        chosen = torch.where(fits.any(0), chosen, largest)
        start = torch.floor(place * (largest - chosen + 1))
        return resize_windows(images, start, chosen)

    def _crop_and_flip(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, height, width, _ = images.shape
        device, padding = images.device, self.config.crop_padding
        rows = torch.arange(height, device=device).expand(count, height)
        columns = torch.arange(width, device=device).expand(count, width)
        if padding:
            shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
            rows, columns = rows + shifts[0], columns + shifts[1]
            images = F.pad(images, (0, 0, padding, padding, padding, padding))
        if self.config.flip:
            flipped = torch.rand((count, 1), generator=generator, device=device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        batch = torch.arange(count, device=device)[:, None, None]
        return images[batch, rows[:, :, None], columns[:, None, :]]

    def _warp(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        config, count = self.config, len(x)
        draw = 2 * torch.rand((5, count), generator=generator, device=x.device) - 1
        angle = draw[0] * math.radians(config.rotate_deg)
        shear = torch.tan(draw[1] * math.radians(config.shear_deg))
        zoom = 1 / (1 + draw[2] * config.scale)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # grid_sample's coordinates span 2 across the image: a shift by the fraction f moves them by 2 f.
        shift = 2 * config.translate * draw[3:5]
        first = torch.stack((cos, cos * shear - sin, shift[0]), dim=1)
        second = torch.stack((sin, sin * shear + cos, shift[1]), dim=1)
        grid = F.affine_grid(torch.stack((first, second), dim=1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _cut_out(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, _, height, width = x.shape
        row = torch.randint(0, height, (count,), generator=generator, device=x.device)
        column = torch.randint(0, width, (count,), generator=generator, device=x.device)
        return x.masked_fill(cutout_mask(height, width, self.config.cutout, row, column)[:, None], 0.0)


def cutout_mask(height: int, width: int, side: int, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Return which pixels a square covers that may hang over the border (DeVries, Taylor 2017, arXiv:1708.04552).

    Args:
        height, width: of the images.
        side: of the square, pixels.
        row, column: (N,) int64 centres; a square of even side reaches one pixel further up and left of it.

    Returns:
        (N, height, width) bool.
    """
    top, left = (centre[:, None] - side // 2 for centre in (row, column))
    rows, columns = torch.arange(height, device=row.device), torch.arange(width, device=row.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return in_rows[:, :, None] & in_columns[:, None, :]


def resize_windows(images: torch.Tensor, start: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Enlarge a window of each image to the size of the image, bilinear, rounded to whole levels.

    Pixels are sampled at their centres and nothing outside of the window is read.

    Args:
        images: (N, H, W, C) uint8.
        start: (2, N) float, first row and column of each window.
        size: (2, N) float, its height and width.
    """
    x = images.float()
    for axis in (1, 2):
        length = images.shape[axis]
        low, extent = start[axis - 1][:, None], size[axis - 1][:, None]
        place = (torch.arange(length, device=images.device) + 0.5) * (extent / length) - 0.5
        place = torch.minimum(place.clamp(min=0), extent - 1)
        below = place.floor()
        above = torch.minimum(below + 1, extent - 1)
        shape = [len(x), 1, 1, 1]
        shape[axis] = length
        near, far = (x.gather(axis, (low + index).long().view(shape).expand_as(x)) for index in (below, above))
        x = torch.lerp(near, far, (place - below).view(shape))
    return x.round_().to(torch.uint8)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Return the luma (N, 1, H, W) of (N, C, H, W) levels (ITU-R BT.601); one channel is its own."""
    if x.shape[1] != 3:
        return x
    weights = torch.tensor((0.299, 0.587, 0.114), device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def _to_planes(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 (N, H, W, C) to float32 (N, C, H, W) in row-major order.

    A permuted view will not do, not even after `.contiguous()`: with one channel its strides also pass for
    channels_last, and convolutions would then choose the kernels that the training loop avoids on the CPU.
    """
    count, height, width, channels = images.shape
    planes = torch.empty((count, channels, height, width), dtype=torch.float32, device=images.device)
    return planes.copy_(images.permute(0, 3, 1, 2))
