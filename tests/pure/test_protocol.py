"""The frames of the serial protocol, and the session over a fake device, good lines and bad ones."""

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykd.errors import ConfigError, DeviceError
from tinykd.run import protocol
from tinykd.run.protocol import ErrorCode, Frame, FrameDecoder, Identity, Info, Invoked, Refusal, Type
from tinykd.run.session import DeviceRefusedError, DeviceRestartedError, DeviceSilentError, Session
from tinykd.run.transport.fake import FakeDevice, FakeTransport
from tinykd.run.transport.faults import Faults, FaultyTransport

INPUT_BYTES, OUTPUT_BYTES = 200, 10

frames = st.builds(
    Frame,
    type=st.integers(0, 255),
    sequence=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=300),
    version=st.integers(0, 255),
)


def model(x: bytes) -> bytes:
    """A model whose output depends on every part of its input."""
    return zlib.crc32(x).to_bytes(4, "little") + x[-6:]


def make_session(faults: Faults | None = None, seed: int = 1, attempts: int = 8) -> tuple[Session, FakeDevice]:
    """A session with a fake device, behind a bad line when `faults` is given."""
    device = FakeDevice(model, INPUT_BYTES, OUTPUT_BYTES)
    transport = FakeTransport(device)
    line = transport if faults is None else FaultyTransport(transport, faults, seed)
    return Session(line, attempts=attempts), device


def test_frame_bytes_are_those_of_the_specification():
    """An ECHO frame has every byte where docs/spec-protocol.md says."""
    raw = Frame(Type.ECHO, 0x1234, b"\x01\x02").encode()
    head = bytes([0xD4, 0x9B, 1, 8, 0x34, 0x12, 2, 0])
    body = head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + b"\x01\x02"
    assert raw == body + zlib.crc32(body).to_bytes(4, "little")
    assert zlib.crc32(b"123456789") == 0xCBF43926


@given(frames)
def test_encode_and_decode_are_inverse(frame):
    """What is encoded comes out of the decoder unchanged, with nothing discarded."""
    decoder = FrameDecoder()
    assert list(decoder.feed(frame.encode())) == [frame]
    assert decoder.discarded_bytes == 0


@given(st.lists(st.one_of(frames, st.binary(max_size=40)), max_size=6), st.integers(0, 1 << 30))
def test_frames_are_found_between_garbage_however_they_are_split(items, seed):
    """Garbage hides none of the frames around it, and the pieces in which bytes arrive do not matter."""
    stream = b"".join(item.encode() if isinstance(item, Frame) else item for item in items)
    rng, decoder, found, start = random.Random(seed), FrameDecoder(400), [], 0
    while start < len(stream):
        end = start + rng.randint(1, 50)
        found += decoder.feed(stream[start:end])
        start = end
    found += decoder.feed(bytes(1000))
    assert found == list(FrameDecoder(400).feed(stream + bytes(1000)))
    assert found == [item for item in items if isinstance(item, Frame)]


@given(frames, st.data())
def test_a_flipped_bit_never_gives_another_frame(frame, data):
    """A frame with one bit inverted is dropped, whichever bit it is."""
    raw = bytearray(frame.encode())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert list(FrameDecoder().feed(bytes(raw) + bytes(70000))) == []


def found_after_truncation(cut: Frame, left: int, frame: Frame) -> list[Frame]:
    """What a decoder finds when `left` bytes of `cut` come, then `frame`, then as much silence as was missing."""
    missing = len(cut.encode()) - left
    return list(FrameDecoder().feed(cut.encode()[:left] + frame.encode() + bytes(missing)))


@given(frames, frames, st.data())
def test_a_frame_after_a_truncated_one_is_found_at_once(cut, frame, data):
    """Bytes missing from one frame do not delay the next: it is found as soon as enough bytes are there."""
    raw = cut.encode()
    left = data.draw(st.integers(0, len(raw) - 1))
    completed = (raw[:left] + frame.encode() + bytes(len(raw))).startswith(raw)
    assert (cut if completed else frame) in found_after_truncation(cut, left, frame)


def test_a_truncated_frame_may_be_completed_by_the_next():
    """A missing byte that the next frame begins with is not missing: the first frame is the good one."""
    cut = Frame(72, 65535, b"y2\xc5L", version=105)
    assert cut.encode()[-1] == protocol.SYNC[0]
    assert found_after_truncation(cut, len(cut.encode()) - 1, Frame(0, 0)) == [cut]


def test_a_length_above_the_limit_is_noise():
    """A receiver does not wait for a payload that it could not take."""
    decoder = FrameDecoder(max_payload=64)
    good = Frame(Type.ECHO, 2, bytes(64))
    assert list(decoder.feed(Frame(Type.ECHO, 1, bytes(65)).encode() + good.encode())) == [good]
    assert decoder.discarded_bytes == 65 + protocol.OVERHEAD_BYTES


