"""Signed distance to triangles, block by block: marching cubes over a sparse lattice.

Notation: positions are in voxels of the full size, x, y, z (:mod:`acorn_svc.field.conventions`). A *lattice*
of points ``spacing`` apart lies over the box, from 0 to ``cells`` along each axis; between its points lie
cells. A *block* is 8^3 cells and owns its 8^3 lowest points, a *brick* is 2^3 cells. Arrays over space run
z, y, x.

Every brick is either kept or has a sign: that of the leaves it lies in, or that of a distance at its centre,
or at the centre of the 4 or 8 cells around it, too large for the surface to come near. Then

- of two bricks of opposite signs that touch one is kept, or both;
- a point of a brick that has a sign takes this sign, and all of its bricks that have a sign have the same.

So no edge of a brick with a sign is crossed, no cell of one has to be looked at, and what the kept bricks
give is closed. The shape is cut off at the box: its faces count as outside, so no brick that touches them is
inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadRequest
from acorn_svc.field.mesh import MeshPart
from acorn_svc.field.ops import marching
from acorn_svc.field.ops.marching import BLOCK, NEIGHBOURS

MAX_RESOLUTION = 8192
SAFETY = 1.5  # how many times steeper than a distance the function may be
POINTS_AT_ONCE = 1 << 18
BLOCKS_AT_ONCE = 1024
BRICK = 2
SIDE = BLOCK // BRICK  # bricks along a block
HALF = BLOCK // 2
FORCED = 1e-3  # spacings: the distance of a point whose sign is not what the function says
BISECTIONS = 5
CHOOSING = 0.25  # of the whole work, for progress

_INWARDS = 1e-3  # shortest leaves: how far inside one a point is asked for

ZERO, PLUS, MINUS = 1, 2, 4
_FLAGS = np.array([ZERO, PLUS, MINUS], np.uint8)  # by sign: 0, 1, -1
_OFFSETS = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(NEIGHBOURS, 3)
# Along a block with one brick more on each side: before, own, behind; and which bricks of a neighbour.
_RING = (slice(0, 1), slice(1, SIDE + 1), slice(-1, None))
_FAR = (slice(-1, None), slice(None), slice(0, 1))
_CHILDREN = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), axis=-1).reshape(8, 3)[:, ::-1]

T = TypeVar("T", bound=np.generic)
Points = NDArray[np.float64]
Values = NDArray[np.float32]
Places = NDArray[np.int32]
Signs = NDArray[np.int8]
Flags = NDArray[np.uint8]
Rows = NDArray[np.int64]
Distance = Callable[[Points], Values]
Normal = Callable[[Points], Values]
Progress = Callable[[float], None]


def extract(
    distance: Distance,
    size: tuple[int, int, int],
    leaves: NDArray[np.int64],
    signs: Signs,
    resolution: int,
    truncation: float,
    on_progress: Progress | None = None,
    *,
    normal: Normal | None = None,
    safety: float = SAFETY,
) -> Iterator[MeshPart]:
    """Makes a closed mesh of where a distance is zero; closing the iterator ends the work.

    The mesh is watertight, each edge has two faces and each vertex one fan of them. Its vertices lie on edges
    of the lattice. Where the function jumps along a crossed edge, as it may between leaves, the place of the
    jump is found by bisection.

    Args:
        distance: signed distances ``float32 [n]`` at ``float64 [n, 3]``, in voxels, negative inside,
            saturated at ``truncation``. It is asked at many points at once, in the box, once at each point of
            the lattice.
        size: of the box, x, y, z.
        leaves: ``int64 [m, 4]``, x, y, z and side of cubes that tile the box and may stick out at its far
            side. Corners and sides are multiples of the shortest side.
        signs: ``int8 [m]``: +1 for a leaf wholly outside, -1 for one inside, 0 for one that may hold surface.
        resolution: cells along the longest side of the box, 1 to ``MAX_RESOLUTION``.
        truncation: in voxels.
        on_progress: is told what part of the work is done, never less than before, at last 1.
        normal: unit vectors at vertices; without it they are gradients between the points of the lattice.
        safety: how much faster than a distance the function may change.

    Yields:
        Parts from low to high z, none of them empty.

    Raises:
        BadRequest: a resolution, size, truncation or safety without meaning, or leaves that don't tile the
            box.
    """
    if not (len(size) == 3 and min(size) > 0):
        raise BadRequest("a box has three sides, each at least 1")
    if not 1 <= resolution <= MAX_RESOLUTION:
        raise BadRequest("the resolution is out of range", limit="max_resolution", value=MAX_RESOLUTION)
    if not (math.isfinite(truncation) and truncation > 0 and math.isfinite(safety) and safety >= 1):
        raise BadRequest("the truncation must be above 0 and the safety at least 1")
    field = _Field(distance, size, max(size) / resolution, float(truncation), safety)
    flags = _LeafFlags.of(size, leaves, signs)
    return _parts(field, flags, normal, on_progress or (lambda _: None))


def _parts(field: _Field, flags: _LeafFlags, normal: Normal | None, report: Progress) -> Iterator[MeshPart]:
    report(0.0)
    blocks = _choose(field, flags, lambda part: report(CHOOSING * part))
    first, before = 0, _Window.none()
    for window in _windows(field, blocks, before):
        numbers = window.numbers
        crossings = marching.cross_edges(
            window.values, window.neighbours, window.corners, field.spacing, window.carried, window.whole
        )
        _refine(field, window, crossings)
        np.minimum(crossings.vertices, np.asarray(field.size, np.float32), out=crossings.vertices)
        numbers.reshape(-1)[crossings.edges] = np.arange(first, first + len(crossings.edges), dtype=np.int32)
        faces = marching.triangles(window.values, window.neighbours, numbers, window.whole)
        first += len(crossings.edges)
        report(CHOOSING + (1 - CHOOSING) * window.done)
        if len(crossings.edges):
            normals = crossings.normals if normal is None else normal(crossings.vertices.astype(np.float64))
            yield MeshPart(crossings.vertices, normals, None, faces)
    report(1.0)


# --- the function on the lattice ---


@dataclass(frozen=True, eq=False)
class _Field:
    """The function, and the lattice over it."""

    distance: Distance
    size: tuple[int, int, int]
    spacing: float
    truncation: float
    safety: float

    @property
    def cells(self) -> Places:
        """Cells along x, y, z that cover the box, but for less than a vertex may move."""
        return np.ceil(np.asarray(self.size) / self.spacing - marching.CLOSEST).astype(np.int32)

    def at(self, points: NDArray[np.integer] | Points) -> Values:
        """Distances at places of the lattice; beyond the box those at its border."""
        result = np.empty(len(points), np.float32)
        for start in range(0, len(points), POINTS_AT_ONCE):
            part: Points = np.multiply(points[start : start + POINTS_AT_ONCE], self.spacing, dtype=np.float64)
            np.clip(part, 0, self.size, out=part)
            result[start : start + POINTS_AT_ONCE] = self.distance(part)
        result[np.isnan(result)] = self.truncation
        return result

    def to_box(self, points: NDArray[np.integer] | Points) -> Values:
        """Distances ``[...]`` to the box at places of the lattice ``[..., 3]``, 0 or more on its faces."""
        position = points * self.spacing
        outside = np.maximum(-position, position - np.asarray(self.size))
        on_face = (points <= 0) | (points >= self.cells)
        result: Values = np.where(on_face, np.maximum(outside, 0), outside).max(axis=-1).astype(np.float32)
        return result


# --- leaves ---


@dataclass(frozen=True, eq=False)
class _LeafFlags:
    """Which signs the leaves have, over cubes of the shortest side.

    Attributes:
        unit: that side, in voxels.
        windows: ``uint8 [z, y, x]``: the flags of all cubes from this one on, so many along each axis; by the
            logarithm of their number. Filled when asked for.
    """

    unit: int
    windows: dict[int, Flags]

    @staticmethod
    def of(size: tuple[int, int, int], leaves: NDArray[np.int64], signs: Signs) -> _LeafFlags:
        """Checks and paints the leaves."""
        if leaves.ndim != 2 or leaves.shape[1] != 4 or len(leaves) == 0 or signs.shape != leaves.shape[:1]:
            raise BadRequest("leaves must be [m, 4], with a sign for each")
        unit = int(leaves[:, 3].min())
        if unit <= 0 or (leaves % unit).any() or (leaves[:, :3] < 0).any() or (np.abs(signs) > 1).any():
            raise BadRequest("leaves must be multiples of the shortest, with signs -1, 0 or 1")
        shape = tuple(-(-side // unit) for side in size[::-1])
        flags = np.zeros(shape, np.uint8)
        for side in np.unique(leaves[:, 3]):
            rows = np.flatnonzero(leaves[:, 3] == side)
            _paint(flags, leaves[rows, :3] // unit, int(side) // unit, _FLAGS[signs[rows]])
        if not flags.all():
            raise BadRequest("the leaves do not cover the box")
        return _LeafFlags(unit, {0: flags})

    def of_cubes(self, corners: NDArray[np.float64], side: float) -> Flags:
        """Flags of the leaves that cubes touch, or come near, by their low corners ``[n, 3]`` in voxels."""
        cubes = side / self.unit
        exponent = max(math.ceil(cubes - 1e-6), 1).bit_length() - 1
        flags = self._window(exponent)
        low = corners[:, ::-1] / self.unit
        limit = np.asarray(flags.shape) - 1
        first = np.clip(np.floor(low + 1e-6).astype(np.int64), 0, limit)
        last = np.clip(np.ceil(low + cubes - 1e-6).astype(np.int64) - (1 << exponent), first, limit)
        result = np.zeros(len(corners), np.uint8)
        strides = np.array([flags.shape[1] * flags.shape[2], flags.shape[2], 1])
        ends = first * strides, last * strides
        for z, y, x in _CHILDREN:
            result |= flags.reshape(-1)[ends[z][:, 0] + ends[y][:, 1] + ends[x][:, 2]]
        return result

    def without_sign(
        self, centres: NDArray[np.float64], half: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nearest points in leaves without a sign, of those that a small cube around each centre touches.

        Args:
            centres: ``[n, 3]``, in voxels.
            half: a cube's side by two; the side is no longer than the shortest leaf's.

        Returns:
            The points ``[n, 3]``, and how far they are from the centres ``[n]``; infinity where there is
            none.
        """
        flags = self.windows[0]
        place, margin = centres / self.unit, half / self.unit
        own = np.floor(place)
        # along each axis there is one more leaf at most: whichever face is near
        up = place - own > 0.5
        face = own + up
        gap = np.abs(place - face)
        other = np.where(up, own + 1, own - 1)
        other = np.where(gap < margin - 1e-6, other, own)
        within = np.where(up, face + _INWARDS, face - _INWARDS)
        limit = np.asarray(flags.shape[::-1]) - 1
        choices = np.clip(np.stack([own, other]), 0, limit).astype(np.int64)
        best, nearest = np.full(len(centres), np.inf), centres.copy()
        for child in _CHILDREN:
            z, y, x = (choices[child[axis], :, axis] for axis in (2, 1, 0))
            apart = np.sqrt(((gap * child) ** 2) @ np.ones(3)) * self.unit
            rows = np.flatnonzero(((flags[z, y, x] & ZERO) != 0) & (apart < best))
            best[rows] = apart[rows]
            nearest[rows] = np.where(child, within[rows] * self.unit, centres[rows])
        return nearest, best

    def _window(self, exponent: int) -> Flags:
        if exponent not in self.windows:
            flags = self._window(exponent - 1).copy()
            for axis in range(3):
                step = min(1 << (exponent - 1), flags.shape[axis])
                moved = np.moveaxis(flags, axis, 0)
                moved[: len(moved) - step] |= moved[step:].copy()
            self.windows[exponent] = flags
        return self.windows[exponent]


