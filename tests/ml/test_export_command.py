"""`tinykd export` as users call it: options of quantisation, the sensitivity table, and ONNX models of others."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from tinykd.cli import main
from tinykd.commands.target import resolve_target
from tinykd.config import load_recipe
from tinykd.data import load_dataset
from tinykd.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained smoke run."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    train(load_recipe("smoke"), folder, device="cpu")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run."""
    return shutil.copytree(trained, tmp_path / "run")


def call(*arguments):
    """Run the command line; return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def export(*arguments, code=0):
    """Call the verb with --json; return its object, or with another exit code what it says, on one line."""
    ended, out, err = call("export", *arguments, "--json")
    assert ended == code, out + err
    return json.loads(out) if code == 0 else " ".join(err.split())


@pytest.fixture
def model(trained, tmp_path):
    """The float ONNX of the run, as somebody else's model, and pixels to calibrate it with."""
    export(trained)
    path = tmp_path / "model.onnx"
    shutil.copy(trained / "export" / "model.float.onnx", path)
    np.savez(tmp_path / "data.npz", images=load_dataset(load_recipe("smoke").data).train.images[:100])
    return path


def test_the_defaults_are_said(run):
    """The JSON object tells how the student was quantised, with the stable keys."""
    result = export(run)
    assert result["calibration"] == "mse"
    assert result["bias_correction"] in (True, False)
    assert (result["equalized"], result["search"], result["sensitivity"]) == (0, None, None)
    assert result["sqnr_db"] > 15
    assert abs(result["top1_float"] - result["top1_int8"]) < 0.05
    assert result["parity_values_checked"] > 0


def test_options_change_the_model_and_are_remembered(run):
    """Each option gives a model of its own; asking for the same again does no work, for the defaults does."""
    plain = export(run)
    other = export(run, "--calibration", "minmax", "--no-bias-correction")
    assert (other["calibration"], other["bias_correction"], other["biases_corrected"]) == ("minmax", False, 0)
    bytes_then = (run / "export" / "model.tflite").read_bytes()
    stamp = (run / "export" / "manifest.json").stat().st_mtime_ns
    assert export(run, "--calibration", "minmax", "--no-bias-correction") == other
    assert (run / "export" / "manifest.json").stat().st_mtime_ns == stamp
    again = export(run)
    assert again["calibration"] == plain["calibration"]
    assert (run / "export" / "model.tflite").read_bytes() != bytes_then
    even = export(run, "--equalize")
    assert even["equalized"] > 0
    assert even["agree"] > 0.9


def test_the_recipe_decides_where_the_command_line_does_not(run):
    """The recipe's export section is followed, and options go before it."""
    path = run / "train" / "recipe.yaml"
    path.write_text(path.read_text().replace("method: mse", "method: percentile"))
    assert "method: percentile" in path.read_text()
    from tinykd.artifact import sha256_file, write_json

    manifest = json.loads((run / "train" / "manifest.json").read_text())
    manifest["outputs"]["recipe.yaml"] = sha256_file(path)
    write_json(run / "train" / "manifest.json", manifest)
    assert export(run)["calibration"] == "percentile"
    assert export(run, "--calibration", "entropy")["calibration"] == "entropy"


def test_a_search_tells_what_it_found(run):
    """--search names the method of each activation and what it gained."""
    search = export(run, "--search")["search"]
    assert set(search["methods"].values()) <= {"minmax", "percentile", "mse", "entropy"}
    assert search["evaluations"] > 4
    assert search["error_found"] <= search["error_start"]
    assert "--calibration minmax picks one" in export(run, "--search", "--calibration", "minmax", code=2)


def test_sensitivity_is_a_table_and_a_file(run):
    """--sensitivity prints a row for each layer, names those that hurt, and keeps the numbers."""
    export(run)
    code, _, said = call("export", run, "--sensitivity")
    assert code == 0
    raw = json.loads((run / "export" / "sensitivity.json").read_text())
    assert raw["layers"] and sum(layer["share"] for layer in raw["layers"]) == pytest.approx(1)
    for layer in raw["layers"]:
        assert f"{layer['op']} {layer['kind']}" in said
    assert "Layers that hurt:" in said
    # It stays there, and is named, when the same export is asked for without the table.
    assert export(run)["sensitivity"].endswith("sensitivity.json")


def test_a_foreign_model_becomes_a_run(model, tmp_path):
    """A float ONNX with pixels gives the same artefacts; later stages take the folder."""
    out = tmp_path / "out"
    data = ("--calibration-data", tmp_path / "data.npz", "--mean", "0.13", "--std", "0.3")
    result = export(model, *data, "-o", out)
    assert result["quantised_by"] == "ptq"
    assert result["calibration_images"] == result["samples"] == 100
    assert result["top1_float"] is None
    assert result["agree"] > 0.9
    for name in ("model.tflite", "model.qdq.onnx", "model.float.onnx", "manifest.json"):
        assert (out / "export" / name).is_file()
    target = resolve_target(out)
    assert not target.exported
    assert target.graph().inputs
    code, planned, _ = call("plan", out, "--board", "nucleo-f746", "--json")
    assert code == 0
    assert json.loads(planned)["fits"]


