"""The report: everything that the records say, nothing that they do not, in one page that needs nothing else."""

from __future__ import annotations

import html.parser
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from tinykd.artifact import Manifest, draft_artifact, sha256_file, write_json
from tinykd.commands.report import write_report
from tinykd.errors import ArtifactError, ConfigError
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, Op, Quant, Tensor, op_macs, same_padding, verify
from tinykd.plan import plan_graph
from tinykd.report import charts, collect_records, render, render_page
from tinykd.report.collect import _confusion

CLASSES = [str(digit) for digit in range(10)]
BOARD = "nucleo-f746"


def residual_graph(width: int = 8) -> Graph:
    """Return an int8 residual network over an (1, 28, 28, 1) image, with a RESHAPE and ten classes."""
    rng = np.random.default_rng(7)
    tensors: dict[str, Tensor] = {"image": Tensor("image", (1, 28, 28, 1), "int8", Quant.per_tensor(1 / 78, -95))}
    ops: list[Op] = []

    def activation(name: str, shape: tuple[int, ...], zero_point: int = -128) -> str:
        tensors[name] = Tensor(name, shape, "int8", Quant.per_tensor(0.04, zero_point))
        return name

    def constant(name: str, shape: tuple[int, ...], dtype: str, count: int, scale: float) -> str:
        data = rng.integers(-100, 100, shape).astype(dtype)
        tensors[name] = Tensor(name, shape, dtype, Quant((float(np.float32(scale)),) * count, (0,) * count, 0), data)
        return name

    def conv(x: str, name: str, channels: int, stride: int, kernel: int = 3) -> str:
        _, height, width_in, channels_in = tensors[x].shape
        pads = (*same_padding(height, kernel, stride), *same_padding(width_in, kernel, stride))
        weights = constant(f"{name}/weights", (channels, kernel, kernel, channels_in), "int8", channels, 0.01)
        bias = constant(f"{name}/bias", (channels,), "int32", channels, 0.01 * tensors[x].quant.scale)
        y = activation(name, (1, math.ceil(height / stride), math.ceil(width_in / stride), channels))
        attrs = {"stride": (stride, stride), "dilation": (1, 1), "padding": pads, "activation": "relu"}
        ops.append(Op("conv_2d", (x, weights, bias), (y,), attrs, name))
        return y

    x = conv("image", "stem", width, 2)
    for index, (channels, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2))):
        y = conv(conv(x, f"block{index}/conv1", channels, stride), f"block{index}/conv2", channels, 1)
        shortcut = x if stride == 1 else conv(x, f"block{index}/shortcut", channels, stride, 1)
        x = activation(f"block{index}/add", tensors[y].shape)
        ops.append(Op("add", (y, shortcut), (x,), {"activation": "relu"}, f"block{index}/add"))
    mean = activation("mean", (1, 1, 1, 4 * width))
    ops.append(Op("mean", (x,), (mean,), {"axes": (1, 2), "keep_dims": True}, "mean"))
    flat = activation("flat", (1, 4 * width))
    ops.append(Op("reshape", (mean,), (flat,), {}, "flat"))
    weights = constant("logits/weights", (10, 4 * width), "int8", 1, 0.02)
    tensors[weights] = Tensor(weights, (10, 4 * width), "int8", Quant.per_tensor(0.02, 0), tensors[weights].data)
    tensors["logits/bias"] = Tensor(
        "logits/bias", (10,), "int32", Quant.per_tensor(0.02 * 0.04, 0), np.zeros(10, np.int32)
    )
    logits = activation("logits", (1, 10), 0)
    ops.append(Op("fully_connected", (flat, weights, "logits/bias"), (logits,), {"activation": "none"}, "logits"))
    return verify(Graph("sample", tensors, tuple(ops), ("image",), ("logits",)))


