"""Makes RUN/export/ from RUN/train/: float ONNX, int8 graph, `.tflite` with its memory plan, QDQ ONNX, accuracies."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import Manifest, draft_artifact, read_manifest
from tinykd.commands.export_files import (
    FLOAT_ONNX,
    QDQ_ONNX,
    SENSITIVITY,
    STEM,
    describe_quantised,
    export_tools,
    write_network,
    write_sensitivity,
)
from tinykd.commands.pipeline import find_fresh
from tinykd.errors import ConfigError
from tinykd.train import QAT_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from tinykd.config import Recipe
    from tinykd.data.base import Dataset
    from tinykd.export.ptq import Tick
    from tinykd.models.load import ModelSpec

STUDENT = "student.safetensors"
_EXIT = re.compile(r"exits/exit(\d+)\.safetensors")

__all__ = ["FLOAT_ONNX", "QDQ_ONNX", "STUDENT", "ExportOptions", "PtqWishes", "ensure_export"]


@dataclass(frozen=True)
class PtqWishes:
    """What a user wants of quantisation after training; None: as the recipe says.

    Attributes:
        method: how ranges are found, a key of `tinykd.export.ranges.METHODS`.
        bias_correction, equalize, search: as in `tinykd.export.ptq.PtqOptions`.
    """

    method: str | None = None
    bias_correction: bool | None = None
    equalize: bool | None = None
    search: bool | None = None

    def flags(self) -> list[str]:
        """Return the options of the command line that were given."""
        names = {"method": "calibration"}
        return [
            f"--{names.get(item.name, item.name).replace('_', '-')}"
            for item in fields(self)
            if getattr(self, item.name) is not None
        ]


@dataclass(frozen=True)
class ExportOptions:
    """How a student is quantised.

    Attributes:
        calibration_images: images of the training split.
        calibration_seed: which ones.
        qat: take the student's weights and ranges from training with rounding in the loop; early exits have none.
        method, bias_correction, equalize, search: of networks without such a training, see
            `tinykd.export.ptq.PtqOptions`.
    """

    calibration_images: int
    calibration_seed: int
    qat: bool
    method: str
    bias_correction: bool
    equalize: bool
    search: bool


def ensure_export(
    run: Path,
    wishes: PtqWishes | None = None,
    *,
    qat: bool | None = None,
    sensitivity: bool = False,
    again: bool = False,
    tick: Tick | None = None,
) -> Manifest:
    """Export the trained student of a run, and its early exits; an unharmed export of the same ones is kept.

    Args:
        run: the run's folder.
        wishes: how the student is quantised; None: as its recipe says.
        qat: whether weights and scales come from quantisation-aware training; None: where the run has them.
        sensitivity: also measure what each layer's rounding costs, into `sensitivity.json`.
        again: export also what has not changed.
        tick: shows progress; see `tinykd.export.ptq.Tick`.

    Raises:
        ArtifactError: the run has no finished training.
        ConfigError: `qat` without such a training, or with wishes.
        UnsupportedModelError: the student has a layer that has no int8 form.
        ParityError: the exported model differs from TFLite Micro: a bug of tinykd's.
    """
    from tinykd.config import load_recipe

    trained = read_manifest(run / "train", "train")
    recipe = load_recipe(run / "train" / "recipe.yaml")
    wishes = wishes or PtqWishes()
    qat = _use_qat(trained, recipe, qat, wishes)
    wanted_settings = {name: value for name, value in asdict(wishes).items() if value is not None}
    if wishes.method is not None:
        # Who names a method for all activations wants no search for each, whatever the recipe says.
        wanted_settings.setdefault("search", False)
    options = ExportOptions(qat=qat, **{**recipe.export.model_dump(), **wanted_settings})
    wanted = {STUDENT, QAT_WEIGHTS} if qat else {STUDENT}
    inputs = {name: digest for name, digest in trained.outputs.items() if name in wanted or _EXIT.fullmatch(name)}
    folder = run / "export"
    manifest = None if again else find_fresh(folder, "export", inputs, asdict(options))
    if manifest is not None and (not sensitivity or SENSITIVITY in manifest.outputs):
        return manifest
    with draft_artifact(
        folder, "export", inputs=inputs, config=asdict(options), seed=options.calibration_seed, tools=export_tools()
    ) as draft:
        results = _export(run, recipe, options, inputs, draft.folder, sensitivity, tick)
        draft.results.update(results)
    return read_manifest(folder, "export")


def _use_qat(trained: Manifest, recipe: Recipe, wanted: bool | None, wishes: PtqWishes) -> bool:
    """Return whether weights and scales come from quantisation-aware training."""
    available = QAT_WEIGHTS in trained.outputs
    if wanted and not available:
        raise ConfigError(
            f"export --qat: the student of '{recipe.name}' was not trained with quantisation in the loop",
            "Add a `qat` section to the recipe and train it, or leave the option out.",
        )
    qat = available if wanted is None else wanted
    if qat and (given := wishes.flags()):
        raise ConfigError(
            f"export {' '.join(given)}: the scales of this student come from quantisation-aware training",
            "Add --ptq to quantise the float student instead.",
        )
    return qat


def _export(
    run: Path,
    recipe: Recipe,
    options: ExportOptions,
    names: Iterable[str],
    folder: Path,
    sensitivity: bool,
    tick: Tick | None,
) -> dict[str, Any]:
    """Export the student and the early exits among the files `names` of RUN/train; return the stage's results."""
    from tinykd.data import load_dataset
    from tinykd.models.load import load_model

    started = time.perf_counter()
    dataset = load_dataset(recipe.data)
    student, spec = load_model(run / "train" / STUDENT)
    rounded = run / "train" / QAT_WEIGHTS if options.qat else None
    network = _Network(student, spec, recipe.name, rounded)
    results = {"name": recipe.name, **_export_network(network, dataset, options, folder, STEM, sensitivity, tick)}
    exits = []
    for number in sorted(int(found[1]) for name in names if (found := _EXIT.fullmatch(name))):
        part, part_spec = load_model(run / "train" / f"exits/exit{number}.safetensors")
        network = _Network(part, part_spec, f"{recipe.name}-exit{number}")
        exported = _export_network(network, dataset, options, folder, f"exits/exit{number}", False, tick)
        exits.append({"name": network.name, "exit": number, "model": part_spec.model, **exported})
    return {**results, "exits": exits, "seconds": round(time.perf_counter() - started, 3)}


