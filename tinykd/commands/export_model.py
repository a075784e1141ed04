"""Makes RUN/export/ from an ONNX model that tinykd did not train: float with calibration data, or with its scales."""

from __future__ import annotations

import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import Manifest, draft_artifact, read_manifest, sha256_file
from tinykd.commands.export_files import (
    SENSITIVITY,
    STEM,
    describe_quantised,
    export_tools,
    write_network,
    write_sensitivity,
)
from tinykd.commands.pipeline import find_fresh
from tinykd.errors import ConfigError

if TYPE_CHECKING:
    from tinykd.export.convert import Normalization
    from tinykd.export.ptq import PtqOptions, Tick
    from tinykd.ir import Graph, Quant

_ARRAY_NAMES = ("images", "x", "inputs")
MOST_IMAGES = 10_000
"""Images that are read from a folder at most."""


@dataclass(frozen=True)
class Calibration:
    """What the model was fed with, and how.

    Attributes:
        path: a folder of images, or a `.npy` or `.npz` file.
        mean, std: `(pixel / 255 - mean) / std` is what the model takes; one number or one for each channel.
            None for float data, which is taken as it is.
    """

    path: Path
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def ensure_model_export(
    model: Path,
    folder: Path,
    calibration: Calibration | None,
    options: PtqOptions,
    *,
    sensitivity: bool = False,
    again: bool = False,
    tick: Tick | None = None,
) -> Manifest:
    """Export an ONNX model into RUN `folder`; an unharmed export of the same one is kept.

    Args:
        model: float ONNX, or ONNX with QuantizeLinear and DequantizeLinear, which brings its own scales.
        folder: RUN.
        calibration: of a float model.
        options: how a float model is quantised.
        sensitivity: also measure what each layer's rounding costs, into `sensitivity.json`.
        again: export also what has not changed.
        tick: shows progress; see `tinykd.export.ptq.Tick`.

    Raises:
        ConfigError: calibration data that is missing, unreadable or does not suit the model; a QDQ model with options
            that only a float one can have.
        UnsupportedModelError: the model has a node or a structure that has no int8 form.
        ParityError: the exported model differs from TFLite Micro: a bug of tinykd's.
    """
    inputs = {"model": sha256_file(model)}
    config: dict[str, Any] = {**asdict(options), "mean": None, "std": None}
    if calibration is not None:
        inputs["calibration"] = _digest(calibration.path)
        config |= {"mean": _listed(calibration.mean), "std": _listed(calibration.std)}
    place = folder / "export"
    manifest = None if again else find_fresh(place, "export", inputs, config)
    if manifest is not None and (not sensitivity or SENSITIVITY in manifest.outputs):
        return manifest
    with draft_artifact(place, "export", inputs=inputs, config=config, tools=export_tools()) as draft:
        draft.results.update(_export(model, calibration, options, draft.folder, sensitivity, tick))
    return read_manifest(place, "export")