def make_run(run: Path, stages: str = "train export plan build bench", graph: Graph | None = None) -> Path:
    """Write the records of a run as the stages would, and return `run`.

    `stages` names those that were run, in the order of the road.
    """
    graph = graph or residual_graph()
    rng = np.random.default_rng(11)
    macs = sum(op_macs(graph, op) for op in graph.ops)
    if "train" in stages:
        make_train(run, macs)
    if "export" not in stages:
        return run
    with draft_artifact(
        run / "export", "export", inputs={"student": "a" * 64}, seed=0, tools={"onnx": "1.23"}
    ) as draft:
        draft.path("model.tflite").write_bytes(tflite_writer.write(graph))
        draft.results.update(
            model_tflite="model.tflite", top1_float=0.984, top1_int8=0.983, samples=1000, agree=0.997, seconds=1.62
        )
    inputs = {"model.tflite": sha256_file(run / "export" / "model.tflite"), "board": "b" * 64}
    place = run / "boards" / BOARD
    plan = plan_graph(graph)
    if "plan" in stages:
        planned = {
            "board": BOARD,
            "arena_bytes": plan.arena_bytes,
            "lower_bound_bytes": plan.lower_bound_bytes,
            "sram_total_bytes": plan.arena_bytes + 3100,
            "sram_budget_bytes": 320 * 1024,
            "flash_total_bytes": 40_120,
            "flash_budget_bytes": 1024 * 1024,
            "fits": True,
            "macs": macs,
        }
        with draft_artifact(place / "plan", "plan", inputs=inputs, board=BOARD) as draft:
            draft.results.update(planned)
            write_json(draft.path("plan.json"), {**planned, "plan": plan.to_dict()})
    if "build" in stages:
        built = {
            "board": BOARD,
            "engine": "tinykd",
            "elf": "firmware.elf",
            "flash_bytes": 40_004,
            "sram_static_bytes": plan.arena_bytes + 1300,
            "sram_total_bytes": plan.arena_bytes + 2012,
            "arena_bytes": plan.arena_bytes,
            "stack_bytes_max": 712,
            "code_bytes": 11_300,
            "model_bytes": 24_000,
            "fits": True,
        }
        tools = {"arm-none-eabi-gcc": "12.2.1"}
        with draft_artifact(place / "build", "build", inputs=inputs, board=BOARD, tools=tools) as draft:
            write_json(draft.path("build.json"), built)
            draft.path("firmware.elf").write_bytes(b"\x7fELF")
    if "bench" in stages:
        per_op = [
            {
                "op": 0,
                "kind": op.kind,
                "source": op.source,
                "macs": op_macs(graph, op),
                "instructions": int(op_macs(graph, op) * (9.5 + 3 * rng.random())) + 900,
            }
            for op in graph.ops
            if op.kind != "reshape"
        ]
        total = sum(row["instructions"] for row in per_op)
        labels = np.arange(1000) % 10
        outputs = rng.integers(-120, 0, (1000, 10)).astype(np.int8)
        outputs[np.arange(1000), labels] = 100
        wrong = rng.choice(1000, 17, replace=False)
        outputs[wrong, (labels[wrong] + rng.integers(1, 9, 17)) % 10] = 120
        bench = {
            "board": BOARD,
            "transport": "unicorn",
            "engine": "tinykd",
            "samples": 1000,
            "top1": 0.983,
            "top1_host": 0.983,
            "agree": 1.0,
            "outputs_equal": True,
            "samples_different": 0,
            "instructions_per_inference": total,
            "estimated_cycles": total,
            "latency_us": total / 216,
            "latency_kind": "estimated",
            "macs": macs,
            "per_op": per_op,
            "seconds": 41.3,
        }
        with draft_artifact(
            place / "bench", "bench", inputs=inputs, board=BOARD, seed=0, tools={"unicorn": "2.1.4"}
        ) as draft:
            write_json(draft.path("bench.json"), bench)
            np.savez(draft.path("outputs.npz"), outputs=outputs, labels=labels)
            np.savez(
                draft.path("wrong.npz"),
                images=np.stack([strokes(rng) for _ in range(12)]),
                labels=labels[wrong[:12]],
                predictions=outputs[wrong[:12]].argmax(1),
            )
    return run


