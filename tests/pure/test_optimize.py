"""`tinykd optimize`: the file, its certificate, and what happens when something differs."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder, needs_oracle, needs_public_models, public_models
from planted import planted

from tinykd.commands.optimize import command, make_smaller
from tinykd.errors import ConfigError, ParityError
from tinykd.export import optimize as optimize_module
from tinykd.export import oracle
from tinykd.export.passes import INT8_PASSES, float_edges_to_host, lower_padding
from tinykd.export.proof import prove, proving_inputs
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Op, Quant, Tensor, graph_macs, verify

KEYS = {"model", "model_sha256", "output", "output_sha256", "unchanged", "before", "after", "passes", "oracle"}
KEYS |= {"samples", "values_compared", "mismatches"}
HIDES = "without the oracle"


@pytest.fixture(params=["with the oracle", HIDES])
def who(request, monkeypatch):
    """Both ways to compare; the name that the certificate must give."""
    if request.param == HIDES:
        monkeypatch.setattr(oracle, "is_available", lambda: False)
        return "numpy-reference"
    if not oracle.is_available():
        pytest.skip("the tflite-micro wheel is not installed")
    return "tflite-micro"


@pytest.fixture
def model(tmp_path):
    """A model with dead channels, as a file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_writer.write(lower_padding(planted(1))))
    return path