def test_the_same_model_by_both_roads(run, model, tmp_path):
    """Calibrated on the same images with the same normalisation, a student gives the same .tflite as from its run."""
    recipe = load_recipe("smoke")
    dataset = load_dataset(recipe.data)
    from tinykd.data.calibration import calibration_images

    images = calibration_images(dataset, recipe.export.calibration_images, recipe.export.calibration_seed)
    np.save(tmp_path / "same.npy", images)
    mean, std = dataset.mean_level / 255, dataset.std_level / 255
    ours = export(run)
    theirs = export(
        model, "--calibration-data", tmp_path / "same.npy", "--mean", mean, "--std", std, "-o", tmp_path / "out"
    )
    assert ours["biases_corrected"] == theirs["biases_corrected"]
    first, second = (resolve_target(folder).graph() for folder in (run, tmp_path / "out"))
    for mine, other in zip(first.tensors.values(), second.tensors.values(), strict=True):
        assert mine.data is None or np.abs(mine.data.astype(int) - other.data.astype(int)).max() <= 1
        assert np.allclose(mine.quant.scales, other.quant.scales, rtol=1e-4)


def test_float_data_is_fed_as_it_is(model, tmp_path):
    """Float inputs, channels first as ONNX has them, need no normalisation and refuse one."""
    x = (np.load(tmp_path / "data.npz")["images"] / 255.0 - 0.13) / 0.3
    np.save(tmp_path / "x.npy", x.transpose(0, 3, 1, 2).astype(np.float32))
    result = export(model, "--calibration-data", tmp_path / "x.npy", "-o", tmp_path / "out")
    assert result["agree"] > 0.9
    assert "real /" in result["input"]
    said = export(model, "--calibration-data", tmp_path / "x.npy", "--mean", "0", "--std", "1", code=2)
    assert "fed as they are" in said


def test_a_folder_of_images_is_calibration_data(model, tmp_path):
    """JPEG and PNG files anywhere below a folder are cropped and resized to the model's input."""
    from PIL import Image

    images = np.load(tmp_path / "data.npz")["images"]
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number, image in enumerate(images[:12]):
        Image.fromarray(image.squeeze()).resize((50, 40)).save(tmp_path / "pictures" / "deep" / f"{number}.png")
    result = export(
        model, "--calibration-data", tmp_path / "pictures", "--mean", "0", "--std", "1", "-o", tmp_path / "out"
    )
    assert result["samples"] == 12


def test_a_quantised_model_keeps_its_integers(run, tmp_path):
    """Our own QDQ ONNX gives back the .tflite's integers, without any data."""
    export(run)
    shutil.copy(run / "export" / "model.qdq.onnx", tmp_path / "q.onnx")
    result = export(tmp_path / "q.onnx", "-o", tmp_path / "out")
    assert result["quantised_by"] == "qdq"
    assert result["calibration"] is None
    first, second = (resolve_target(folder).graph() for folder in (run, tmp_path / "out"))
    assert [op.kind for op in first.ops] == [op.kind for op in second.ops]
    for mine, other in zip(first.ops, second.ops, strict=True):
        for a, b in zip(mine.inputs[1:3], other.inputs[1:3], strict=True):
            if first.tensor(a).data is not None:
                assert np.array_equal(first.tensor(a).data, second.tensor(b).data)
    data = tmp_path / "x.npy"
    np.save(data, np.zeros((1, 28, 28, 1), np.uint8))
    assert "brings its own scales" in export(tmp_path / "q.onnx", "--calibration-data", data, code=2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 5, 1), np.uint8), "holds (4, 5, 5, 1); the model takes (N, 28, 28, 1)"),
        (np.zeros((4, 28, 28, 1), np.int64), "expected uint8 pixels or float numbers"),
        (np.full((4, 28, 28, 1), np.nan, np.float32), "not finite"),
        (np.zeros((4, 28, 28, 1), np.uint8), "Give --mean and --std"),
    ],
)
def test_data_that_does_not_suit_is_refused(model, tmp_path, array, message):
    """Wrong shapes, types and numbers are named before anything is written."""
    np.save(tmp_path / "bad.npy", array)
    assert message in export(model, "--calibration-data", tmp_path / "bad.npy", "-o", tmp_path / "out", code=2)
    assert not (tmp_path / "out" / "export").exists()


def test_float_models_need_data_and_runs_have_their_own(model, run, tmp_path):
    """No data for a float model, and data for a run, are errors that say what to do."""
    assert "Give --calibration-data" in export(model, code=2)
    assert "only for a MODEL.onnx" in export(run, "--calibration-data", tmp_path / "data.npz", code=2)
    (tmp_path / "junk.npz").write_bytes(b"no zip")
    assert "cannot be read" in export(model, "--calibration-data", tmp_path / "junk.npz", code=2)
    assert "is not a number" in export(model, "--mean", "a,b", code=2)


def test_an_export_is_quick_and_small(tmp_path):
    """A 0.6 M-parameter student takes seconds and tens of MiB beyond PyTorch's ONNX export; limits are generous."""
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[2] / "benchmarks" / "export_cost.py"
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is read from Linux's /proc")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout)
    assert 550_000 < cost["parameters"] < 650_000
    assert cost["processor_seconds"] < 10
    assert cost["beyond_mib"] < 300