def make_train(run: Path, macs: int) -> None:
    """Write RUN/train as the training stage leaves it."""
    folder = run / "train"
    for place, epochs, best in ((folder / "teacher", 30, 0.989), (folder, 40, 0.984)):
        place.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "epoch": epoch,
                "step": 56 * epoch,
                "lr": 0.1 * (1 - epoch / epochs),
                "loss": 2.2 * math.exp(-epoch / 6) + 0.05,
                "top1_train": 0.9,
                "top1_val": best - 0.5 * math.exp(-epoch / 3),
                "seconds": 1.7 * epoch,
            }
            for epoch in range(1, epochs + 1)
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"model": "resnet8", "args": {"width": 0.5, "stem_stride": 2}}
    manifest = Manifest(
        stage="train",
        inputs={"dataset": "d" * 64},
        outputs={name: sha256_file(folder / name) for name in ("metrics.jsonl", "teacher/metrics.jsonl")},
        config={
            "name": "mnist5k-kd",
            "data": {"name": "mnist5k"},
            "student": model,
            "teacher": {"model": "resnet8", "args": {"width": 2.0}},
            "distill": [{"method": "kd", "weight": 0.9, "args": {"temperature": 4.0}}],
            "train": {"epochs": 40, "batch_size": 64, "lr": 0.1, "optimizer": "sgd", "label_weight": 0.1},
        },
        seed=0,
        tools={"tinykd": "0.1.0", "torch": "2.13.0"},
        results={
            "top1_float": 0.984,
            "top1_val": 0.9825,
            "teacher_top1": 0.989,
            "teacher_model": "resnet8",
            "teacher_source": "trained",
            "teacher_params": 310_000,
            "student_model": "resnet8",
            "params": 20_002,
            "macs": macs,
            "epochs": 40,
            "seconds": 96.4,
            "dataset": "mnist5k",
            "num_train": 3600,
            "num_val": 400,
            "num_test": 1000,
            "classes": CLASSES,
            "device": "cpu",
        },
    )
    write_json(folder / "manifest.json", manifest.to_dict())


def strokes(rng: np.random.Generator) -> np.ndarray:
    """Return a grey image (28, 28, 1) with a random curve on it."""
    image = np.zeros((28, 28, 1), np.uint8)
    t = np.linspace(0, 5, 240)
    x, y = 14 + 8 * np.sin(t * rng.uniform(0.5, 1.5)), 14 + 9 * np.cos(t * rng.uniform(0.5, 1.5) + 1)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[(y + dy).astype(int), (x + dx).astype(int), 0] = 255
    return image


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run in which every stage was run."""
    return make_run(tmp_path / "mnist5k-kd")


class _Page(html.parser.HTMLParser):
    """Collects what a page asks a browser to fetch, its text, and whether its tags are balanced."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page_of(folder: Path, **kwargs: object) -> _Page:
    """Return the parsed page of a run."""
    return _Page(render_page(collect_records(folder, **kwargs)))


def test_page_is_well_formed_and_fetches_nothing(run: Path) -> None:
    """The page is balanced HTML without scripts, and every address in it is a data URI."""
    page = page_of(run)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.fetched and all(address.startswith("data:image/png;base64,") for address in page.fetched)
    text = render_page(collect_records(run))
    assert "url(" not in text and "@import" not in text


def test_page_shows_the_recorded_numbers(run: Path) -> None:
    """Accuracies with their sample counts, memory, instructions and the label of the latency are all there."""
    text = " ".join(page_of(run).text.split())
    records = collect_records(run)
    bench = records.boards[0].bench.results
    assert "98.40 %" in text and "98.30 %" in text and "on 1,000 test images" in text
    assert f"{records.boards[0].memory_plan.arena_bytes:,} B" in text
    assert f"{bench['instructions_per_inference']:,}" in text
    assert "estimated" in text and "1,000 of 1,000 bit-exact" in text
    assert "40,004 B of 1,024.0 kB" in text
    assert "All of 17 wrong" not in text and "12 of 17 wrong images" in text


def test_same_records_give_the_same_bytes(run: Path) -> None:
    """The page has no clock and no random part."""
    assert render_page(collect_records(run)) == render_page(collect_records(run))


