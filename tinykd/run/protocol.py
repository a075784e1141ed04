"""The serial protocol, version 1, as bytes: frames, requests and answers. No I/O here; see docs/spec-protocol.md."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
SYNC = b"\xd4\x9b"
HEADER_BYTES = 10
CRC_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + CRC_BYTES
LEAST_MAX_PAYLOAD = 64  # what every device takes, and what a host may send before HELLO
MOST_MAX_PAYLOAD = 0xFFFF - OVERHEAD_BYTES
MAX_STR_BYTES = 31
NO_OP = 0xFFFF_FFFF

_HEADER = struct.Struct("<2sBBHH")


class Type(IntEnum):
    """Frame types: requests (below 0x80; the answer is the request + 0x80), READY and ERROR."""

    HELLO = 0x01
    INFO = 0x02
    LOAD = 0x03
    INVOKE = 0x04
    RESULT = 0x05
    PROFILE = 0x06
    ACTIVATION = 0x07
    ECHO = 0x08
    RESET = 0x09
    FORGET = 0x0A
    READY = 0xC0
    ERROR = 0xFF


ANSWER = 0x80


class ErrorCode(IntEnum):
    """Codes of ERROR frames."""

    NO_SESSION = 1
    UNKNOWN_TYPE = 2
    BAD_LENGTH = 3
    OUT_OF_RANGE = 4
    OUT_OF_ORDER = 5
    NO_RESULT = 6
    BAD_SEQUENCE = 7
    BAD_VERSION = 8


class PayloadError(ValueError):
    """A frame was intact but its payload does not have the layout that its type demands."""


def header_check(header: bytes) -> int:
    """Return the check of the first eight bytes of a frame: the low 16 bits of their CRC-32."""
    return zlib.crc32(header) & 0xFFFF


@dataclass(frozen=True)
class Frame:
    """One frame. `type` and `version` are any byte: frames of a later version are frames too."""

    type: int
    sequence: int
    payload: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the frame as bytes on the wire.

        Raises:
            ValueError: a field does not fit (a bug of the caller).
        """
        if len(self.payload) > MOST_MAX_PAYLOAD:
            raise ValueError(f"payload of {len(self.payload)} B, at most {MOST_MAX_PAYLOAD} B fit a frame")
        try:
            head = _HEADER.pack(SYNC, self.version, self.type, self.sequence, len(self.payload))
        except struct.error as error:
            raise ValueError(f"a field of {self!r} does not fit: {error}") from error
        body = head + header_check(head).to_bytes(2, "little") + self.payload
        return body + zlib.crc32(body).to_bytes(4, "little")


