"""The same float ONNX through our converter, TensorFlow's and onnxruntime's: accuracy, bytes, ops, seconds, memory.

    python -m benchmarks.converters --run runs/A --run runs/B

Each RUN is a trained student; all routes get the same calibration images of its training split. TensorFlow and
onnxruntime live in an environment of their own, which the first run makes (2.7 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tinykd.config import load_recipe
from tinykd.data import calibration, load_dataset
from tinykd.export import convert, float_reference, oracle, parity, reference
from tinykd.export.quantize import to_int8
from tinykd.export.simulate import sqnr_db
from tinykd.formats import tflite
from tinykd.formats.onnx import torch as onnx_torch
from tinykd.ir import tensor_quant
from tinykd.models.load import load_model

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "converters.json"
PACKAGES = ("onnx2tf==2.6.9", "tensorflow==2.21.*", "tf_keras==2.21.*")
PARITY_SAMPLES = 10


def environment(folder: Path, python: str) -> Path:
    """Return the other environment's Python; make it first when it is not there."""
    interpreter = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "ready").write_text("\n".join(PACKAGES) + "\n")
    return interpreter


def converted(command: list[str | Path]) -> dict[str, Any]:
    """Run a converter in a process of its own; return the cost that it prints last."""
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
    ours = {**os.environ, "PYTHONPATH": paths}
    theirs = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ = ours if Path(command[0]) == Path(sys.executable) else theirs
    done = subprocess.run([str(part) for part in command], env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def judge(model: Path, x: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Return what an int8 `.tflite` is worth on test images x, float32 (N, H, W, C), beside the float logits."""
    graph = tflite.read(model, model.stem)
    device = to_int8(x, tensor_quant(graph.tensor(graph.inputs[0])))
    integers = reference.run_output(graph, device)
    output = tensor_quant(graph.tensor(graph.outputs[0]))
    real = (integers.astype(np.float64) - output.zero_point) * output.scale
    compared = parity.compare(graph, model.read_bytes(), device[:PARITY_SAMPLES])
    return {
        **answers(real, labels, logits),
        "bytes": model.stat().st_size,
        "ops": dict(sorted(Counter(op.kind for op in graph.ops).items())),
        "num_ops": len(graph.ops),
        "arena_bytes": oracle.Oracle(model.read_bytes()).arena().total_bytes,
        "tflm_values": compared.values_checked,
        "tflm_mismatches": compared.mismatches,
    }


def answers(real: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Return accuracy, and agreement with the float model."""
    right, right_float = real.argmax(axis=1) == labels, logits.argmax(axis=1) == labels
    difference = right.astype(float) - right_float
    return {
        "top1": float(right.mean()),
        "difference": float(difference.mean()),
        "difference_95": float(1.96 * difference.std() / np.sqrt(len(labels))),
        "agree": float((real.argmax(axis=1) == logits.argmax(axis=1)).mean()),
        "sqnr_db": round(sqnr_db(logits, real), 2),
    }


def measure(run: Path, samples: int, python: Path) -> dict[str, Any]:
    """Return the figures of one trained student by every route."""
    recipe = load_recipe(run / "train" / "recipe.yaml")
    dataset = load_dataset(recipe.data)
    model, spec = load_model(run / "train" / "student.safetensors")
    images = calibration.calibration_images(dataset, recipe.export.calibration_images, recipe.export.calibration_seed)
    normalization = convert.Normalization(spec.mean_level, spec.std_level)
    labels, x = dataset.test.labels[:samples], normalization.to_float(dataset.test.images[:samples])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx_file, data = folder / "float.onnx", folder / "data.npz"
        onnx_file.write_bytes(onnx_torch.export_torch(model, (spec.in_channels, spec.resolution, spec.resolution)))
        levels = {"mean_level": spec.mean_level, "std_level": spec.std_level}
        np.savez(data, images=images, x=normalization.to_float(images), test=x, **levels)
        logits = float_reference.run(convert.lower(onnx_file.read_bytes(), "student"), x)
        rows: dict[str, Any] = {}
        for route in ("tinykd", "tensorflow"):
            out = folder / f"{route}.tflite"
            script: list[str | Path] = [sys.executable, HERE / "ours.py"]
            if route != "tinykd":
                script = [python, HERE / "theirs.py", route]
            rows[route] = {**converted([*script, onnx_file, data, out]), **judge(out, x, labels, logits)}
        out = folder / "onnxruntime.onnx"
        rows["onnxruntime"] = converted([python, HERE / "theirs.py", "onnxruntime", onnx_file, data, out])
        rows["onnxruntime"] |= {**answers(np.load(out.with_suffix(".npy")), labels, logits)}
        rows["onnxruntime"]["bytes"] = out.stat().st_size
    return {
        "model": spec.model,
        "recipe": recipe.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "samples": len(labels),
        "calibration_images": len(images),
        "top1_float": float((logits.argmax(axis=1) == labels).mean()),
        "routes": rows,
    }


def table(models: list[dict[str, Any]]) -> Table:
    """Return the figures for people."""
    columns = (
        "model",
        "route",
        "top-1",
        "float",
        "SQNR",
        "bytes",
        "ops",
        "arena B",
        "seconds",
        "CPU s",
        "MiB",
        "TFLM differs",
    )
    shown = Table(*columns)
    for model in models:
        for route, row in model["routes"].items():
            shown.add_row(
                model["model"],
                route,
                f"{row['top1']:.2%}",
                f"{row['difference'] * 100:+.2f} ± {row['difference_95'] * 100:.2f}",
                f"{row['sqnr_db']:.1f} dB",
                f"{row['bytes']:,}",
                str(row.get("num_ops", "")),
                f"{row['arena_bytes']:,}" if "arena_bytes" in row else "",
                f"{row['seconds']:.1f}",
                f"{row['processor_seconds']:.1f}",
                f"{row['peak_mib']:,.0f}",
                f"{row['tflm_mismatches']} of {row['tflm_values']:,}" if "tflm_values" in row else "",
            )
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", required=True, help="RUN folder of a trained student")
    parser.add_argument("--samples", type=int, default=5000, help="test images")
    parser.add_argument("--environment", type=Path, default=Path("build/converters"), help="where the others live")
    parser.add_argument("--python", default="python3.12", help="what makes that environment")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    python = environment(arguments.environment.resolve(), arguments.python)
    models = [measure(run, arguments.samples, python) for run in arguments.run]
    Console(width=150).print(table(models))
    provenance = {
        "command": "python -m benchmarks.converters " + " ".join("--run RUN" for _ in arguments.run),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": PACKAGES,
        **{package: version(package) for package in ("tinykd", "torch", "numpy", "onnx", "tflite-micro")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"provenance": provenance, "models": models}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
