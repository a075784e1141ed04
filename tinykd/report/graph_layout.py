"""Places the boxes and lines of a layered drawing: no box overlaps another, and no line runs through a box.

After Sugiyama, Tagawa, Toda (1981), doi:10.1109/TSMC.1981.4308636: layers by the longest path, stand-ins where a line
passes a layer, an order within each layer that crosses few lines, then positions that keep lines straight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ORDER_SWEEPS = 12
POSITION_SWEEPS = 30
# A line that passes several layers should be straight before anything else is.
_WEIGHT_BOX, _WEIGHT_MIXED, _WEIGHT_LINE = 1.0, 2.0, 8.0


@dataclass(frozen=True)
class Edge:
    """A line from one node to another; `key` tells lines between the same nodes apart."""

    source: str
    target: str
    key: str


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        layers: the nodes of each layer, from left to right, without stand-ins.
        centres: node -> x of its middle.
        bends: edge -> x at each layer that it passes, in order.
        width: of the whole drawing; the leftmost box begins at 0.
    """

    layers: tuple[tuple[str, ...], ...]
    centres: Mapping[str, float]
    bends: Mapping[Edge, tuple[float, ...]]
    width: float

    def layer_of(self, node: str) -> int:
        """Return the layer of a node."""
        return next(number for number, nodes in enumerate(self.layers) if node in nodes)


@dataclass
class _Item:
    """A node, or a stand-in of the edge `edge`, with its neighbours in the layers above and below."""

    width: float
    edge: Edge | None
    above: list[tuple[int, float]]
    below: list[tuple[int, float]]
    x: float = 0.0


def lay_out(widths: Mapping[str, float], edges: Sequence[Edge], *, gap: float, lane: float) -> Layout:
    """Return the layout of an acyclic graph.

    Args:
        widths: node -> width of its box; the order decides ties.
        edges: each between two of the nodes.
        gap: free space between two boxes of a layer.
        lane: free space on both sides of a line that passes a layer.
    """
    depth = _depths(list(widths), edges)
    items: list[_Item] = []
    layers: list[list[int]] = [[] for _ in range(max(depth.values()) + 1)]
    number_of: dict[str, int] = {}
    for node, width in widths.items():
        number_of[node] = len(items)
        layers[depth[node]].append(len(items))
        items.append(_Item(width, None, [], []))
    for edge in edges:
        previous = number_of[edge.source]
        for level in range(depth[edge.source] + 1, depth[edge.target]):
            items.append(_Item(lane, edge, [], []))
            layers[level].append(len(items) - 1)
            _connect(items, previous, len(items) - 1)
            previous = len(items) - 1
        _connect(items, previous, number_of[edge.target])
    _order(items, layers)
    _position(items, layers, gap)
    left = min(item.x - item.width / 2 for item in items)
    right = max(item.x + item.width / 2 for item in items)
    name_of = {number: name for name, number in number_of.items()}
    bends: dict[Edge, list[float]] = {edge: [] for edge in edges}
    for layer in layers:
        for number in layer:
            owner = items[number].edge
            if owner is not None:
                bends[owner].append(items[number].x - left)
    return Layout(
        tuple(tuple(name_of[number] for number in layer if number in name_of) for layer in layers),
        {name: items[number].x - left for name, number in number_of.items()},
        {edge: tuple(xs) for edge, xs in bends.items()},
        right - left,
    )


