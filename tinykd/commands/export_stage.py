"""Makes RUN/export/ from RUN/train/: float ONNX, int8 graph, `.tflite` with its memory plan, QDQ ONNX, accuracies."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import Manifest, draft_artifact, read_manifest
from tinykd.commands.pipeline import find_fresh
from tinykd.commands.target import MODEL_FILE
from tinykd.errors import ConfigError, ParityError
from tinykd.train import QAT_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from tinykd.config import Recipe
    from tinykd.data.base import Dataset
    from tinykd.models.load import ModelSpec

_STEM = MODEL_FILE.removesuffix(".tflite")
FLOAT_ONNX, QDQ_ONNX = f"{_STEM}.float.onnx", f"{_STEM}.qdq.onnx"
STUDENT = "student.safetensors"
_EXIT = re.compile(r"exits/exit(\d+)\.safetensors")
_PARITY_SAMPLES = 4


@dataclass(frozen=True)
class ExportOptions:
    """How a student is quantised.

    Attributes:
        calibration_images: images of the training split.
        calibration_seed: which ones.
        method: how ranges are found, a key of `tinykd.export.calibrate.METHODS`.
        qat: take the student's weights and ranges from training with rounding in the loop; early exits have none.
    """

    calibration_images: int
    calibration_seed: int
    method: str
    qat: bool


def ensure_export(run: Path, *, method: str | None = None, qat: bool | None = None, again: bool = False) -> Manifest:
    """Export the trained student of a run, and its early exits; an unharmed export of the same ones is kept.

    Args:
        run: the run's folder.
        method: how ranges are found, a key of `tinykd.export.calibrate.METHODS`; None is "minmax".
        qat: whether weights and scales come from quantisation-aware training; None: where the run has them.
        again: export also what has not changed.

    Raises:
        ArtifactError: the run has no finished training.
        ConfigError: `qat` without such a training, or with a method.
        UnsupportedModelError: the student has a layer that has no int8 form.
        ParityError: the exported model differs from TFLite Micro: a bug of tinykd's.
    """
    from tinykd.config import load_recipe

    trained = read_manifest(run / "train", "train")
    recipe = load_recipe(run / "train" / "recipe.yaml")
    qat = _use_qat(trained, recipe, qat, method)
    settings = recipe.export
    options = ExportOptions(settings.calibration_images, settings.calibration_seed, method or "minmax", qat)
    wanted = {STUDENT, QAT_WEIGHTS} if qat else {STUDENT}
    inputs = {name: digest for name, digest in trained.outputs.items() if name in wanted or _EXIT.fullmatch(name)}
    folder = run / "export"
    if not again and (manifest := find_fresh(folder, "export", inputs, options.__dict__)):
        return manifest
    with draft_artifact(
        folder, "export", inputs=inputs, config=options.__dict__, seed=options.calibration_seed, tools=_tools()
    ) as draft:
        results = _export(run, recipe, options, inputs, draft.folder)
        draft.results.update(results)
    return read_manifest(folder, "export")


def _use_qat(trained: Manifest, recipe: Recipe, wanted: bool | None, method: str | None) -> bool:
    """Return whether weights and scales come from quantisation-aware training."""
    available = QAT_WEIGHTS in trained.outputs
    if wanted and not available:
        raise ConfigError(
            f"export --qat: the student of '{recipe.name}' was not trained with quantisation in the loop",
            "Add a `qat` section to the recipe and train it, or leave the option out.",
        )
    qat = available if wanted is None else wanted
    if qat and method is not None:
        raise ConfigError(
            "export --calibration: the ranges of this student come from quantisation-aware training",
            "Add --ptq to calibrate the float student instead.",
        )
    return qat


def _export(run: Path, recipe: Recipe, options: ExportOptions, names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Export the student and the early exits among the files `names` of RUN/train; return the stage's results."""
    from tinykd.data import load_dataset
    from tinykd.models.load import load_model

    started = time.perf_counter()
    dataset = load_dataset(recipe.data)
    student, spec = load_model(run / "train" / STUDENT)
    rounded = run / "train" / QAT_WEIGHTS if options.qat else None
    results = {
        "name": recipe.name,
        **_export_network(student, spec, dataset, options, folder, _STEM, recipe.name, rounded),
    }
    exits = []
    for number in sorted(int(found[1]) for name in names if (found := _EXIT.fullmatch(name))):
        part, part_spec = load_model(run / "train" / f"exits/exit{number}.safetensors")
        name = f"{recipe.name}-exit{number}"
        exported = _export_network(part, part_spec, dataset, options, folder, f"exits/exit{number}", name)
        exits.append({"name": name, "exit": number, "model": part_spec.model, **exported})
    return {**results, "exits": exits, "seconds": round(time.perf_counter() - started, 3)}