@dataclass(frozen=True)
class _Network:
    """A student or an early exit; `rounded` is the file that training with rounding in the loop wrote, if any."""

    model: nn.Module
    spec: ModelSpec
    name: str
    rounded: Path | None = None


def _export_network(
    network: _Network,
    dataset: Dataset,
    options: ExportOptions,
    folder: Path,
    stem: str,
    sensitivity: bool,
    tick: Tick | None,
) -> dict[str, Any]:
    """Quantise one network into `folder/<stem>.tflite`, `.float.onnx` and `.qdq.onnx`; return what it has become."""
    from tinykd.data import calibration
    from tinykd.export import convert, float_reference, ptq, quantize, reference
    from tinykd.export.simulate import sqnr_db
    from tinykd.formats.onnx import torch as onnx_torch
    from tinykd.ir import tensor_quant

    spec, test = network.spec, dataset.test
    float_onnx = onnx_torch.export_torch(network.model, (spec.in_channels, spec.resolution, spec.resolution))

    started = time.perf_counter()
    normalization = convert.Normalization(spec.mean_level, spec.std_level)
    float_graph, input_quant = convert.lower(float_onnx, network.name), normalization.input_quant()
    images = normalization.to_float(
        calibration.calibration_images(dataset, options.calibration_images, options.calibration_seed)
    )
    quantised = None
    if network.rounded is None:
        settings = ptq.PtqOptions(options.method, options.bias_correction, options.equalize, options.search)
        quantised = ptq.quantise_trained(float_graph, images, input_quant, settings, tick=tick)
        source, graph = quantised.float_graph, quantised.graph
    else:
        from tinykd.train.qat import load_quantised

        student = load_quantised(network.rounded, float_graph, input_quant)
        source = student.float_graph()
        graph = quantize.quantize(source, student.named_ranges(), input_quant)
    x = convert.to_device(test.images)
    written = write_network(graph, float_onnx, folder, stem, x)
    convert_seconds = time.perf_counter() - started
    if sensitivity:
        write_sensitivity(source, graph, images, folder, tick)

    logits = float_reference.run(float_graph, normalization.to_float(test.images))
    integers = reference.run_output(graph, x)
    output = tensor_quant(graph.tensor(graph.outputs[0]))
    real = (integers.astype(np.float32) - output.zero_point) * np.float32(output.scale)
    answers, answers_int8 = logits.argmax(axis=1), integers.argmax(axis=1)
    return {
        **written,
        "top1_float": float(np.mean(answers == test.labels)),
        "top1_int8": float(np.mean(answers_int8 == test.labels)),
        "agree": float(np.mean(answers == answers_int8)),
        "sqnr_db": round(sqnr_db(logits, real), 2),
        "samples": len(test.labels),
        "quantised_by": "ptq" if quantised else "qat",
        "calibration_images": len(images) if quantised else None,
        **describe_quantised(quantised, options.method),
        "convert_seconds": round(convert_seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
    }
