"""AutoAugment: the paper's tables, operations equal to Pillow's, draws as the policy says."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from PIL import ImageOps as PillowOps

from tinykd.config import AugmentConfig, load_recipe
from tinykd.data import autoaugment
from tinykd.data.augment import Augment
from tinykd.data.autoaugment import POLICIES, RANDOM, AutoAugment
from tinykd.data.image_ops import BINS, ImageOps, magnitude_value
from tinykd.errors import ConfigError

NAMES = ImageOps.names
WITHOUT_MAGNITUDE = ("AutoContrast", "Equalize", "Invert", "Identity")
# Pillow's blending rounds once or twice, as its compiler chose: on x86-64 it is known, and the results are equal.
TOLERANCE = 0 if platform.machine() in ("x86_64", "AMD64") else 1


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def pictures(height: int, width: int, channels: int) -> torch.Tensor:
    """Return (6, C, H, W) uint8: noise, a smooth slope, low contrast, two levels, one level, one odd pixel."""
    rng = generator(3)
    noise = torch.randint(0, 256, (channels, height, width), generator=rng)
    slope = (
        torch.linspace(0, 1, height)[:, None]
        * torch.linspace(20, 230, width)
        * torch.linspace(0.5, 1, channels)[:, None, None]
    )
    flat = torch.full_like(noise, 77)
    odd = flat.clone()
    odd[:, 1, 2] = 200
    return torch.stack((noise, slope.long(), noise // 6 + 90, noise // 128 * 255, flat, odd)).to(torch.uint8)


def by_pillow(x: torch.Tensor, op: str, value: float) -> torch.Tensor:
    """Return what Pillow makes of one (C, H, W) image, as AutoAugment's authors called it."""
    array = x.permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if x.shape[0] == 1 else array))
    shift = -int(value) if op.startswith("Translate") else 0
    affine = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, shift, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, shift),
    }
    if op in affine:
        image = image.transform(image.size, Image.Transform.AFFINE, affine[op], Image.Resampling.NEAREST)
    elif op == "Rotate":
        image = image.rotate(value, Image.Resampling.NEAREST)
    elif op in ("Brightness", "Color", "Contrast", "Sharpness"):
        image = getattr(ImageEnhance, op)(image).enhance(value)
    elif op == "Posterize":
        image = PillowOps.posterize(image, int(value))
    elif op == "Solarize":
        image = PillowOps.solarize(image, value)
    elif op != "Identity":
        image = {"AutoContrast": PillowOps.autocontrast, "Equalize": PillowOps.equalize, "Invert": PillowOps.invert}[
            op
        ](image)
    return torch.from_numpy(np.array(image).reshape(*array.shape).copy()).permute(2, 0, 1)


def apply(ops: ImageOps, x: torch.Tensor, op: str, magnitude: int = 0, negative: int = 0) -> torch.Tensor:
    """Apply one operation to all images."""
    return ops.apply(x, *(torch.full((len(x),), value) for value in (NAMES.index(op), magnitude, negative)))


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (28, 28, 1), (20, 37, 3)])
def test_operations_equal_pillow(op: str, height: int, width: int, channels: int) -> None:
    """Every operation gives Pillow's levels, at every magnitude and sign, in colour and grey, square or not."""
    ops = ImageOps(height, width, torch.device("cpu"))
    x = pictures(height, width, channels)
    before = x.clone()
    changed = False
    for magnitude in range(1 if op in WITHOUT_MAGNITUDE else BINS):
        for negative in (0, 1):
            found = apply(ops, x, op, magnitude, negative)
            value = magnitude_value(op, magnitude, bool(negative), height, width)
            expected = torch.stack([by_pillow(image, op, value) for image in x])
            assert int((found.int() - expected.int()).abs().max()) <= TOLERANCE, (magnitude, negative)
            changed |= not torch.equal(found, x)
    assert torch.equal(x, before)
    assert changed == (op not in ("Identity",) and not (op == "Color" and channels == 1))


