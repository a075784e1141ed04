"""From a trained student to files: the same student gives the same bytes, and calibration sees no test image."""

import shutil

import numpy as np
import pytest

from tinykd.artifact import sha256_file
from tinykd.board import load_board
from tinykd.build import generate
from tinykd.commands import export_stage
from tinykd.commands.pipeline import make_plan
from tinykd.commands.target import resolve_target
from tinykd.config import load_recipe
from tinykd.data import load_dataset
from tinykd.data.calibration import calibration_images
from tinykd.errors import ArtifactError
from tinykd.export import ptq
from tinykd.train import train

FILES = (export_stage.FLOAT_ONNX, export_stage.QDQ_ONNX, "model.tflite")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and exported smoke run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(load_recipe("smoke"), folder, device="cpu")
    export_stage.ensure_export(folder)
    return folder


def test_the_same_student_gives_the_same_bytes(run, tmp_path):
    """ONNX, .tflite, plan and C do not depend on the folder or the time."""
    twin = tmp_path / "elsewhere"
    shutil.copytree(run / "train", twin / "train")
    export_stage.ensure_export(twin)
    for name in FILES:
        assert sha256_file(run / "export" / name) == sha256_file(twin / "export" / name)
    texts = []
    for folder in (run, twin):
        target = resolve_target(folder)
        graph = target.graph()
        plan, _ = make_plan(target, graph, load_board("nucleo-f412"))
        texts.append(generate(graph, plan, target.sha256()).files)
    assert texts[0] == texts[1]
    plans = [(folder / "boards/nucleo-f412/plan/plan.json").read_bytes() for folder in (run, twin)]
    assert plans[0] == plans[1]


def test_a_finished_export_is_kept(run):
    """An export of the same student is not repeated; a damaged one is."""
    path = run / "export" / "model.tflite"
    made = path.stat().st_mtime_ns
    export_stage.ensure_export(run)
    assert path.stat().st_mtime_ns == made
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        resolve_target(run)
    export_stage.ensure_export(run)
    assert resolve_target(run).graph().inputs


def test_no_pad_op_and_no_float_edge(run):
    """A student pads like TF-SAME, so its .tflite has no PAD, and is int8 from edge to edge."""
    graph = resolve_target(run).graph()
    assert not {"pad", "reshape"} & {op.kind for op in graph.ops}
    assert {tensor.dtype for tensor in graph.tensors.values()} == {"int8", "int32"}


def test_calibration_images_come_from_train_only(run, monkeypatch):
    """The images that reach the calibrator are training images, none of them a validation or test image."""
    seen = []
    honest = ptq.quantise_trained
    dataset = load_dataset(load_recipe("smoke").data)

    def spy(graph, x, *arguments, **options):
        seen.append(np.rint(x * dataset.std_level + dataset.mean_level).astype(np.uint8))
        return honest(graph, x, *arguments, **options)

    monkeypatch.setattr(ptq, "quantise_trained", spy)
    export_stage.ensure_export(run, again=True)
    taken = {image.tobytes() for image in np.concatenate(seen)}
    assert taken <= {image.tobytes() for image in dataset.train.images}
    assert not taken & {image.tobytes() for split in (dataset.val, dataset.test) for image in split.images}
    assert len(calibration_images(dataset, 10**6)) == len(dataset.train)
