"""The surface in a dense box of distances: marching cubes for what is small enough to be held as a whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.ops.marching import BLOCK, cross_edges, triangles

Floats = NDArray[np.float32]

RING = 1  # points around the box that only normals are made from


class Brick(NamedTuple):
    """A surface.

    Attributes:
        vertices: ``float32 [n, 3]``, x, y, z in cells from the first point inside the ring.
        normals: ``float32 [n, 3]``, unit vectors along which the distance grows.
        faces: ``int32 [m, 3]``, counter-clockwise seen from where distances are positive.
    """

    vertices: Floats
    normals: Floats
    faces: NDArray[np.int32]


def march(values: Floats) -> Brick:
    """The surface where distances are zero, open at the sides of the box.

    Args:
        values: ``float32 [z, y, x]``, at least three points each way, distances in cells, negative inside;
            the outermost points on each side are the ring around the box.
    """
    counts = [-(-points // BLOCK) for points in values.shape]
    blocks, neighbours = _blocks(values, counts), _neighbours(counts)
    places = np.stack(np.unravel_index(np.arange(len(blocks)), counts)[::-1], axis=-1) * BLOCK
    found = cross_edges(blocks, neighbours, places.astype(np.int32), 1.0, 0, len(blocks))
    numbers = np.full((*blocks.shape, 3), -1, np.int32)
    numbers.reshape(-1)[found.edges] = np.arange(len(found.edges))
    inner = values.copy()
    for axis in range(inner.ndim):
        np.moveaxis(inner, axis, 0)[[0, -1]] = np.nan  # cells with an unknown corner are left out
    faces = triangles(_blocks(inner, counts), neighbours, numbers, len(blocks))
    used, places = np.unique(faces, return_inverse=True)
    vertices = found.vertices[used] - np.float32(RING)
    return Brick(vertices, found.normals[used], places.reshape(-1, 3).astype(np.int32))


def _blocks(values: Floats, counts: list[int]) -> Floats:
    """``[blocks, 8, 8, 8]``, what lies beyond the values unknown."""
    padded = np.full([count * BLOCK for count in counts], np.nan, np.float32)
    padded[tuple(slice(points) for points in values.shape)] = values
    z, y, x = counts
    split = padded.reshape(z, BLOCK, y, BLOCK, x, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(split).reshape(-1, BLOCK, BLOCK, BLOCK)


def _neighbours(counts: list[int]) -> NDArray[np.int32]:
    """``int32 [blocks, 27]``: the block at each offset, z first, x fastest; -1 where there is none."""
    rows = np.full([count + 2 for count in counts], -1, np.int32)
    rows[1:-1, 1:-1, 1:-1] = np.arange(np.prod(counts)).reshape(counts)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (3, 3, 3))
    return np.ascontiguousarray(windows.reshape(-1, 27))