def _paint(flags: Flags, corners: NDArray[np.int64], side: int, colours: Flags) -> None:
    """Adds flags to cubes of one side, cut off at the far side."""
    limit = np.asarray(flags.shape)
    if side > 8:
        for (x, y, z), colour in zip(corners, colours, strict=True):
            flags[z : z + side, y : y + side, x : x + side] |= colour
        return
    for offset in np.ndindex(side, side, side):
        places = corners[:, ::-1] + offset
        inside = (places < limit).all(axis=1)
        z, y, x = places[inside].T
        flags[z, y, x] |= colours[inside]


# --- which bricks hold surface ---


class _Blocks(NamedTuple):
    """Blocks that hold points of kept bricks.

    Attributes:
        table: ``int32 [z, y, x]``, one block more on each side: the row of each block; ``len(corners)`` for
            one that is outside and one more for one inside.
        places: ``int64 [blocks]``, ascending: where in the table.
        corners: ``int32 [blocks, 3]``: the first point, x, y, z.
        bricks: ``int8 [blocks + 2, 4, 4, 4]``: 0 for a kept brick, else its sign.
        values: ``float32 [blocks, 8, 8, 8]`` sparsely: distances already asked for, as ``known`` finds them.
    """

    table: Places
    places: Rows
    corners: Places
    bricks: Signs
    known: tuple[Values, Values, Values]