@pytest.mark.parametrize(
    "stages", ["train", "train export", "train export plan", "train export plan build", "export plan"]
)
def test_a_stage_that_was_not_run_is_shown_as_such(tmp_path: Path, stages: str) -> None:
    """Each missing stage is named 'not run', and none of its numbers appears."""
    make_run(tmp_path / "part", stages)
    text = page_of(tmp_path / "part").text.split("Made by tinykd")[0]
    missing = [name for name in ("train", "export", "plan", "build", "bench") if name not in stages]
    assert text.count("not run") >= len(missing)
    if "bench" not in stages:
        assert "estimated" not in text and "bit-exact" not in text and "1,000 images" not in text
    if "export" not in stages:
        assert "int8 on the host" not in text
    if "train" not in stages:
        assert "98.40 %" not in text and "parameters" not in text.split("Where each number")[0]


def test_numbers_of_another_model_are_left_out(run: Path) -> None:
    """A benchmark made from another .tflite is 'out of date': its numbers are not mixed with the new model's."""
    with draft_artifact(run / "export", "export") as draft:
        draft.path("model.tflite").write_bytes(tflite_writer.write(residual_graph(width=4)))
    text = page_of(run).text.split("Made by tinykd")[0]
    assert text.count("out of date") == 3
    assert "estimated" not in text and "40,004" not in text


def test_a_changed_record_is_refused(run: Path) -> None:
    """A file that differs from its manifest is an error that names it, not a number on the page."""
    path = run / "boards" / BOARD / "bench" / "bench.json"
    path.write_text(path.read_text().replace("0.983", "0.999"))
    with pytest.raises(ArtifactError, match=r"bench\.json differs"):
        collect_records(run)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without records gives an error that says how to start."""
    with pytest.raises(ConfigError, match="no records"):
        collect_records(tmp_path)


def test_an_unknown_board_is_refused(run: Path) -> None:
    """Asking for a board without records names those that have some."""
    with pytest.raises(ConfigError, match="nucleo-f412") as error:
        collect_records(run, board="nucleo-f412")
    assert BOARD in error.value.next_step


def test_a_third_party_model_has_no_training_section(tmp_path: Path) -> None:
    """For somebody else's model nothing is said of training, and accuracy is not invented."""
    run = make_run(tmp_path / "made")
    model = tmp_path / "vendor.tflite"
    shutil.copy(run / "export" / "model.tflite", model)
    folder = tmp_path / "runs" / "vendor"
    folder.mkdir(parents=True)
    shutil.copytree(run / "boards", folder / "boards")
    page = page_of(folder, model=model)
    assert "A model that tinykd did not train" in page.text
    assert "What was trained" not in page.text and "float accuracy" not in page.text
    assert "int8 on the host" not in page.text


def test_two_boards_stand_side_by_side(run: Path) -> None:
    """A run that was built for two boards gets a section for each."""
    shutil.copytree(run / "boards" / BOARD, run / "boards" / "nucleo-f412")
    page = page_of(run)
    assert "On nucleo-f412" in page.text and f"On {BOARD}" in page.text
    assert "On nucleo-f412" not in page_of(run, board=BOARD).text


def test_a_torn_last_metric_is_left_out(run: Path) -> None:
    """While training runs, its last line may be half written; the curve then ends one epoch earlier."""
    make_train(run, 1)
    path = run / "train" / "metrics.jsonl"
    (run / "train" / "manifest.json").unlink()
    with path.open("a") as file:
        file.write('{"epoch": 41, "lo')
    assert [row["epoch"] for row in collect_records(run).student_metrics] == list(range(1, 41))


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    """Class, op and tensor names are text, whatever they contain."""
    run = make_run(tmp_path / "r<b>un")
    path = run / "train" / "manifest.json"
    evil = "<script>alert(1)</script>"
    raw = json.loads(path.read_text())
    raw["results"]["classes"][3] = evil
    raw["results"]["student_model"] = evil
    path.write_text(json.dumps(raw))
    text = render_page(collect_records(run))
    assert evil not in text and "&lt;script&gt;" in text


