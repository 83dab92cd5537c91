"""A shape as an octree of tiles, each a small mesh: coarse tiles far away, fine ones close by.

Tile level 0 is one cube over the whole box; each level halves the sides. A tile shows one scale of the field
on a lattice of about ``TILE_CELLS`` cells a side, so a level of tiles lies ``tiles_above`` levels above the
blocks whose cells it shows::

    tile level t   side cells << (depth - t) voxels   shows scale depth - t - tiles_above

A tile exists where there is surface, and where the tree has anything finer to show than the tile above has:
either all of the eight tiles below a tile that hold surface exist, or none. The mesh of a tile is open at the
sides of its cube, where it meets its neighbours; those of the same level meet exactly. Neighbours of another
level show another scale, so a *skirt* hangs inwards from every open edge and covers the gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.bricks import RING, Brick, march
from acorn_svc.field.mesh import Mesh
from acorn_svc.field.shape import Points, ShapeField, Values
from acorn_svc.field.tree import BoolArray, IntArray

TILE_CELLS = 32
SKIRT_VOXELS = (2.0, 1.0, 0.5, 0.25)
"""How far a skirt may reach inwards, in voxels of the tile's scale: two are one of the next coarser scale."""
INSIDE_SHARE = 0.5  # of the skirt's depth that the field must confirm: walls thinner than skirts exist


@dataclass(frozen=True)
class Tile:
    """The place of a tile: its level, and its position within the level, in tiles."""

    level: int
    x: int
    y: int
    z: int