def _choose(field: _Field, flags: _LeafFlags, report: Progress) -> _Blocks:
    """Finds the kept bricks, from large cubes to small ones."""
    count = (field.cells + 1) // BLOCK + 1
    shape = int(count[2]), int(count[1]), int(count[0])
    signs = np.ones(tuple(side + 2 for side in shape), np.int8)
    whole = np.full(signs.shape, np.nan, np.float32)
    z, y, x = np.indices(shape).reshape(3, -1) + 1
    inner = (z * signs.shape[1] + y) * signs.shape[2] + x
    for start in range(0, len(inner), POINTS_AT_ONCE):
        part = inner[start : start + POINTS_AT_ONCE]
        result = _judge(field, flags, _corners(part, signs.shape), BLOCK)
        signs.reshape(-1)[part], whole.reshape(-1)[part] = result.signs, result.distances
    signs[_opposed(signs)] = 0
    places = np.flatnonzero(signs == 0)
    bricks = np.empty((len(places), SIDE, SIDE, SIDE), np.int8)
    quarters = np.empty((len(places), 2, 2, 2), np.float32)
    centres = np.empty(bricks.shape, np.float32)
    for start in range(0, len(places), BLOCKS_AT_ONCE * 4):
        rows = slice(start, start + BLOCKS_AT_ONCE * 4)
        bricks[rows], quarters[rows], centres[rows] = _split(
            field, flags, _corners(places[rows], signs.shape)
        )
        report(min(rows.stop / len(places), 1.0))
    known = whole.reshape(-1)[places], quarters, centres
    return _settled(signs, places, bricks, known)


