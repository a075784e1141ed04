"""Our converter in a process of its own: float ONNX and calibration images become an int8 `.tflite`.

Run by `python -m benchmarks.converters`: arguments are the ONNX file, the calibration `.npz` and the file to write; the
last line on stdout is what it cost, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()


def cost() -> dict[str, float]:
    """Return what this process took so far: seconds on the clock and of the processor, and its peak memory in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": round(time.perf_counter() - STARTED, 2),
        "processor_seconds": round(time.process_time(), 2),
        "peak_mib": round(int(status["VmHWM"].split()[0]) / 1024, 1),
    }


def main() -> None:
    """Convert, and tell the cost."""
    import numpy as np

    from tinykd.export import convert
    from tinykd.formats.tflite import writer as tflite_writer

    onnx_file, data_file, out = (Path(argument) for argument in sys.argv[1:4])
    data = np.load(data_file)
    normalization = convert.Normalization(int(data["mean_level"]), float(data["std_level"]))
    _, graph = convert.convert(onnx_file.read_bytes(), data["images"], normalization, name="student")
    out.write_bytes(tflite_writer.write(graph))
    print(json.dumps(cost()))


if __name__ == "__main__":
    main()
