"""Charts as inline SVG text. Colours are CSS classes of `style.css`, so that one chart serves light and dark.

Every text is escaped here; the results are safe to put into a page as they are. Coordinates are rounded to a tenth of a
pixel, which makes the same records give the same bytes.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from tinykd.ir import MemoryPlan


@dataclass(frozen=True)
class Series:
    """One line of a chart: points (x, y) in data units; `css_class` gives its colour."""

    label: str
    points: Sequence[tuple[float, float]]
    css_class: str


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2, 2.5 or 5 times a power of ten) that cover low..high."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low, low + 1] if math.isfinite(low) else [0.0, 1.0]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_format: Callable[[float], str],
    title: str,
    y_range: tuple[float, float] | None = None,
    marker: tuple[float, str] | None = None,
) -> Markup:
    """Return a line chart.

    Args:
        series: the lines; those without points are left out.
        x_label: under the x axis.
        y_format: text of a y value.
        title: read out by screen readers.
        y_range: (low, high); None takes the range of the data.
        marker: a y value with a label, drawn as a dashed line.
    """
    series = [line for line in series if line.points]
    if not series:
        return Markup("")
    width, height, left, right, top, bottom = 520, 250, 52, 12, 12, 36
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points] + ([marker[0]] if marker else [])
    low, high = y_range or (min(ys), max(ys))
    ticks = nice_ticks(low, high)
    low, high = ticks[0], ticks[-1]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - low) / (high - low) * (height - top - bottom)

    parts = [_open(width, height, title, "chart")]
    for tick in ticks:
        level = _number(py(tick))
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{level}" dy="4" text-anchor="end">{escape(y_format(tick))}</text>'
        )
    for tick in nice_ticks(x_low, x_high, 6):
        if x_low <= tick <= x_high and tick == int(tick):
            parts.append(
                f'<text class="tick" x="{_number(px(tick))}" y="{height - bottom + 18}" '
                f'text-anchor="middle">{int(tick)}</text>'
            )
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2:.0f}" y="{height - 3}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    if marker:
        level = _number(py(marker[0]))
        parts.append(f'<line class="marker" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text class="tick" x="{left + 6}" y="{level}" dy="-5">{escape(marker[1])}</text>')
    for line in series:
        path = " ".join(f"{_number(px(x))},{_number(py(y))}" for x, y in line.points)
        parts.append(f'<polyline class="line {line.css_class}" points="{path}"/>')
        x, y = line.points[-1]
        parts.append(
            f'<circle class="dot {line.css_class}" cx="{_number(px(x))}" cy="{_number(py(y))}" r="3.5">'
            f"<title>{escape(line.label)}: {escape(y_format(y))} at {x_label} {x:g}</title></circle>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))


@dataclass(frozen=True)
class _Box:
    """Bytes of the arena during some ops."""

    css_class: str
    first: int
    last: int
    offset: int
    num_bytes: int
    tooltip: str


def _arena_boxes(plan: MemoryPlan) -> list[_Box]:
    """Return each buffer once, whatever shares it, and each op's scratch memory."""
    boxes = []
    for item in plan.placements:
        if item.alias_of is not None:
            continue
        sharing = [other for other in plan.placements if other.alias_of == item.tensor]
        first = min([item.first_op, *(other.first_op for other in sharing)])
        last = max([item.last_op, *(other.last_op for other in sharing)])
        span = f"op {first} to {last}" if first >= 0 else f"input, until op {last}"
        tooltip = f"{item.tensor}: {item.num_bytes:,} B at {item.offset:,}, {span}"
        boxes.append(_Box("buffer", first, last, item.offset, item.num_bytes, tooltip))
    for part in plan.scratch:
        tooltip = f"scratch memory of op {part.op}: {part.num_bytes:,} B at {part.offset:,}"
        boxes.append(_Box("scratch", part.op, part.op, part.offset, part.num_bytes, tooltip))
    return boxes