def test_layers_and_measurements_are_joined_by_generated_op(run: Path) -> None:
    """RESHAPE has no instructions; every other op has exactly those of its own row."""
    layers = collect_records(run).boards[0].layers
    bench = json.loads((run / "boards" / BOARD / "bench" / "bench.json").read_text())
    measured = [layer for layer in layers if layer.kind != "reshape"]
    assert [(layer.source, layer.instructions) for layer in measured] == [
        (row["source"], row["instructions"]) for row in bench["per_op"]
    ]
    assert [layer.instructions for layer in layers if layer.kind == "reshape"] == [None]
    assert all(layer.macs == row["macs"] for layer, row in zip(measured, bench["per_op"], strict=True))


def test_a_model_that_names_the_class_itself_has_no_confusion(tmp_path: Path) -> None:
    """From int32 classes of an ARG_MAX the number of classes is unknown: no matrix, and no error."""
    path = tmp_path / "outputs.npz"
    np.savez(path, outputs=np.array([[3], [1]], np.int32), labels=np.array([3, 9]))
    assert _confusion(path) is None


def test_confusion_counts_labels_by_rows(run: Path) -> None:
    """Row sums are the images of each class, the trace the right ones."""
    counts = collect_records(run).boards[0].confusion
    assert counts.sum(1).tolist() == [100] * 10
    assert counts.trace() == 983


def test_png_holds_the_pixels() -> None:
    """The written PNG decodes to the same bytes, grey and colour."""
    import base64
    import struct

    for channels in (1, 3):
        pixels = np.random.default_rng(channels).integers(0, 256, (5, 7, channels)).astype(np.uint8)
        png = base64.b64decode(charts.png_data_uri(pixels).removeprefix("data:image/png;base64,"))
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        chunks, at = {}, 8
        while at < len(png):
            length, kind = struct.unpack(">I4s", png[at : at + 8])
            body = png[at + 8 : at + 8 + length]
            assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
            chunks[kind] = body
            at += 12 + length
        assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (7, 5, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
        rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(5, 1 + 7 * channels)
        assert (rows[:, 0] == 0).all() and (rows[:, 1:].reshape(pixels.shape) == pixels).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 0.98), (0, 71.2), (1e-3, 2.3), (5, 5), (0, 123456), (-3, 4)])
def test_ticks_cover_the_range_with_few_round_numbers(low: float, high: float) -> None:
    """Ticks enclose the data, rise evenly, and are between 2 and 9."""
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    steps = np.diff(ticks)
    assert (steps > 0).all() and np.allclose(steps, steps[0])


def test_arena_chart_draws_each_buffer_once(run: Path) -> None:
    """There is one box for each buffer (a RESHAPE shares its input's), and those live at the peak are marked."""
    graph = residual_graph()
    plan = plan_graph(graph)
    svg = charts.arena_chart(plan, [op.kind for op in graph.ops])
    owners = [item for item in plan.placements if item.alias_of is None]
    live = [item for item in owners if item.first_op <= plan.peak_op <= item.last_op]
    assert svg.count('class="buffer') == len(owners) == len(plan.placements) - 1
    assert svg.count('class="buffer hot"') == len(live)


def test_numbers_for_people() -> None:
    """None is a dash, never a zero; sizes are in units of 1024."""
    assert render.percent(None) == render.size(None) == render.thousands(None) == "–"
    assert render.size(0) == "0 B" and render.size(320 * 1024) == "320.0 kB"
    assert render.seconds(125) == "2 min 05 s" and render.seconds(0.04) == "40 ms"
    assert render.short_source("model/relu;model/bias;model/conv") == "model/relu"
    assert len(render.short_source("x" * 99)) == 40
    assert render.millions(12_500_000) == "12.50 M" and render.shape((1, 28, 28, 4)) == "28×28×4"


