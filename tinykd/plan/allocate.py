"""Places buffers in the arena: greedy seeds, then a seeded hill climb that stops at the lower bound."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tinykd.plan.liveness import Buffer, align

HILL_CLIMB_STEPS = 2000


def allocate(buffers: Sequence[Buffer], alignment_bytes: int, lower_bound_bytes: int, seed: int = 0) -> list[int]:
    """Return an offset for each buffer; buffers that live at the same time never overlap.

    Several greedy orders are tried, then pairs of the best order are swapped at random (seeded, so that the same graph
    always gives the same plan) until the lower bound is met or the steps run out.
    """
    count = len(buffers)
    neighbours = [
        [other for other in range(count) if other != index and buffers[index].overlaps(buffers[other])]
        for index in range(count)
    ]
    sizes = [align(buffer.num_bytes, alignment_bytes) for buffer in buffers]

    def place(order: Sequence[int]) -> tuple[int, list[int]]:
        offsets = [-1] * count
        for index in order:
            taken = sorted((offsets[other], sizes[other]) for other in neighbours[index] if offsets[other] >= 0)
            offset = 0
            for start, size in taken:
                if start - offset >= sizes[index]:
                    break
                offset = max(offset, start + size)
            offsets[index] = offset
        return max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0), offsets

    best_order: list[int] = []
    best, best_offsets = -1, [0] * count
    for key in _seed_orders(buffers):
        order = sorted(range(count), key=key)
        total, offsets = place(order)
        if best < 0 or total < best:
            best, best_offsets, best_order = total, offsets, order
    generator = random.Random(seed)
    steps = 0 if count < 2 else HILL_CLIMB_STEPS
    for _ in range(steps):
        if best <= lower_bound_bytes:
            break
        order = list(best_order)
        a, b = generator.sample(range(count), 2)
        order[a], order[b] = order[b], order[a]
        total, offsets = place(order)
        if total <= best:
            best, best_offsets, best_order = total, offsets, order
    return best_offsets


def _seed_orders(buffers: Sequence[Buffer]) -> list[Callable[[int], tuple[int, ...]]]:
    return [
        lambda i: (-buffers[i].num_bytes, i),
        lambda i: (-buffers[i].num_bytes, -i),
        lambda i: (-(buffers[i].last_op - buffers[i].first_op), -buffers[i].num_bytes, i),
        lambda i: (-buffers[i].num_bytes * (buffers[i].last_op - buffers[i].first_op + 1), i),
        lambda i: (buffers[i].first_op, -buffers[i].num_bytes, i),
        lambda i: (-buffers[i].last_op, -buffers[i].num_bytes, i),
    ]
