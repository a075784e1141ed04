"""Makes RUN/boards/<board>/bench/: builds when needed, chooses inputs, runs them on a device, compares the outputs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import draft_artifact, sha256_file, write_json
from tinykd.commands.pipeline import board_inputs, ensure_build, find_fresh, host_outputs
from tinykd.commands.target import Target
from tinykd.errors import ConfigError, ParityError

if TYPE_CHECKING:
    from tinykd.board import Board
    from tinykd.kernels import OptimizeFor
    from tinykd.run.transport import Transport

BENCH_FILE, OUTPUTS_FILE, WRONG_FILE = "bench.json", "outputs.npz", "wrong.npz"
MOST_WRONG_IMAGES = 16
DATASET_SAMPLES = 1000
RANDOM_SAMPLES = 20
_ARRAY_NAMES = ("inputs", "images", "x")
_LABEL_NAMES = ("labels", "y")


@dataclass(frozen=True)
class BenchOptions:
    """What to run where.

    Attributes:
        sim: name of the emulator, or None for a real board.
        port: serial port of the real board; None looks for it by its USB ids.
        samples: number of inputs; None means all that `data` has, at most 1000 of a data set, 20 random ones.
        seed: of random inputs, and of the choice among a data set's test images.
        data: .npy or .npz with inputs, or None.
        profile_samples: for how many inputs each op is measured.
    """

    sim: str | None = "unicorn"
    port: str | None = None
    samples: int | None = None
    seed: int = 0
    data: str | None = None
    profile_samples: int = 3


@dataclass(frozen=True)
class Inputs:
    """What a device is given.

    Attributes:
        x: int8 (N, elements).
        images: uint8 (N, H, W, C), for people; None when there are none.
        labels: int64 (N,), or None.
        source: where they come from, for people.
    """

    x: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray | None
    source: str


def ensure_bench(
    target: Target,
    board: Board,
    options: BenchOptions,
    *,
    engine: str = "tinykd",
    optimize_for: OptimizeFor = "balanced",
    again: bool = False,
    on_start: Callable[[int], Callable[[int], None]] = lambda total: lambda done: None,
) -> dict[str, Any]:
    """Benchmark a model on a board and write RUN/boards/<board>/bench/.

    Args:
        engine, optimize_for: what is built; see `ensure_build`.
        again: also when a finished bench of the same firmware, made with the same options, stands there.
        on_start: called with the number of samples; returns what is called after each with the number done.

    Returns:
        the `bench` JSON object. It is returned also when outputs differ: see its `outputs_equal` and `require_parity`.

    Raises:
        DeviceError: the device or the emulator failed; what stood there before is unchanged.
        ConfigError: the inputs do not suit the model.
        DoesNotFitError, ToolchainError: from the build.
    """
    built = ensure_build(target, board, engine, optimize_for=optimize_for)
    folder = target.board_folder(board.name, "bench")
    hashes = {**board_inputs(target, board), "firmware.elf": sha256_file(built.elf)}
    if options.data is not None:
        hashes["data"] = _hash_of(Path(options.data))
    config = {**asdict(options), "engine": engine, "optimize_for": optimize_for}
    if not again and find_fresh(folder, "bench", hashes, config):
        return json.loads((folder / BENCH_FILE).read_text())

    from tinykd.run.bench import run_bench
    from tinykd.run.session import Session

    graph = target.engine_graph()
    inputs = choose_inputs(target, graph.tensor(graph.inputs[0]).shape, options)
    with _opened(options, built.elf, board) as transport:
        reference, oracle = host_outputs(target, inputs.x)
        bench = run_bench(
            Session(transport, baud=board.baud),
            board,
            model_sha256=target.sha256(),
            ops=[op.to_dict() for op in built.ops],
            inputs=inputs.x,
            reference=reference,
            labels=inputs.labels,
            profile_samples=options.profile_samples,
            on_sample=on_start(len(inputs.x)),
        )
    result = {
        "model": target.name,
        **bench.result,
        "host": oracle,
        "inputs": inputs.source,
        "seed": options.seed,
        "optimize_for": optimize_for,
        "arena_bytes": built.arena_bytes,
        "stack_bytes_max": built.stack_bytes_max,
        "run_on_silicon": options.sim is None,
    }
    with draft_artifact(
        folder, "bench", inputs=hashes, config=config, seed=options.seed, board=board.name, tools=_tools(options)
    ) as draft:
        draft.results.update({key: value for key, value in result.items() if key not in ("per_op", "by_function")})
        write_json(draft.path(BENCH_FILE), result)
        _write_arrays(draft.path, bench.outputs, reference, inputs)
    return result


def require_parity(result: dict[str, Any]) -> None:
    """Raise ParityError when the device's outputs differ from the host's."""
    if result["outputs_equal"]:
        return
    first = result["first_mismatch"]
    raise ParityError(
        f"bench: {result['samples_different']} of {result['samples']} outputs of {result['transport']} differ from "
        f"{result['host']}; the first: sample {first['sample']}, element {first['element']}: "
        f"{first['device']} instead of {first['host']}",
        "tinykd verify says whether the model itself is sound; outputs.npz holds both sides.",
    )


def choose_inputs(target: Target, shape: tuple[int, ...], options: BenchOptions) -> Inputs:
    """Return the inputs for a model whose input has `shape` (1, ...).

    Raises:
        ConfigError: `options.data` is missing, unreadable or does not suit the model; more samples than there are.
    """
    if options.data is not None:
        return _read_data(Path(options.data), shape, options.samples)
    if target.exported:
        return _dataset_inputs(target, shape, options)
    count = options.samples or RANDOM_SAMPLES
    noise = np.random.default_rng(options.seed).integers(-128, 128, (count, int(np.prod(shape[1:]))), dtype=np.int8)
    return Inputs(noise, None, None, f"pseudo-random int8, seed {options.seed}")


def _dataset_inputs(target: Target, shape: tuple[int, ...], options: BenchOptions) -> Inputs:
    from tinykd.config import load_recipe
    from tinykd.data import load_dataset
    from tinykd.data.base import stratified_indices

    dataset = load_dataset(load_recipe(target.folder / "train" / "recipe.yaml").data)
    test = dataset.test
    count = min(options.samples or DATASET_SAMPLES, len(test))
    source = f"{dataset.name}, all {count} test images"
    if count < len(test):
        test = test.take(stratified_indices(test.labels, count, options.seed))
        source = f"{dataset.name}, {count} of {len(dataset.test)} test images, seed {options.seed}"
    return Inputs(_to_device(test.images, shape, source), test.images, test.labels, source)


def _read_data(path: Path, shape: tuple[int, ...], samples: int | None) -> Inputs:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"inputs": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--data {path} cannot be read as .npy or .npz: {error}") from error
    x = next((arrays[name] for name in _ARRAY_NAMES if name in arrays), None)
    if x is None:
        raise ConfigError(f"--data {path} has no array '{_ARRAY_NAMES[0]}'; it has: {', '.join(sorted(arrays))}")
    labels = next((arrays[name] for name in _LABEL_NAMES if name in arrays), None)
    if labels is not None and (labels.shape != (len(x),) or labels.dtype.kind not in "iu"):
        raise ConfigError(f"--data {path}: labels are {labels.dtype} {labels.shape} for {len(x)} inputs")
    if samples is not None and samples > len(x):
        raise ConfigError(f"--samples {samples}, but {path} has {len(x)} inputs")
    x = x[:samples]
    device = _to_device(x, shape, str(path))
    images = x if x.dtype == np.uint8 and x.ndim == 4 else None
    return Inputs(device, images, None if labels is None else labels[:samples].astype(np.int64), path.name)


def _to_device(x: np.ndarray, shape: tuple[int, ...], source: str) -> np.ndarray:
    """Return uint8 pixels (less 128) or int8 values as int8 (N, elements)."""
    elements = int(np.prod(shape[1:]))
    if x.dtype not in (np.uint8, np.int8) or x.ndim < 2 or not len(x) or x[0].size != elements:
        raise ConfigError(
            f"{source}: the inputs are {x.dtype} {x.shape}; the model takes int8 {shape}, or uint8 pixels of that shape"
        )
    flat = x.reshape(len(x), elements)
    return (flat ^ np.uint8(0x80)).view(np.int8) if x.dtype == np.uint8 else flat


@contextmanager
def _opened(options: BenchOptions, elf: Path, board: Board) -> Iterator[Transport]:
    from tinykd.run.transport import open_emulator, open_serial

    transport = open_serial(board, options.port) if options.sim is None else open_emulator(options.sim, elf, board)
    try:
        yield transport
    finally:
        transport.close()


def _write_arrays(path: Callable[[str], Path], outputs: np.ndarray, reference: np.ndarray, inputs: Inputs) -> None:
    from tinykd.run.bench import predicted_classes

    predictions = predicted_classes(outputs).astype(np.int64)
    arrays = {"outputs": outputs, "reference": reference, "predictions": predictions}
    if inputs.labels is not None:
        arrays["labels"] = inputs.labels
    np.savez_compressed(path(OUTPUTS_FILE), **arrays)  # type: ignore[arg-type]
    if inputs.labels is None or inputs.images is None:
        return
    wrong = np.flatnonzero(predictions != inputs.labels)[:MOST_WRONG_IMAGES]
    np.savez_compressed(
        path(WRONG_FILE),
        images=inputs.images[wrong],
        labels=inputs.labels[wrong],
        predictions=predictions[wrong],
        indices=wrong,
    )


def _hash_of(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--data {path}: there is no such file")
    return sha256_file(path)


def _tools(options: BenchOptions) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    emulation = (options.sim, "capstone") if options.sim else ("pyserial",)
    for package in ("numpy", "tflite-micro", *emulation):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
