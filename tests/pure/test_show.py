"""`tinykd show`: the table's numbers, one op in full, and a drawing whose lines run through no box."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Builder, needs_public_models, public_models, random_network

from tinykd.commands.show import command
from tinykd.errors import ConfigError
from tinykd.formats import tflite
from tinykd.formats.tflite import writer as tflite_writer
from tinykd.ir import Graph, graph_macs
from tinykd.plan import plan_graph
from tinykd.report import graph_details, graph_svg, graph_table
from tinykd.report.graph_layout import Edge, lay_out

SVG = "{http://www.w3.org/2000/svg}"


def show(model: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """Run the command; raise what it raises, return its JSON."""
    done = CliRunner().invoke(command, [str(model), "--out", str(out), "--json", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def branched() -> Graph:
    """A split whose parts go different ways, a concatenation, a residual over many ops, and two outputs."""
    builder = Builder(np.random.default_rng(1), (1, 8, 8, 4))
    start = builder.conv(12)
    parts = builder.split((4, 4, 4), 3)
    builder.x = parts[0]
    builder.conv(4)
    builder.conv(4, (1, 1))
    # A concatenation wants one quantisation: that of the parts.
    left = builder.ops[-1].outputs[0]
    builder.tensors[left] = replace(builder.tensors[left], quant=builder.tensors[parts[1]].quant)
    builder.concatenate([parts[1], parts[2]], 3)
    builder.conv(12, (1, 1))
    builder.add(start)
    mean = builder.mean()
    first = builder.dense(5)
    builder.x = mean
    second = builder.dense(3)
    return builder.graph(outputs=(first, second))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random network as a file."""
    path = tmp_path / "net.tflite"
    path.write_bytes(tflite_writer.write(random_network(5).graph()))
    return path


def test_the_json_sums_up_what_the_graph_has(model: Path, tmp_path: Path) -> None:
    """Totals are the sums of the ops' rows and of the graph; the arena is the planner's."""
    result = show(model, tmp_path / "run")
    graph = tflite.read(model)
    assert result["macs"] == graph_macs(graph) == sum(row["macs"] for row in result["ops"])
    constants = [tensor for tensor in graph.tensors.values() if tensor.is_constant]
    assert result["weight_bytes"] == sum(tensor.num_bytes for tensor in constants)
    assert result["parameters"] == sum(tensor.num_elements for tensor in constants)
    plan = plan_graph(graph)
    assert (result["arena_bytes"], result["peak_op"]) == (plan.arena_bytes, plan.peak_op)
    assert max(row["live_bytes"] for row in result["ops"]) == result["lower_bound_bytes"]
    assert result["file_bytes"] == model.stat().st_size
    assert [row["kind"] for row in result["ops"]] == [op.kind for op in graph.ops]
    assert (result["op"], result["svg"]) == (None, None)


def test_a_constant_that_two_ops_share_counts_once() -> None:
    """Its bytes belong to the first op that reads it."""
    builder = Builder(np.random.default_rng(0), (1, 6, 6, 4))
    builder.conv(4)
    builder.conv(4)
    graph = builder.graph()
    second = graph.ops[1]
    shared = type(second)(second.kind, (second.inputs[0], *graph.ops[0].inputs[1:]), second.outputs, second.attrs, "b")
    graph = Graph("shared", graph.tensors, (graph.ops[0], shared), graph.inputs, graph.outputs)
    first, again = graph_table.rows(graph)
    assert (first.weight_bytes, again.weight_bytes) == (4 * 36 + 16, 0)
    assert graph_table.totals(graph, [first, again])["parameters"] == 4 * 36 + 4


def test_details_of_an_op_count_every_weight(model: Path, tmp_path: Path) -> None:
    """The histogram counts all weights, and each channel has the factor that the reference multiplies with."""
    graph = tflite.read(model)
    number = next(index for index, op in enumerate(graph.ops) if op.kind in ("conv_2d", "fully_connected"))
    one = show(model, tmp_path / "run", "--op", str(number))["op"]
    op = graph.ops[number]
    weights = graph.tensor(op.inputs[1])
    assert weights.data is not None
    assert sum(one["constants"][0]["histogram"]) == weights.num_elements
    assert one["constants"][0]["histogram"][0] == int((weights.data < -112).sum())
    assert (one["constants"][0]["min"], one["constants"][0]["max"]) == (weights.data.min(), weights.data.max())
    x, y = graph.tensor(op.inputs[0]).quant, graph.tensor(op.outputs[0]).quant
    assert x is not None
    assert y is not None
    assert len(one["channels"]) == graph.tensor(op.outputs[0]).shape[-1]
    for row in one["channels"]:
        real = x.scale * row["weight_scale"] / y.scale
        assert row["multiplier"] * 2.0 ** (row["shift"] - 31) == pytest.approx(real, rel=1e-8)
    reach = np.abs(weights.data.astype(int)).max(axis=tuple(range(1, weights.data.ndim)))
    if op.kind == "conv_2d":
        assert [row["largest_weight"] for row in one["channels"]] == reach.tolist()


