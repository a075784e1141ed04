"""Augmentation: what each random change does to known images, seeded, and nothing when switched off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from distill_support import GOLDEN
from PIL import Image

from tinykd.config import AugmentConfig
from tinykd.data import augment as augment_module
from tinykd.data.augment import Augment, cutout_mask, resize_windows

MEAN, STD = 33, 78.0


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def images(count: int = 16, side: int = 12, channels: int = 3) -> torch.Tensor:
    """Return random uint8 images (count, side, side, channels) without a black pixel."""
    return torch.randint(1, 256, (count, side, side, channels), dtype=torch.uint8, generator=generator(1))


def levels(x: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: (N, C, H, W) float back to (N, H, W, C) levels."""
    return (x * STD + MEAN).permute(0, 2, 3, 1)


def apply(x: torch.Tensor, seed: int = 0, **config: float) -> torch.Tensor:
    """Return the augmented levels."""
    return levels(Augment(AugmentConfig.model_validate(config), MEAN, STD)(x, generator(seed)))


def test_without_changes_it_only_normalises() -> None:
    """All off: (pixel - mean_level) / std_level, in NCHW float32, and the generator is not used."""
    x = images()
    augment = Augment(AugmentConfig(), MEAN, STD)
    rng = generator()
    out = augment(x, rng)
    assert out.dtype == torch.float32
    assert out.shape == (16, 3, 12, 12)
    assert torch.equal(out, (x.permute(0, 3, 1, 2).float() - MEAN) / STD)
    assert torch.equal(out, augment.normalise(x))
    assert torch.equal(rng.get_state(), generator().get_state())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop_padding": 2, "flip": True},
        {"rotate_deg": 9},
        {"cutout": 3},
        {"resized_crop": 0.2},
        {"saturation": 0.5},
        {"autoaugment": "cifar10"},
        {"autoaugment": "random", "resized_crop": 0.2, "flip": True, "brightness": 0.1, "saturation": 0.5, "cutout": 3},
    ],
)
def test_output_is_row_major(channels: int, config: dict[str, object]) -> None:
    """Strides are those of a fresh NCHW tensor, also with one channel, where channels_last strides would pass too."""
    augment = Augment(AugmentConfig.model_validate(config), MEAN, STD)
    x = images(channels=channels)
    expected = torch.empty(16, channels, 12, 12).stride()
    assert augment(x, generator()).stride() == expected
    assert augment.normalise(x).stride() == expected


@pytest.mark.parametrize(
    "config",
    [
        {"crop_padding": 2},
        {"flip": True},
        {"rotate_deg": 10, "translate": 0.1, "scale": 0.1, "shear_deg": 5},
        {"brightness": 0.3},
        {"cutout": 4},
        {"resized_crop": 0.1},
        {"saturation": 0.5},
    ],
)
def test_same_seed_same_batch(config: dict[str, float]) -> None:
    """The generator's state alone decides the result; another seed gives another batch; the input stays as it was."""
    x = images()
    before = x.clone()
    first = apply(x, 5, **config)
    assert torch.equal(first, apply(x, 5, **config))
    assert not torch.equal(first, apply(x, 6, **config))
    assert torch.equal(x, before)


def test_crops_are_windows_of_the_padded_image() -> None:
    """Each crop is one of the (2p + 1)^2 windows of the image padded with black, and they differ between images."""
    x = images(32)
    out = apply(x, crop_padding=2).round().to(torch.uint8)
    padded = torch.nn.functional.pad(x, (0, 0, 2, 2, 2, 2))
    found = []
    for index in range(len(x)):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(out[index], padded[index, top : top + 12, left : left + 12])
        ]
        assert len(places) == 1
        found += places
    assert len(set(found)) > 10
    assert {0, 4} <= {top for top, _ in found}


def test_flip_mirrors_about_half_of_the_images() -> None:
    """Each image is itself or its mirror image, left and right swapped; both happen."""
    x = images(200)
    out = apply(x, flip=True).round().to(torch.uint8)
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(2)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130


def test_crop_and_flip_treat_all_channels_alike() -> None:
    """Grey content in three channels stays grey."""
    x = images(channels=1).expand(-1, -1, -1, 3).contiguous()
    out = apply(x, crop_padding=2, flip=True)
    assert torch.equal(out[..., 0], out[..., 1])
    assert torch.equal(out[..., 0], out[..., 2])


