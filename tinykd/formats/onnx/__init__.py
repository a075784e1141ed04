"""ONNX: float and QDQ models read into the IR, int8 graphs written as QDQ, PyTorch models exported."""
