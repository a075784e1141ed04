"""Bad input through the real command line: its own message, its own exit code, nothing half-written."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tflite as schema
from commandline import tinykd
from graphs import Builder
from tflite_files import with_builtin, with_type

from tinykd.formats.tflite import writer as tflite_writer


def _model(size=8, channels=4) -> bytes:
    builder = Builder(np.random.default_rng(0), (1, size, size, 3))
    builder.conv(channels, activation="relu")
    builder.conv(channels)
    builder.mean()
    builder.dense(3)
    return tflite_writer.write(builder.graph("small"))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _expect(cwd, code, words, *arguments, **environment):
    before = _files(cwd)
    exit_code, out, err = tinykd(cwd, *arguments, **environment)
    assert exit_code == code, err
    assert "Traceback" not in err
    assert err.startswith(f"{arguments[0]}: ")
    for word in words:
        assert word in err
    assert _files(cwd) == before
    return out


def test_unknown_recipe_key(tmp_path):
    """An unknown key is answered with the nearest one before anything is made."""
    _expect(tmp_path, 2, ["train.epoch", "epochs"], "run", "smoke", "--board", "nucleo-f746", "-s", "train.epoch=3")


def test_unknown_recipe_and_board(tmp_path):
    """Unknown names are answered with the nearest."""
    _expect(tmp_path, 2, ["mnist5k-kd"], "run", "mnist5k-dk", "--board", "nucleo-f746")
    _expect(tmp_path, 2, ["nucleo-f746"], "run", "smoke", "--board", "nucleo-f476")


@pytest.mark.parametrize("verb", ["plan", "build", "bench", "verify"])
def test_truncated_model(tmp_path, verb):
    """A truncated .tflite is refused by every verb that takes one."""
    path = tmp_path / "cut.tflite"
    path.write_bytes(_model()[:900])
    board = [] if verb == "verify" else ["--board", "nucleo-f746"]
    _expect(tmp_path, 4, ["cut", "corrupt"], verb, path, *board)


def test_random_bytes(tmp_path):
    """A file of noise is no model."""
    path = tmp_path / "noise.tflite"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    _expect(tmp_path, 4, ["not a .tflite"], "plan", path, "--board", "nucleo-f746")


def test_float_model(tmp_path):
    """A float model is refused with the way to quantise it."""
    path = tmp_path / "float.tflite"
    path.write_bytes(with_type(_model(), schema.TensorType.INT8, schema.TensorType.FLOAT32))
    _expect(tmp_path, 4, ["float32", "inference_input_type"], "plan", path, "--board", "nucleo-f746")


def test_unsupported_op(tmp_path):
    """An op that is not supported is named with its place."""
    path = tmp_path / "odd.tflite"
    path.write_bytes(with_builtin(_model(), schema.BuiltinOperator.MEAN, schema.BuiltinOperator.RESIZE_BILINEAR))
    _expect(tmp_path, 4, ["op 2", "RESIZE_BILINEAR", "mean_2"], "build", path, "--board", "nucleo-f746")


def test_model_that_does_not_fit(tmp_path):
    """Exit code 3 names need, limit, the op at the peak and what to try; --json still prints the whole plan."""
    path = tmp_path / "big.tflite"
    path.write_bytes(_model(size=100, channels=32))
    exit_code, out, err = tinykd(tmp_path, "plan", path, "--board", "nucleo-f412", "--json")
    assert exit_code == 3
    result = json.loads(out)
    assert result["fits"] is False
    assert result["sram_total_bytes"] > result["sram_budget_bytes"] == 262_144
    for word in ("262 144 B", "op 1 (conv_2d", "Try"):
        assert word in err
    assert tinykd(tmp_path, "build", path, "--board", "nucleo-f412")[0] == 3
    assert not (tmp_path / "runs/big/boards/nucleo-f412/build").exists()


def test_missing_compiler(tmp_path):
    """Without a compiler the build fails with exit code 5 and the package's name, and leaves no build behind."""
    path = tmp_path / "small.tflite"
    path.write_bytes(_model())
    exit_code, _, err = tinykd(tmp_path, "build", path, "--board", "nucleo-f746", PATH="/nonexistent")
    assert exit_code == 5
    assert "gcc-arm-none-eabi" in err
    assert not (tmp_path / "runs/small/boards/nucleo-f746/build").exists()


def test_missing_model(tmp_path):
    """A path that is neither a model nor a run says so."""
    _expect(tmp_path, 2, ["nothing.tflite"], "plan", "nothing.tflite", "--board", "nucleo-f746")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(tmp_path):
    """On a full disk planning and building fail with a message, and the earlier plan is still whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "size=96k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        path = disk / "small.tflite"
        path.write_bytes(_model())
        assert tinykd(disk, "plan", path, "--board", "nucleo-f746")[0] == 0
        plan = (disk / "runs/small/boards/nucleo-f746/plan/plan.json").read_bytes()
        exit_code, _, err = tinykd(disk, "build", path, "--board", "nucleo-f746")
        assert exit_code == 2, err
        assert "No space left" in err and "Traceback" not in err
        assert (disk / "runs/small/boards/nucleo-f746/plan/plan.json").read_bytes() == plan
        assert not [name for name in _files(disk) if "build" in Path(name).parts or name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", str(disk)], check=False)
