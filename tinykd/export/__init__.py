"""Export: float ONNX to a bit-exact int8 `.tflite`, with the NumPy integer reference that defines what exact means."""