@pytest.mark.parametrize(
    ("config", "largest"),
    [({"rotate_deg": 20}, 20.0), ({"shear_deg": 15}, None), ({"scale": 0.2}, None), ({"translate": 0.2}, None)],
)
def test_warps_stay_within_their_limits(config: dict[str, float], largest: float | None) -> None:
    """A rotation turns a bar by at most its limit, and by nearly that for some image; other warps keep it in place."""
    side = 41
    x = torch.zeros(300, side, side, 1, dtype=torch.uint8)
    x[:, side // 2, 6:35] = 255
    out = apply(x, 3, **config)[..., 0].clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(side) - side // 2, torch.arange(side) - side // 2, indexing="ij")
    mass = out.sum((1, 2))
    mean_row, mean_column = (out * rows).sum((1, 2)) / mass, (out * columns).sum((1, 2)) / mass
    covariance = (out * rows * columns).sum((1, 2)) / mass - mean_row * mean_column
    spread = (out * columns * columns).sum((1, 2)) / mass - mean_column**2
    angle = torch.rad2deg(torch.atan(covariance / spread)).abs()
    if largest is not None:
        assert 0.8 * largest < angle.max() < largest + 1
    limit = config.get("translate", 0) * side
    assert mean_row.abs().max() < limit + 0.7
    assert mean_column.abs().max() < limit + 0.7
    if limit:
        assert mean_row.abs().max() > 0.8 * limit
    if "scale" in config:
        width = spread.sqrt()
        assert 1.1 < width.max() / width.median() < 1.3
        assert 0.75 < width.min() / width.median() < 0.9


def test_shear_slants_a_vertical_bar() -> None:
    """A shear of up to 20 degrees slants a vertical bar by up to that, and leaves a horizontal one level."""
    side = 41
    x = torch.zeros(300, side, side, 1, dtype=torch.uint8)
    x[:, 10:31, side // 2] = 255
    out = apply(x, 3, shear_deg=20)[..., 0].clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(side) - side // 2, torch.arange(side) - side // 2, indexing="ij")
    slope = torch.rad2deg(torch.atan((out * rows * columns).sum((1, 2)) / (out * rows * rows).sum((1, 2)))).abs()
    assert 16 < slope.max() < 21


def test_brightness_scales_whole_images() -> None:
    """Levels are multiplied by one factor per image within 1 +- b, and never leave 0..255."""
    x = torch.full((400, 4, 4, 1), 100, dtype=torch.uint8)
    out = apply(x, brightness=0.3)
    assert (out.flatten(1).max(1).values - out.flatten(1).min(1).values).max() < 1e-3
    assert 70 <= out.min() < 75
    assert 125 < out.max() <= 130.01
    assert apply(torch.full_like(x, 250), brightness=0.3).max() <= 255.01


def test_cutout_blanks_one_square_per_image() -> None:
    """A square of the side, clipped at the border, becomes the mean level; its place differs between images."""
    x = torch.full((200, 12, 12, 1), 255, dtype=torch.uint8)
    blank = (apply(x, cutout=6)[..., 0] - MEAN).abs() < 1e-3
    sizes = set()
    for mask in blank:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert int(mask.sum()) == len(rows) * len(columns)
        assert 3 <= len(rows) <= 6
        assert 3 <= len(columns) <= 6
        sizes.add((int(rows[0]), int(columns[0])))
    assert len(sizes) > 20
    assert blank.flatten(1).sum(1).max() == 36


def test_cutout_hangs_over_the_border() -> None:
    """Around the centres (0, 0), (16, 16) and (31, 16) of 32x32, a square of 16 covers the golden numbers of pixels."""
    row, column = torch.tensor([0, 16, 31]), torch.tensor([0, 16, 16])
    mask = cutout_mask(32, 32, 16, row, column)
    assert mask.flatten(1).sum(1).tolist() == GOLDEN["cutout_zeroed[(0,0),(16,16),(31,16)]"]
    assert mask[0].nonzero().amax(0).tolist() == [7, 7]
    assert mask[2].nonzero().amin(0).tolist() == [23, 8]


def test_cutout_centres_are_all_pixels() -> None:
    """Over all centres the covered fraction is the golden one, and drawn squares cover as much (4 sigma)."""
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    expected = GOLDEN["cutout_expected_fraction_32_16"]
    assert float(cutout_mask(32, 32, 16, row.flatten(), column.flatten()).double().mean()) == expected
    x = torch.full((4000, 32, 32, 1), 255, dtype=torch.uint8)
    blank = Augment(AugmentConfig(cutout=16), 0, 255.0)(x, generator()) == 0
    share = blank.double().flatten(1).mean(1)
    assert abs(float(share.mean()) - expected) < 4 * float(share.std()) / math.sqrt(len(share))


def test_cutout_is_zero_in_all_channels_and_not_in_evaluation() -> None:
    """The square is exactly 0 after the normalisation, which is the mean, in every channel; evaluation cuts nothing."""
    x = images(64)
    augment = Augment(AugmentConfig(cutout=4), MEAN, STD)
    out, plain = augment(x, generator()), augment.normalise(x)
    cut = (out != plain).any(1)
    assert (out[cut[:, None].expand_as(out)] == 0).all()
    assert torch.equal(out[~cut[:, None].expand_as(out)], plain[~cut[:, None].expand_as(out)])
    assert torch.equal(augment.normalise(x), Augment(AugmentConfig(), MEAN, STD).normalise(x))
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in cut}) > 20