def optimize(model, out, *arguments):
    """Run the command; raise what it raises, return its JSON."""
    done = CliRunner().invoke(command, [str(model), "-o", str(out), "--json", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_the_certificate_tells_what_was_done(model, tmp_path, who):
    """A smaller file, its certificate beside it with both hashes, and zero mismatches in whoever is there."""
    out = tmp_path / "sub" / "small.tflite"
    result = optimize(model, out, "--samples", "40")
    assert set(result) >= KEYS
    certificate = json.loads(out.with_suffix(".json").read_text())
    assert {**certificate, "output": str(out)} == result
    assert result["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert result["output_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (result["oracle"], result["samples"], result["mismatches"]) == (who, 40, 0)
    assert result["values_compared"] == 40 * tflite.read(model).tensor(tflite.read(model).outputs[0]).num_elements
    before, after = result["before"], result["after"]
    assert after["macs"] < before["macs"] and after["file_bytes"] == out.stat().st_size < model.stat().st_size
    for key in ("macs", "ops", "constant_bytes"):
        assert sum(step[key] for step in result["passes"]) == before[key] - after[key]
    assert [step["pass"] for step in result["passes"]] == [step.__name__ for step in INT8_PASSES]


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    """Files and certificates do not depend on the day."""
    names = [tmp_path / f"{number}.tflite" for number in range(2)]
    for out in names:
        optimize(model, out, "--samples", "5")
    assert names[0].read_bytes() == names[1].read_bytes()
    assert names[0].with_suffix(".json").read_bytes() == names[1].with_suffix(".json").read_bytes()


def test_the_edges_keep_names_shapes_and_parameters(model, tmp_path):
    """Who used the model can use the smaller one."""
    optimize(model, tmp_path / "small.tflite", "--samples", "5")
    old, new = tflite.read(model), tflite.read(tmp_path / "small.tflite")
    assert (old.inputs, old.outputs) == (new.inputs, new.outputs)
    for name in (*old.inputs, *old.outputs):
        a, b = old.tensor(name), new.tensor(name)
        assert (a.shape, a.dtype, a.quant) == (b.shape, b.dtype, b.quant)


@needs_oracle
def test_tflite_micro_follows_the_written_plan(model, tmp_path):
    """The file carries its memory plan: the runtime's activations take what we planned."""
    result = optimize(model, tmp_path / "small.tflite", "--samples", "5")
    assert result["after"]["tflm_head_bytes"] == result["after"]["arena_bytes"]


def test_a_difference_writes_nothing(model, tmp_path, monkeypatch, who):
    """A pass that is wrong in one bias is caught by the comparison: exit code 7, no file, no certificate."""
    right = optimize_module.optimize

    def wrong(graph, *arguments):
        graph, steps = right(graph, *arguments)
        op = next(op for op in reversed(graph.ops) if op.kind == "fully_connected")
        bias = graph.tensor(op.inputs[2])
        scale = graph.tensor(op.outputs[0]).quant.scale / (bias.quant.scale)
        changed = replace(bias, data=(bias.data + np.int32(3 * scale)).astype(np.int32))
        return verify(replace(graph, tensors={**graph.tensors, bias.name: changed})), steps

    monkeypatch.setattr(optimize_module, "optimize", wrong)
    out = tmp_path / "small.tflite"
    with pytest.raises(ParityError, match="Nothing was written") as caught:
        optimize(model, out, "--samples", "20")
    assert caught.value.exit_code == 7 and who in caught.value.message
    assert not out.exists() and not out.with_suffix(".json").exists()


def test_a_file_that_cannot_shrink_is_copied(model, tmp_path):
    """The result of a second run is the file of the first, and the certificate says so."""
    first, second = tmp_path / "1.tflite", tmp_path / "2.tflite"
    optimize(model, first, "--samples", "5")
    result = optimize(first, second, "--samples", "5")
    assert result["unchanged"] and result["passes"] == [] and result["before"] == result["after"]
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["model.tflite", "other.bin"])
def test_wrong_outputs_are_refused(model, tmp_path, name):
    """The model itself is never overwritten, and the output is a .tflite."""
    before = model.read_bytes()
    with pytest.raises(ConfigError, match="-o "):
        optimize(model, tmp_path / name)
    assert model.read_bytes() == before


def test_people_get_a_table(model, tmp_path):
    """What each pass did, the difference, and the proof."""
    done = CliRunner().invoke(command, [str(model), "-o", str(tmp_path / "small.tflite"), "--samples", "5"])
    assert done.exit_code == 0
    for word in ("remove_channels", "MACs", "arena", "0 differ"):
        assert word in done.stdout


def float_edged():
    """A model that takes and gives floats."""
    builder = Builder(np.random.default_rng(0), (1, 6, 6, 3))
    builder.conv(4)
    builder.mean()
    builder.dense(3)
    graph = builder.graph()
    tensors = {
        **graph.tensors,
        "image": Tensor("image", (1, 6, 6, 3), "float32"),
        "scores": Tensor("scores", (1, 3), "float32"),
    }
    ops = (
        Op("quantize", ("image",), ("input",), {}, "first"),
        *graph.ops,
        Op("dequantize", graph.outputs, ("scores",), {}, "last"),
    )
    return verify(replace(graph, tensors=tensors, ops=ops, inputs=("image",), outputs=("scores",)))


def test_float_edges_stay_or_go_as_asked(tmp_path, who):
    """By default the interface stays; --int8-edges leaves the conversions to the host, proven on the integers."""
    model = tmp_path / "float.tflite"
    model.write_bytes(tflite_writer.write(float_edged()))
    kept = optimize(model, tmp_path / "kept.tflite", "--samples", "20")
    assert kept["mismatches"] == 0 and kept["oracle"] == who
    assert tflite.read(tmp_path / "kept.tflite").tensor("image").dtype == "float32"
    bare = optimize(model, tmp_path / "bare.tflite", "--samples", "20", "--int8-edges")
    graph = tflite.read(tmp_path / "bare.tflite")
    assert graph.inputs == float_edges_to_host(float_edged()).inputs and graph.tensor("input").dtype == "int8"
    assert bare["mismatches"] == 0 and not bare["unchanged"] and bare["after"]["ops"] == kept["after"]["ops"] - 2


def test_the_proof_counts_and_names_what_differs(who):
    """Each differing value counts; the first is named with its place and both values."""
    builder = Builder(np.random.default_rng(0), (1, 1, 1, 2))
    builder.conv(3, (1, 1))
    builder.tensors[builder.x] = replace(builder.tensors[builder.x], quant=Quant.per_tensor(1e4, 0))
    graph = builder.graph()
    bias = graph.tensor("b0")
    data = bias.data.copy()
    data[1] += 1 << 29
    other = replace(graph, tensors={**graph.tensors, "b0": replace(bias, data=data)})
    files = [tflite_writer.write(item) for item in (graph, other)]
    same, differs = prove(files[0], files[0], _two(graph)), prove(*files, _two(graph))
    assert (same.oracle, same.samples, same.values, same.mismatches, same.first_mismatch) == (who, 2, 6, 0, None)
    assert differs.mismatches == 2
    assert differs.first_mismatch.startswith("output 'conv_2d_0', sample 0, element [0, 0, 1]: ")


def _two(graph):
    return proving_inputs(graph, 2, 0)


def test_proving_inputs_have_the_extremes_of_each_channel():
    """All lowest, all highest, a checkerboard, each channel alone at each end, then noise in both manners."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 3))
    builder.conv(2)
    x = proving_inputs(builder.graph(), 40, 7)["input"]
    assert (x[0] == -128).all() and (x[1] == 127).all() and {-128, 127} == set(np.unique(x[2]))
    alone = [(np.full(3, -128), channel, 127) for channel in range(3)] + [(np.full(3, 127), c, -128) for c in range(3)]
    for others, channel, own in alone:
        wanted = others.copy()
        wanted[channel] = own
        assert any((row == wanted).all() for row in x), (channel, own)
    flat = x[9:].reshape(31, 16, 3)
    constant = (flat == flat[:, :1]).all(axis=(1, 2))
    assert constant[::2].all() and not constant[1::2].any()
    np.testing.assert_array_equal(x, proving_inputs(builder.graph(), 40, 7)["input"])


@needs_public_models
@needs_oracle
def test_half_of_a_public_model_is_dead():
    """MLPerf Tiny's visual wake words: at most 4.13 M MACs and 135 kB of it are needed, and every output stays."""
    path = next(path for path in public_models() if "vww_96_int8" in path.name)
    smaller, certificate = make_smaller(path.read_bytes(), "vww", 100, 0, False)
    assert certificate["before"]["macs"] == 7_489_664 and certificate["before"]["file_bytes"] == 333_288
    assert certificate["after"]["macs"] <= 4_130_000 and len(smaller) <= 135_000
    assert (certificate["oracle"], certificate["samples"], certificate["mismatches"]) == ("tflite-micro", 100, 0)
    assert graph_macs(tflite.read_bytes(smaller)) == certificate["after"]["macs"]


@needs_public_models
@needs_oracle
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_never_grow(path):
    """Every public model comes out smaller or as it was, with the same outputs."""
    smaller, certificate = make_smaller(path.read_bytes(), path.stem, 12, 0, False)
    assert len(smaller) <= path.stat().st_size and certificate["mismatches"] == 0
    assert certificate["after"]["macs"] <= certificate["before"]["macs"]
    assert certificate["after"]["arena_bytes"] <= certificate["before"]["arena_bytes"]
