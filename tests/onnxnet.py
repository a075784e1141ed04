"""Float ONNX networks for tests, written node by node and judged by ONNX's own reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


class OnnxNet:
    """A network under construction; `x` is the name of the newest value."""

    def __init__(self, *shapes, seed=0, opset=17):
        self.rng = np.random.default_rng(seed)
        self.shapes, self.opset = shapes, opset
        self.nodes, self.constants, self.outputs = [], [], []
        self.x = "input0"

    def constant(self, value, dtype=np.float32):
        """Add an initialiser and return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values):
        """Add an int64 vector."""
        return self.constant(values, np.int64)

    def weights(self, *shape):
        """Add random weights of about unit gain."""
        return self.constant(self.rng.normal(0, 1 / np.sqrt(max(np.prod(shape[1:]), 1)), shape))

    def node(self, kind, *inputs, count=1, **attrs):
        """Add a node over `inputs` (the newest value where none are given) and return its output name or names."""
        names = [f"v{len(self.nodes)}_{i}" if count > 1 else f"v{len(self.nodes)}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs) or [self.x], names, f"{kind}/{len(self.nodes)}", **attrs))
        self.x = names[0]
        return names[0] if count == 1 else names

    def proto(self):
        """Return the model; its outputs are those of `outputs`, or the newest value."""
        names = self.outputs or [self.x]
        inputs = [
            helper.make_tensor_value_info(f"input{i}", onnx.TensorProto.FLOAT, list(shape))
            for i, shape in enumerate(self.shapes)
        ]
        # Their shapes are not known here, and nothing reads them.
        outs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["any"]) for name in names]
        graph = helper.make_graph(self.nodes, "net", inputs, outs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)

    def bytes(self):
        """Return the file."""
        return self.proto().SerializeToString()

    def samples(self, count):
        """Return random inputs, each a list of arrays in ONNX's order."""
        return [[self.rng.normal(0, 2, shape).astype(np.float32) for shape in self.shapes] for _ in range(count)]

    def run(self, sample):
        """Return what ONNX's reference says about one sample."""
        feeds = {f"input{i}": value for i, value in enumerate(sample)}
        return ReferenceEvaluator(self.proto()).run(None, feeds)


def to_ir(value, shape):
    """Return a value of the file as it lies in a tensor of the IR of this shape: itself, or channels last."""
    return value if value.shape == tuple(shape) and value.ndim != 4 else np.moveaxis(value, 1, -1)