def test_magnitudes_are_those_of_the_paper() -> None:
    """Table 6: ends of the ranges, the middle, and the sign, for images of 331 pixels."""
    ends = {
        "ShearX": (0.0, 0.3),
        "TranslateX": (0.0, 150.0),
        "TranslateY": (0.0, 150.0),
        "Rotate": (0.0, 30.0),
        "Solarize": (255.0, 0.0),
        "Posterize": (8, 4),
        "Contrast": (1.0, 1.9),
        "Sharpness": (1.0, 1.9),
    }
    for op, (first, last) in ends.items():
        assert magnitude_value(op, 0, False, 331, 331) == pytest.approx(first)
        assert magnitude_value(op, 9, False, 331, 331) == pytest.approx(last)
    assert [magnitude_value("Posterize", level, True, 32, 32) for level in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert magnitude_value("Rotate", 3, True, 32, 32) == pytest.approx(-10)
    assert magnitude_value("Color", 9, True, 32, 32) == pytest.approx(0.1)
    assert magnitude_value("TranslateX", 9, True, 32, 64) == pytest.approx(-29.003, abs=1e-3)


def test_operations_by_their_definition() -> None:
    """Inverting twice is nothing, posterised levels have no low bits, solarising turns from the threshold on."""
    ops = ImageOps(32, 32, torch.device("cpu"))
    x = pictures(32, 32, 3)
    assert torch.equal(apply(ops, apply(ops, x, "Invert"), "Invert"), x)
    assert torch.equal(apply(ops, x, "Posterize", 9), x & 0b11110000)
    threshold = magnitude_value("Solarize", 5, False, 32, 32)
    assert torch.equal(apply(ops, x, "Solarize", 5), torch.where(x < threshold, x, 255 - x))
    # Magnitude 0 of a signed operation is the identity.
    for op in NAMES[:6]:
        assert torch.equal(apply(ops, x, op), x), op


def test_each_image_has_its_own_operation() -> None:
    """A batch of mixed operations, magnitudes and signs equals the same images one by one."""
    ops = ImageOps(24, 24, torch.device("cpu"))
    rng = generator(8)
    x = torch.randint(0, 256, (90, 3, 24, 24), dtype=torch.uint8, generator=rng)
    op, magnitude, negative = (torch.randint(high, (90,), generator=rng) for high in (len(NAMES), BINS, 2))
    together = ops.apply(x, op, magnitude, negative)
    for index in range(len(x)):
        one = slice(index, index + 1)
        assert torch.equal(together[one], ops.apply(x[one], op[one], magnitude[one], negative[one])), index


@pytest.mark.parametrize("name", list(POLICIES))
def test_policies_are_complete(name: str) -> None:
    """25 sub-policies of two known operations each, with probabilities in 0..1 and magnitudes in 0..9."""
    assert len(POLICIES[name]) == 25
    for sub_policy in POLICIES[name]:
        assert len(sub_policy) == 2
        for op, chance, magnitude in sub_policy:
            assert op in NAMES
            assert 0 <= chance <= 1
            assert magnitude in range(BINS)
            assert magnitude == 0 or op not in WITHOUT_MAGNITUDE


# First 16 digits of the SHA-256 of torchvision 0.28's tables, as JSON of [operation, probability, magnitude or 0].
DIGESTS = {"cifar10": "eeb73e918e8cf912", "svhn": "4bfc8b3eb9a2132c", "imagenet": "6a098d0c5da7a97d"}


@pytest.mark.parametrize("name", list(POLICIES))
def test_tables_are_those_of_an_independent_reading(name: str) -> None:
    """Every entry equals what torchvision's authors read in the paper."""
    assert hashlib.sha256(json.dumps(POLICIES[name]).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", list(POLICIES))
def test_one_sub_policy_is_drawn_for_each_image(name: str) -> None:
    """Over 50 000 images each operation comes as often as its table says (5 sigma), and only the table's pairs come."""
    count = 50_000
    op, magnitude, negative = AutoAugment(name).draw(count, torch.device("cpu"), generator())
    for position in (0, 1):
        expected: Counter[tuple[str, int]] = Counter()
        for sub_policy in POLICIES[name]:
            step, chance, level = sub_policy[position]
            expected[step, level] += chance / 25
        applied = op[position] != NAMES.index("Identity")
        found = Counter(
            zip((NAMES[i] for i in op[position][applied].tolist()), magnitude[position][applied].tolist(), strict=True)
        )
        assert {key for key, chance in expected.items() if chance} == set(found)
        for key, chance in expected.items():
            assert abs(found[key] / count - chance) <= 5 * (chance * (1 - chance) / count) ** 0.5, key
    both = (op != NAMES.index("Identity")).all(0)
    chance = sum(first[1] * second[1] for first, second in POLICIES[name]) / 25
    assert abs(float(both.double().mean()) - chance) < 5 * (chance * (1 - chance) / count) ** 0.5
    drawn = {tuple(NAMES[i] for i in pair) for pair in op[:, both].T.tolist()}
    assert drawn == {(first[0], second[0]) for first, second in POLICIES[name] if first[1] > 0 and second[1] > 0}
    assert 0.49 < float(negative.double().mean()) < 0.51
    assert 0.49 < float((negative[0] == negative[1]).double().mean()) < 0.51


def test_random_policy_is_even() -> None:
    """Both operations of an image are drawn evenly and independently, and so are magnitudes and signs (5 sigma)."""
    count = 60_000
    draws = AutoAugment(RANDOM).draw(count, torch.device("cpu"), generator())
    for values, high in zip(draws, (len(NAMES), BINS, 2), strict=True):
        for position in (0, 1):
            share = torch.bincount(values[position], minlength=high) / count
            assert len(share) == high
            assert float((share - 1 / high).abs().max()) < 5 * (1 / high / count) ** 0.5
        same = float((values[0] == values[1]).double().mean())
        assert abs(same - 1 / high) < 5 * (1 / high / count) ** 0.5


@pytest.mark.parametrize("policy", [*POLICIES, RANDOM])
def test_the_generator_decides(policy: str) -> None:
    """The same state gives the same batch, another one another; the state afterwards depends on the count alone."""
    x = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=generator(1))
    before = x.clone()
    augment = AutoAugment(policy)
    first = generator(5)
    out = augment(x, first)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(out, AutoAugment(policy)(x, generator(5)))
    assert not torch.equal(out, augment(x, generator(6)))
    other = generator(5)
    augment(x.flip(0)[..., :1], other)
    assert torch.equal(first.get_state(), other.get_state())


def test_probability_zero_is_nothing_and_one_is_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """With probability 0 the images stay; with 1 every image changes, twice where both steps do."""
    x = torch.randint(0, 256, (200, 12, 12, 3), dtype=torch.uint8, generator=generator(1))
    for chance, expected in ((0.0, x), (1.0, 255 - x)):
        monkeypatch.setitem(autoaugment.POLICIES, "svhn", ((("Invert", chance, 0), ("Posterize", 0.0, 9)),) * 25)
        assert torch.equal(AutoAugment("svhn")(x, generator()), expected)
    monkeypatch.setitem(autoaugment.POLICIES, "svhn", ((("Invert", 1.0, 0), ("Posterize", 1.0, 9)),) * 25)
    assert torch.equal(AutoAugment("svhn")(x, generator()), (255 - x) & 0b11110000)


def test_augment_applies_it_between_the_flip_and_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`autoaugment` sees whole uint8 levels after crop and flip; evaluation sees none of it."""
    monkeypatch.setitem(autoaugment.POLICIES, "cifar10", ((("Invert", 1.0, 0), ("Posterize", 1.0, 0)),) * 25)
    x = torch.randint(0, 256, (20, 12, 12, 3), dtype=torch.uint8, generator=generator(1))
    plain = Augment(AugmentConfig(crop_padding=2, flip=True), 33, 78.0)
    changed = Augment(AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10"), 33, 78.0)
    # What the crop brought in is black, and black inverted is white: the policy came after the crop.
    torch.testing.assert_close(
        changed(x, generator()) * 78 + 33, 255 - (plain(x, generator()) * 78 + 33), atol=1e-3, rtol=0
    )
    assert torch.equal(changed.normalise(x), plain.normalise(x))


def test_unknown_policy_is_refused() -> None:
    """A recipe with a policy that does not exist is a configuration error that names the known ones."""
    with pytest.raises(ConfigError, match="augment.autoaugment.*cifar10.*random"):
        load_recipe("smoke", ["data.augment.autoaugment=cifar100"])


def test_equal_to_torchvision() -> None:
    """Tables and results equal torchvision's, which reads the paper the same way, on 100 images per operation."""
    reference = pytest.importorskip("torchvision.transforms.autoaugment", reason="torchvision is not installed")
    ops = ImageOps(32, 32, torch.device("cpu"))
    x = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=generator(2))
    for name, policy in POLICIES.items():
        theirs = reference.AutoAugment(reference.AutoAugmentPolicy(name))
        assert policy == tuple(tuple((op, p, m or 0) for op, p, m in pair) for pair in theirs.policies)
    space = theirs._augmentation_space(BINS, (32, 32))
    rng = generator(4)
    for op in NAMES[:-1]:
        magnitudes, signed = space[op]
        level, negative = torch.randint(BINS, (100,), generator=rng), torch.randint(2, (100,), generator=rng)
        found = ops.apply(x, torch.full((100,), NAMES.index(op)), level, negative)
        for index in range(100):
            value = float(magnitudes[level[index]]) if magnitudes.ndim else 0.0
            value *= -1 if signed and negative[index] else 1
            image = Image.fromarray(x[index].permute(1, 2, 0).numpy().copy())
            nearest = reference.InterpolationMode.NEAREST
            expected = np.array(reference._apply_op(image, op, value, interpolation=nearest, fill=None))
            difference = found[index].permute(1, 2, 0).numpy().astype(int) - expected.astype(int)
            assert np.abs(difference).max() <= TOLERANCE, (op, index)
