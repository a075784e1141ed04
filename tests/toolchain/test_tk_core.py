"""The firmware's server, compiled for this host under sanitizers: fuzzed, and compared with the Python side."""

import random
import subprocess
from pathlib import Path

import pytest
from sim.fakeboard import HOST_COMPILER, INPUT_BYTES, OUTPUT_BYTES, SHA256, build_host, expected_output

from tinykd.errors import DeviceError
from tinykd.run import protocol
from tinykd.run.protocol import ErrorCode, Frame, FrameDecoder, Type
from tinykd.run.session import DeviceRefusedError, Session
from tinykd.run.transport.faults import Faults, FaultyTransport

pytestmark = pytest.mark.skipif(HOST_COMPILER is None, reason="needs a C compiler for this host")
NUM_OPS = 3


class PipeTransport:
    """The server as a child process; its UART is a pair of pipes."""

    name = "host process"
    counter_unit = "cycles"
    counter = None

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        try:
            self.process.stdin.write(data)
        except BrokenPipeError as error:
            raise DeviceError(f"the server ended with code {self.process.wait()}") from error

    def read(self, timeout_s: float) -> bytes:
        """Receive bytes."""
        import select

        ready, _, _ = select.select([self.process.stdout], [], [], min(timeout_s, 0.03))
        return self.process.stdout.read(65536) if ready else b""

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The server's program."""
    return build_host(tmp_path_factory.mktemp("core"), Path(__file__).parent / "core_host.c")


@pytest.fixture
def transport(program):
    """A running server."""
    transport = PipeTransport(program)
    yield transport
    transport.close()