def test_a_million_random_bytes_do_no_harm():
    """Noise gives no frames and leaves the decoder able to find one."""
    rng, decoder = random.Random(0), FrameDecoder()
    good = Frame(Type.ECHO, 7, b"here")
    for _ in range(100):
        noise = bytes(rng.choices(b"\xd4\x9b\x01\x08\x00\xff", k=10_000))
        assert list(decoder.feed(noise)) == []
    assert good in list(decoder.feed(good.encode() + bytes(70000)))


@given(st.binary(max_size=80))
def test_payload_readers_accept_or_refuse_but_never_crash(payload):
    """Any bytes are a payload or raise PayloadError."""
    for reader in (
        Identity.unpack,
        Info.unpack,
        Invoked.unpack,
        Refusal.unpack,
        protocol.unpack_load,
        protocol.unpack_part,
    ):
        try:
            reader(payload)
        except protocol.PayloadError:
            continue


def test_payloads_round_trip():
    """Identity, info and counts come back as they were sent; longer text is cut at 31 characters."""
    identity = Identity(1, 1024, "ab" * 32, "nucleo-f746", "tinykd", 99)
    info = Info(1, 2, 3, 4, 5, 6, 7, "m" * 40, "0.1.0", 99)
    assert Identity.unpack(identity.pack()) == identity
    assert Identity.unpack(identity.pack() + b"later versions may say more") == identity
    assert Info.unpack(info.pack()).model == "m" * 31
    assert Info.unpack(info.pack()).state_bytes == 99
    assert Info.unpack(info.pack()[:-4]).state_bytes == 0, "firmware that knows no state"
    with pytest.raises(protocol.PayloadError):
        Info.unpack(info.pack()[:-1])
    assert Invoked.unpack(Invoked(1 << 40, 2, 3).pack()) == Invoked(1 << 40, 2, 3)


def _counting_device():
    """A device whose model has memory: its output counts the inferences since it forgot last."""
    counts = [0]

    def count(x):
        counts[0] += 1
        return bytes(counts * OUTPUT_BYTES)

    device = FakeDevice(count, INPUT_BYTES, OUTPUT_BYTES, forget=lambda: counts.__setitem__(0, 0))
    return Session(FakeTransport(device)), device


def test_forget_makes_an_inference_the_first_one():
    """A model with memory remembers until FORGET, HELLO or `fresh`; FORGET discards input and result."""
    session, _ = _counting_device()
    session.hello()
    x = bytes(INPUT_BYTES)
    assert session.info().state_bytes > 0
    assert [session.infer(x, OUTPUT_BYTES)[0][0] for _ in range(3)] == [1, 2, 3]
    assert [session.infer(x, OUTPUT_BYTES, fresh=True)[0][0] for _ in range(2)] == [1, 1]
    assert session.infer(x, OUTPUT_BYTES)[0][0] == 2
    session.hello()
    assert session.infer(x, OUTPUT_BYTES)[0][0] == 1
    session.load(x)
    session.forget()
    with pytest.raises(DeviceRefusedError, match="OUT_OF_ORDER"):
        session.invoke()
    with pytest.raises(DeviceRefusedError, match="NO_RESULT"):
        session.result(1)


def test_a_session_does_everything_that_the_protocol_offers():
    """HELLO, INFO, ECHO, LOAD, INVOKE in two parts, RESULT, PROFILE, ACTIVATION and RESET, on a good line."""
    session, device = make_session()
    assert session.hello().board == "fake"
    assert session.info().input_bytes == INPUT_BYTES
    assert session.echo(b"abc") == b"abc"
    x = random.Random(3).randbytes(INPUT_BYTES)
    session.load(x)
    assert session.invoke(0, 1) == Invoked(100, 0, 1)
    assert session.activation(5, 20) == x[5:25]
    assert session.invoke(1) == Invoked(200, 1, 2)
    assert session.result(OUTPUT_BYTES) == model(x)
    assert session.profile(2) == [100, 200]
    assert session.reset().board == "fake"
    assert session.info().inferences == 0
    assert (session.repeats, session.restarts_seen, device.invocations) == (0, 0, 1)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda s: s.invoke(), ErrorCode.OUT_OF_ORDER),
        (lambda s: s.result(1), ErrorCode.NO_RESULT),
        (lambda s: s.load(bytes(INPUT_BYTES + 1)), ErrorCode.OUT_OF_RANGE),
        (lambda s: s.activation(INPUT_BYTES, 1), ErrorCode.OUT_OF_RANGE),
        (lambda s: s.profile(3), ErrorCode.OUT_OF_RANGE),
        (lambda s: s._must(0x33, b"", 0), ErrorCode.UNKNOWN_TYPE),
        (lambda s: s._must(Type.INFO, b"x", 0), ErrorCode.BAD_LENGTH),
    ],
)
def test_a_wrong_request_is_refused_with_its_code(call, code):
    """The device answers a request that it cannot serve with ERROR, and serves the next one."""
    session, _ = make_session()
    session.hello()
    with pytest.raises(DeviceRefusedError) as caught:
        call(session)
    assert caught.value.refusal.code == code
    assert session.echo(b"alive") == b"alive"