class _Judged(NamedTuple):
    signs: Signs  # 0 where surface may be
    distances: Values  # at the centre, where it was asked for
    flags: Flags


def _judge(
    field: _Field, leaves: _LeafFlags, corners: Places, side: int, flags: Flags | None = None
) -> _Judged:
    """Says of cubes of so many cells on which side of the surface they lie.

    In a leaf with a sign the function may be blind to surface close by. So of a cube in leaves of several
    kinds it's not the centre that counts but the nearest point in a leaf without one, if the cube is small
    enough to have that in reach. ``flags`` may say what a larger cube around each touches.
    """
    if flags is None:
        flags = leaves.of_cubes(corners.astype(np.float64) * field.spacing, side * field.spacing)
    else:
        flags = flags.copy()
        mixed = np.flatnonzero((flags & (flags - 1)) != 0)
        flags[mixed] = leaves.of_cubes(
            corners[mixed].astype(np.float64) * field.spacing, side * field.spacing
        )
    cells = field.cells
    beyond = _any_axis(corners >= cells)
    signs = (flags == PLUS).astype(np.int8) - (flags == MINUS).astype(np.int8)
    distances = np.full(len(corners), np.nan, np.float32)
    radius = field.safety * math.sqrt(0.75) * side * field.spacing
    if radius < field.truncation:
        rows = np.flatnonzero((flags == ZERO) & ~beyond)
        distances[rows] = found = field.at(corners[rows] + side // 2)
        signs[rows] = _far(found, radius)
    if radius < field.truncation and side * field.spacing <= leaves.unit:
        rows = np.flatnonzero(((flags & ZERO) != 0) & (flags != ZERO) & ~beyond)
        centres = (corners[rows] + side // 2).astype(np.float64) * field.spacing
        nearest, moved = leaves.without_sign(centres, side * field.spacing / 2)
        reach = radius + field.safety * moved
        seen = np.flatnonzero(reach < field.truncation)
        found = field.at(nearest[seen] / field.spacing)
        there = _far(found, reach[seen])
        agree = (flags[rows[seen]] & np.where(there > 0, MINUS, PLUS)) == 0
        signs[rows[seen]] = there * agree
        still = moved[seen] == 0
        distances[rows[seen[still]]] = found[still]
    inside = np.flatnonzero(signs < 0)
    signs[inside[_any_axis((corners[inside] == 0) | (corners[inside] + side >= cells))]] = 0
    signs[beyond] = 1
    return _Judged(signs, distances, flags)


def _far(distances: Values, radius: float | NDArray[np.float64]) -> Signs:
    """Signs of distances that are larger than a radius."""
    return (distances > radius).astype(np.int8) - (distances < -radius).astype(np.int8)


def _any_axis(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any of ``[n, 3]`` is set: for so few columns faster than ``any``."""
    result: NDArray[np.bool_] = mask[:, 0] | mask[:, 1] | mask[:, 2]
    return result


def _split(field: _Field, flags: _LeafFlags, corners: Places) -> tuple[Signs, Values, Values]:
    """Signs of the bricks of blocks, and distances at the centres of their eighths and of the bricks."""
    blocks, eighths = len(corners), _parted(corners, HALF)
    of_eighths = _judge(field, flags, eighths, HALF)
    rows = np.flatnonzero(of_eighths.signs == 0)
    of_bricks = _judge(
        field, flags, _parted(eighths[rows], BRICK), BRICK, np.repeat(of_eighths.flags[rows], 8)
    )
    signs = np.repeat(of_eighths.signs[:, None], 8, axis=1)
    signs[rows] = of_bricks.signs.reshape(-1, 8)
    centres = np.full(signs.shape, np.nan, np.float32)
    centres[rows] = of_bricks.distances.reshape(-1, 8)
    return (
        _interleaved(signs, blocks),
        of_eighths.distances.reshape(blocks, 2, 2, 2),
        _interleaved(centres, blocks),
    )


def _parted(corners: Places, side: int) -> Places:
    result: Places = (corners[:, None] + (_CHILDREN * side).astype(np.int32)).reshape(-1, 3)
    return result


def _interleaved(values: NDArray[T], blocks: int) -> NDArray[T]:
    """``[blocks * 8, 8]``, by eighths and their bricks, as ``[blocks, 4, 4, 4]``."""
    split = values.reshape(blocks, 2, 2, 2, 2, 2, 2)
    return split.transpose(0, 1, 4, 2, 5, 3, 6).reshape(blocks, SIDE, SIDE, SIDE)


def _corners(places: Rows, shape: tuple[int, ...]) -> Places:
    z, y, x = np.unravel_index(places, shape)
    return (np.stack([x, y, z], axis=1).astype(np.int32) - 1) * BLOCK


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is set or touches what is set, along the last three axes."""
    for axis in (-1, -2, -3):
        moved = np.moveaxis(mask.copy(), axis, 0)
        source = np.moveaxis(mask, axis, 0)
        moved[1:] |= source[:-1]
        moved[:-1] |= source[1:]
        mask = np.moveaxis(moved, 0, axis)
    return mask


def _opposed(signs: Signs) -> NDArray[np.bool_]:
    """What has a sign and touches the opposite sign, along the last three axes."""
    plus, minus = signs > 0, signs < 0
    result: NDArray[np.bool_] = (plus & _grown(minus)) | (minus & _grown(plus))
    return result


def _settled(signs: Signs, places: Rows, bricks: Signs, known: tuple[Values, Values, Values]) -> _Blocks:
    """Keeps bricks that touch the opposite sign, then just the blocks that own points of kept bricks.

    Blocks with a sign touch none of the opposite sign; where they touch such a brick, that one is kept.
    """
    opposed = [
        (rows, _opposed(around)[:, 1:-1, 1:-1, 1:-1]) for rows, around in _surroundings(signs, places, bricks)
    ]
    for rows, found in opposed:
        bricks[rows] = np.where(found, 0, bricks[rows])
    empty: NDArray[np.bool_] = (bricks != 0).reshape(len(bricks), SIDE**3).all(axis=1)
    signs.reshape(-1)[places[empty]] = bricks[empty, 0, 0, 0]
    places, bricks, known = places[~empty], bricks[~empty], _taken(known, ~empty)
    owners = _owners(signs, places, bricks)
    places, bricks, known = _with_blocks(signs, places, bricks, known, owners)
    table = _table(signs, places)
    return _Blocks(table, places, _corners(places, signs.shape), _with_signs(bricks), known)


def _taken(
    known: tuple[Values, Values, Values], rows: NDArray[np.bool_] | Rows
) -> tuple[Values, Values, Values]:
    return known[0][rows], known[1][rows], known[2][rows]


def _with_signs(bricks: Signs) -> Signs:
    ends = np.broadcast_to(np.array([1, -1], np.int8)[:, None, None, None], (2, SIDE, SIDE, SIDE))
    return np.concatenate([bricks, ends])


def _table(signs: Signs, places: Rows) -> Places:
    table = np.where(signs < 0, len(places) + 1, len(places)).astype(np.int32)
    table.reshape(-1)[places] = np.arange(len(places), dtype=np.int32)
    return table


def _steps(shape: tuple[int, ...]) -> Rows:
    """From a place in a table to its 27 neighbours."""
    result: Rows = _OFFSETS @ np.array([shape[1] * shape[2], shape[2], 1])
    return result


def _with_blocks(
    signs: Signs, places: Rows, bricks: Signs, known: tuple[Values, Values, Values], more: Rows
) -> tuple[Rows, Signs, tuple[Values, Values, Values]]:
    """Adds blocks all of whose bricks have the sign of the block."""
    if not len(more):
        return places, bricks, known
    places = np.concatenate([places, more])
    order = np.argsort(places)
    filled = np.broadcast_to(signs.reshape(-1)[more][:, None, None, None], (len(more), *bricks.shape[1:]))
    bricks = np.concatenate([bricks, filled])[order]
    blank = [np.full((len(more), *part.shape[1:]), np.nan, np.float32) for part in known]
    joined = [np.concatenate([part, empty])[order] for part, empty in zip(known, blank, strict=True)]
    return places[order], bricks, (joined[0], joined[1], joined[2])


def _surroundings(signs: Signs, places: Rows, bricks: Signs) -> Iterator[tuple[Rows, Signs]]:
    """Rows of blocks where opposite signs touch, and their bricks with one more on each side.

    As ``int8 [n, 6, 6, 6]``, so many at once.
    """
    table, steps = _table(signs, places).reshape(-1), _steps(signs.shape)
    every = np.ascontiguousarray(np.moveaxis(_with_signs(bricks), 0, -1))
    for start in range(0, len(places), 4 * BLOCKS_AT_ONCE):
        part = places[start : start + 4 * BLOCKS_AT_ONCE]
        around = np.empty((SIDE + 2, SIDE + 2, SIDE + 2, len(part)), np.int8)
        for step, (z, y, x) in zip(steps, _OFFSETS + 1, strict=True):
            others = table[part + step]
            around[_RING[z], _RING[y], _RING[x]] = every[_FAR[z], _FAR[y], _FAR[x]].take(others, axis=-1)
        corners = _FLAGS[around]
        corners = corners[1:] | corners[:-1]
        corners = corners[:, 1:] | corners[:, :-1]
        corners = corners[:, :, 1:] | corners[:, :, :-1]
        both = ((corners & (PLUS | MINUS)) == (PLUS | MINUS)).any(axis=(0, 1, 2))
        if both.any():
            rows = np.flatnonzero(both)
            yield start + rows, np.moveaxis(around[..., rows], -1, 0)


def _owners(signs: Signs, places: Rows, bricks: Signs) -> Rows:
    """Blocks with a sign that own points of kept bricks of other blocks."""
    found = [np.empty(0, np.int64)]
    kept = np.ascontiguousarray(np.moveaxis(bricks == 0, 0, -1))
    for step, offset in zip(_steps(signs.shape), _OFFSETS, strict=True):
        if (offset >= 0).all() and offset.any():
            z, y, x = (slice(-1, None) if side else slice(None) for side in offset)
            others = places[kept[z, y, x].any(axis=(0, 1, 2))] + step
            found.append(others[signs.reshape(-1)[others] != 0])
    return np.unique(np.concatenate(found))


# --- slabs of blocks ---


class _Window(NamedTuple):
    """Some layers of blocks: what :mod:`acorn_svc.field.ops.marching` wants of them.

    The last layer has lent its lowest points to the one below and comes again, as the first of the next
    window.
    """

    values: Values
    neighbours: Places
    corners: Places
    numbers: Places
    carried: int
    whole: int
    done: float

    @staticmethod
    def none() -> _Window:
        """Before the first."""
        shape = (0, BLOCK, BLOCK, BLOCK)
        empty = np.empty((0, NEIGHBOURS), np.int32)
        return _Window(
            np.empty(shape, np.float32), empty, empty[:, :3], np.empty((*shape, 3), np.int32), 0, 0, 0.0
        )


def _windows(field: _Field, blocks: _Blocks, window: _Window) -> Iterator[_Window]:
    """Windows from low to high z; distances are asked for as they come."""
    count = len(blocks.places)
    layers = blocks.places // (blocks.table.shape[1] * blocks.table.shape[2])
    starts = np.searchsorted(layers, np.arange(blocks.table.shape[0] + 1))
    layer = begin = end = 0
    while begin < count:
        until = min(begin + BLOCKS_AT_ONCE, count)
        layer = max(layer + 1, int(np.searchsorted(starts, until)))
        whole, stop = int(starts[layer]) - begin, int(starts[min(layer + 1, len(starts) - 1)])
        fresh = slice(end, stop)
        carried = end - begin
        values = np.concatenate([window.values[window.whole :], _distances(field, blocks, fresh)])
        numbers = np.full((*values.shape, 3), -1, np.int32)
        numbers[:carried] = window.numbers[window.whole :]
        around = blocks.table.reshape(-1)[blocks.places[begin:stop, None] + _steps(blocks.table.shape)]
        here = (around >= begin) & (around < stop)
        neighbours = np.where(here, around - begin, -1).astype(np.int32)
        corners = np.ascontiguousarray(blocks.corners[begin:stop])
        end, begin = stop, begin + whole
        window = _Window(values, neighbours, corners, numbers, carried, whole, begin / count)
        yield window


def _distances(field: _Field, blocks: _Blocks, rows: slice) -> Values:
    """Distances ``float32 [n, 8, 8, 8]`` at the points of kept bricks, not a number elsewhere."""
    touched = _touched(blocks, rows)
    needed = (touched & ZERO) != 0
    values = np.full(touched.shape, np.nan, np.float32)
    whole, eighths, bricks = (part[rows] for part in blocks.known)
    values[:, HALF, HALF, HALF] = whole
    values[:, HALF // 2 :: HALF, HALF // 2 :: HALF, HALF // 2 :: HALF] = eighths
    values[:, 1::BRICK, 1::BRICK, 1::BRICK] = bricks
    asked = np.flatnonzero(needed & np.isnan(values))
    values[~needed] = np.nan
    block, z, y, x = np.unravel_index(asked, values.shape)
    corners = blocks.corners[rows]
    local = np.stack([x, y, z], axis=1).astype(np.int32)
    values.reshape(-1)[asked] = field.at(corners[block] + local)
    _cut_at_box(field, corners, values)
    forced = needed & ((touched & (PLUS | MINUS)) != 0)
    wrong = forced & ((values < 0) != ((touched & MINUS) != 0))
    values[wrong] = np.where(touched[wrong] & MINUS, -1, 1) * np.float32(FORCED * field.spacing)
    return values


def _cut_at_box(field: _Field, corners: Places, values: Values) -> None:
    rim = np.flatnonzero(_any_axis((corners == 0) | (corners + BLOCK >= field.cells - 1)))
    z, y, x = np.indices((BLOCK, BLOCK, BLOCK))
    local = np.stack([x, y, z], axis=-1)
    for start in range(0, len(rim), BLOCKS_AT_ONCE):
        rows = rim[start : start + BLOCKS_AT_ONCE]
        values[rows] = np.maximum(values[rows], field.to_box(corners[rows, None, None, None] + local))


def _touched(blocks: _Blocks, rows: slice) -> Flags:
    """Which kinds of bricks each point of blocks belongs to, ``uint8 [n, 8, 8, 8]``."""
    table, places = blocks.table.reshape(-1), blocks.places[rows]
    flags = np.empty((len(places), SIDE + 1, SIDE + 1, SIDE + 1), np.uint8)
    sides = ((slice(0, 1), slice(-1, None)), (slice(1, None), slice(None)))
    for step, offset in zip(_steps(blocks.table.shape), _OFFSETS, strict=True):
        if (offset <= 0).all():
            z, y, x = (sides[side + 1] for side in offset)
            source = blocks.bricks[:, z[1], y[1], x[1]]
            flags[:, z[0], y[0], x[0]] = _FLAGS[source[table[places + step]]]
    for axis in (3, 2, 1):
        bricks = np.moveaxis(flags, axis, 0)
        points = np.empty((BLOCK, *bricks.shape[1:]), np.uint8)
        points[0::BRICK] = bricks[:-1] | bricks[1:]
        points[1::BRICK] = bricks[1:]
        flags = np.moveaxis(points, 0, axis)
    return np.ascontiguousarray(flags)


def _refine(field: _Field, window: _Window, crossings: marching.Crossings) -> None:
    """Moves vertices on edges along which the function changes more than a distance could."""
    rows = np.flatnonzero(crossings.spans > field.safety * field.spacing)
    if not len(rows):
        return
    point, axis = np.divmod(crossings.edges[rows].astype(np.int64), 3)
    block, z, y, x = np.unravel_index(point, window.values.shape)
    start = (window.corners[block] + np.stack([x, y, z], axis=1)).astype(np.float64)
    starts_inside = window.values.reshape(-1)[point] < 0
    every = np.arange(len(rows))
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        places = start.copy()
        places[every, axis] += middle
        inside = np.maximum(field.at(places), field.to_box(places)) < 0
        as_start = inside == starts_inside
        low[as_start], high[~as_start] = middle[as_start], middle[~as_start]
    cut = np.clip(0.5 * (low + high), marching.CLOSEST, 1 - marching.CLOSEST)
    crossings.vertices[rows, axis] = (start[every, axis] + cut) * field.spacing
