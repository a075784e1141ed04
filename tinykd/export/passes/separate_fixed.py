"""Requantises activations with a quantisation of their own before they share one with others."""

from __future__ import annotations

from dataclasses import replace

from tinykd.ir import Graph, Op, Tensor
from tinykd.ir.affine import FIXED_OUTPUTS, QUANT_KEEPERS, QUANT_SHARERS
from tinykd.ir.quant import Quant


def separate_fixed(graph: Graph) -> Graph:
    """Return the graph with a quantize op between a fixed quantisation and a CONCATENATION, MAXIMUM or MINIMUM.

    Inputs of the graph, and outputs of softmax, logistic and tanh, have fixed ones; operands that all have the same
    stay as they are. In the float graph the op changes nothing.
    """
    # The quantisation of each activation that cannot adapt: an input's is known by the input's name.
    fixed: dict[str, Quant | str] = {name: name for name in graph.inputs}
    tensors, ops = dict(graph.tensors), []
    for op in graph.ops:
        if op.kind in FIXED_OUTPUTS:
            fixed[op.outputs[0]] = FIXED_OUTPUTS[op.kind]
        elif op.kind in QUANT_KEEPERS:
            if op.inputs[0] in fixed:
                fixed.update(dict.fromkeys(op.outputs, fixed[op.inputs[0]]))
        elif op.kind in QUANT_SHARERS:
            kinds = {fixed.get(name) for name in op.inputs}
            if len(kinds) == 1 and None not in kinds:
                fixed[op.outputs[0]] = fixed[op.inputs[0]]
            else:
                inputs = list(op.inputs)
                for position, name in enumerate(inputs):
                    if name in fixed:
                        inputs[position] = f"{op.outputs[0]}/requantised{position}"
                        tensor = graph.tensor(name)
                        tensors[inputs[position]] = Tensor(inputs[position], tensor.shape, tensor.dtype)
                        ops.append(Op("quantize", (name,), (inputs[position],), {}, f"{op.source} (quantize)"))
                op = replace(op, inputs=tuple(inputs))
        ops.append(op)
    return graph.with_ops(ops, tensors)