def _export_network(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset,
    options: ExportOptions,
    folder: Path,
    stem: str,
    name: str,
    rounded: Path | None = None,
) -> dict[str, Any]:
    """Quantise one network into `folder/<stem>.tflite`, `.float.onnx` and `.qdq.onnx`; return what it has become.

    Its weights and ranges come from the file `rounded` that quantisation-aware training wrote, or from calibration.
    """
    from tinykd.data import calibration
    from tinykd.export import convert, float_reference, oracle, parity, quantize, reference
    from tinykd.formats import onnx_torch, onnx_writer, tflite_writer
    from tinykd.ir import graph_macs
    from tinykd.plan import plan_for_tflm, tflm_offsets

    float_file, int8_file, qdq_file = f"{stem}.float.onnx", f"{stem}.tflite", f"{stem}.qdq.onnx"
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    float_onnx = onnx_torch.export_torch(model, (spec.in_channels, spec.resolution, spec.resolution))
    (folder / float_file).write_bytes(float_onnx)

    started = time.perf_counter()
    normalization = convert.Normalization(spec.mean_level, spec.std_level)
    if rounded is None:
        images = calibration.calibration_images(dataset, options.calibration_images, options.calibration_seed)
        float_graph, graph = convert.convert(float_onnx, images, normalization, name=name, method=options.method)
    else:
        from tinykd.train.qat import load_quantised

        float_graph, input_quant = convert.lower(float_onnx, name), normalization.input_quant()
        student = load_quantised(rounded, float_graph, input_quant)
        graph = quantize.quantize(student.float_graph(), student.named_ranges(), input_quant)
    tflm_plan = plan_for_tflm(graph)
    tflite = tflite_writer.write(graph, tflm_offsets(tflm_plan))
    (folder / int8_file).write_bytes(tflite)
    (folder / qdq_file).write_bytes(onnx_writer.write_qdq(graph))
    convert_seconds = time.perf_counter() - started

    x = convert.to_device(dataset.test.images)
    labels = dataset.test.labels
    predicted_float = float_reference.run(float_graph, normalization.to_float(dataset.test.images)).argmax(axis=1)
    predicted_int8 = reference.run_output(graph, x).argmax(axis=1)
    compared = parity.compare(graph, tflite, x[:_PARITY_SAMPLES]) if oracle.is_available() else None
    if compared is not None and compared.first_mismatch is not None:
        raise ParityError(
            f"the exported {stem} differs from TFLite Micro first at {compared.first_mismatch.describe()}",
            "Nothing was written. Please report it with the recipe: this is a bug of tinykd's.",
        )
    return {
        "model_tflite": int8_file,
        "model_onnx": qdq_file,
        "model_float_onnx": float_file,
        "tflite_bytes": len(tflite),
        "top1_float": float(np.mean(predicted_float == labels)),
        "top1_int8": float(np.mean(predicted_int8 == labels)),
        "agree": float(np.mean(predicted_float == predicted_int8)),
        "samples": len(labels),
        "quantised_by": "ptq" if rounded is None else "qat",
        "calibration_images": len(images) if rounded is None else None,
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
