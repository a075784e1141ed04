"""What exporting a student costs beyond PyTorch's own import and ONNX export: `python benchmarks/export_cost.py`.

Prints one JSON object: seconds on the clock and of the processor, and MiB of memory beyond what the process had after
the ONNX export. Linux only: the peak is the kernel's, reset before the measurement.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from tinykd.export import convert
from tinykd.formats.onnx import torch as onnx_torch
from tinykd.formats.onnx import writer as onnx_writer
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import graph_macs
from tinykd.models import build_model
from tinykd.plan import plan_for_tflm, tflm_offsets


def resident_mib(key: str) -> float:
    """Return VmRSS (now) or VmHWM (the peak) of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) / 1024


def main() -> None:
    """Export a student with random weights; print the cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--args", type=json.loads, default={"width": 0.5, "head_channels": 640, "stem_stride": 1})
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--images", type=int, default=500, help="calibration images")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(arguments.model, 10, arguments.resolution, 3, **arguments.args)
    shape = (3, arguments.resolution, arguments.resolution)
    float_onnx = onnx_torch.export_torch(model, shape)
    images = np.random.default_rng(0).integers(0, 256, (arguments.images, *shape[1:], 3)).astype(np.uint8)
    Path("/proc/self/clear_refs").write_text("5")
    before, started, used = resident_mib("VmRSS"), time.perf_counter(), time.process_time()
    _, graph = convert.convert(float_onnx, images, convert.Normalization(128, 64.0), name=arguments.model)
    tflite = tflite_writer.write(graph, tflm_offsets(plan_for_tflm(graph)))
    qdq = onnx_writer.write_qdq(graph)
    seconds, used, peak = time.perf_counter() - started, time.process_time() - used, resident_mib("VmHWM")
    result = {
        "model": arguments.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": graph_macs(graph),
        "calibration_images": arguments.images,
        "tflite_bytes": len(tflite),
        "qdq_bytes": len(qdq),
        "seconds": round(seconds, 2),
        "processor_seconds": round(used, 2),
        "beyond_mib": round(peak - before, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
