"""Readers and writers: the only place that knows TFLite's and ONNX's file formats."""
