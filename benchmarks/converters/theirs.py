"""Other converters, in an environment of their own: TensorFlow's behind onnx2tf, and onnxruntime's quantiser.

Run by `python -m benchmarks.converters`, without tinykd: arguments are the route ("tensorflow" or "onnxruntime"), the
ONNX file, the calibration `.npz` and the file to write; the last line on stdout is what it cost, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

STARTED = time.perf_counter()


def tensorflow(onnx_file: Path, x: np.ndarray, out: Path) -> tuple[str, ...]:
    """Convert through onnx2tf and TensorFlow: full int8, calibrated on x (N, H, W, C)."""
    import onnx
    import onnx2tf
    import onnxoptimizer
    import onnxsim
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(onnx_file)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        model, _ = onnxsim.simplify(model)
        # Without this onnx2tf transposes our Pad nodes wrongly and stops at the first addition.
        model = onnxoptimizer.optimize(model, ["fuse_pad_into_conv"])
        simple = Path(folder) / "model.onnx"
        onnx.save(model, simple)
        saved = str(Path(folder) / "saved")
        onnx2tf.convert(
            input_onnx_file_path=str(simple),
            output_folder_path=saved,
            non_verbose=True,
            tflite_backend="tf_converter",
            output_signaturedefs=True,
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in x)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        out.write_bytes(converter.convert())
    return "onnx2tf", "tensorflow", "onnx", "numpy"


def onnxruntime(onnx_file: Path, x: np.ndarray, out: Path) -> tuple[str, ...]:
    """Write a QDQ ONNX model: static, min-max ranges, weights per channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Gives the images one by one, as the model takes them."""

        def __init__(self) -> None:
            self.rest = iter(np.ascontiguousarray(image[None].transpose(0, 3, 1, 2)) for image in x)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next image, or None."""
            image = next(self.rest, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(onnx_file), prepared)
        quantize_static(
            prepared,
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    return "onnxruntime", "onnx", "numpy"


def run_onnx(model: Path, x: np.ndarray) -> np.ndarray:
    """Return the outputs of an ONNX model for x (N, H, W, C): graph optimisation off, for its int8 kernels saturate."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return np.concatenate([session.run(None, {"image": images[i : i + 100]})[0] for i in range(0, len(images), 100)])


def cost() -> dict[str, float]:
    """Return what this process took so far: seconds on the clock and of the processor, and its peak memory in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": round(time.perf_counter() - STARTED, 2),
        "processor_seconds": round(time.process_time(), 2),
        "peak_mib": round(int(status["VmHWM"].split()[0]) / 1024, 1),
    }


def main() -> None:
    """Convert, and tell the cost; the QDQ model is also run on the test images, beside the file."""
    route, onnx_file, data_file, out = sys.argv[1], *(Path(argument) for argument in sys.argv[2:5])
    data = np.load(data_file)
    packages = {"tensorflow": tensorflow, "onnxruntime": onnxruntime}[route](onnx_file, data["x"], out)
    spent = cost()
    if route == "onnxruntime":
        np.save(out.with_suffix(".npy"), run_onnx(out, data["test"]))
    print(json.dumps({**spent, "versions": {name: version(name) for name in packages}}))


if __name__ == "__main__":
    main()
