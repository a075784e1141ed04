"""The op table: every builtin operator of TFLite that is read, with the IR kind that it stands for, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tinykd.errors import InternalError
from tinykd.formats.tflite import conv as tflite_conv
from tinykd.formats.tflite import elementwise as tflite_elementwise
from tinykd.formats.tflite import layout as tflite_layout
from tinykd.formats.tflite.codec import Codec
from tinykd.ir import Graph, Op

CODECS: tuple[Codec, ...] = (*tflite_conv.CODECS, *tflite_elementwise.CODECS, *tflite_layout.CODECS)
CODEC_OF_BUILTIN: Mapping[int, Codec] = MappingProxyType({codec.builtin: codec for codec in CODECS})


def codec_of(graph: Graph, op: Op) -> Codec:
    """Return the row that writes an op.

    Raises:
        InternalError: an op of this kind has no form in a `.tflite`.
    """
    for codec in CODECS:
        if codec.kind == op.kind and codec.writes(graph, op):
            return codec
    raise InternalError(f"op '{op.source or op.outputs[0]}' ({op.kind}) has no form in a .tflite")
