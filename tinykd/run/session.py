"""A conversation with one device: requests, answers, repetitions, time-outs. See docs/spec-protocol.md."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tinykd.errors import DeviceError
from tinykd.run import protocol
from tinykd.run.protocol import ANSWER, ErrorCode, Frame, FrameDecoder, Identity, Info, Invoked, Refusal, Type
from tinykd.run.transport.base import Transport

SMALLEST_CHUNK_BYTES = 16
_ANSWER_MARGIN_S = 0.5
_FIRST_INVOKE_S = 2.0
_LONGEST_INVOKE_S = 60.0
_ATTEMPTS_PER_CHUNK = 2  # before the chunk is made smaller
_GOOD_CHUNKS_TO_GROW = 8


class DeviceSilentError(DeviceError):
    """No answer came, after all repetitions."""


class DeviceRestartedError(DeviceError):
    """The device was reset during the session: its input and result are gone."""


class DeviceRefusedError(DeviceError):
    """The device answered ERROR.

    Attributes:
        refusal: the code and its detail.
    """

    def __init__(self, refusal: Refusal, next_step: str = "") -> None:
        super().__init__(refusal.describe(), next_step)
        self.refusal = refusal


class Session:
    """A host's session with one device.

    Args:
        transport: the open connection; the session does not close it.
        baud: bits per second of the line, for time-outs.
        attempts: how often a request is sent before the device counts as silent.
        restarts: how many resets of the device `infer` survives, one after another.
        clock: seconds, monotonic.

    Attributes:
        identity: who answered the last HELLO.
        repeats: requests sent again so far.
        restarts_seen: resets of the device that were noticed and recovered from so far.

    Every method raises DeviceSilentError, DeviceRestartedError, DeviceRefusedError, or DeviceError for an answer that
    contradicts the protocol or for a lost transport.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        baud: int = 115200,
        attempts: int = 8,
        restarts: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self.identity: Identity | None = None
        self.repeats = 0
        self.restarts_seen = 0
        self._seconds_per_byte = 10 / baud
        self._attempts = attempts
        self._restarts = restarts
        self._clock = clock
        self._decoder = FrameDecoder()
        self._sequence = secrets.randbelow(1 << 16)
        self._max_payload = protocol.LEAST_MAX_PAYLOAD
        self._chunk_bytes = self._max_payload - 4
        self._good_chunks = 0
        self._invoke_s: float | None = None
        self._received_bytes = 0

    def hello(self) -> Identity:
        """Open a session, discarding a half-loaded input, and return who answers."""
        nonce = secrets.randbits(32)
        identity = Identity.unpack(self._must(Type.HELLO, protocol.pack_u32(nonce), 120))
        if identity.nonce != nonce:
            raise DeviceError(f"{self.transport.name}: HELLO was answered with the nonce of another host")
        if identity.protocol_version != protocol.VERSION:
            raise self._incompatible(identity.protocol_version)
        first = self.identity is None
        self.identity = identity
        self._max_payload = min(identity.max_payload, protocol.MOST_MAX_PAYLOAD)
        if first:
            self._chunk_bytes = self._max_payload - 4
        return identity

    def require_model(self, sha256: str) -> None:
        """Check that the device runs the model with this SHA-256 (64 hex digits); DeviceError otherwise."""
        identity = self.identity or self.hello()
        if identity.model_sha256 != sha256:
            raise DeviceError(
                f"{self.transport.name} runs another model: {identity.model_sha256[:16]} "
                f"({identity.board}, engine {identity.engine}) instead of {sha256[:16]}",
                "Flash the firmware of this model: tinykd flash RUN --board B.",
            )

    def info(self) -> Info:
        """Return the device's sizes and counters."""
        return Info.unpack(self._must(Type.INFO, b"", 100))

    def load(self, data: bytes) -> None:
        """Send the whole input: `input_bytes` int8 values in NHWC order."""
        offset = failures = 0
        while offset < len(data):
            chunk = data[offset : offset + self._chunk_bytes]
            try:
                answer = self._ask(Type.LOAD, protocol.pack_load(offset, chunk), 4, _ATTEMPTS_PER_CHUNK)
            except DeviceRefusedError as error:
                # An abandoned chunk did arrive and only its answer was lost: go on behind it.
                at = error.refusal.detail
                if error.refusal.code != ErrorCode.OUT_OF_ORDER or not failures or not offset < at <= len(data):
                    raise
                offset = at
                continue
            failures = self._adapt(answer is None, failures, Type.LOAD)
            if answer is not None:
                loaded = self._read(protocol.unpack_u32, answer)
                if loaded != offset + len(chunk):
                    raise self._contradiction(f"LOAD up to {offset + len(chunk)} B was answered with {loaded} B")
                offset = loaded

    def invoke(self, first_op: int = 0, op_count: int = 0) -> Invoked:
        """Run ops (all that are left when `op_count` is 0) on the input that was loaded."""
        started = self._clock()
        payload = self._must(Type.INVOKE, protocol.pack_invoke(first_op, op_count), 16)
        self._invoke_s = self._clock() - started
        return self._read(Invoked.unpack, payload)

    def result(self, num_bytes: int, offset: int = 0) -> bytes:
        """Return `num_bytes` int8 values of the output, from `offset` on."""
        return self._parts(Type.RESULT, offset, num_bytes, 1)

    def profile(self, num_ops: int, first_op: int = 0) -> list[int]:
        """Return the cycles of `num_ops` ops from `first_op` on, of when each ran last."""
        raw = self._parts(Type.PROFILE, first_op, num_ops, 4)
        return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]

    def activation(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes of the arena as it stands; the memory plan says what lies there."""
        return self._parts(Type.ACTIVATION, offset, num_bytes, 1)

    def echo(self, data: bytes) -> bytes:
        """Return what the device sends back for `data`, at most `max_payload` bytes."""
        return self._must(Type.ECHO, data, len(data))

    def reset(self) -> Identity:
        """Restart the device and open a new session with it."""
        with suppress(DeviceRestartedError):  # READY or NO_SESSION in place of a lost answer
            self._must(Type.RESET, b"", 0)
        return self.hello()

    def forget(self) -> None:
        """Put a model with memory back to before its first inference; input and result are gone, too."""
        self._must(Type.FORGET, b"", 0)

    def infer(self, data: bytes, output_bytes: int, *, fresh: bool = False) -> tuple[bytes, Invoked]:
        """Run one whole inference; a device that restarts meanwhile is given the input again.

        Args:
            data: `input_bytes` int8 values.
            output_bytes: INFO's.
            fresh: forget earlier inferences first. Needed where INFO's `state_bytes` is not 0 and the inputs are
                independent; a restart forgets in any case.

        Returns:
            the `output_bytes` bytes of the output, and INVOKE's answer.
        """
        for left in range(self._restarts, -1, -1):
            try:
                if fresh:
                    self.forget()
                self.load(data)
                invoked = self.invoke()
                return self.result(output_bytes), invoked
            except DeviceRestartedError:
                if not left:
                    raise
                self.restarts_seen += 1
                before = self.identity
                after = self.hello()
                if before is not None and before.model_sha256 != after.model_sha256:
                    raise self._contradiction("after a restart the device runs another model") from None
        raise AssertionError("unreachable")

    def _parts(self, kind: Type, first: int, count: int, item_bytes: int) -> bytes:
        data = bytearray()
        failures = 0
        while (done := len(data) // item_bytes) < count:
            items = min(count - done, max(1, self._chunk_bytes // item_bytes), 0xFFFF)
            request = protocol.pack_part(first + done, items)
            answer = self._ask(kind, request, 4 + items * item_bytes, _ATTEMPTS_PER_CHUNK)
            failures = self._adapt(answer is None, failures, kind)
            if answer is not None:
                at, num_bytes = first + done, items * item_bytes
                data += self._read(lambda raw: protocol.unpack_items(raw, at, num_bytes), answer)  # noqa: B023
        return bytes(data)

    def _adapt(self, failed: bool, failures: int, kind: Type) -> int:
        """Make chunks smaller after a failure and larger after many good ones; return the failures in a row."""
        if failed:
            if failures + 1 >= self._attempts:
                raise self._silent(kind, (failures + 1) * _ATTEMPTS_PER_CHUNK)
            self._chunk_bytes = max(SMALLEST_CHUNK_BYTES, self._chunk_bytes // 2)
            self._good_chunks = 0
            return failures + 1
        self._good_chunks += 1
        if self._good_chunks >= _GOOD_CHUNKS_TO_GROW:
            self._chunk_bytes = min(self._max_payload - 4, self._chunk_bytes * 2)
            self._good_chunks = 0
        return 0

    def _must(self, kind: Type, payload: bytes, answer_bytes: int) -> bytes:
        answer = self._ask(kind, payload, answer_bytes, self._attempts)
        if answer is None:
            raise self._silent(kind, self._attempts)
        return answer

    def _ask(self, kind: Type, payload: bytes, answer_bytes: int, attempts: int) -> bytes | None:
        """Send a request until its answer comes; return the payload, or None when none came."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        frame = Frame(kind, self._sequence, payload).encode()
        wire_s = (len(frame) + protocol.OVERHEAD_BYTES + answer_bytes) * self._seconds_per_byte
        for attempt in range(attempts):
            self.repeats += attempt > 0
            self.transport.write(frame)
            wait_s = self._invoke_wait(attempt) if kind == Type.INVOKE else _ANSWER_MARGIN_S
            for answer in self._frames(wire_s + wait_s):
                found = self._judge(kind, answer)
                if found is not None:
                    return found
        return None

    def _invoke_wait(self, attempt: int) -> float:
        first = _FIRST_INVOKE_S if self._invoke_s is None else max(_ANSWER_MARGIN_S, 4 * self._invoke_s)
        return min(first * 2**attempt, max(_LONGEST_INVOKE_S, first))

    def _frames(self, timeout_s: float) -> Iterator[Frame]:
        """Yield frames as they come, until the time is up or the transport knows that none will come."""
        yield from self._decoder.feed(b"")
        deadline = self._clock() + timeout_s
        while (left := deadline - self._clock()) > 0:
            data = self.transport.read(left)
            if not data:
                return
            self._received_bytes += len(data)
            yield from self._decoder.feed(data)

    def _judge(self, kind: Type, frame: Frame) -> bytes | None:
        """Return the payload when `frame` answers the present request; None when it is an old answer."""
        if frame.type == Type.READY:
            if kind == Type.HELLO:
                return None
            raise DeviceRestartedError(
                f"{self.transport.name}: the device restarted during {kind.name}",
                "A fault in the firmware, its supply, or somebody's hand on the reset button.",
            )
        if frame.sequence != self._sequence:
            return None
        if frame.type == Type.ERROR:
            refusal = self._read(Refusal.unpack, frame.payload)
            if refusal.code == ErrorCode.NO_SESSION:
                raise DeviceRestartedError(f"{self.transport.name}: the device restarted before {kind.name}")
            if refusal.code == ErrorCode.BAD_VERSION:
                raise self._incompatible(refusal.detail)
            raise DeviceRefusedError(refusal)
        if frame.version != protocol.VERSION:
            raise self._incompatible(frame.version)
        return frame.payload if frame.type == kind + ANSWER else None

    def _read(self, unpack: Callable, payload: bytes):  # type: ignore[no-untyped-def]
        try:
            return unpack(payload)
        except protocol.PayloadError as error:
            raise self._contradiction(str(error)) from error

    def _silent(self, kind: Type, attempts: int) -> DeviceSilentError:
        noise = self._decoder.discarded_bytes
        if not self._received_bytes:
            heard = "not one byte was received"
            step = "Check power, cable and port, and that tinykd's firmware is on the board (tinykd flash)."
        else:
            heard = f"{self._received_bytes} B were received, {noise} B of them noise"
            step = "Check the baud rate and that tinykd's firmware is on the board (tinykd flash)."
        return DeviceSilentError(
            f"{self.transport.name}: no answer to {kind.name} after {attempts} attempts; {heard}", step
        )

    def _incompatible(self, version: int) -> DeviceError:
        return DeviceError(
            f"{self.transport.name}: the firmware speaks protocol version {version}, this tinykd {protocol.VERSION}",
            "Build and flash the firmware again with this version of tinykd.",
        )

    def _contradiction(self, what: str) -> DeviceError:
        return DeviceError(f"{self.transport.name}: the device contradicts the protocol: {what}")


@contextmanager
def open_session(transport: Transport, *, baud: int = 115200, attempts: int = 8) -> Iterator[Session]:
    """Open a session over a transport and close the transport at the end."""
    try:
        session = Session(transport, baud=baud, attempts=attempts)
        session.hello()
        yield session
    finally:
        transport.close()