def arena_chart(plan: MemoryPlan, op_labels: Sequence[str]) -> Markup:
    """Return the arena over time: x is the op that runs, y the offset in the arena, a box a buffer or scratch memory.

    Buffers that are live at the peak op are highlighted, the op is shaded, and the lower bound is a dashed line.

    Args:
        plan: the memory plan.
        op_labels: a short label for each op, for tooltips.
    """
    num_ops = len(op_labels)
    width, height, left, right, top, bottom = 960, 380, 64, 14, 22, 40
    # The graph input is live before the first op, in a column of its own at -1.
    column = (width - left - right) / (num_ops + 1)
    highest = max(plan.arena_bytes, plan.lower_bound_bytes, 1)

    def px(op: float) -> float:
        return left + (op + 1) * column

    def py(offset: float) -> float:
        return height - bottom - offset / highest * (height - top - bottom)

    parts = [_open(width, height, "The arena over time: buffers by op and offset", "arena")]
    parts.append(
        f'<rect class="peak" x="{_number(px(plan.peak_op))}" y="{top}" width="{_number(column)}" '
        f'height="{height - top - bottom}"/>'
    )
    for tick in nice_ticks(0, highest / 1024, 6):
        if tick * 1024 > highest * 1.001:
            continue
        level = _number(py(tick * 1024))
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{level}" dy="4" text-anchor="end">{tick:g} kB</text>')
    stride = max(1, math.ceil(num_ops / 24))
    for op in range(0, num_ops, stride):
        parts.append(_text(px(op + 0.5), height - bottom + 17, str(op)))
    parts.append(_text(px(-0.5), height - bottom + 17, "in"))
    parts.append(_text((left + width - right) / 2, height - 4, "op"))
    for box in _arena_boxes(plan):
        x, y = px(box.first), py(box.offset + box.num_bytes)
        box_width, box_height = (box.last - box.first + 1) * column, box.num_bytes / highest * (height - top - bottom)
        at_peak = " hot" if box.first <= plan.peak_op <= box.last else ""
        parts.append(
            f'<g><rect class="{box.css_class}{at_peak}" x="{_number(x + 0.5)}" y="{_number(y)}" '
            f'width="{_number(max(box_width - 1, 0.8))}" height="{_number(max(box_height, 1))}" rx="2"/>'
            f"<title>{escape(box.tooltip)}</title>"
        )
        label = f"{box.num_bytes / 1024:.1f} kB"
        if box_width > 7 * len(label) and box_height > 15:
            on_buffer = at_peak if box.css_class == "buffer" else ""
            parts.append(
                f'<text class="inside{on_buffer}" x="{_number(x + box_width / 2)}" y="{_number(y + box_height / 2)}" '
                f'dy="4" text-anchor="middle">{label}</text>'
            )
        parts.append("</g>")
    level = _number(py(plan.lower_bound_bytes))
    parts.append(f'<line class="marker" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>')
    parts.append(
        f'<text class="tick" x="{width - right}" y="{level}" dy="-6" text-anchor="end">'
        f"lower bound {plan.lower_bound_bytes:,} B</text>"
    )
    # Invisible columns on top of nothing else tell which op stands where.
    for op, label in enumerate(op_labels):
        parts.append(
            f'<rect class="column" x="{_number(px(op))}" y="{height - bottom}" width="{_number(column)}" '
            f'height="{bottom - 18}"><title>op {op}: {escape(label)}</title></rect>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def confusion_chart(counts: np.ndarray, classes: Sequence[str]) -> Markup:
    """Return a confusion matrix as a heat map.

    Args:
        counts: int64 (K, K), rows are labels and columns predictions.
        classes: K names, or none: the indices are shown then.
    """
    num_classes = len(counts)
    names = list(classes) if len(classes) == num_classes else [str(index) for index in range(num_classes)]
    cell = 34 if num_classes <= 12 else max(6, 400 // num_classes)
    left = 30 + min(96, 7 * max(len(name) for name in names))
    top, right = 8, 8
    bottom = 30 if max(map(len, names)) <= 4 else 84
    width, height = left + cell * num_classes + right, top + cell * num_classes + bottom
    totals = np.maximum(counts.sum(1), 1)
    parts = [_open(width, height, "Confusion matrix: rows are labels, columns predictions", "confusion")]
    for row in range(num_classes):
        for column in range(num_classes):
            count = int(counts[row, column])
            x, y = left + column * cell, top + row * cell
            right_cell = row == column
            share = count / totals[row]
            # A single wrong image must be visible, so errors start from a visible tint.
            strength = share if right_cell else (0.18 + 0.82 * min(1.0, share * 5) if count else 0.0)
            kind = "right" if right_cell else "wrong"
            parts.append(
                f'<rect class="cell {kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{strength:.2f}"><title>{escape(names[row])} taken for {escape(names[column])}: '
                f"{count}</title></rect>"
            )
            if count and cell >= 24:
                ink = "count strong" if strength > 0.55 else "count"
                parts.append(
                    f'<text class="{ink}" x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 4}" '
                    f'text-anchor="middle">{count}</text>'
                )
        if cell >= 12:
            parts.append(_text(left - 7, top + row * cell + cell / 2 + 4, _short(names[row]), "end"))
    if cell >= 24:
        # Long names stand at an angle, so that they do not run into each other.
        at_an_angle = max(map(len, names)) > 4
        for column in range(num_classes):
            middle, below = left + column * cell + cell / 2, top + num_classes * cell + 14
            turn = f"rotate(-40 {_number(middle)} {_number(below)})" if at_an_angle else ""
            parts.append(
                _text(middle, below, _short(names[column]), "end" if at_an_angle else "middle", transform=turn)
            )
    middle = top + cell * num_classes / 2
    parts.append(_text(left + cell * num_classes / 2, height - 2, "predicted"))
    parts.append(_text(10, middle, "label", transform=f"rotate(-90 10 {_number(middle)})"))
    parts.append("</svg>")
    return Markup("".join(parts))


def _short(name: str, limit: int = 13) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _text(x: float, y: float, text: str, anchor: str = "middle", css_class: str = "tick", transform: str = "") -> str:
    turned = f' transform="{transform}"' if transform else ""
    return (
        f'<text class="{css_class}" x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"{turned}>'
        f"{escape(text)}</text>"
    )


def _open(width: float, height: float, title: str, css_class: str) -> str:
    return (
        f'<svg class="{css_class}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    )


def png_data_uri(pixels: np.ndarray) -> str:
    """Return an image as a `data:image/png` address.

    Args:
        pixels: uint8 (H, W, 1) grey or (H, W, 3) colour.

    Source: PNG specification (W3C, 2003), sections 5 and 11: 8-bit samples, filter type 0.
    """
    height, width, channels = pixels.shape
    color_type = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + np.ascontiguousarray(row, np.uint8).tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
