"""`tinykd bench` from a .tflite to its result: build, emulate, compare, write."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import needs_oracle, needs_public_models, public_models, random_network
from sim.fakeboard import needs_arm_gcc, needs_unicorn

from tinykd.artifact import read_manifest
from tinykd.commands.bench import command
from tinykd.errors import ConfigError, DeviceError, ParityError
from tinykd.formats.tflite import writer as tflite_writer

pytestmark = [needs_unicorn, needs_arm_gcc]
KEYS = {"board", "transport", "engine", "samples", "top1", "top1_host", "agree", "outputs_equal", "macs", "per_op"}
KEYS |= {"instructions_per_inference", "estimated_cycles", "latency_us", "latency_kind"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random network as a file."""
    path = tmp_path_factory.mktemp("model") / "random.tflite"
    path.write_bytes(tflite_writer.write(random_network(7).graph()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run folder for all tests, so that the firmware is built once."""
    return tmp_path_factory.mktemp("run") / "random"


def bench(model, out, *arguments):
    """Run the command; raise what it raises, return its JSON."""
    arguments = [str(model), "--board", "nucleo-f746", "--out", str(out), "--json", *arguments]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_a_third_partys_model_is_benched(model, run):
    """Outputs equal the host's, all promised keys are there, counts add up, and the artefact is complete."""
    result = bench(model, run, "--samples", "5")
    assert set(result) >= KEYS
    assert (result["samples"], result["outputs_equal"], result["top1"]) == (5, True, None)
    counted = sum(row["instructions"] for row in result["per_op"]) + result["instructions_overhead"]
    assert counted == result["instructions_per_inference"]
    assert 0 < result["stack_bytes_measured"] <= result["stack_bytes_max"]
    folder = run / "boards" / "nucleo-f746" / "bench"
    assert set(read_manifest(folder, "bench").outputs) == {"bench.json", "outputs.npz"}
    arrays = np.load(folder / "outputs.npz")
    assert np.array_equal(arrays["outputs"], arrays["reference"])
    assert result == json.loads((folder / "bench.json").read_text())


def test_two_benches_count_the_same(model, run):
    """Same model, seed and board: the same instructions, op by op, and the same outputs."""
    results = []
    for _ in range(2):
        result = bench(model, run, "--samples", "3")
        results.append({key: value for key, value in result.items() if key != "seconds"})
    assert results[0] == results[1]


def test_labelled_images_give_accuracy_and_wrong_images(model, run, tmp_path):
    """With labels top-1 is reported, and what was wrong is kept for the report."""
    from tinykd.formats import tflite

    graph = tflite.read(model)
    shape = graph.tensor(graph.inputs[0]).shape[1:]
    images = np.random.default_rng(1).integers(0, 256, (6, *shape), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.zeros(6, np.int64))
    result = bench(model, run, "--data", str(tmp_path / "data.npz"))
    assert result["top1"] == result["top1_host"] is not None
    wrong = np.load(run / "boards" / "nucleo-f746" / "bench" / "wrong.npz")
    assert len(wrong["images"]) == round(6 * (1 - result["top1"]))
    assert set(wrong.files) == {"images", "labels", "predictions", "indices"}


def test_a_device_that_computes_something_else_breaks_parity(model, run, monkeypatch):
    """When host and device differ the result is written, says so, and the command ends with exit code 7."""
    from tinykd.commands import bench_stage

    real = bench_stage.host_outputs

    def off_by_one(target, x):
        outputs, name = real(target, x)
        outputs = outputs.copy()
        outputs[1, 0] ^= 1
        return outputs, name

    monkeypatch.setattr(bench_stage, "host_outputs", off_by_one)
    with pytest.raises(ParityError, match="1 of 3 outputs of unicorn differ"):
        bench(model, run, "--samples", "3")
    written = json.loads((run / "boards" / "nucleo-f746" / "bench" / "bench.json").read_text())
    assert written["outputs_equal"] is False
    assert written["first_mismatch"]["sample"] == 1


def test_a_board_on_a_serial_port_is_benched(model, run):
    """--port: the same bench over a terminal that plays a board gives measured cycles, marked as such."""
    pytest.importorskip("serial", reason="needs pyserial")
    pytest.importorskip("pty", reason="needs pseudo-terminals")
    from hw.ptyboard import PtyBoard

    from tinykd.artifact import sha256_file
    from tinykd.export import reference
    from tinykd.formats import tflite
    from tinykd.run.transport.fake import FakeDevice

    graph = tflite.read(model)
    tensors = graph.tensor(graph.inputs[0]), graph.tensor(graph.outputs[0])
    num_ops = len(bench(model, run, "--samples", "1")["per_op"])

    def compute(x):
        return reference.run_output(graph, np.frombuffer(x, np.int8).reshape(tensors[0].shape)).tobytes()

    sizes = (tensor.num_bytes for tensor in tensors)
    cycles = tuple(1000 + op for op in range(num_ops))
    board = PtyBoard(FakeDevice(compute, *sizes, op_cycles=cycles, model_sha256=sha256_file(model)))
    result = bench(model, run, "--port", board.path, "--samples", "3")
    assert (result["transport"], result["latency_kind"], result["outputs_equal"]) == (board.path, "measured", True)
    assert result["cycles_per_inference"] == sum(cycles)
    assert [row["cycles"] for row in result["per_op"]] == list(cycles)
    assert result["instructions_per_inference"] is None


def test_wrong_options_are_refused_before_anything_is_built(model, tmp_path):
    """--sim with --port, an unknown emulator: nothing is written."""
    for arguments in (("--sim", "unicorn", "--port", "auto"), ("--sim", "bochs")):
        with pytest.raises(ConfigError):
            bench(model, tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_device_that_fails_leaves_the_last_result(model, run):
    """An emulator that is not available gives exit code 6, and the bench that stood there stays."""
    folder = run / "boards" / "nucleo-f746" / "bench"
    bench(model, run, "--samples", "2")
    before = (folder / "bench.json").read_bytes()
    with pytest.raises(DeviceError, match="not available"):
        bench(model, run, "--sim", "renode")
    assert (folder / "bench.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@needs_public_models
@needs_oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlperf__vww_96_int8", "mlperf__pretrainedResnet_quant"])
def test_public_models_run_unchanged(name, tmp_path):
    """MLPerf Tiny's models go through plan, build and bench, and equal TFLite Micro on 20 random inputs."""
    (path,) = [path for path in public_models() if path.stem == name]
    result = bench(path, tmp_path / "run", "--samples", "20", "--profile-samples", "1")
    assert (result["samples"], result["outputs_equal"], result["host"]) == (20, True, "tflite-micro")
