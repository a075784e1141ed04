"""Your own images: one sub-folder per class, JPEG or PNG.

Either `root/<class>/*.jpg`, of which a share is kept for test, or `root/train/<class>/`, `root/test/<class>/` and, if
you like, `root/val/<class>/`. Every image is turned upright, cropped to its central square and resized.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinykd.data.base import Images, RawDataset, Split, stratified_indices
from tinykd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from tinykd.config import DataConfig

SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_RESOLUTION = 96
MAX_LISTED = 10


def read(config: DataConfig) -> RawDataset:
    """Return the images below `config.root` at `config.resolution` (96 by default).

    They are grey (one channel) when every file is grey, else RGB. Classes are the sub-folders' names, sorted.

    Raises:
        DataError: no such folder, fewer than two classes, an empty class, or images that cannot be decoded; the
            error names them.
    """
    if config.root is None:
        raise DataError("folder: the recipe does not say where the images are", "Give -s data.root=FOLDER.")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise DataError(f"folder: data.root '{config.root}' is not a folder")
    resolution = config.resolution or DEFAULT_RESOLUTION
    is_split = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [name for name in ("train", "test", "val") if (root / name).is_dir()] if is_split else [""]
    listing = {part: _list_classes(root / part) for part in parts}
    classes = tuple(listing[parts[0]])
    for part in parts[1:]:
        if tuple(listing[part]) != classes:
            difference = ", ".join(sorted(set(classes) ^ set(listing[part])))
            raise DataError(f"folder: {root / part} and {root / 'train'} have different classes: {difference}")
    files = {
        part: [(path, label) for label, name in enumerate(classes) for path in listing[part][name]] for part in parts
    }
    grey, digest = _survey([path for part in parts for path, _ in files[part]], root)
    splits = {part: _load(files[part], resolution, grey) for part in parts}
    provenance = {"source": f"folder {root.name}", "licence": "yours", "sha256": digest}
    if is_split:
        return RawDataset(splits["train"], splits["test"], classes, provenance, splits.get("val"))
    everything = splits[""]
    num_test = max(1, round(config.test_fraction * len(everything)))
    test = stratified_indices(everything.labels, num_test, config.seed)
    rest = np.setdiff1d(np.arange(len(everything)), test)
    return RawDataset(everything.take(rest), everything.take(test), classes, provenance)


def read_images(folder: Path, resolution: int, *, grey: bool, limit: int) -> Images:
    """Return images below a folder, without classes: uint8 (N, resolution, resolution, 1 or 3), sorted by name.

    Of more than `limit` images, evenly spread ones are taken.

    Raises:
        DataError: no image, or some cannot be decoded; the error names them.
    """
    paths = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not paths:
        raise DataError(f"folder: no JPEG or PNG image in {folder}")
    paths = [paths[index] for index in np.arange(min(limit, len(paths))) * len(paths) // min(limit, len(paths))]
    _survey(paths, folder)
    return _load([(path, 0) for path in paths], resolution, grey).images


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """Return class -> image files, both sorted by name."""
    found = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if len(found) < 2:
        raise DataError(
            f"folder: {folder} has {len(found)} class folders; at least 2 are needed",
            "Make one sub-folder per class and put its JPEG or PNG images there.",
        )
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"folder: no JPEG or PNG image in {', '.join(str(folder / name) for name in empty)}")
    return found


def _survey(paths: list[Path], root: Path) -> tuple[bool, str]:
    """Decode every image once: return whether all are grey, and one SHA-256 over names and contents.

    All broken images are reported together, before anything is kept.
    """
    from PIL import Image

    broken: list[str] = []
    grey = True
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(str(path.relative_to(root).as_posix()).encode())
            digest.update(path.read_bytes())
            with Image.open(path) as picture:
                picture.load()
                grey = grey and picture.mode in ("L", "1", "I;16")
        # Pillow raises SyntaxError for some broken PNG files.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"  {path}: {error}")
    if broken:
        more = f"\n  ... and {len(broken) - MAX_LISTED} more" if len(broken) > MAX_LISTED else ""
        count = f"{len(broken)} images" if len(broken) > 1 else "1 image"
        raise DataError(
            f"folder: {count} of {len(paths)} cannot be read:\n" + "\n".join(broken[:MAX_LISTED]) + more,
            "Repair, replace or delete them; nothing was trained or written.",
        )
    return grey, digest.hexdigest()


def _load(files: list[tuple[Path, int]], resolution: int, grey: bool) -> Split:
    from PIL import Image

    images: Images = np.empty((len(files), resolution, resolution, 1 if grey else 3), np.uint8)
    for index, (path, _) in enumerate(files):
        with Image.open(path) as picture:
            images[index] = _square(picture, resolution, grey)
    return Split(images, np.array([label for _, label in files], np.int64))


def _square(picture: Picture, resolution: int, grey: bool) -> Images:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture).convert("L" if grey else "RGB")
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side))
    resized = square.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(resolution, resolution, -1)