@dataclass(frozen=True, eq=False)
class ShapeTiles:
    """All tiles of a shape.

    Attributes:
        field: the shape.
        levels: which tiles exist; see :func:`existing_tiles`.
    """

    field: ShapeField
    levels: list[BoolArray]

    @staticmethod
    def of(field: ShapeField) -> ShapeTiles:
        """The tiles of a shape."""
        return ShapeTiles(field, existing_tiles(field))

    def exists(self, tile: Tile) -> bool:
        """Whether there is such a tile."""
        if not 0 <= tile.level < len(self.levels):
            return False
        level = self.levels[tile.level]
        inside = all(0 <= at < side for at, side in zip((tile.z, tile.y, tile.x), level.shape, strict=True))
        return inside and bool(level[tile.z, tile.y, tile.x])

    def scale(self, level: int) -> int:
        """The scale that tiles of a level show."""
        return self.field.depth - tiles_above(self.field) - level

    @property
    def root_side(self) -> float:
        """Side of the root tile, in the units of the mesh."""
        return (self.field.architecture.cells << self.field.depth) * self.field.signal.voxel

    def error(self, level: int) -> float:
        """How far a tile of a level may be off, in the units of the mesh: a voxel of its scale."""
        return self.field.signal.voxel * 2.0 ** self.scale(level)

    def mesh(self, tile: Tile) -> Mesh:
        """The surface in a tile that exists, with skirts; perhaps without any triangle.

        Vertices are in the units of the mesh, *relative to the origin of the box*: small numbers, which
        single precision holds well wherever the mesh lies.
        """
        scale = self.scale(tile.level)
        stride = 1 << scale
        side = self.field.architecture.cells << (self.field.depth - tile.level)
        corner = np.array([tile.x, tile.y, tile.z]) * side
        size = np.asarray(self.field.signal.size)
        counts = np.clip(-(-(size - corner) // stride), 0, side // stride)
        brick = march(self._distances(corner, counts, scale))
        positions = corner + brick.vertices.astype(np.float64) * stride
        positions, faces, sources = _with_skirts(self.field, positions, brick, scale)
        colours = self.field.colours(positions[: len(brick.vertices)], scale)
        return Mesh(
            positions * self.field.signal.voxel,
            faces,
            brick.normals[sources],
            None if colours is None else colours[sources],
        )

    def _distances(self, corner: IntArray, counts: IntArray, scale: int) -> Values:
        """Distances ``[z, y, x]`` at the corners of a tile's cells and a ring around, in cells."""
        steps = [np.arange(-RING, count + 1 + RING) << scale for count in counts]
        axes = [corner[axis] + steps[axis] for axis in (2, 1, 0)]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        positions = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float64)
        distance = self.field.distance(positions, scale) / np.float32(2.0**scale)
        return distance.reshape(z.shape)


def tiles_above(field: ShapeField) -> int:
    """Levels between a tile and the blocks whose cells it shows."""
    wanted = max(TILE_CELLS // field.architecture.cells, 1).bit_length() - 1
    return min(wanted, field.depth)


def existing_tiles(field: ShapeField) -> list[BoolArray]:
    """Which tiles exist: ``bool [z, y, x]`` for each level, from the coarsest on, as long as any do."""
    tree, above = field.lattice.tree, tiles_above(field)
    surface = _surface(field)
    exist = [surface[0]]
    for level in range(1, len(surface)):
        refined = np.zeros(surface[level - 1].shape, bool)
        nodes = tree.coordinates[tree.levels == level + above] >> (above + 1)
        refined[tuple(nodes.T[::-1])] = True
        exist.append(surface[level] & _doubled(refined, surface[level].shape))
        if not exist[-1].any():
            return exist[:-1]
    return exist


def _surface(field: ShapeField) -> list[BoolArray]:
    """Which cubes hold surface, for each level that tiles can have."""
    tree = field.lattice.tree
    signs = np.zeros(len(tree), np.int8)
    signs[tree.leaf_rows] = field.leaf_signs()
    finest: BoolArray = signs[tree.leaf_map] == 0
    levels = [_pooled(finest, 1 << tiles_above(field))]
    for _ in range(field.depth - tiles_above(field)):
        levels.insert(0, _pooled(levels[0], 2))
    return levels


def _with_skirts(
    field: ShapeField, positions: Points, brick: Brick, scale: int
) -> tuple[Points, NDArray[np.int32], IntArray]:
    """Positions and faces with skirts added, and which of the given vertices each vertex looks like."""
    faces, normals = brick.faces, brick.normals
    count = len(positions)
    edges = _open_edges(faces)
    rim, places = np.unique(edges, return_inverse=True)
    hung = (places.reshape(edges.shape) + count).astype(np.int32)
    hems = _hems(field, positions[rim], normals[rim], scale)
    (start, end), (low_start, low_end) = edges.T, hung.T
    strips = [np.stack([end, start, low_start], axis=1), np.stack([end, low_start, low_end], axis=1)]
    return (
        np.concatenate([positions, hems]),
        np.concatenate([faces, *strips]).astype(np.int32),
        np.concatenate([np.arange(count), rim]),
    )


def _open_edges(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Edges ``[n, 2]`` that only one triangle has, in its direction."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low, high = edges.min(axis=1).astype(np.int64), edges.max(axis=1).astype(np.int64)
    _, first, times = np.unique((low << 32) | high, return_index=True, return_counts=True)
    result: NDArray[np.int32] = edges[np.sort(first[times == 1])]
    return result


def _hems(field: ShapeField, positions: Points, normals: Values, scale: int) -> Points:
    """Where skirts that hang from ``positions`` end: as far inside as they may and the field is."""
    voxel = 2.0**scale
    ends = positions - SKIRT_VOXELS[-1] * voxel * normals
    for voxels in reversed(SKIRT_VOXELS[:-1]):
        deeper = positions - voxels * voxel * normals
        inside = field.distance(deeper, scale) <= -INSIDE_SHARE * min(voxels, 1.0) * voxel
        ends[inside] = deeper[inside]
    return ends


def _pooled(flags: BoolArray, side: int) -> BoolArray:
    """Whether any flag is set in each cube of ``side``."""
    for axis in range(flags.ndim):
        flags = np.logical_or.reduceat(flags, np.arange(0, flags.shape[axis], side), axis=axis)
    return flags


def _doubled(flags: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """Every flag for the eight below it."""
    for axis, length in enumerate(shape):
        flags = np.repeat(flags, 2, axis=axis).take(range(length), axis=axis)
    return flags
