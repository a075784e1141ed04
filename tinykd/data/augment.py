"""Random changes of a batch of images, on the device that holds them, drawn from one seeded generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tinykd.config import AugmentConfig


class Augment:
    """Turns uint8 levels into the normalised, randomly changed input of a model.

    All random numbers come from the generator given to the call, in an order that depends on the configuration and
    the batch size alone: the same generator state gives the same batch.
    """

    def __init__(self, config: AugmentConfig, mean_level: int, std_level: float) -> None:
        self.config = config
        self.mean_level = mean_level
        self.std_level = std_level

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, H, W, C) to float32 (N, C, H, W), `(pixel - mean_level) / std_level`; nothing random."""
        return (_to_planes(images) - self.mean_level) / self.std_level

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Map uint8 (N, H, W, C) to float32 (N, C, H, W); what enters from outside an image is black (level 0)."""
        config = self.config
        if config.crop_padding or config.flip:
            images = self._crop_and_flip(images, generator)
        x = _to_planes(images)
        if config.rotate_deg or config.translate or config.scale or config.shear_deg:
            x = self._warp(x, generator)
        if config.brightness:
            factor = 1 + (2 * self._uniform(x, generator) - 1) * config.brightness
            x = (x * factor[:, None, None, None]).clamp_(0, 255)
        x = (x - self.mean_level) / self.std_level
        return self._cut_out(x, generator) if config.cutout else x

    @staticmethod
    def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(len(like), generator=generator, device=like.device)

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
        side = self.config.cutout
        top = torch.randint(0, height, (count, 1), generator=generator, device=x.device) - side // 2
        left = torch.randint(0, width, (count, 1), generator=generator, device=x.device) - side // 2
        rows = torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        in_rows = (rows >= top) & (rows < top + side)
        in_columns = (columns >= left) & (columns < left + side)
        return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def _to_planes(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 (N, H, W, C) to float32 (N, C, H, W) in row-major order.

    A permuted view will not do, not even after `.contiguous()`: with one channel its strides also pass for
    channels_last, and convolutions would then choose the kernels that the training loop avoids on the CPU.
    """
    count, height, width, channels = images.shape
    planes = torch.empty((count, channels, height, width), dtype=torch.float32, device=images.device)
    return planes.copy_(images.permute(0, 3, 1, 2))