def test_an_op_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    """The message says which ops there are."""
    with pytest.raises(ConfigError, match=r"there is no op 99 in 'net'\nIts ops are 0 to \d+"):
        show(model, tmp_path / "run", "--op", "99")


def test_people_get_a_table_and_one_op(model: Path, tmp_path: Path) -> None:
    """Into a pipe goes every column; --op prints constants, histogram and channels."""
    runner = CliRunner()
    done = runner.invoke(command, [str(model), "--out", str(tmp_path / "run")], standalone_mode=False)
    assert done.exception is None
    for title in ("kind", "from", "input", "output", "scale, zero", "details", "MACs", "constants B", "arena B"):
        assert title in done.stdout
    one = runner.invoke(command, [str(model), "--out", str(tmp_path / "run"), "--op", "0"], standalone_mode=False)
    assert one.exception is None
    assert "op 0: " in one.stdout


def test_the_drawing_goes_where_it_was_told(model: Path, tmp_path: Path) -> None:
    """--svg FILE writes there; --svg alone writes graph.svg into the run's folder; the same model, the same bytes."""
    named = tmp_path / "somewhere" / "picture.svg"
    assert show(model, tmp_path / "run", "--svg", str(named))["svg"] == str(named)
    assert show(model, tmp_path / "run", "--svg")["svg"] == str(tmp_path / "run" / "graph.svg")
    assert named.read_bytes() == (tmp_path / "run" / "graph.svg").read_bytes()


def boxes_and_lines(
    graph: Graph,
) -> tuple[list[tuple[float, ...]], list[list[tuple[float, float]]], ElementTree.Element]:
    """Return the boxes (left, top, right, bottom) and the lines (sampled points) of a drawing."""
    root = ElementTree.fromstring(graph_svg.graph_svg(graph, graph_table.rows(graph)))
    boxes = []
    for group in root.findall(f"{SVG}g"):
        box = group.find(f"{SVG}rect[@class='g-box']")
        if box is not None and group.find(f"{SVG}title") is not None:
            left, top, width, height = (float(box.get(key, "0")) for key in ("x", "y", "width", "height"))
            boxes.append((left, top, left + width, top + height))
    lines = [points(path.get("d", "")) for path in root.findall(f"{SVG}path[@class='g-line']")]
    return boxes, lines, root


def points(path: str) -> list[tuple[float, float]]:
    """Return points along a path of M, V and C."""
    x = y = 0.0
    found = []
    for letter, text in re.findall(r"([MVC])([^MVC]*)", path):
        numbers = [float(number) for number in text.split()]
        if letter == "M":
            x, y = numbers
            found.append((x, y))
            continue
        if letter == "V":
            curve = [(x, y), (x, y), (x, numbers[0]), (x, numbers[0])]
        else:
            curve = [(x, y), *((numbers[at], numbers[at + 1]) for at in (0, 2, 4))]
        for t in np.linspace(0, 1, 17)[1:]:
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            found.append(tuple(sum(w * p[axis] for w, p in zip(weights, curve, strict=True)) for axis in (0, 1)))  # type: ignore[arg-type]
        x, y = curve[-1]
    return found


@pytest.mark.parametrize("graph", [branched(), *(random_network(seed).graph() for seed in range(6))])
def test_no_box_overlaps_and_no_line_crosses_a_box(graph: Graph) -> None:
    """Boxes keep their distance; a line touches only the box that it leaves and the one that it reaches."""
    boxes, lines, root = boxes_and_lines(graph)
    assert len(boxes) == len(graph.ops) + len(graph.inputs) + len(graph.outputs)
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    reads = sum(len({name for name in op.inputs if name and not graph.tensor(name).is_constant}) for op in graph.ops)
    assert len(lines) == reads + len(graph.outputs)
    for line in lines:
        inside = {
            index
            for index, (left, top, right, bottom) in enumerate(boxes)
            for x, y in line
            if left + 0.2 < x < right - 0.2 and top + 0.2 < y < bottom - 0.2
        }
        assert inside == set()
    width, height = (float(value) for value in root.get("viewBox", "").split()[2:])
    assert all(left >= 0 and top >= 0 and right <= width and bottom <= height for left, top, right, bottom in boxes)


