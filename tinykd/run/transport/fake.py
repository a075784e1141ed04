"""A device in Python that speaks the protocol: for tests of the host, and as a second reading of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tinykd.run import protocol
from tinykd.run.protocol import ANSWER, NO_OP, ErrorCode, Frame, FrameDecoder, Identity, Info, Invoked, Refusal, Type


class _RefusedError(Exception):
    def __init__(self, code: ErrorCode, detail: int) -> None:
        self.code = code
        self.detail = detail


class FakeDevice:
    """A device whose model is a Python function.

    Args:
        model: from `input_bytes` bytes to `output_bytes` bytes.
        input_bytes, output_bytes: the model's sizes.
        op_cycles: cycles that each op pretends to take; its length is the number of ops.
        forget: called when the device forgets earlier inferences; None for a model without state.
        max_payload: bytes of payload it takes and sends.
        model_sha256, board, engine: its identity.

    Attributes:
        invocations: how many times `model` ran since the object was made, over all resets.
    """

    def __init__(
        self,
        model: Callable[[bytes], bytes],
        input_bytes: int,
        output_bytes: int,
        *,
        op_cycles: tuple[int, ...] = (100, 200),
        forget: Callable[[], None] | None = None,
        max_payload: int = 1024,
        model_sha256: str = "00" * 32,
        board: str = "fake",
        engine: str = "tinykd",
        clock_hz: int = 1_000_000,
    ) -> None:
        self.identity = Identity(protocol.VERSION, max_payload, model_sha256, board, engine)
        self.invocations = 0
        self._model = model
        self._input_bytes = input_bytes
        self._output_bytes = output_bytes
        self._op_cycles = op_cycles
        self._forget_model = forget
        self._clock_hz = clock_hz
        self._out = bytearray()
        self.boot()

    def boot(self) -> None:
        """Start as after a reset: announce, and know nothing."""
        self._decoder = FrameDecoder(self.identity.max_payload)
        self._last: tuple[int, bytes, bytes] | None = None  # sequence, request, answer
        self._in_session = False
        self._input = bytearray(self._input_bytes)
        self._loaded = 0
        self._next_op = NO_OP
        self._output: bytes | None = None
        self._inferences = 0
        self._cycles = [0] * len(self._op_cycles)
        self._out += b"tinykd READY protocol=1 board=fake\r\n" + Frame(Type.READY, 0, self.identity.pack()).encode()

    def receive(self, data: bytes) -> None:
        """Take bytes from the host; `take` gives what they caused."""
        for request in self._decoder.feed(data):
            self._serve(request)

    def take(self) -> bytes:
        """Return everything that the device has sent since the last call."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def _serve(self, request: Frame) -> None:
        raw = request.encode()
        if self._last is not None and self._last[:2] == (request.sequence, raw):
            self._out += self._last[2]
            return
        try:
            answer = Frame(request.type | ANSWER, request.sequence, self._run(request))
        except _RefusedError as error:
            refusal = Refusal(error.code, request.type, error.detail)
            answer = Frame(Type.ERROR, request.sequence, refusal.pack())
        except protocol.PayloadError:
            refusal = Refusal(ErrorCode.BAD_LENGTH, request.type, len(request.payload))
            answer = Frame(Type.ERROR, request.sequence, refusal.pack())
        self._last = (request.sequence, raw, answer.encode())
        self._out += self._last[2]
        if request.type == Type.RESET and answer.type != Type.ERROR:
            self.boot()

    def _run(self, request: Frame) -> bytes:
        if request.version != protocol.VERSION:
            raise _RefusedError(ErrorCode.BAD_VERSION, protocol.VERSION)
        if request.type == Type.HELLO:
            return self._hello(request.payload)
        if not self._in_session:
            raise _RefusedError(ErrorCode.NO_SESSION, 0)
        if self._last is not None and self._last[0] == request.sequence:
            raise _RefusedError(ErrorCode.BAD_SEQUENCE, request.sequence)
        handlers: dict[int, Callable[[bytes], bytes]] = {
            Type.INFO: self._info,
            Type.LOAD: self._load,
            Type.INVOKE: self._invoke,
            Type.RESULT: self._result,
            Type.PROFILE: self._profile,
            Type.ACTIVATION: self._activation,
            Type.ECHO: lambda payload: payload,
            Type.RESET: _nothing,
            Type.FORGET: self._forget,
        }
        if request.type not in handlers:
            raise _RefusedError(ErrorCode.UNKNOWN_TYPE, request.type)
        return handlers[request.type](request.payload)

    def _hello(self, payload: bytes) -> bytes:
        nonce = protocol.unpack_u32(payload)
        self._in_session = True
        self._forget(b"")
        fields = {**self.identity.__dict__, "nonce": nonce}
        return Identity(**fields).pack()

    def _forget(self, payload: bytes) -> bytes:
        self._loaded, self._next_op, self._output = 0, NO_OP, None
        if self._forget_model is not None:
            self._forget_model()
        return _nothing(payload)

    def _info(self, payload: bytes) -> bytes:
        _nothing(payload)
        state = 1 if self._forget_model else 0
        sizes = (self._input_bytes, self._output_bytes, self._input_bytes, len(self._op_cycles), self._clock_hz)
        return Info(*sizes, self._inferences, self._decoder.discarded_bytes & 0xFFFF_FFFF, "fake", "0", state).pack()

    def _load(self, payload: bytes) -> bytes:
        offset, data = protocol.unpack_load(payload)
        if offset not in (0, self._loaded):
            raise _RefusedError(ErrorCode.OUT_OF_ORDER, self._loaded)
        if offset + len(data) > self._input_bytes:
            raise _RefusedError(ErrorCode.OUT_OF_RANGE, self._input_bytes)
        self._input[offset : offset + len(data)] = data
        self._loaded = offset + len(data)
        self._next_op = 0 if self._loaded == self._input_bytes else NO_OP
        self._output = None
        return protocol.pack_u32(self._loaded)

    def _invoke(self, payload: bytes) -> bytes:
        first, count = protocol.unpack_invoke(payload)
        num_ops = len(self._op_cycles)
        if self._next_op == NO_OP or first != self._next_op:
            raise _RefusedError(ErrorCode.OUT_OF_ORDER, self._next_op)
        if count > num_ops - first:
            raise _RefusedError(ErrorCode.OUT_OF_RANGE, num_ops)
        end = first + (count or num_ops - first)
        self._loaded = 0
        self._cycles[first:end] = self._op_cycles[first:end]
        self._next_op = end
        if end == num_ops:
            self._next_op = NO_OP
            self._output = self._model(bytes(self._input))
            self.invocations += 1
            self._inferences += 1
        return Invoked(sum(self._op_cycles[first:end]), self._inferences, end).pack()

    def _part(self, payload: bytes, items: bytes, item_bytes: int) -> bytes:
        first, count = protocol.unpack_part(payload)
        end = len(items) // item_bytes
        if not count or first + count > end:
            raise _RefusedError(ErrorCode.OUT_OF_RANGE, end)
        most = (self.identity.max_payload - 4) // item_bytes
        if count > most:
            raise _RefusedError(ErrorCode.OUT_OF_RANGE, most)
        return protocol.pack_u32(first) + items[first * item_bytes : (first + count) * item_bytes]

    def _result(self, payload: bytes) -> bytes:
        if self._output is None:
            raise _RefusedError(ErrorCode.NO_RESULT, 0)
        return self._part(payload, self._output, 1)

    def _profile(self, payload: bytes) -> bytes:
        return self._part(payload, b"".join(value.to_bytes(4, "little") for value in self._cycles), 4)

    def _activation(self, payload: bytes) -> bytes:
        return self._part(payload, bytes(self._input), 1)


def _nothing(payload: bytes) -> bytes:
    if payload:
        raise protocol.PayloadError("no payload is allowed")
    return b""


class FakeTransport:
    """Carries bytes to a `FakeDevice` in the same process; never waits."""

    counter_unit: Literal["cycles", "instructions", "none"] = "cycles"
    counter = None

    def __init__(self, device: FakeDevice, name: str = "fake") -> None:
        self.device = device
        self.name = name

    def write(self, data: bytes) -> None:
        """Send bytes to the device; its answers wait for `read`."""
        self.device.receive(data)

    def read(self, timeout_s: float) -> bytes:
        """Return what the device has sent; b"" at once when it has sent nothing."""
        return self.device.take()

    def restart(self) -> None:
        """Reset the device, as its button does."""
        self.device.boot()

    def close(self) -> None:
        """Nothing to give back."""
