"""The whole road through the real command line: from a recipe to a report, interrupted and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("unicorn", reason="unicorn is not installed")

from commandline import tinykd

KEYS = {
    "plan": "board model_sha256 arena_bytes lower_bound_bytes tflm_arena_bytes tflm_arena_online_bytes "
    "sram_total_bytes sram_budget_bytes flash_total_bytes flash_budget_bytes fits macs",
    "build": "board engine elf flash_bytes sram_static_bytes arena_bytes stack_bytes_max code_bytes model_bytes fits",
    "bench": "board transport engine samples top1 top1_host agree outputs_equal instructions_per_inference "
    "estimated_cycles latency_us latency_kind macs per_op",
    "export": "model_tflite model_onnx top1_float top1_int8 samples agree seconds",
}
CIFAR = Path(os.environ.get("TINYKD_DATA", "/nonexistent"))


def _road(cwd, recipe, board, *arguments):
    exit_code, out, err = tinykd(cwd, "run", recipe, "--board", board, "--json", *arguments, timeout=900)
    assert exit_code == 0, err
    return json.loads(out)


def _holds_together(result):
    """What every finished road must show."""
    for stage, keys in KEYS.items():
        assert set(keys.split()) <= set(result[stage]), stage
    plan, build, bench = result["plan"], result["build"], result["bench"]
    assert plan["arena_bytes"] == build["arena_bytes"] == plan["lower_bound_bytes"]
    assert abs(plan["flash_total_bytes"] - build["flash_bytes"]) <= 0.02 * build["flash_bytes"]
    assert abs(plan["sram_total_bytes"] - build["sram_total_bytes"]) <= 0.02 * build["sram_total_bytes"]
    assert bench["outputs_equal"] and bench["top1"] == bench["top1_host"]
    assert bench["latency_kind"] == "estimated"
    assert {"op", "source", "macs", "instructions"} <= set(bench["per_op"][0])
    assert sum(op["instructions"] for op in bench["per_op"]) >= 0.99 * bench["instructions_per_inference"]


def test_the_road_is_laid_from_end_to_end(tmp_path):
    """`tinykd run` trains, exports, plans, builds, benches and reports; running it again repeats nothing."""
    result = _road(tmp_path, "smoke", "nucleo-f412", "--samples", "30")
    _holds_together(result)
    page = (tmp_path / result["report"]).read_text()
    assert "nucleo-f412" in page and "http://" not in page.replace("http://www.w3.org", "")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    again = _road(tmp_path, "smoke", "nucleo-f412", "--samples", "30")
    assert again["bench"] == result["bench"]
    changed = {str(path) for path, time_ns in made.items() if path.stat().st_mtime_ns != time_ns}
    assert all("report" in Path(path).parts for path in changed)


def test_a_killed_run_continues_to_the_same_student(tmp_path):
    """A run killed while it trains continues, and ends with the very bytes of an undisturbed run."""
    settings = ["-s", "train.epochs=8", "-s", "data.subset=1024", "--samples", "5"]
    undisturbed = _road(tmp_path, "smoke", "nucleo-f746", *settings, "--out", "a")
    command = [sys.executable, "-m", "tinykd", "run", "smoke", "--board", "nucleo-f746", *settings, "--out", "b"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "b/train/metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b/train/manifest.json").exists(), "the training was over before it could be killed"
    continued = _road(tmp_path, "smoke", "nucleo-f746", *settings, "--out", "b")
    for name in ("train/student.safetensors", "export/model.tflite", "export/model.qdq.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert continued["bench"]["outputs_equal"] and undisturbed["bench"]["outputs_equal"]


def test_a_student_that_cannot_fit_is_refused_before_it_is_trained(tmp_path):
    """The fit is checked first: exit code 3, and no training was begun."""
    wide = ["-s", "student.args.width=8", "-s", "student.args.stem_stride=1"]
    exit_code, _, err = tinykd(tmp_path, "run", "smoke", "--board", "nucleo-f412", *wide)
    assert exit_code == 3
    assert "nucleo-f412 leaves" in err and "Try" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not any(CIFAR.glob("cifar10*")) and not any(CIFAR.glob("cifar-10*")),
    reason="TINYKD_DATA does not name a folder with CIFAR-10",
)
def test_cifar10_goes_the_same_road(tmp_path):
    """MLPerf Tiny's ResNet-8 on a subset of CIFAR-10, taught by a ResNet-56, reaches the emulated board."""
    result = _road(tmp_path, "cifar10-resnet8-kd-smoke", "nucleo-f746", "--samples", "20")
    _holds_together(result)
    assert result["plan"]["macs"] == 12_501_632
