"""The shared vertices of the blocks' feature grids.

Blocks of one level share the vertices on their common borders, and a vertex exists only where every block
that touches it (inside the extent) is there: towards an absent neighbour the features are zero. Each level's
interpolated features are therefore continuous everywhere, and so is the field.

A vertex is owned by the block that has it on its low side (at the far border of the extent, where there is
none, by the last block); rows of vertices are sorted by owner, then ``(z,) y, x``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.tree import ABSENT, BoolArray, IntArray, Tree

ZERO_ROW = 0


@dataclass(frozen=True, eq=False)
class Lattice:
    """Vertex rows of every block.

    Attributes:
        tree: the blocks.
        cells: cells per side of a block.
        table: ``int32 [nodes + 1, (cells + 1)**dimension]``: feature row of each vertex of each block, in
            ``(z,) y, x`` order. Row 0 of the features is the zero that stands for absent vertices; the last
            table row, all zeros, stands for an absent block.
        offsets: ``int64 [nodes + 1]``: block ``i`` owns the vertices ``offsets[i]:offsets[i + 1]``, counted
            without the zero row.
    """

    tree: Tree
    cells: int
    table: NDArray[np.int32]
    offsets: IntArray

    @staticmethod
    def build(tree: Tree, cells: int) -> Lattice:
        """Numbers the vertices of ``tree``."""
        owned = _owned_vertices(tree, cells)
        offsets = np.concatenate([[0], np.cumsum(owned.reshape(len(tree), -1).sum(axis=1))])
        table = np.zeros((len(tree) + 1, *owned.shape[1:]), np.int32)
        table[:-1][owned] = np.arange(1, offsets[-1] + 1)
        _share_far_sides(tree, table, cells)
        return Lattice(tree, cells, table.reshape(len(tree) + 1, -1), offsets)

    @property
    def vertices(self) -> int:
        """Number of vertices, the zero row not counted."""
        return int(self.offsets[-1])

    def carry_over(self, old: Lattice) -> tuple[IntArray, IntArray]:
        """Rows (zero row counted) of the vertices that both lattices have: ``(rows here, rows in old)``.

        With repeats, for blocks share vertices. The blocks that touch a vertex that both have are in both.
        """
        there = old.tree.find(self.tree.levels.astype(np.int64), self.tree.coordinates)
        common = np.flatnonzero(there != ABSENT)
        rows, old_rows = self.table[common].reshape(-1), old.table[there[common]].reshape(-1)
        both = (rows != ZERO_ROW) & (old_rows != ZERO_ROW)
        return rows[both].astype(np.int64), old_rows[both].astype(np.int64)


def owned_counts(tree: Tree, cells: int) -> IntArray:
    """``[nodes]``: how many vertices each block owns, without making a lattice.

    Along an axis the vertices between the first and the last are all alike: of a block of two cells, the one
    in the middle stands for them.
    """
    counts: IntArray = _owned_vertices(tree, 2).astype(np.int64)
    for _ in range(tree.dimension):
        counts = counts @ np.array([1, cells - 1, 1])
    return counts


def _owned_vertices(tree: Tree, cells: int) -> BoolArray:
    """``bool [nodes, (cells + 1,) * dimension]``: the existing vertices that each block owns."""
    dimension = tree.dimension
    everything = np.arange(len(tree))
    owned = np.zeros((len(tree), *(cells + 1,) * dimension), bool)
    owned[(slice(None), *(slice(0, cells),) * dimension)] = True
    for axis in range(dimension):
        far = ~tree.inside(tree.levels.astype(np.int64), tree.coordinates + _unit(dimension, axis))
        last = _at(dimension, axis, cells)
        before = _at(dimension, axis, cells - 1)
        owned[last] = owned[before] & far.reshape(-1, *(1,) * (dimension - 1))
    for offset in itertools.product((0, -1), repeat=dimension):
        if any(offset):
            inside = tree.inside(tree.levels.astype(np.int64), tree.coordinates + np.asarray(offset))
            blocked = inside & (tree.neighbours(everything, offset) == ABSENT)
            low_side = tuple(0 if step else slice(None) for step in reversed(offset))
            owned[(blocked, *low_side)] = False
    return owned


def _share_far_sides(tree: Tree, table: NDArray[np.int32], cells: int) -> None:
    """Copies the low side of each block's upper neighbours to its own far side, axis by axis."""
    for axis in range(tree.dimension):
        above = tree.neighbours(np.arange(len(tree)), _unit(tree.dimension, axis))
        rows = np.flatnonzero(above != ABSENT)
        far = (rows, *_at(tree.dimension, axis, cells)[1:])
        near = (above[rows], *_at(tree.dimension, axis, 0)[1:])
        table[far] = table[near]


def _unit(dimension: int, axis: int) -> tuple[int, ...]:
    return tuple(int(other == axis) for other in range(dimension))


def _at(dimension: int, axis: int, position: int) -> tuple[slice | int, ...]:
    """Index of the vertices at ``position`` along ``axis``, in an array ``[nodes, (z,) y, x]``."""
    index: list[slice | int] = [slice(None)] * (dimension + 1)
    index[dimension - axis] = position
    return tuple(index)