def _export(
    model: Path,
    calibration: Calibration | None,
    options: PtqOptions,
    folder: Path,
    sensitivity: bool,
    tick: Tick | None,
) -> dict[str, Any]:
    from tinykd.export import convert, ptq

    started = time.perf_counter()
    data, name = model.read_bytes(), model.stem
    results: dict[str, Any] = {"name": name, "top1_float": None, "top1_int8": None, "exits": []}
    if _is_quantised(data):
        if calibration is not None or sensitivity or options != ptq.PtqOptions():
            raise ConfigError(
                f"{model} brings its own scales: calibration data and options of quantisation are for float models",
                "Leave them out, or export the float model that it was made from.",
            )
        written = _write_quantised(data, name, folder)
        return {**results, **written, "seconds": round(time.perf_counter() - started, 3)}
    if calibration is None:
        raise ConfigError(
            f"{model} is a float model: its ranges must be found on data",
            "Give --calibration-data FOLDER|FILE.npy|FILE.npz, with some hundred inputs it was trained on.",
        )
    fed = _feed(convert.lower(data, name), calibration)
    quantised = ptq.quantise_trained(fed.graph, fed.x, fed.input_quant, options, tick=tick)
    device = fed.to_device(fed.x)
    written = write_network(quantised.graph, data, folder, STEM, device)
    if sensitivity:
        write_sensitivity(quantised.float_graph, quantised.graph, fed.x, folder, tick)
    return {
        **results,
        **written,
        **_agreement(fed.graph, quantised.graph, fed.x, device),
        "quantised_by": "ptq",
        "calibration_images": len(fed.x),
        "input": fed.describe,
        **describe_quantised(quantised, options.method),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _is_quantised(data: bytes) -> bool:
    """Whether an ONNX model has scales of its own."""
    from tinykd.formats.onnx import reader as onnx_reader

    return any(node.op_type == "DequantizeLinear" for node in onnx_reader.load(data).graph.node)


def _write_quantised(data: bytes, name: str, folder: Path) -> dict[str, Any]:
    """Write what a QDQ model says; return its part of the results."""
    from tinykd.export import parity
    from tinykd.formats.onnx import reader as onnx_reader

    graph = onnx_reader.read_quantised(data, name)
    written = write_network(graph, None, folder, STEM, parity.test_inputs(graph, 8, 0))
    rest = dict.fromkeys(("agree", "sqnr_db", "calibration_images"))
    return {**written, **rest, "samples": 0, "quantised_by": "qdq", **describe_quantised(None, "")}


def _agreement(float_graph: Graph, graph: Graph, x: np.ndarray, device: np.ndarray) -> dict[str, Any]:
    """Return how the int8 model compares with the float one on the calibration inputs; there are no others."""
    from tinykd.export import float_reference, reference
    from tinykd.export.simulate import sqnr_db
    from tinykd.ir import tensor_quant

    wanted = float_reference.run(float_graph, x)
    integers = reference.run_output(graph, device)
    quant = tensor_quant(graph.tensor(graph.outputs[0]))
    real = (integers.astype(np.float32) - quant.zero_point) * np.float32(quant.scale)
    agree = float(np.mean(wanted.argmax(axis=1) == integers.argmax(axis=1))) if wanted.shape[1] > 1 else None
    return {"samples": len(x), "agree": agree, "sqnr_db": round(sqnr_db(wanted, real), 2)}


@dataclass(frozen=True)
class _Fed:
    """A float graph, and what it is fed with: x float32 (N, ...), and the input's parameters on the device."""

    graph: Graph
    x: np.ndarray
    input_quant: Quant
    describe: str

    def to_device(self, x: np.ndarray) -> np.ndarray:
        """Return float inputs as the int8 values that the device takes."""
        from tinykd.export.quantize import to_int8

        return to_int8(x, self.input_quant)


def _feed(graph: Graph, calibration: Calibration) -> _Fed:
    from tinykd.export.normalize import take_pixels
    from tinykd.ir.affine import activation_quant

    shape = graph.tensor(graph.inputs[0]).shape
    data = _read(calibration.path, shape)
    if data.dtype == np.uint8:
        if calibration.mean is None or calibration.std is None:
            raise ConfigError(
                f"{calibration.path} holds pixels, and nothing says how the model takes them",
                "Give --mean and --std of (pixel / 255 - mean) / std; --mean 0 --std 1 feeds numbers from 0 to 1.",
            )
        taken = take_pixels(graph, calibration.mean, calibration.std)
        normalization: Normalization = taken.normalization
        describe = f"int8 = pixel - 128; normalisation {taken.how}"
        return _Fed(taken.graph, normalization.to_float(data), normalization.input_quant(), describe)
    if calibration.mean is not None or calibration.std is not None:
        raise ConfigError(
            f"{calibration.path} holds {data.dtype} numbers, fed as they are: --mean and --std are for pixels",
            "Leave them out, or give the images as uint8.",
        )
    if not np.isfinite(data).all():
        raise ConfigError(f"{calibration.path} holds numbers that are not finite")
    quant = activation_quant(float(data.min()), float(data.max()))
    return _Fed(graph, data, quant, f"int8 = real / {quant.scale:g} + {quant.zero_point}")


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return inputs (N, *shape[1:]): uint8, or float32.

    Raises:
        ConfigError: no such data, or of another shape.
    """
    if path.is_dir():
        return _read_folder(path, shape)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"x": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--calibration-data {path} cannot be read as .npy or .npz: {error}") from error
    data = next((arrays[name] for name in _ARRAY_NAMES if name in arrays), None)
    if data is None:
        raise ConfigError(
            f"--calibration-data {path} has no array '{_ARRAY_NAMES[0]}'; it has: {', '.join(sorted(arrays))}"
        )
    if data.dtype != np.uint8 and data.dtype.kind != "f":
        raise ConfigError(f"--calibration-data {path} holds {data.dtype}; expected uint8 pixels or float numbers")
    if data.dtype != np.uint8:
        data = data.astype(np.float32)
    wanted = tuple(shape[1:])
    if len(data) and data.shape[1:] != wanted and len(wanted) == 3 and data.shape[1:] == (wanted[2], *wanted[:2]):
        # As ONNX models take images: channels first.
        data = data.transpose(0, 2, 3, 1)
    if len(data) == 0 or data.shape[1:] != wanted:
        raise ConfigError(
            f"--calibration-data {path} holds {data.shape}; the model takes (N, {', '.join(map(str, wanted))})"
        )
    return np.ascontiguousarray(data)


def _read_folder(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from tinykd.data.folder import read_images

    if len(shape) != 4 or shape[1] != shape[2] or shape[3] not in (1, 3):
        raise ConfigError(
            f"--calibration-data {path} is a folder of images, but the model's input is {tuple(shape)}",
            "Only square images with 1 or 3 channels are read from a folder: give a .npy or .npz file.",
        )
    return read_images(path, shape[1], grey=shape[3] == 1, limit=MOST_IMAGES)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files."""
    import hashlib

    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise ConfigError(f"--calibration-data {path}: there is no such file or folder")
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)