def test_windows_are_enlarged_as_pillow_does() -> None:
    """Crop and bilinear resize equal Pillow's to one level (it rounds twice); the whole window changes nothing."""
    x = images(6, side=20)
    start = torch.tensor([[0, 3, 11, 19, 5, 0], [0, 2, 4, 0, 19, 0]]).float()
    size = torch.tensor([[20, 9, 9, 1, 7, 13], [20, 17, 5, 20, 1, 20]]).float()
    out = resize_windows(x, start, size)
    assert torch.equal(out[0], x[0])
    for index in range(len(x)):
        (top, left), (height, width) = start[:, index].int().tolist(), size[:, index].int().tolist()
        image = Image.fromarray(x[index].numpy()).crop((left, top, left + width, top + height))
        expected = np.array(image.resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(out[index].numpy().astype(int) - expected).max() <= 1


def test_resized_crops_have_the_area_and_shape_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows lie inside, cover an even share of at least the limit, and are as often tall as wide, up to the ratio."""
    seen = []
    monkeypatch.setattr(augment_module, "resize_windows", lambda x, start, size: seen.append((start, size)) or x)
    x = torch.zeros(4000, 64, 64, 1, dtype=torch.uint8)
    Augment(AugmentConfig(resized_crop=0.25, resized_crop_ratio=2), MEAN, STD)(x, generator())
    start, size = seen[0]
    assert (start >= 0).all()
    assert (start + size <= 64).all()
    assert torch.equal(start, start.round())
    share = size.prod(0) / 64**2
    ratio = size[1] / size[0]
    assert 0.24 < float(share.min()) < 0.27
    # A window of share a fits where |log ratio| <= -log a; drawn until it fits, shares have the mean 0.508 in the
    # continuum, and not the 0.625 of even shares. Whole pixels let slightly larger ones fit.
    assert 0.5 < float(share.mean()) < 0.525
    assert float(share.max()) > 0.95
    assert 0.48 < float(ratio.min()) < 0.55
    assert 1.8 < float(ratio.max()) < 2.1
    assert abs(float(ratio.log().mean())) < 0.03
    room = (64 - size).clamp(min=1)
    for axis in (0, 1):
        place = (start[axis] / room[axis])[size[axis] < 50]
        assert abs(float(place.mean()) - 0.5) < 0.02
        assert float(place.max()) == 1


def test_crop_that_never_fits_is_the_whole_image() -> None:
    """Where no window of the area and ratio fits, the image stays whole: area 1 leaves every pixel in its place."""
    x = images(32)
    assert torch.equal(apply(x, resized_crop=1.0, resized_crop_ratio=8.0).round().to(torch.uint8), x)


def test_saturation_moves_colours_and_not_luma() -> None:
    """Each image's distance from grey is multiplied by one factor in 1 +- s; the luma stays, and so do grey images."""
    x = (images(300) // 8 + 112).to(torch.uint8)
    out = apply(x, saturation=0.5)
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma, colour = (x * weights).sum(-1, keepdim=True), x.float()
    torch.testing.assert_close((out * weights).sum(-1, keepdim=True), luma, atol=1e-3, rtol=0)
    factor = (((out - luma) * (colour - luma)).sum((1, 2, 3)) / (colour - luma).square().sum((1, 2, 3))).view(
        -1, 1, 1, 1
    )
    torch.testing.assert_close(out, luma + factor * (colour - luma), atol=1e-3, rtol=0)
    assert 0.5 <= float(factor.min()) < 0.53
    assert 1.47 < float(factor.max()) <= 1.5
    grey = images(8, channels=1)
    torch.testing.assert_close(apply(grey, saturation=0.5), grey.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        apply(grey.expand(-1, -1, -1, 3), saturation=0.5), grey.expand(-1, -1, -1, 3).float(), atol=1e-3, rtol=0
    )
