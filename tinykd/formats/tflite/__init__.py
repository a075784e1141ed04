"""Reads an int8 `.tflite` of any producer into the IR. `write` is in `tflite_writer`.

Files of ai-edge-quantizer and others may keep their constants behind the flatbuffer. TFLite Micro does not look there
and computes garbage without a word: reading such a file and writing it again repairs it.
"""

from __future__ import annotations

from pathlib import Path

from tinykd.errors import ConfigError, InvalidModelError, UnsupportedModelError
from tinykd.formats.guard import broken_file
from tinykd.formats.tflite.reader import Reader
from tinykd.formats.tflite.schema import FILE_IDENTIFIER
from tinykd.ir import Graph

MAX_FILE_BYTES = 1 << 27


def read(path: Path | str, name: str = "") -> Graph:
    """Read a `.tflite` file.

    Args:
        path: the file.
        name: the graph's name; "" takes the file's.

    Raises:
        ConfigError: the file cannot be opened.
        InvalidModelError: it is corrupt, truncated or contradicts itself.
        UnsupportedModelError: it uses something beyond int8 ops of batch 1; names the op, its place and the way out.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UnsupportedModelError(f"{path} is larger than {MAX_FILE_BYTES} B: no model for a microcontroller")
    return read_bytes(data, name or path.stem)


def read_bytes(data: bytes, name: str = "model") -> Graph:
    """Read the bytes of a `.tflite` file; see `read`. Constants of the graph are views of `data` where they can be."""
    if len(data) < 16 or data[4:8] != FILE_IDENTIFIER:
        raise InvalidModelError(
            f"'{name}' is not a .tflite file: {len(data)} B, and bytes 4 to 8 are {data[4:8]!r} "
            f"instead of {FILE_IDENTIFIER!r}",
            "If it was downloaded, download it again; an ONNX or Keras file must be converted first.",
        )
    with broken_file(name):
        return Reader(bytes(data), name).graph()