def test_the_server_survives_a_hundred_thousand_fuzzed_frames(program):
    """Good, damaged, truncated and nonsensical frames: no sanitizer report, and everything sent back is a frame."""
    for seed in (1, 2):
        done = subprocess.run([program, "fuzz", str(seed), "50000"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]


def test_both_decoders_find_the_same_frames(program):
    """C and Python agree on a stream of frames, fragments, flipped bits and noise made of sync bytes."""
    rng = random.Random(11)
    stream = b""
    for _ in range(3000):
        raw = bytearray(Frame(rng.randrange(256), rng.randrange(65536), rng.randbytes(rng.randrange(120))).encode())
        kind = rng.randrange(5)
        if kind == 0:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw = raw[: rng.randrange(len(raw))]
        elif kind == 2:
            stream += bytes(rng.choices(b"\xd4\x9b\x01\x00", k=rng.randrange(20)))
        stream += raw
    stream += bytes(2000)
    done = subprocess.run([program, "decode"], input=stream, capture_output=True, timeout=60, check=True)
    found = [tuple(map(int, line.split()[:4])) for line in done.stdout.decode().splitlines()]
    frames = FrameDecoder(1024).feed(stream)
    assert found == [(frame.version, frame.type, frame.sequence, len(frame.payload)) for frame in frames]
    assert len(found) > 1500


def test_the_server_announces_itself(program):
    """After reset come the boot line and READY, with the identity that HELLO also gives."""
    done = subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
    line, _, raw = done.stdout.partition(b"\r\n")
    assert line == b"tinykd READY protocol=1 board=host engine=tinykd model=0123456789abcdef"
    (ready,) = FrameDecoder().feed(raw)
    assert (ready.type, ready.sequence) == (Type.READY, 0)
    assert protocol.Identity.unpack(ready.payload).model_sha256 == SHA256


def test_the_server_does_everything_that_the_protocol_offers(transport):
    """HELLO, INFO, ECHO, LOAD, stepwise INVOKE with a look at the arena, RESULT, PROFILE and RESET."""
    session = Session(transport)
    assert session.hello().board == "host"
    info = session.info()
    assert (info.input_bytes, info.output_bytes, info.num_ops) == (INPUT_BYTES, OUTPUT_BYTES, NUM_OPS)
    for size in (0, 1, 1024):
        assert session.echo(bytes(range(256)) * 4 if size == 1024 else bytes(size)) is not None
    x = random.Random(4).randbytes(INPUT_BYTES)
    session.load(x)
    assert session.invoke(0, 1).next_op == 1
    assert session.activation(64, 64) == bytes((value + 1) & 0xFF for value in x)
    assert session.invoke(1).inferences == 1
    assert session.result(OUTPUT_BYTES) == expected_output(x)
    assert session.profile(NUM_OPS) == [7, 7, 7]
    assert session.infer(x, OUTPUT_BYTES)[1].cycles == 7 * 2 * NUM_OPS
    session.reset()
    assert session.info().inferences == 0


def test_the_state_is_forgotten_on_request_and_by_hello(transport):
    """The model counts inferences in its state; FORGET and HELLO set it back, and discard what was loaded."""
    session = Session(transport)
    session.hello()
    assert session.info().state_bytes == 1
    x = bytes(INPUT_BYTES)

    def count(**options):
        session.infer(x, OUTPUT_BYTES, **options)
        return session.activation(255, 1)[0]

    assert [count(), count(), count(fresh=True), count()] == [1, 2, 1, 2]
    session.hello()
    assert count() == 1
    session.load(x)
    session.forget()
    with pytest.raises(DeviceRefusedError, match="OUT_OF_ORDER"):
        session.invoke()
    with pytest.raises(DeviceRefusedError, match="NO_RESULT"):
        session.result(1)


@pytest.mark.parametrize(
    ("call", "code", "detail"),
    [
        (lambda s: s._must(Type.FORGET, b"x", 0), ErrorCode.BAD_LENGTH, 1),
        (lambda s: s.invoke(), ErrorCode.OUT_OF_ORDER, protocol.NO_OP),
        (lambda s: s.result(1), ErrorCode.NO_RESULT, 0),
        (lambda s: s.load(bytes(INPUT_BYTES + 1)), ErrorCode.OUT_OF_RANGE, INPUT_BYTES),
        (lambda s: s._must(Type.LOAD, protocol.pack_load(3, b"x"), 4), ErrorCode.OUT_OF_ORDER, 0),
        (lambda s: s._must(Type.LOAD, protocol.pack_load(0xFFFFFFFF, b"x"), 4), ErrorCode.OUT_OF_ORDER, 0),
        (lambda s: s.activation(256, 1), ErrorCode.OUT_OF_RANGE, 256),
        (lambda s: s.activation(0xFFFFFFFF, 2), ErrorCode.OUT_OF_RANGE, 256),
        (lambda s: s.profile(NUM_OPS + 1), ErrorCode.OUT_OF_RANGE, NUM_OPS),
        (lambda s: s._must(Type.RESET, b"x", 0), ErrorCode.BAD_LENGTH, 1),
        (lambda s: s._must(0x33, b"", 0), ErrorCode.UNKNOWN_TYPE, 0x33),
    ],
)
def test_the_server_refuses_with_the_specified_code(transport, call, code, detail):
    """Each wrong request gets its code and detail, and the next request is served."""
    session = Session(transport)
    session.hello()
    with pytest.raises(DeviceRefusedError) as caught:
        call(session)
    assert (caught.value.refusal.code, caught.value.refusal.detail) == (code, detail)
    assert session.echo(b"alive") == b"alive"


def test_an_input_must_be_loaded_again_before_the_next_inference(transport):
    """A second INVOKE without LOAD is out of order: activations may have overwritten the input."""
    session = Session(transport)
    session.hello()
    session.infer(bytes(INPUT_BYTES), OUTPUT_BYTES)
    with pytest.raises(DeviceRefusedError, match="OUT_OF_ORDER"):
        session.invoke()
    with pytest.raises(DeviceRefusedError, match="OUT_OF_ORDER, detail 0"):
        session._must(Type.LOAD, protocol.pack_load(INPUT_BYTES, b"x"), 4)


def exchange(transport: PipeTransport, *frames: Frame) -> list[Frame]:
    """Send frames as they are and return as many answers."""
    decoder, answers = FrameDecoder(), []
    for frame in frames:
        transport.write(frame.encode())
        while len(answers) < frames.index(frame) + 1:
            answers += [answer for answer in decoder.feed(transport.read(5)) if answer.type != Type.READY]
    return answers


def test_before_hello_there_is_no_session(transport):
    """After reset every request but HELLO gets NO_SESSION."""
    (answer,) = exchange(transport, Frame(Type.INFO, 5))
    assert protocol.Refusal.unpack(answer.payload).code == ErrorCode.NO_SESSION
    assert answer.sequence == 5


def test_a_sequence_number_is_used_once(transport):
    """The same request again is answered from memory; another one under its number is refused; HELLO never is."""
    hello = Frame(Type.HELLO, 9, protocol.pack_u32(1))
    load = Frame(Type.LOAD, 10, protocol.pack_load(0, bytes(INPUT_BYTES)))
    transport.write(hello.encode() + load.encode())
    invoke = Frame(Type.INVOKE, 11, protocol.pack_invoke(0, 0)).encode()
    transport.write(invoke)
    transport.write(invoke)
    transport.write(Frame(Type.INFO, 11).encode() + Frame(Type.HELLO, 11, protocol.pack_u32(2)).encode())
    decoder, answers = FrameDecoder(), []
    while len(answers) < 7:
        answers += decoder.feed(transport.read(5))
    assert answers[3] == answers[4]
    assert protocol.Invoked.unpack(answers[4].payload).inferences == 1
    assert protocol.Refusal.unpack(answers[5].payload).code == ErrorCode.BAD_SEQUENCE
    assert protocol.Identity.unpack(answers[6].payload).nonce == 2


@pytest.mark.parametrize("length", [200, 1024, 1025, protocol.MOST_MAX_PAYLOAD])
def test_a_damaged_length_delays_nothing(transport, length):
    """A header that promises bytes which never come, or too many, is dropped at once: the next request is answered."""
    session = Session(transport)
    session.hello()
    sound = Frame(Type.ECHO, 1, bytes(length))
    damaged = bytearray(Frame(Type.ECHO, 1, b"x").encode())
    damaged[6:8] = length.to_bytes(2, "little")
    transport.write(bytes(damaged))
    if length > 1024:
        transport.write(sound.encode()[: protocol.HEADER_BYTES])
    assert session.echo(b"next") == b"next"
    assert session.repeats == 0


def test_a_later_protocol_version_is_refused(transport):
    """A frame of version 2 gets BAD_VERSION in a frame of version 1."""
    (answer,) = exchange(transport, Frame(Type.HELLO, 1, b"", version=2))
    assert answer.version == 1
    refusal = protocol.Refusal.unpack(answer.payload)
    assert (refusal.code, refusal.detail) == (ErrorCode.BAD_VERSION, 1)


def test_the_real_server_survives_a_bad_line(program):
    """With bytes dropped, flipped, doubled and split between Python and C, every inference is right."""
    transport = PipeTransport(program)
    faults = Faults(drop=0.002, flip=0.002, duplicate=0.002, split=True)
    session = Session(FaultyTransport(transport, faults, seed=3), attempts=30)
    rng = random.Random(8)
    session.hello()
    for _ in range(30):
        x = rng.randbytes(INPUT_BYTES)
        assert session.infer(x, OUTPUT_BYTES)[0] == expected_output(x)
    assert session.repeats > 0
    transport.close()
