"""Draws a graph as one SVG file: readable light and dark, details under the pointer, no script, no outside font.

Boxes are ops, coloured by family, with a bar for their share of the MACs. Lines are tensors, as thick as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from markupsafe import Markup, escape

from tinykd.ir import Graph
from tinykd.report.graph_layout import Edge, Layout, lay_out
from tinykd.report.graph_table import OpRow, Value, totals, value_of

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "convolution": ("conv_2d", "transpose_conv"),
        "depthwise": ("depthwise_conv_2d",),
        "dense": ("fully_connected", "svdf"),
        "elementwise": ("add", "sub", "mul", "maximum", "minimum"),
        "pooling": ("average_pool_2d", "max_pool_2d", "mean"),
        "activation": ("softmax", "logistic", "tanh", "hard_swish", "relu", "relu6", "leaky_relu", "prelu", "arg_max"),
        "data movement": (
            "pad",
            "reshape",
            "transpose",
            "concatenation",
            "split",
            "strided_slice",
            "resize_nearest_neighbor",
        ),
        "float edge": ("quantize", "dequantize", "batch_norm"),
    }
)
_FAMILY_OF = {kind: name for name, kinds in FAMILIES.items() for kind in kinds}
# Fill and ink for a light and a dark page, chosen to be told apart by people who do not see red or green.
_COLOURS = {
    "convolution": ("#cfe2f7", "#0b4f9c", "#173a5e", "#9fcbff"),
    "depthwise": ("#d3efe6", "#0c6a50", "#14453a", "#8fe0c6"),
    "dense": ("#e6dcf6", "#5b2da3", "#37265a", "#cdb4fa"),
    "elementwise": ("#fbe7bf", "#7a4b00", "#4d3a12", "#f5cf7f"),
    "pooling": ("#d9eef2", "#0d5c6e", "#174048", "#95d9e6"),
    "activation": ("#f7d9e5", "#98265b", "#512438", "#f8a9c9"),
    "data movement": ("#e6e9ed", "#414c59", "#333c47", "#c3ccd6"),
    "float edge": ("#f8dcd5", "#a0311a", "#54261d", "#f9b0a0"),
    "edge": ("#ffffff", "#16202b", "#161d26", "#e5ebf2"),
}
_BOX_HEIGHT, _LAYER_GAP, _TRUNK, _BOX_GAP, _LANE = 54.0, 58.0, 20.0, 34.0, 26.0
_EDGE_HEIGHT, _MARGIN, _HEAD = 34.0, 28.0, 74.0
_THINNEST, _THICKEST = 1.4, 9.0
_BAR = 5.0
_LABEL_WIDTH = 84.0


@dataclass(frozen=True)
class _Node:
    title: str
    lines: tuple[str, ...]
    family: str
    share: float
    height: float


def graph_svg(graph: Graph, table: Sequence[OpRow], name: str = "") -> Markup:
    """Return the drawing.

    Args:
        graph: the graph.
        table: `graph_table.rows` of it.
        name: the title; "" takes the graph's name.
    """
    nodes, edges, values = _nodes_and_edges(graph, table)
    leaving = {key: len({edge.key for edge in edges if edge.source == key}) for key in nodes}
    widths = {key: max(_width(node), leaving[key] * _LABEL_WIDTH) for key, node in nodes.items()}
    layout = lay_out(widths, edges, gap=_BOX_GAP, lane=_LANE)
    tops, height = _rows_of(layout, nodes)
    sums = totals(graph, table)
    legend = [family for family in _COLOURS if any(node.family == family for node in nodes.values())]
    legend = [family for family in legend if family != "edge"]
    width = max(layout.width, sum(_text_width(family) + 44 for family in legend), 420.0) + 2 * _MARGIN
    shift = (width - layout.width) / 2
    largest = max(value.num_bytes for value in values.values())
    heading = f"{sums['num_ops']} ops · {_short(sums['macs'])} MACs · {sums['weight_bytes']:,} B of weights and biases"
    title = name or graph.name
    parts = [
        f'<svg class="graph" viewBox="0 0 {_number(width)} {_number(height)}" width="{_number(width)}" '
        f'height="{_number(height)}" role="img" aria-label="{escape(title)}: {escape(heading)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f"<style>{_style(legend)}</style>",
        f'<rect class="g-page" width="{_number(width)}" height="{_number(height)}"/>',
        f'<text class="g-name" x="{_MARGIN:g}" y="30">{escape(title)}</text>',
        f'<text class="g-soft" x="{_MARGIN:g}" y="49">{escape(heading)}</text>',
        _legend(legend),
    ]
    ports = _ports(layout, edges, widths, values)
    labels: list[str] = []
    drawn: set[str] = set()
    for edge in edges:
        value = values[edge]
        path, label_at = _path(edge, layout, nodes, tops, ports, shift)
        thickness = _THINNEST + (_THICKEST - _THINNEST) * math.sqrt(value.num_bytes / largest)
        tip = f"{value.tensor}: {value.dtype} {value.shape_text()}, {value.num_bytes:,} B, {value.quant_text()}"
        parts.append(
            f'<path class="g-line" d="{path}" stroke-width="{_number(thickness)}"><title>{escape(tip)}</title></path>'
        )
        if value.tensor not in drawn:
            drawn.add(value.tensor)
            labels.append(
                f'<text class="g-shape" x="{_number(label_at[0] + thickness / 2 + 5)}" y="{_number(label_at[1])}">'
                f"{escape(value.shape_text())}</text>"
            )
    for key, node in nodes.items():
        left = layout.centres[key] + shift - widths[key] / 2
        parts.append(_box(node, left, tops[key], widths[key]))
    # Shapes come last, so that no line runs over them.
    return Markup("".join([*parts, *labels, "</svg>\n"]))


def _nodes_and_edges(graph: Graph, table: Sequence[OpRow]) -> tuple[dict[str, _Node], list[Edge], dict[Edge, Value]]:
    most = max((row.macs for row in table), default=0)
    nodes: dict[str, _Node] = {}
    writer: dict[str, str] = {}
    for name in (*graph.inputs, *graph.variables()):
        value = value_of(graph.tensor(name))
        what = "state" if graph.tensor(name).variable else "input"
        writer[name] = f"in:{name}"
        nodes[writer[name]] = _edge_node(what, value)
    for row in table:
        key = f"op:{row.op}"
        first = f"{row.op}  {row.kind}" + (f"  {row.detail}" if row.detail and len(row.detail) <= 22 else "")
        facts = [f"{_short(row.macs)} MACs"] if row.macs else []
        facts += [_bytes(row.weight_bytes)] if row.weight_bytes else []
        facts += [row.activation] if row.activation else []
        if not facts and row.detail and len(row.detail) <= 30:
            first, facts = f"{row.op}  {row.kind}", [row.detail]
        second = " · ".join(facts)
        nodes[key] = _Node(
            _tip(row),
            (first, second) if second else (first,),
            _FAMILY_OF.get(row.kind, "data movement"),
            row.macs / most if most else 0.0,
            _BOX_HEIGHT,
        )
        writer.update({value.tensor: key for value in row.outputs})
    edges: list[Edge] = []
    values: dict[Edge, Value] = {}
    for row in table:
        for value in {value.tensor: value for value in row.inputs}.values():
            edge = Edge(writer[value.tensor], f"op:{row.op}", value.tensor)
            edges.append(edge)
            values[edge] = value
    for name in graph.outputs:
        value = value_of(graph.tensor(name))
        key = f"out:{name}"
        nodes[key] = _edge_node("output", value)
        edge = Edge(writer[name], key, name)
        edges.append(edge)
        values[edge] = value
    return nodes, edges, values


def _edge_node(what: str, value: Value) -> _Node:
    tip = f"{what} {value.tensor}: {value.dtype} {value.shape_text()}, {value.quant_text()}"
    return _Node(tip, (f"{what}  {value.shape_text()} {value.dtype}",), "edge", 0.0, _EDGE_HEIGHT)


def _tip(row: OpRow) -> str:
    lines = [f"op {row.op}: {row.kind}", f"source: {row.source}"]
    lines += [f"reads {v.tensor}: {v.dtype} {v.shape_text()}, {v.quant_text()}" for v in row.inputs]
    lines += [f"writes {v.tensor}: {v.dtype} {v.shape_text()}, {v.quant_text()}" for v in row.outputs]
    lines += [row.detail] if row.detail else []
    lines += [f"activation: {row.activation}"] if row.activation else []
    lines.append(f"{row.macs:,} MACs, {row.weight_bytes:,} B of constants")
    if row.live_bytes is not None:
        lines.append(f"{row.live_bytes:,} B of the arena in use")
    return "\n".join(lines)


def _rows_of(layout: Layout, nodes: Mapping[str, _Node]) -> tuple[dict[str, float], float]:
    """Return the top of each box, and the height of the drawing; boxes of a layer share their middle."""
    tops: dict[str, float] = {}
    y = _HEAD + _MARGIN
    for layer in layout.layers:
        tall = max(nodes[key].height for key in layer)
        for key in layer:
            tops[key] = y + (tall - nodes[key].height) / 2
        y += tall + _LAYER_GAP
    return tops, y - _LAYER_GAP + _MARGIN


def _ports(
    layout: Layout, edges: Sequence[Edge], widths: Mapping[str, float], values: Mapping[Edge, Value]
) -> dict[tuple[Edge, bool], float]:
    """Return where each line leaves its source (True) and meets its target (False): x within the layout.

    Lines of one tensor leave at one place; different tensors are spread over the box in the order of where they go.
    """
    ports: dict[tuple[Edge, bool], float] = {}
    for leaving in (True, False):
        grouped: dict[str, dict[str, list[Edge]]] = {}
        for edge in edges:
            node = edge.source if leaving else edge.target
            grouped.setdefault(node, {}).setdefault(edge.key, []).append(edge)
        for node, by_tensor in grouped.items():

            def aim(lines: list[Edge], leaving: bool = leaving) -> float:
                ends = [(layout.bends[line][0 if leaving else -1] if layout.bends[line] else None) for line in lines]
                others = [layout.centres[line.target if leaving else line.source] for line in lines]
                places = [other if end is None else end for end, other in zip(ends, others, strict=True)]
                return sum(places) / len(places)

            order = sorted(by_tensor.values(), key=aim)
            for number, lines in enumerate(order):
                share = (number + 0.5) / len(order) - 0.5
                for line in lines:
                    ports[line, leaving] = layout.centres[node] + share * widths[node] * (1.0 if leaving else 0.55)
    return ports


def _path(
    edge: Edge,
    layout: Layout,
    nodes: Mapping[str, _Node],
    tops: Mapping[str, float],
    ports: Mapping[tuple[Edge, bool], float],
    shift: float,
) -> tuple[str, tuple[float, float]]:
    """Return the line and the place of its label, right below where it leaves.

    A line turns only between two layers; beside the boxes of a layer it runs straight down.
    """
    x, y = ports[edge, True] + shift, tops[edge.source] + nodes[edge.source].height
    level = layout.layer_of(edge.source)
    path = [f"M{_number(x)} {_number(y)}"]
    # Straight at first, so that the label stands beside the line and not on it.
    y = _bottom(layout, nodes, tops, level) + _TRUNK
    label = (x, y - 6)
    path.append(f"V{_number(y)}")
    for bend in layout.bends[edge]:
        level += 1
        top = min(tops[key] for key in layout.layers[level])
        path.append(_turn(x, y, bend + shift, top))
        x, y = bend + shift, _bottom(layout, nodes, tops, level)
        path.append(f"V{_number(y)}")
    level += 1
    top = min(tops[key] for key in layout.layers[level])
    end = ports[edge, False] + shift
    path.append(_turn(x, y, end, top))
    if tops[edge.target] > top:
        path.append(f"V{_number(tops[edge.target])}")
    return "".join(path), label


def _bottom(layout: Layout, nodes: Mapping[str, _Node], tops: Mapping[str, float], level: int) -> float:
    return max(tops[key] + nodes[key].height for key in layout.layers[level])


def _turn(x: float, y: float, to_x: float, to_y: float) -> str:
    if abs(x - to_x) < 0.05:
        return f"V{_number(to_y)}"
    middle = _number((y + to_y) / 2)
    return f"C{_number(x)} {middle} {_number(to_x)} {middle} {_number(to_x)} {_number(to_y)}"


def _box(node: _Node, left: float, top: float, width: float) -> str:
    css = node.family.replace(" ", "-")
    middle = left + width / 2
    parts = [
        f'<g class="g-{css}"><title>{escape(node.title)}</title>'
        f'<rect class="g-box" x="{_number(left)}" y="{_number(top)}" width="{_number(width)}" '
        f'height="{_number(node.height)}" rx="8"/>'
    ]
    if node.share > 0:
        inner = width - 16
        y = top + node.height - _BAR - 5
        parts.append(
            f'<rect class="g-track" x="{_number(left + 8)}" y="{_number(y)}" width="{_number(inner)}" '
            f'height="{_BAR:g}" rx="2.5"/>'
            f'<rect class="g-bar" x="{_number(left + 8)}" y="{_number(y)}" '
            f'width="{_number(max(inner * node.share, 2))}" height="{_BAR:g}" rx="2.5"/>'
        )
    first = top + (22 if len(node.lines) > 1 or node.height < _BOX_HEIGHT else 31)
    if node.share <= 0 and len(node.lines) > 1:
        first += 3
    for number, line in enumerate(node.lines):
        css_line = "g-first" if number == 0 else "g-second"
        parts.append(
            f'<text class="{css_line}" x="{_number(middle)}" y="{_number(first + number * 16)}">{escape(line)}</text>'
        )
    parts.append("</g>")
    return "".join(parts)


def _legend(families: Sequence[str]) -> str:
    parts, x = [], _MARGIN
    for family in families:
        css = family.replace(" ", "-")
        parts.append(
            f'<g class="g-{css}"><rect class="g-box" x="{_number(x)}" y="60" width="14" height="14" rx="4"/></g>'
            f'<text class="g-soft" x="{_number(x + 20)}" y="71.5">{escape(family)}</text>'
        )
        x += _text_width(family) + 40
    return "".join(parts)


def _style(families: Sequence[str]) -> str:
    light = ["--g-page:#f4f6f8;--g-ink:#16202b;--g-soft:#5a6878;--g-line:#8fa0b2"]
    dark = ["--g-page:#0e1319;--g-ink:#e5ebf2;--g-soft:#93a1b1;--g-line:#5d6d7f"]
    rules = []
    for family in (*families, "edge"):
        css = family.replace(" ", "-")
        fill, ink, dark_fill, dark_ink = _COLOURS[family]
        light.append(f"--g-{css}:{fill};--g-{css}-ink:{ink}")
        dark.append(f"--g-{css}:{dark_fill};--g-{css}-ink:{dark_ink}")
        rules.append(
            f".g-{css} .g-box{{fill:var(--g-{css});stroke:var(--g-{css}-ink)}}"
            f".g-{css} .g-bar{{fill:var(--g-{css}-ink)}}.g-{css} .g-track{{fill:var(--g-{css}-ink)}}"
            f".g-{css} text{{fill:var(--g-{css}-ink)}}"
        )
    font = 'font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'
    return (
        f"svg.graph{{{';'.join(light)};{font};font-size:12.5px;max-width:100%}}"
        f"@media (prefers-color-scheme:dark){{svg.graph{{{';'.join(dark)}}}}}"
        ".g-page{fill:var(--g-page)}.g-box{stroke-width:1.2}.g-track{opacity:.16}"
        ".g-line{fill:none;stroke:var(--g-line);stroke-linecap:butt;stroke-linejoin:round}"
        ".g-line:hover{stroke:var(--g-ink)}"
        ".g-name{font-size:19px;font-weight:650;fill:var(--g-ink)}.g-soft{fill:var(--g-soft)}"
        ".g-first,.g-second{text-anchor:middle}.g-first{font-weight:600}.g-second{font-size:11.5px;opacity:.88}"
        ".g-shape{font-size:11px;fill:var(--g-soft);stroke:var(--g-page);stroke-width:3px;paint-order:stroke}"
        + "".join(rules)
    )


def _width(node: _Node) -> float:
    return max(128.0, *(_text_width(line) + 28 for line in node.lines))


def _text_width(text: str) -> float:
    return 6.9 * len(text)


def _short(number: int) -> str:
    """Return a count in at most four figures: 999, 12.3 k, 4.13 M."""
    for factor, letter in ((1_000_000, " M"), (1_000, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{number} B" if number < 1024 else f"{number / 1024:.1f} kB"


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
