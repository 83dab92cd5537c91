"""Plain NumPy of the operations in :mod:`acorn_svc.field.ops.marching`: the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.cubes import AXES, CASES, CORNERS, EDGES, TABLE
from acorn_svc.field.ops.marching import (
    BLOCK,
    CLOSEST,
    FARTHEST,
    NEIGHBOURS,
    Crossings,
    Floats,
    Integers,
    check,
)

PADDED = BLOCK + 2
OWN = slice(1, BLOCK + 1)


def cross_edges(
    values: Floats, neighbours: Integers, corners: Integers, spacing: float, carried: int, whole: int
) -> Crossings:
    """Finds where the surface crosses the edges of the lattice.

    The point ``(x, y, z)`` of block ``b`` is ``values[b, z, y, x]`` and owns the edges that run from it along
    +x, +y and +z. An edge is crossed where one end is below zero and the other is not; an end that is unknown
    crosses nothing. The cut is where the distance, linear along the edge, is zero, but at least ``CLOSEST``
    of the edge away from its ends. The normal is the gradient: the mean over the four cells around the edge,
    values limited to ``FARTHEST`` spacings, for near the surface a distance is no larger.

    Args:
        values: ``float32 [blocks, 8, 8, 8]``, distances, not a number where unknown. Known are all corners of
            the four cells around a crossed edge.
        neighbours: ``int32 [blocks, 27]``: the block at each offset, z first, x fastest, -1 to 1; -1: none,
            and its points are unknown.
        corners: ``int32 [blocks, 3]``: lattice coordinates x, y, z of each block's first point.
        spacing: side of a cell, in voxels.
        carried: of so many first blocks the edges along x and y of their lowest points are left out.
        whole: of all but so many first blocks only those edges are taken.

    Returns:
        The crossings, in the order of their edges.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, not contiguous, a count or a neighbour out of range.
    """
    check(values, neighbours, corners, carried, whole)
    padded = _padded(values, neighbours)
    near = padded[:, OWN, OWN, OWN]
    crossed = np.stack([_crosses(near, _moved(padded, {axis: 1})) for axis in range(AXES)], axis=-1)
    crossed[:carried, 0, :, :, :2] = False
    crossed[whole:, 1:] = False
    crossed[whole:, :, :, :, 2] = False
    edges = np.flatnonzero(crossed)
    block, point, axis = edges // (AXES * BLOCK**3), edges // AXES % BLOCK**3, edges % AXES
    limit = FARTHEST * spacing
    size = len(edges)
    cuts, spans = np.empty(size), np.empty(size, np.float32)
    gradients = np.empty((size, AXES))
    for along in range(AXES):
        rows = np.flatnonzero(axis == along)
        where = block[rows], *np.unravel_index(point[rows], (BLOCK,) * AXES)
        low, high = near[where].astype(np.float64), _moved(padded, {along: 1})[where].astype(np.float64)
        cut = np.clip(low / (low - high), CLOSEST, 1 - CLOSEST)
        cuts[rows], spans[rows] = cut, np.abs(low - high)
        gradients[rows, along] = _limited(high, limit) - _limited(low, limit)
        for across in range(AXES):
            if across != along:
                at = {
                    (end, side): _limited(
                        _moved(padded, {along: end, across: side})[where].astype(np.float64), limit
                    )
                    for end in (0, 1)
                    for side in (-1, 1)
                }
                slope = (1 - cut) * (at[0, 1] - at[0, -1]) + cut * (at[1, 1] - at[1, -1])
                gradients[rows, across] = 0.5 * slope
    local = np.stack(np.unravel_index(point, (BLOCK,) * AXES)[::-1], axis=-1)
    places = (corners[block] + local).astype(np.float64)
    places[np.arange(size), axis] += cuts
    x, y, z = gradients.T
    length = np.sqrt(x * x + y * y + z * z)
    return Crossings(
        (places * spacing).astype(np.float32),
        (gradients / length[:, None]).astype(np.float32),
        edges.astype(np.int32),
        spans,
    )


def triangles(values: Floats, neighbours: Integers, numbers: Integers, whole: int) -> NDArray[np.int32]:
    """Joins crossings to triangles, by the table of :mod:`acorn_svc.field.cubes`.

    Args:
        values: as of :func:`cross_edges`.
        neighbours: as of :func:`cross_edges`.
        numbers: ``int32 [blocks, 8, 8, 8, 3]``: the vertex on each edge, wherever one is crossed.
        whole: cells of so many first blocks are joined, where all of their corners are known.

    Returns:
        ``int32 [faces, 3]``, in the order of blocks, cells and the table, counter-clockwise seen from where
        distances are positive.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, not contiguous, a count or a neighbour out of range.
    """
    check(values, neighbours, numbers, 0, whole)
    padded = _padded(values, neighbours)[:whole]
    case = np.zeros((whole, BLOCK, BLOCK, BLOCK), np.int64)
    known = np.ones(case.shape, np.bool_)
    for corner in range(CORNERS):
        value = _moved(padded, {axis: corner >> axis & 1 for axis in range(AXES)})
        case |= (value < 0).astype(np.int64) << corner
        known &= ~np.isnan(value)
    cells = np.flatnonzero(known & (case % (CASES - 1) != 0))
    rows = TABLE[case.reshape(-1)[cells]]
    which, row = np.nonzero(rows[:, :, 0] >= 0)
    edges = rows[which, row].astype(np.int64)
    block, *local = np.unravel_index(cells[which], case.shape)
    start, axis = np.asarray(EDGES).T[:, edges]
    moved = [place[:, None] + (start >> (AXES - 1 - i) & 1) for i, place in enumerate(local)]
    offset = [1 + place // BLOCK for place in moved]
    owner = neighbours[block[:, None], (offset[0] * 3 + offset[1]) * 3 + offset[2]]
    z, y, x = (place % BLOCK for place in moved)
    found: NDArray[np.int32] = numbers[owner, z, y, x, axis]
    return found


def _padded(values: Floats, neighbours: Integers) -> Floats:
    """Blocks with one point more on each side."""
    blank = np.full((1, BLOCK, BLOCK, BLOCK), np.nan, np.float32)
    known = np.concatenate([values, blank])
    padded = np.empty((len(values), PADDED, PADDED, PADDED), np.float32)
    sides = ((slice(0, 1), slice(-1, None)), (OWN, slice(None)), (slice(-1, None), slice(0, 1)))
    for offset in range(NEIGHBOURS):
        to, source = zip(*(sides[offset // 3**i % 3] for i in (2, 1, 0)), strict=True)
        padded[:, to[0], to[1], to[2]] = known[neighbours[:, offset]][:, source[0], source[1], source[2]]
    return padded


def _moved(padded: Floats, offset: dict[int, int]) -> Floats:
    """Values so many points further along axes (x = 0)."""
    x, y, z = (slice(1 + offset.get(axis, 0), 1 + offset.get(axis, 0) + BLOCK) for axis in range(AXES))
    return padded[:, z, y, x]


def _crosses(low: Floats, high: Floats) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = ((low < 0) & (high >= 0)) | ((low >= 0) & (high < 0))
    return result


def _limited(values: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.minimum(np.maximum(values, -limit), limit)
    return result