class FrameDecoder:
    """Finds frames in a stream of bytes; the same rules as the firmware's tk_frame.c.

    Args:
        max_payload: frames that claim more are noise.

    Attributes:
        discarded_bytes: bytes so far that were part of no good frame (text between frames counts too).
    """

    def __init__(self, max_payload: int = MOST_MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self.discarded_bytes = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take received bytes and yield every frame that is complete now."""
        self._buffer += data
        while (frame := self._next()) is not None:
            yield frame

    def reset(self) -> None:
        """Forget the bytes of an unfinished frame."""
        self.discarded_bytes += len(self._buffer)
        self._buffer.clear()

    def _next(self) -> Frame | None:
        buffer = self._buffer
        while buffer:
            start = buffer.find(SYNC)
            if start < 0:
                # All noise, unless the last byte is the first one of a frame.
                self._drop(len(buffer) - (buffer[-1] == SYNC[0]))
                return None
            self._drop(start)
            if len(buffer) < HEADER_BYTES:
                return None
            _, version, kind, sequence, length = _HEADER.unpack_from(buffer)
            check = int.from_bytes(buffer[8:HEADER_BYTES], "little")
            if check != header_check(bytes(buffer[:8])) or length > self.max_payload:
                self._drop(1)
                continue
            end = HEADER_BYTES + length
            if len(buffer) < end + CRC_BYTES:
                return None
            if int.from_bytes(buffer[end : end + CRC_BYTES], "little") != zlib.crc32(buffer[:end]):
                self._drop(1)
                continue
            payload = bytes(buffer[HEADER_BYTES:end])
            del buffer[: end + CRC_BYTES]
            return Frame(kind, sequence, payload, version)
        return None

    def _drop(self, count: int) -> None:
        self.discarded_bytes += count
        del self._buffer[:count]


def pack_str(text: str) -> bytes:
    """Return a `str` field: a length byte and at most 31 ASCII characters (longer text is cut)."""
    raw = text.encode("ascii", "replace")[:MAX_STR_BYTES]
    return bytes([len(raw)]) + raw


def _unpack_str(payload: bytes, offset: int) -> tuple[str, int]:
    if offset >= len(payload) or offset + 1 + payload[offset] > len(payload) or payload[offset] > MAX_STR_BYTES:
        raise PayloadError(f"a text field at offset {offset} goes beyond the payload of {len(payload)} B")
    end = offset + 1 + payload[offset]
    return payload[offset + 1 : end].decode("ascii", "replace"), end


def _unpack(layout: struct.Struct, payload: bytes, *, exact: bool = True) -> tuple[int, ...]:
    if len(payload) < layout.size or (exact and len(payload) != layout.size):
        raise PayloadError(f"{len(payload)} B of payload instead of {layout.size} B")
    return layout.unpack_from(payload)


@dataclass(frozen=True)
class Identity:
    """Who answers: the payload of READY and of HELLO's answer."""

    _LAYOUT = struct.Struct("<IBBH32s")

    protocol_version: int
    max_payload: int
    model_sha256: str  # 64 hex digits
    board: str
    engine: str
    nonce: int = 0

    def pack(self) -> bytes:
        """Return the payload."""
        head = self._LAYOUT.pack(
            self.nonce, self.protocol_version, 0, self.max_payload, bytes.fromhex(self.model_sha256)
        )
        return head + pack_str(self.board) + pack_str(self.engine)

    @classmethod
    def unpack(cls, payload: bytes) -> Identity:
        """Read a payload; PayloadError when it is too short or offers less than the least payload."""
        if len(payload) < cls._LAYOUT.size:
            raise PayloadError(f"{len(payload)} B of payload, at least {cls._LAYOUT.size} B wanted")
        nonce, version, _, max_payload, sha256 = cls._LAYOUT.unpack_from(payload)
        board, offset = _unpack_str(payload, cls._LAYOUT.size)
        engine, _ = _unpack_str(payload, offset)
        if max_payload < LEAST_MAX_PAYLOAD:
            raise PayloadError(f"max_payload {max_payload} B, at least {LEAST_MAX_PAYLOAD} B are required")
        return cls(version, max_payload, sha256.hex(), board, engine, nonce)


@dataclass(frozen=True)
class Info:
    """What runs on the device and how it fared: the payload of INFO's answer. Units are in the names."""

    _LAYOUT = struct.Struct("<7I")

    input_bytes: int
    output_bytes: int
    arena_bytes: int
    num_ops: int
    clock_hz: int
    inferences: int
    discarded_bytes: int
    model: str
    firmware_version: str
    state_bytes: int = 0

    def pack(self) -> bytes:
        """Return the payload."""
        numbers = (self.input_bytes, self.output_bytes, self.arena_bytes, self.num_ops, self.clock_hz)
        head = self._LAYOUT.pack(*numbers, self.inferences, self.discarded_bytes)
        return head + pack_str(self.model) + pack_str(self.firmware_version) + pack_u32(self.state_bytes)

    @classmethod
    def unpack(cls, payload: bytes) -> Info:
        """Read a payload; PayloadError when it is too short. Firmware older than FORGET sends no state_bytes."""
        numbers = _unpack(cls._LAYOUT, payload, exact=False)
        model, offset = _unpack_str(payload, cls._LAYOUT.size)
        version, offset = _unpack_str(payload, offset)
        state_bytes = _unpack(_U32, payload[offset:], exact=False)[0] if offset < len(payload) else 0
        names = ("input_bytes", "output_bytes", "arena_bytes", "num_ops", "clock_hz", "inferences", "discarded_bytes")
        return cls(
            **dict(zip(names, numbers, strict=True)), model=model, firmware_version=version, state_bytes=state_bytes
        )  # type: ignore[arg-type]


@dataclass(frozen=True)
class Invoked:
    """The payload of INVOKE's answer: cycles of this request, whole inferences since reset, the op that comes next."""

    _LAYOUT = struct.Struct("<QII")

    cycles: int
    inferences: int
    next_op: int

    def pack(self) -> bytes:
        """Return the payload."""
        return self._LAYOUT.pack(self.cycles, self.inferences, self.next_op)

    @classmethod
    def unpack(cls, payload: bytes) -> Invoked:
        """Read a payload; PayloadError when its length is wrong."""
        return cls(*_unpack(cls._LAYOUT, payload))


@dataclass(frozen=True)
class Refusal:
    """The payload of ERROR. `code` is an ErrorCode, or a number that this version does not know."""

    _LAYOUT = struct.Struct("<HBBI")

    code: int
    request: int
    detail: int

    def pack(self) -> bytes:
        """Return the payload."""
        return self._LAYOUT.pack(self.code, self.request, 0, self.detail)

    @classmethod
    def unpack(cls, payload: bytes) -> Refusal:
        """Read a payload; PayloadError when its length is wrong."""
        code, request, _, detail = _unpack(cls._LAYOUT, payload)
        return cls(code, request, detail)

    def describe(self) -> str:
        """Return the refusal in words."""
        name = ErrorCode(self.code).name if self.code in ErrorCode._value2member_map_ else f"error {self.code}"
        request = Type(self.request).name if self.request in Type._value2member_map_ else f"request {self.request:#04x}"
        return f"the device refused {request}: {name}, detail {self.detail}"


_U32 = struct.Struct("<I")
_PAIR = struct.Struct("<II")
_PART = struct.Struct("<IH")


def pack_u32(value: int) -> bytes:
    """Return a payload of one number: HELLO's request, LOAD's answer."""
    return _U32.pack(value)


def pack_load(offset: int, data: bytes) -> bytes:
    """Return LOAD's payload: input elements from byte `offset` on."""
    return _U32.pack(offset) + data


def pack_invoke(first_op: int, op_count: int) -> bytes:
    """Return INVOKE's payload; `op_count` 0 runs all that are left."""
    return _PAIR.pack(first_op, op_count)


def pack_part(first: int, count: int) -> bytes:
    """Return the payload of RESULT, PROFILE or ACTIVATION: `count` items from `first` on."""
    return _PART.pack(first, count)


def unpack_u32(payload: bytes) -> int:
    """Read LOAD's answer or HELLO's request."""
    return _unpack(_U32, payload)[0]


def unpack_load(payload: bytes) -> tuple[int, bytes]:
    """Read LOAD's request: (offset, data)."""
    if len(payload) <= _U32.size:
        raise PayloadError(f"{len(payload)} B of payload carry no data")
    return _U32.unpack_from(payload)[0], payload[_U32.size :]


def unpack_invoke(payload: bytes) -> tuple[int, int]:
    """Read INVOKE's request: (first_op, op_count)."""
    first, count = _unpack(_PAIR, payload)
    return first, count


def unpack_part(payload: bytes) -> tuple[int, int]:
    """Read the request of RESULT, PROFILE or ACTIVATION: (first, count)."""
    first, count = _unpack(_PART, payload)
    return first, count


def unpack_items(payload: bytes, first: int, num_bytes: int) -> bytes:
    """Read the answer of RESULT, PROFILE or ACTIVATION: the bytes after `first`.

    Raises:
        PayloadError: it starts elsewhere, or has not `num_bytes` bytes.
    """
    if len(payload) != _U32.size + num_bytes or _U32.unpack_from(payload)[0] != first:
        raise PayloadError(f"{len(payload) - _U32.size} B of data instead of {num_bytes} B from {first}")
    return payload[_U32.size :]