def test_an_estimate_is_never_shown_without_its_label() -> None:
    """A latency from instruction counts carries 'estimated'; one from the cycle counter does not."""
    fact = render.latency({"latency_us": 1500.0, "latency_kind": "estimated", "instructions_per_inference": 9})
    assert fact is not None and fact.source == "estimated" and "estimated" in fact.note and fact.value == "1.50 ms"
    fact = render.latency({"latency_us": 900.0, "latency_kind": "measured"})
    assert fact is not None and "estimated" not in fact.note and fact.value == "900 µs"
    assert render.latency({}) is None


def test_one_differing_output_is_not_bit_exact() -> None:
    """Only all outputs equal count as bit-exact; otherwise the page says how many samples differ."""
    fact = render.parity({"outputs_equal": True, "samples": 1000, "samples_different": 0})
    assert fact is not None and fact.source == "ok" and fact.label == "bit-exact"
    fact = render.parity({"outputs_equal": False, "samples": 1000, "samples_different": 1})
    assert fact is not None and fact.source == "bad" and fact.value == "1 of 1,000 differ"
    assert render.parity({"samples": 3}) is None


def test_cycles_of_a_board_take_the_place_of_instructions(run: Path) -> None:
    """A benchmark on hardware counts cycles: the table says so, and nothing is called an estimate."""
    folder = run / "boards" / BOARD / "bench"
    bench = json.loads((folder / "bench.json").read_text())
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    for row in bench["per_op"]:
        row["cycles"], row["instructions"] = row["instructions"], None
    bench.update(
        transport="serial",
        instructions_per_inference=None,
        estimated_cycles=None,
        cycles_per_inference=123_456,
        latency_kind="measured",
    )
    with draft_artifact(folder, "bench", inputs=inputs, board=BOARD) as draft:
        write_json(draft.path("bench.json"), bench)
    text = page_of(run).text.split("Made by tinykd")[0]
    assert "123,456" in text and "cycles" in text and "measured" in text
    assert "estimated" not in text and "emulated" not in text


def test_an_arena_that_differs_from_the_plan_is_said_aloud(run: Path) -> None:
    """The page compares the arena in the ELF with the plan's and does not hide a difference."""
    assert "exactly this size" in page_of(run).text
    folder = run / "boards" / BOARD / "build"
    built = json.loads((folder / "build.json").read_text())
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    with draft_artifact(folder, "build", inputs=inputs, board=BOARD) as draft:
        write_json(draft.path("build.json"), {**built, "arena_bytes": 9_999})
    assert "The ELF holds 9,999 B instead" in page_of(run).text


def test_report_is_written_whole_with_a_manifest(run: Path) -> None:
    """`write_report` puts the page and its manifest into RUN/report and says which stages it shows."""
    path, result = write_report(run)
    assert path == run / "report" / "index.html" and path.stat().st_size == result["page_bytes"]
    assert result["stages"] == {"train": "done", "export": "done"}
    assert result["boards"] == {BOARD: {"plan": "done", "build": "done", "bench": "done"}}
    manifest = json.loads((run / "report" / "manifest.json").read_text())
    assert manifest["outputs"]["index.html"] == sha256_file(path)


def test_the_page_draws_the_network(run: Path) -> None:
    """The drawing of the model is on the page, closed, and leaves the other charts' styles alone."""
    text = render_page(collect_records(run))
    assert text.count('<svg class="graph"') == 1
    assert "<summary>The drawing</summary>" in text
    graph = collect_records(run).graph
    assert graph is not None
    for index, op in enumerate(graph.ops):
        assert f"op {index}: {op.kind}\n" in text


def test_layers_are_those_that_the_engine_planned(run: Path) -> None:
    """Plans and measurements speak of the engine's graph: its ops are listed, and each measurement finds its own."""

    def without_first(graph: Graph) -> Graph:
        return Graph(graph.name, graph.tensors, graph.ops[1:], graph.ops[0].outputs, graph.outputs)

    whole = collect_records(run).boards[0].layers
    assert all(layer.instructions is not None for layer in whole if layer.kind != "reshape")
    lowered = collect_records(run, lower=without_first).boards[0].layers
    assert [layer.source for layer in lowered] == [layer.source for layer in whole[1:]]
    # Measurements of another sequence of ops belong to none of these.
    assert all(layer.instructions is None for layer in lowered)
