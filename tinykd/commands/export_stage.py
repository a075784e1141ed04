"""Makes RUN/export/ from RUN/train/: float ONNX, int8 graph, `.tflite` with its memory plan, QDQ ONNX, accuracies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import Manifest, draft_artifact, read_manifest
from tinykd.commands.pipeline import find_fresh
from tinykd.commands.target import MODEL_FILE
from tinykd.errors import ParityError

if TYPE_CHECKING:
    from tinykd.config import Recipe

FLOAT_ONNX, QDQ_ONNX = "model.float.onnx", "model.qdq.onnx"
_PARITY_SAMPLES = 4


@dataclass(frozen=True)
class ExportOptions:
    """How a student is quantised.

    Attributes:
        calibration_images: images of the training split.
        calibration_seed: which ones.
        method: how ranges are found, a key of `tinykd.export.calibrate.METHODS`.
    """

    calibration_images: int
    calibration_seed: int
    method: str


def ensure_export(run: Path, *, method: str = "minmax", again: bool = False) -> Manifest:
    """Export the trained student of a run; an unharmed export of the same student and options is kept.

    Raises:
        ArtifactError: the run has no finished training.
        UnsupportedModelError: the student has a layer that has no int8 form.
        ParityError: the exported model differs from TFLite Micro: a bug of tinykd's.
    """
    from tinykd.config import load_recipe

    trained = read_manifest(run / "train", "train")
    recipe = load_recipe(run / "train" / "recipe.yaml")
    options = ExportOptions(recipe.export.calibration_images, recipe.export.calibration_seed, method)
    inputs = {"student.safetensors": trained.outputs["student.safetensors"]}
    folder = run / "export"
    if not again and (manifest := find_fresh(folder, "export", inputs, options.__dict__)):
        return manifest
    with draft_artifact(
        folder, "export", inputs=inputs, config=options.__dict__, seed=options.calibration_seed, tools=_tools()
    ) as draft:
        results = _export(run, recipe, options, draft.folder)
        draft.results.update(results)
    return read_manifest(folder, "export")


def _export(run: Path, recipe: Recipe, options: ExportOptions, folder: Path) -> dict[str, Any]:
    from tinykd.data import calibration, load_dataset
    from tinykd.export import convert, float_reference, oracle, parity, reference
    from tinykd.formats import onnx_torch, onnx_writer, tflite_writer
    from tinykd.ir import graph_macs
    from tinykd.models.load import load_spec, load_student
    from tinykd.plan import plan_for_tflm, tflm_offsets

    model, _ = load_student(run)
    spec = load_spec(run)
    dataset = load_dataset(recipe.data)
    float_onnx = onnx_torch.export_torch(model, (spec.in_channels, spec.resolution, spec.resolution))
    (folder / FLOAT_ONNX).write_bytes(float_onnx)

    started = time.perf_counter()
    normalization = convert.Normalization(spec.mean_level, spec.std_level)
    images = calibration.calibration_images(dataset, options.calibration_images, options.calibration_seed)
    float_graph, graph = convert.convert(float_onnx, images, normalization, name=recipe.name, method=options.method)
    tflm_plan = plan_for_tflm(graph)
    tflite = tflite_writer.write(graph, tflm_offsets(tflm_plan))
    (folder / MODEL_FILE).write_bytes(tflite)
    (folder / QDQ_ONNX).write_bytes(onnx_writer.write_qdq(graph))
    convert_seconds = time.perf_counter() - started

    x = convert.to_device(dataset.test.images)
    labels = dataset.test.labels
    predicted_float = float_reference.run(float_graph, normalization.to_float(dataset.test.images)).argmax(axis=1)
    predicted_int8 = reference.run_output(graph, x).argmax(axis=1)
    compared = parity.compare(graph, tflite, x[:_PARITY_SAMPLES]) if oracle.is_available() else None
    if compared is not None and compared.first_mismatch is not None:
        raise ParityError(
            f"the exported model differs from TFLite Micro first at {compared.first_mismatch.describe()}",
            "Nothing was written. Please report it with the recipe: this is a bug of tinykd's.",
        )
    return {
        "name": recipe.name,
        "model_tflite": MODEL_FILE,
        "model_onnx": QDQ_ONNX,
        "model_float_onnx": FLOAT_ONNX,
        "tflite_bytes": len(tflite),
        "top1_float": float(np.mean(predicted_float == labels)),
        "top1_int8": float(np.mean(predicted_int8 == labels)),
        "agree": float(np.mean(predicted_float == predicted_int8)),
        "samples": len(labels),
        "calibration_images": len(images),
        "tflm_head_bytes": tflm_plan.arena_bytes,
        "macs": graph_macs(graph),
        "parity_values_checked": compared.values_checked if compared else None,
        "convert_seconds": round(convert_seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _tools() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "onnx", "numpy", "tflite-micro"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
