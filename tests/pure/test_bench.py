"""The benchmark over a fake device: what it computes, and what it refuses."""

import numpy as np
import pytest

from tinykd.board import load_board
from tinykd.commands.bench import _profile_table
from tinykd.commands.bench_stage import BenchOptions, choose_inputs, require_parity
from tinykd.commands.target import Target
from tinykd.errors import ConfigError, DeviceError, ParityError
from tinykd.run.bench import run_bench
from tinykd.run.session import Session
from tinykd.run.transport.base import BlockCount, InstructionCounts
from tinykd.run.transport.fake import FakeDevice, FakeTransport

SHA256 = "cd" * 32
OPS = [
    {"op": 0, "kind": "conv_2d", "source": "a", "macs": 1000, "kernel": "tk_conv_2d"},
    {"op": 1, "kind": "softmax", "source": "b", "macs": 0, "kernel": "tk_softmax"},
]
BOARD = load_board("nucleo-f746")
X = np.random.default_rng(0).integers(-128, 128, (6, 12), dtype=np.int8)


def model(x: bytes) -> bytes:
    """The first four bytes."""
    return x[:4]


TWO_NOPS = bytes.fromhex("00bf00bf")


def blocks_of(function, instructions):
    """A block of two NOPs that never jumped."""
    return (BlockCount(function, TWO_NOPS, instructions // 2, 0),)


class FakeCounter:
    """Counts 300, 500, 400, 300, ... instructions for one inference after the other."""

    def __init__(self):
        self.calls = 0

    def start(self):
        """Begin."""

    def stop(self):
        """End."""
        total = (300, 500, 400)[self.calls % 3]
        self.calls += 1
        parts = (total - 60, 50, 10)
        blocks = tuple(map(blocks_of, ("tk_conv_2d", "tk_softmax", "loop"), parts))
        return InstructionCounts(total, parts[:2], parts[2], blocks)


def bench(reference=None, labels=None, counter=None, wrap=model, **options):
    """Run the bench on a fake board; with a counter it is a fake emulator."""
    transport = FakeTransport(FakeDevice(wrap, 12, 4, model_sha256=SHA256))
    if counter is not None:
        transport.counter, transport.counter_unit = counter, "none"
    wanted = X[:, :4] if reference is None else reference
    arguments = {"model_sha256": SHA256, "ops": OPS, "inputs": X, "reference": wanted, "labels": labels, **options}
    return run_bench(Session(transport), BOARD, **arguments)


def test_an_emulator_gives_instructions_and_an_estimate():
    """The inference of median cost is shown, its parts sum to its total, and the latency is called estimated."""
    done = []
    result = bench(counter=FakeCounter(), on_sample=done.append).result
    assert [result[f"instructions_{name}"] for name in ("per_inference", "min", "max", "overhead")] == [
        400,
        300,
        500,
        10,
    ]
    assert sum(row["instructions"] for row in result["per_op"]) + 10 == 400
    assert (result["cycles_low"], result["estimated_cycles"], result["cycles_high"]) == (200, 300, 400)
    assert [row["cycles_high"] for row in result["per_op"]] == [340, 50]
    assert [row["kernel"] for row in result["per_op"]] == ["tk_conv_2d", "tk_softmax"]
    assert [(row["function"], row["instructions"]) for row in result["by_function"]] == [
        ("tk_conv_2d", 340),
        ("tk_softmax", 50),
        ("loop", 10),
    ]
    assert result["latency_us"] == round(result["estimated_cycles"] / result["clock_hz"] * 1e6, 3)
    assert (result["latency_kind"], result["macs"], result["outputs_equal"]) == ("estimated", 1000, True)
    assert done == [1, 2, 3, 4, 5, 6]


def test_a_board_gives_measured_cycles():
    """Cycles come from the device: latency is measured, per-op cycles are its profile, instructions are unknown."""
    result = bench().result
    assert result["latency_kind"] == "measured"
    assert (result["cycles_per_inference"], result["latency_us"]) == (300, 300.0)
    assert [row["cycles"] for row in result["per_op"]] == [100, 200]
    assert result["instructions_per_inference"] is None
    assert result["estimated_cycles"] is None
    assert result["by_function"] is None


def test_the_profile_of_a_board_has_its_cycles():
    """What a board measured stands in the place of instructions and estimates; a narrow terminal drops columns."""
    measured, emulated = bench().result, bench(counter=FakeCounter()).result
    titles = ["op", "kind", "source", "kernel", "MACs", "cycles", "per MAC", "share"]
    assert [column.header for column in _profile_table(measured, True, 190).columns] == titles
    wide, narrow = ([column.header for column in _profile_table(emulated, False, width).columns] for width in (190, 70))
    assert wide == [*titles[:5], "instructions", *titles[6:], "cycles, about", "at least", "at most"]
    assert set(wide) - set(narrow) == {"source", "at least", "at most"}


def test_a_cycle_counter_that_stands_still_is_no_measurement():
    """A board whose cycles are all 0 gives an error instead of a latency of 0."""
    device = FakeDevice(model, 12, 4, model_sha256=SHA256, op_cycles=(0, 0))
    arguments = {"model_sha256": SHA256, "ops": OPS, "inputs": X, "reference": X[:, :4]}
    with pytest.raises(DeviceError, match="cycle counter of 'fake' stands still"):
        run_bench(Session(FakeTransport(device)), BOARD, **arguments)


def test_accuracy_is_of_device_and_host_apart():
    """top1 comes from the device, top1_host from the reference, agree from both."""
    reference = X[:, :4].copy()
    reference[0] = reference[0][::-1].copy() if len(set(X[0, :4])) > 1 else reference[0] + 1
    labels = X[:, :4].argmax(axis=1)
    found = bench(reference, labels, FakeCounter())
    assert found.result["top1"] == 1.0
    assert found.result["top1_host"] == float(np.mean(reference.argmax(axis=1) == labels))
    assert found.result["samples_different"] == 1
    assert np.array_equal(found.outputs, X[:, :4])


def test_without_labels_there_is_no_accuracy():
    """Random inputs have no right answers."""
    result = bench(counter=FakeCounter()).result
    assert (result["top1"], result["top1_host"], result["agree"]) == (None, None, 1.0)


def test_one_wrong_value_breaks_parity_and_is_named():
    """A single differing integer is found, counted and described."""
    reference = X[:, :4].copy()
    reference[3, 2] ^= 1
    result = bench(reference, counter=FakeCounter()).result
    first = {"sample": 3, "element": 2, "device": int(X[3, 2]), "host": int(X[3, 2] ^ 1)}
    assert (result["outputs_equal"], result["samples_different"], result["first_mismatch"]) == (False, 1, first)
    with pytest.raises(ParityError, match="1 of 6 outputs of fake differ .* sample 3, element 2") as caught:
        require_parity({**result, "host": "tflite-micro"})
    assert caught.value.exit_code == 7


def test_the_wrong_device_is_refused():
    """Another model, or other sizes than the model's, end the bench before any inference."""
    with pytest.raises(DeviceError, match="another model"):
        bench(model_sha256="ee" * 32)
    with pytest.raises(DeviceError, match="2 ops; the model has 12, 4 and 1"):
        bench(ops=OPS[:1])


def target(tmp_path):
    """A third party's model; nothing reads the file here."""
    return Target("model", tmp_path / "model.tflite", tmp_path, exported=False)


def test_random_inputs_follow_from_the_seed(tmp_path):
    """The same seed gives the same inputs; they use the whole range of int8."""
    first, again, other = (
        choose_inputs(target(tmp_path), (1, 8, 8, 3), BenchOptions(seed=seed)).x for seed in (1, 1, 2)
    )
    assert first.shape == (20, 192)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.min(), first.max()) == (-128, 127)


def test_pixels_and_int8_are_read_from_files(tmp_path):
    """uint8 pixels become pixel - 128, int8 stays; labels come along; --samples takes the first ones."""
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(4))
    np.save(tmp_path / "b.npy", pixels.reshape(4, 12).astype(np.int8))
    found = choose_inputs(target(tmp_path), (1, 2, 2, 3), BenchOptions(data=str(tmp_path / "a.npz"), samples=3))
    assert np.array_equal(found.x, (pixels[:3].astype(int) - 128).reshape(3, 12))
    assert (found.labels.tolist(), found.images.shape) == ([0, 1, 2], (3, 2, 2, 3))
    plain = choose_inputs(target(tmp_path), (1, 2, 2, 3), BenchOptions(data=str(tmp_path / "b.npy")))
    assert plain.x.dtype == np.int8
    assert (plain.labels, len(plain.x)) == (None, 4)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": np.zeros((2, 12), np.float32)}, {}, "float32"),
        ({"images": np.zeros((2, 11), np.int8)}, {}, "model takes int8"),
        ({"images": np.zeros((0, 12), np.int8)}, {}, "model takes int8"),
        ({"pictures": np.zeros((2, 12), np.int8)}, {}, "no array 'inputs'; it has: pictures"),
        ({"images": np.zeros((2, 12), np.int8), "labels": np.zeros(3, int)}, {}, "labels"),
        ({"images": np.zeros((2, 12), np.int8)}, {"samples": 3}, "--samples 3"),
    ],
)
def test_unsuitable_data_is_refused(tmp_path, arrays, options, message):
    """Each fault of a --data file has its own message."""
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        choose_inputs(target(tmp_path), (1, 2, 2, 3), BenchOptions(data=str(tmp_path / "a.npz"), **options))


def test_unreadable_data_is_refused(tmp_path):
    """A missing file and one that is no array are told apart from a model's fault."""
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "bad.npy").write_bytes(b"")
    for name in ("bad.npz", "bad.npy", "absent.npy"):
        with pytest.raises(ConfigError, match=name):
            choose_inputs(target(tmp_path), (1, 2, 2, 3), BenchOptions(data=str(tmp_path / name)))