def _depths(nodes: list[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return each node's layer: the longest way to it; nodes without a way in stand right above their first reader."""
    into: dict[str, list[str]] = {node: [] for node in nodes}
    out: dict[str, list[str]] = {node: [] for node in nodes}
    for edge in edges:
        into[edge.target].append(edge.source)
        out[edge.source].append(edge.target)
    depth: dict[str, int] = {}
    waiting = {node: len(sources) for node, sources in into.items()}
    ready = [node for node in nodes if not waiting[node]]
    while ready:
        node = ready.pop(0)
        depth[node] = max((depth[source] + 1 for source in into[node]), default=0)
        for target in out[node]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    for node in nodes:
        if not into[node] and out[node]:
            depth[node] = min(depth[target] for target in out[node]) - 1
    return depth


def _connect(items: list[_Item], upper: int, lower: int) -> None:
    lines = (items[upper].edge is not None) + (items[lower].edge is not None)
    weight = (_WEIGHT_BOX, _WEIGHT_MIXED, _WEIGHT_LINE)[lines]
    items[upper].below.append((lower, weight))
    items[lower].above.append((upper, weight))


def _order(items: list[_Item], layers: list[list[int]]) -> None:
    """Sort each layer by the mean place of its neighbours, down and up; keep the order with the fewest crossings."""
    best = [list(layer) for layer in layers]
    fewest = _crossings(items, layers)
    for sweep in range(ORDER_SWEEPS):
        down = sweep % 2 == 0
        sequence = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for level in sequence:
            fixed = layers[level - 1 if down else level + 1]
            place = {number: index for index, number in enumerate(fixed)}
            old = {number: index for index, number in enumerate(layers[level])}

            def key(number: int, place: dict[int, int] = place, old: dict[int, int] = old, down: bool = down) -> float:
                found = [place[other] for other, _ in (items[number].above if down else items[number].below)]
                return sum(found) / len(found) if found else float(old[number])

            layers[level].sort(key=key)
        count = _crossings(items, layers)
        if count < fewest:
            fewest, best = count, [list(layer) for layer in layers]
    for layer, chosen in zip(layers, best, strict=True):
        layer[:] = chosen


def _crossings(items: list[_Item], layers: list[list[int]]) -> int:
    total = 0
    for upper, lower in zip(layers, layers[1:], strict=False):
        place = {number: index for index, number in enumerate(lower)}
        ends = [at for number in upper for at in sorted(place[other] for other, _ in items[number].below)]
        total += sum(1 for i, a in enumerate(ends) for b in ends[i + 1 :] if a > b)
    return total


def _position(items: list[_Item], layers: list[list[int]], gap: float) -> None:
    """Move each item towards its neighbours, layer by layer, as far as the items beside it let it."""
    for layer in layers:
        _settle(items, layer, [0.0] * len(layer), [1.0] * len(layer), gap)
    for sweep in range(POSITION_SWEEPS):
        order = layers if sweep % 2 == 0 else layers[::-1]
        last = sweep >= POSITION_SWEEPS - 2
        for layer in order:
            wishes, weights = [], []
            for number in layer:
                item = items[number]
                near = item.above if sweep % 2 == 0 else item.below
                near = item.above + item.below if last or not near else near
                total = sum(weight for _, weight in near)
                wishes.append(sum(items[other].x * weight for other, weight in near) / total if near else item.x)
                weights.append(max(total, _WEIGHT_BOX))
            _settle(items, layer, wishes, weights, gap)
    for _ in range(2):
        _straighten(items, layers, gap)


def _straighten(items: list[_Item], layers: list[list[int]], gap: float) -> None:
    """Give the items of each chain (one line in, one out) the same position, where what stands beside them lets it."""
    beside: dict[int, tuple[int | None, int | None]] = {}
    for layer in layers:
        for left, number, right in zip([None, *layer[:-1]], layer, [*layer[1:], None], strict=True):
            beside[number] = (left, right)
    for chain in _chains(items):
        low, high = -float("inf"), float("inf")
        for number in chain:
            left, right = beside[number]
            item = items[number]
            if left is not None:
                low = max(low, items[left].x + (items[left].width + item.width) / 2 + gap)
            if right is not None:
                high = min(high, items[right].x - (items[right].width + item.width) / 2 - gap)
        if low <= high:
            middle = sum(items[number].x for number in chain) / len(chain)
            for number in chain:
                items[number].x = min(max(middle, low), high)


def _chains(items: list[_Item]) -> list[list[int]]:
    chains = []
    for number, item in enumerate(items):
        if len(item.above) == 1 and len(items[item.above[0][0]].below) == 1:
            continue
        chain = [number]
        while len(items[chain[-1]].below) == 1:
            following = items[chain[-1]].below[0][0]
            if len(items[following].above) != 1:
                break
            chain.append(following)
        if len(chain) > 1:
            chains.append(chain)
    return chains


def _settle(items: list[_Item], layer: list[int], wishes: list[float], weights: list[float], gap: float) -> None:
    """Set the positions that come closest to the wishes (weighted squares) while the items keep their distances."""
    offsets = [0.0]
    for left, right in zip(layer, layer[1:], strict=False):
        offsets.append(offsets[-1] + (items[left].width + items[right].width) / 2 + gap)
    # Without the distances it is an isotonic regression, which pooling adjacent violators solves.
    blocks: list[tuple[float, float, int]] = []
    for wish, weight, offset in zip(wishes, weights, offsets, strict=True):
        value, mass, count = wish - offset, weight, 1
        while blocks and blocks[-1][0] > value:
            other, other_mass, other_count = blocks.pop()
            value = (value * mass + other * other_mass) / (mass + other_mass)
            mass, count = mass + other_mass, count + other_count
        blocks.append((value, mass, count))
    index = 0
    for value, _, count in blocks:
        for _ in range(count):
            items[layer[index]].x = value + offsets[index]
            index += 1