def test_a_repeated_request_runs_once():
    """The same INVOKE bytes twice give the same answer twice and one inference."""
    session, device = make_session()
    session.hello()
    session.load(bytes(INPUT_BYTES))
    request = Frame(Type.INVOKE, (session._sequence + 1) & 0xFFFF, protocol.pack_invoke(0, 0)).encode()
    device.take()
    device.receive(request)
    first = device.take()
    device.receive(request)
    assert device.take() == first
    assert device.invocations == 1


BAD_LINES = {
    "drop": Faults(drop=0.01),
    "flip": Faults(flip=0.01),
    "duplicate": Faults(duplicate=0.01),
    "split": Faults(split=True),
    "delay": Faults(delay=0.01),
    "restart": Faults(restart=0.01),
    "all": Faults(drop=0.003, flip=0.003, duplicate=0.003, split=True, delay=0.01, restart=0.002),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_costs_repetitions_but_no_result(name):
    """With 1 % of the bytes damaged every inference is right, runs once unless the device was reset, and none hangs."""
    session, device = make_session(BAD_LINES[name], attempts=60)
    rng = random.Random(5)
    session.hello()
    for _ in range(150):
        x = rng.randbytes(INPUT_BYTES)
        output, _ = session.infer(x, OUTPUT_BYTES)
        assert output == model(x)
    assert 150 <= device.invocations <= 150 + session.restarts_seen
    if name in ("drop", "flip", "duplicate", "all"):
        assert session.repeats > 50


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0, 0.03), st.floats(0, 0.03), st.floats(0, 0.03))
def test_no_line_is_bad_enough_for_a_wrong_result(seed, drop, flip, restart):
    """Whatever the line does, an inference is right or raises DeviceError."""
    session, _ = make_session(Faults(drop=drop, flip=flip, restart=restart), seed, attempts=4)
    x = random.Random(seed).randbytes(INPUT_BYTES)
    try:
        session.hello()
        output, _ = session.infer(x, OUTPUT_BYTES)
    except DeviceError:
        return
    assert output == model(x)


def test_a_stuck_device_is_reported():
    """A device that falls silent ends the session with an error that says what was heard."""
    session, _ = make_session(Faults(stuck_after_bytes=400))
    session.hello()
    with pytest.raises(DeviceSilentError, match="no answer to LOAD after"):
        for _ in range(100):
            session.infer(bytes(INPUT_BYTES), OUTPUT_BYTES)


def test_a_dead_line_is_reported():
    """When nothing comes at all, the message says so and names the next step."""
    session, _ = make_session(Faults(drop=1.0))
    with pytest.raises(DeviceSilentError, match="not one byte was received") as caught:
        session.hello()
    assert "cable" in caught.value.next_step


def test_a_reset_between_load_and_invoke_is_noticed():
    """Without `infer`'s recovery the session raises: the input is gone and nothing is invented."""
    session, device = make_session()
    session.hello()
    session.load(bytes(INPUT_BYTES))
    device.boot()
    with pytest.raises(DeviceRestartedError):
        session.invoke()


def test_another_model_after_a_reset_is_an_error():
    """A device that comes back with other firmware does not silently continue."""
    session, device = make_session()
    session.hello()
    device.identity = Identity(1, 1024, "ff" * 32, "fake", "tinykd")
    device.boot()
    with pytest.raises(DeviceError, match="another model"):
        session.infer(bytes(INPUT_BYTES), OUTPUT_BYTES)


def test_the_wrong_firmware_is_named():
    """`require_model` compares the hash that the device announces."""
    session, _ = make_session()
    with pytest.raises(DeviceError, match="another model: 0000") as caught:
        session.require_model("ab" * 32)
    assert "flash" in caught.value.next_step


def test_another_protocol_version_is_named():
    """A device of a later version is not talked to."""
    session, device = make_session()
    device._run = lambda request: Identity(2, 1024, "00" * 32, "fake", "tinykd", 0).pack()  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="version 2|nonce"):
        session.hello()


def test_unknown_and_absent_emulators_are_refused():
    """An unknown emulator suggests the nearest; one that is planned says that it is not available."""
    from pathlib import Path

    from tinykd.board import load_board
    from tinykd.run.transport import open_emulator

    board = load_board("nucleo-f746")
    with pytest.raises(ConfigError, match="unicorn"):
        open_emulator("unicron", Path("firmware.elf"), board)
    with pytest.raises(DeviceError, match="not available"):
        open_emulator("qemu", Path("firmware.elf"), board)