def test_the_drawing_tells_each_op_and_follows_the_page() -> None:
    """Each op has its label and a tooltip with its source; colours change with a dark page; there is no script."""
    graph = branched()
    text = graph_svg.graph_svg(graph, graph_table.rows(graph), "a <net> & more")
    root = ElementTree.fromstring(text)
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    for index, op in enumerate(graph.ops):
        assert any(title.startswith(f"op {index}: {op.kind}\nsource: {op.source}\n") for title in titles)
    assert "prefers-color-scheme:dark" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert any(element.text == "a <net> & more" for element in root.iter(f"{SVG}text"))


def test_thick_lines_are_large_tensors() -> None:
    """The thickest line is that of the largest tensor; widths grow with the square root of the bytes."""
    graph = branched()
    root = ElementTree.fromstring(graph_svg.graph_svg(graph, graph_table.rows(graph)))
    widths: dict[str, float] = {}
    for path in root.findall(f"{SVG}path"):
        tensor = (path.find(f"{SVG}title").text or "").partition(":")[0]  # type: ignore[union-attr]
        widths[tensor] = float(path.get("stroke-width", "0"))
    largest = max(widths, key=lambda name: graph.tensor(name).num_bytes)
    assert widths[largest] == max(widths.values())
    quarter = next(name for name in widths if 3 * graph.tensor(name).num_bytes == graph.tensor(largest).num_bytes)
    assert widths[quarter] == pytest.approx(1.4 + (9.0 - 1.4) * (1 / 3) ** 0.5, abs=0.06)


def test_the_bars_are_shares_of_the_macs() -> None:
    """The op with the most MACs has a full bar; ops without MACs have none."""
    graph = branched()
    table = graph_table.rows(graph)
    root = ElementTree.fromstring(graph_svg.graph_svg(graph, table))
    bars = {}
    for group in root.findall(f"{SVG}g"):
        title, bar, track = (
            group.find(f"{SVG}{what}") for what in ("title", "rect[@class='g-bar']", "rect[@class='g-track']")
        )
        if title is not None and bar is not None and track is not None:
            number = int(re.match(r"op (\d+)", title.text or "").group(1))  # type: ignore[union-attr]
            bars[number] = float(bar.get("width", "0")) / float(track.get("width", "1"))
    assert bars.keys() == {row.op for row in table if row.macs}
    most = max(row.macs for row in table)
    for number, share in bars.items():
        assert share == pytest.approx(table[number].macs / most, abs=0.03)


def test_a_long_line_runs_straight_beside_the_boxes() -> None:
    """A residual over three boxes bends only where it leaves and where it arrives."""
    edges = [Edge("a", "b", "1"), Edge("b", "c", "2"), Edge("c", "d", "3"), Edge("d", "e", "4"), Edge("a", "e", "1")]
    layout = lay_out(dict.fromkeys("abcde", 100.0), edges, gap=20, lane=10)
    bends = layout.bends[edges[4]]
    assert len(bends) == 3
    assert len(set(bends)) == 1
    assert all(abs(bends[0] - layout.centres[node]) >= 50 + 5 + 20 - 1e-6 for node in "bcd")
    assert [layout.layer_of(node) for node in "abcde"] == [0, 1, 2, 3, 4]


def test_lines_do_not_cross_where_they_need_not() -> None:
    """Two parallel chains whose ends are given in opposite order are drawn side by side."""
    edges = [Edge("top", "x", "1"), Edge("top", "y", "2"), Edge("x", "p", "3"), Edge("y", "q", "4")]
    widths = dict.fromkeys(("top", "x", "y", "q", "p"), 50.0)
    layout = lay_out(widths, edges, gap=10, lane=10)
    assert (layout.centres["x"] < layout.centres["y"]) == (layout.centres["p"] < layout.centres["q"])


def test_details_of_an_op_without_weights_are_empty() -> None:
    """Ops without constants have no channels and no histogram."""
    graph = branched()
    number = next(index for index, op in enumerate(graph.ops) if op.kind == "concatenation")
    one = graph_details.details(graph, graph_table.rows(graph), number)
    assert (one["constants"], one["channels"], one["attrs"]) == ([], [], {"axis": 3})


@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_public_models_are_drawn(path: Path) -> None:
    """Every public model has a table and a sound drawing."""
    graph = tflite.read(path)
    boxes, lines, _ = boxes_and_lines(graph)
    assert len(boxes) >= len(graph.ops) + 2
    assert all(len(line) > 1 for line in lines)
