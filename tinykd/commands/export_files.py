"""What every export writes and says about one network: its files, their sizes, and the proof against TFLite Micro."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykd.artifact import write_json
from tinykd.commands.target import MODEL_FILE
from tinykd.errors import ParityError

if TYPE_CHECKING:
    from tinykd.export.ptq import Quantised, Tick
    from tinykd.export.sensitivity import Sensitivity
    from tinykd.ir import Graph

STEM = MODEL_FILE.removesuffix(".tflite")
FLOAT_ONNX, QDQ_ONNX = f"{STEM}.float.onnx", f"{STEM}.qdq.onnx"
SENSITIVITY = "sensitivity.json"
_PARITY_SAMPLES = 4


def write_network(graph: Graph, float_onnx: bytes | None, folder: Path, stem: str, x: np.ndarray) -> dict[str, Any]:
    """Write `folder/<stem>.tflite`, `.qdq.onnx` and `.float.onnx`; return their part of the results.

    Args:
        graph: int8.
        float_onnx: what it was made from; None leaves the file out.
        folder: exists.
        stem: file names without their ends; may name a folder in `folder`.
        x: int8 inputs (N, ...); some of them are compared with TFLite Micro.

    Raises:
        ParityError: the written model differs from TFLite Micro: a bug of tinykd's.
    """
    from tinykd.export import oracle, parity
    from tinykd.formats.onnx import writer as onnx_writer
    from tinykd.formats.tflite import writer as tflite_writer
    from tinykd.ir import graph_macs
    from tinykd.plan import plan_for_tflm, tflm_offsets

    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    tflm_plan = plan_for_tflm(graph)
    tflite = tflite_writer.write(graph, tflm_offsets(tflm_plan))
    (folder / f"{stem}.tflite").write_bytes(tflite)
    (folder / f"{stem}.qdq.onnx").write_bytes(onnx_writer.write_qdq(graph))
    if float_onnx is not None:
        (folder / f"{stem}.float.onnx").write_bytes(float_onnx)
    compared = parity.compare(graph, tflite, x[:_PARITY_SAMPLES]) if oracle.is_available() else None
    if compared is not None and compared.first_mismatch is not None:
        raise ParityError(
            f"the exported {stem} differs from TFLite Micro first at {compared.first_mismatch.describe()}",
            "Nothing was written. Please report it with the model: this is a bug of tinykd's.",
        )
    return {
        "model_tflite": f"{stem}.tflite",
        "model_onnx": f"{stem}.qdq.onnx",
        "model_float_onnx": f"{stem}.float.onnx" if float_onnx is not None else None,
        "tflite_bytes": len(tflite),
        "tflm_head_bytes": tflm_plan.arena_bytes,
        "macs": graph_macs(graph),
        "parity_values_checked": compared.values_checked if compared else None,
    }


def describe_quantised(quantised: Quantised | None, method: str) -> dict[str, Any]:
    """Return how a network was quantised: the keys that `export --json` promises; None came with its scales."""
    if quantised is None:
        return dict.fromkeys(("calibration", "bias_correction", "biases_corrected", "equalized", "search"))
    correction, found = quantised.correction, quantised.found
    return {
        "calibration": "search" if found else method,
        "bias_correction": bool(correction and correction.applied),
        "biases_corrected": correction.channels if correction and correction.applied else 0,
        "equalized": len(quantised.equalized),
        "search": found
        and {
            "start": found.start,
            "evaluations": found.evaluations,
            "error_start": found.error_start,
            "error_found": found.error_found,
            "methods": dict(found.methods),
        },
    }


def write_sensitivity(float_graph: Graph, graph: Graph, x: np.ndarray, folder: Path, tick: Tick | None) -> None:
    """Measure what each layer's rounding costs on calibration images x, float32 (N, ...), and write it."""
    from tinykd.export import sensitivity
    from tinykd.export.calibrate import observe

    step = tick("Sensitivity of layers", len(graph.ops)) if tick else None
    report = sensitivity.measure(float_graph, graph, x, observe(float_graph, x), tick=step)
    write_json(folder / SENSITIVITY, report.to_dict())


def print_sensitivity(path: Path) -> None:
    """Print the table of `sensitivity.json` on stderr, and name the layers that hurt."""
    import json

    from rich.console import Console
    from rich.table import Table

    from tinykd.export.sensitivity import load

    report: Sensitivity = load(json.loads(path.read_text(encoding="utf-8")))
    table = Table(title=f"rounding, layer by layer, on {report.images} calibration images", title_justify="left")
    table.add_column("op")
    table.add_column("source", overflow="fold")
    for title in ("weights", "output", "alone", "answers", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("hint", overflow="fold")
    for layer in report.layers:
        weights = "" if layer.sqnr_weights_db is None else f"{layer.sqnr_weights_db:.1f}"
        changed = "" if layer.changed_alone is None else f"{layer.changed_alone:.1%}"
        row = [f"{layer.op} {layer.kind}", layer.source, weights, f"{layer.sqnr_activation_db:.1f}"]
        row += [f"{layer.sqnr_alone_db:.1f}", changed, f"{layer.share:.1%}", layer.hint]
        table.add_row(*row, style="bold red" if layer.hurts else None)
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(
        "weights, output: signal to rounding noise there, in dB; alone: of the network's outputs when only this layer "
        "is rounded, with the answers that change, and its share of all such errors.",
        style="dim",
    )
    names = ", ".join(f"op {layer.op} ({layer.source})" for layer in report.layers if layer.hurts)
    changed = "" if report.changed is None else f", {report.changed:.1%} of the answers change"
    console.print(f"all together: {report.sqnr_db:.1f} dB at the outputs{changed}. Layers that hurt: {names or 'none'}")


def export_tools() -> dict[str, str]:
    """Return the versions that an export depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "onnx", "numpy", "tflite-micro"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
