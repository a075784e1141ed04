"""What a `.tflite` holds beside its graph: op versions, buffers, metadata, and which tensor has which number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tflite

from tinykd.errors import InvalidModelError
from tinykd.formats.guard import broken_file
from tinykd.formats.tflite.schema import BUILTIN_NAMES, OFFLINE_PLAN, unique_names


@dataclass(frozen=True)
class TfliteFile:
    """Facts of a `.tflite` that the graph read from it does not tell.

    Attributes:
        num_bytes: of the file.
        description: what the producer wrote there, for example "MLIR Converted.".
        versions: op index -> (builtin's name, version).
        outside: bytes of the buffers that lie behind the flatbuffer; stock TFLite Micro reads them as empty.
        unused: (tensor, bytes) of constants that no op reads and that are no output.
        spare_buffers: bytes of buffers that no tensor and no metadata names.
        metadata: name -> bytes of its buffer.
        buffer_of: tensor -> the number of its buffer; tensors that share one are stored once.
    """

    num_bytes: int
    description: str
    versions: Mapping[int, tuple[str, int]]
    outside: Mapping[str, int]
    unused: Mapping[str, int]
    spare_buffers: Mapping[int, int]
    metadata: Mapping[str, int]
    buffer_of: Mapping[str, int]

    @property
    def has_offline_plan(self) -> bool:
        """Whether it carries a memory plan that TFLite Micro follows."""
        return OFFLINE_PLAN in self.metadata


def tensor_indices(data: bytes) -> dict[str, int]:
    """Return the number of each tensor, under the names that the reader gives them."""
    subgraph = tflite.Model.GetRootAs(data, 0).Subgraphs(0)
    names = unique_names(_text(subgraph.Tensors(index).Name()) for index in range(subgraph.TensorsLength()))
    return {name: index for index, name in enumerate(names)}


def without_plan(data: bytes) -> bytes:
    """Return the model without its memory plan: the metadata stays under a name that no runtime looks for."""
    name = OFFLINE_PLAN.encode()
    return data.replace(name, name[:-1] + b"-")


def inspect(data: bytes) -> TfliteFile:
    """Return the facts of a file that `tflite.read_bytes` has accepted.

    Raises:
        InvalidModelError: what the graph does not need, its metadata for example, is corrupt.
    """
    with broken_file("the file"):
        return _inspect(data)


def _inspect(data: bytes) -> TfliteFile:
    model = tflite.Model.GetRootAs(data, 0)
    if model.MetadataLength() > len(data) // 4:
        raise InvalidModelError(f"the file claims {model.MetadataLength()} metadata entries: it is corrupt")
    subgraph = model.Subgraphs(0)
    sizes, outside = _buffers(model)
    names = {index: name for name, index in tensor_indices(data).items()}
    buffers = {index: subgraph.Tensors(index).Buffer() for index in range(subgraph.TensorsLength())}
    used = {subgraph.Outputs(i) for i in range(subgraph.OutputsLength())}
    versions = {}
    for index in range(subgraph.OperatorsLength()):
        operator = subgraph.Operators(index)
        used |= {operator.Inputs(i) for i in range(operator.InputsLength())}
        used |= {operator.Outputs(i) for i in range(operator.OutputsLength())}
        code = model.OperatorCodes(operator.OpcodeIndex())
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        versions[index] = (BUILTIN_NAMES.get(builtin, f"builtin {builtin}"), code.Version())
    metadata = {
        _text(model.Metadata(i).Name()): sizes.get(model.Metadata(i).Buffer(), 0) for i in range(model.MetadataLength())
    }
    named = set(buffers.values()) | {model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    return TfliteFile(
        len(data),
        _text(model.Description()),
        versions,
        {names[tensor]: sizes[buffer] for tensor, buffer in buffers.items() if buffer in outside},
        {names[t]: sizes[b] for t, b in buffers.items() if t not in used and sizes.get(b)},
        {buffer: size for buffer, size in sizes.items() if size and buffer not in named},
        metadata,
        {names[tensor]: buffer for tensor, buffer in buffers.items()},
    )


def _buffers(model: Any) -> tuple[dict[int, int], set[int]]:
    """Return the size of each buffer, and those that lie behind the flatbuffer."""
    sizes, outside = {}, set()
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        sizes[index] = buffer.DataLength()
        if buffer.Size() > 1:
            sizes[index] = buffer.Size()
            outside.add(index)
    return sizes, outside


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""
