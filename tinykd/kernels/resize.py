"""The kernel that resizes a map: tables of input rows and columns."""

from __future__ import annotations

import numpy as np

from tinykd.ir import Graph, Op
from tinykd.ir.resize import nearest_positions
from tinykd.kernels.call import Call, Field, arguments, edges, u16


def resize_nearest(graph: Graph, op: Op, where: str) -> tuple[Call, ...]:
    """Return the call that takes the nearest input position for each output position."""
    x, y = edges(graph, op, where)
    sizes = {"in_w": x.shape[2], "channels": x.shape[3], "out_h": y.shape[1], "out_w": y.shape[2]}
    tables = {
        name: nearest_positions(
            x.shape[axis],
            y.shape[axis],
            align_corners=op.attrs["align_corners"],
            half_pixel_centers=op.attrs["half_pixel_centers"],
        ).astype(np.uint16)
        for name, axis in (("rows", 1), ("columns", 2))
    }
    u16({"in_h": x.shape[1]}, where)
    fields: dict[str, Field] = {**u16(sizes, where), "rows": "rows", "columns": "columns"}
    return (Call("tk_resize_nearest", "tk_resize_nearest_t", fields, arguments(x.name, y.name), tables),)
