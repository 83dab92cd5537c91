"""The dyadic tree of blocks, for two and three dimensions, in flat arrays.

A node is a level and a Morton index (axis 0 in the lowest bit). Nodes are sorted by level, then by Morton
index, so parents come before children and a file reads from coarse to fine. Nodes that lie wholly outside the
``extent`` do not exist: a split creates only the children inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_DEPTH = {2: 22, 3: 12}
ABSENT = -1


def morton_encode(coordinates: IntArray) -> NDArray[np.uint64]:
    """Interleaves the bits of ``coordinates [n, dimension]``, axis 0 lowest."""
    dimension = coordinates.shape[-1]
    values = coordinates.astype(np.uint64)
    code = np.zeros(values.shape[:-1], np.uint64)
    for bit in range(MAX_DEPTH[dimension]):
        for axis in range(dimension):
            selected = (values[..., axis] >> np.uint64(bit)) & np.uint64(1)
            code |= selected << np.uint64(bit * dimension + axis)
    return code


def morton_decode(code: NDArray[np.uint64], dimension: int) -> IntArray:
    """Inverse of :func:`morton_encode`: ``[n]`` to ``[n, dimension]``."""
    coordinates = np.zeros((*code.shape, dimension), np.uint64)
    for bit in range(MAX_DEPTH[dimension]):
        for axis in range(dimension):
            selected = (code >> np.uint64(bit * dimension + axis)) & np.uint64(1)
            coordinates[..., axis] |= selected << np.uint64(bit)
    return coordinates.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Tree:
    """Blocks of a signal.

    Attributes:
        dimension: 2 or 3.
        depth: level of the finest possible block.
        extent: blocks of level ``depth`` that cover the signal, per axis (x first); at most ``2**depth``.
        levels: ``uint8 [nodes]``.
        indices: ``uint64 [nodes]``, Morton index of the block within its level.
    """

    dimension: int
    depth: int
    extent: tuple[int, ...]
    levels: NDArray[np.uint8]
    indices: NDArray[np.uint64]

    @staticmethod
    def root(depth: int, extent: Sequence[int]) -> Tree:
        """The tree of one block."""
        return Tree(len(extent), depth, tuple(extent), np.zeros(1, np.uint8), np.zeros(1, np.uint64))

    @staticmethod
    def uniform(depth: int, extent: Sequence[int], level: int) -> Tree:
        """The tree whose leaves are all blocks of ``level``."""
        tree = Tree.root(depth, extent)
        for _ in range(min(level, depth)):
            tree = tree.split(tree.leaf_rows)
        return tree

    @staticmethod
    def from_nodes(
        depth: int, extent: Sequence[int], levels: NDArray[np.uint8], indices: NDArray[np.uint64]
    ) -> Tree:
        """Sorts the given nodes into a tree."""
        order = np.lexsort((indices, levels))
        return Tree(len(extent), depth, tuple(extent), levels[order], indices[order])

    @staticmethod
    def from_split_flags(depth: int, extent: Sequence[int], flags: BoolArray) -> Tree:
        """Inverse of :attr:`split_flags`; False may follow the last node's flag.

        The memory it takes is bounded by the number of flags, whatever they say.

        Raises:
            ValueError: depth and extent make no tree, or the flags are too few or too many.
        """
        root = Tree.root(depth, extent)
        root.validate()
        parts, nodes, seen = [root], 1, 0
        while len(parts[-1]):
            level = parts[-1]
            split = flags[seen:nodes]
            seen = nodes
            parts.append(level._children_of(np.flatnonzero(split)))
            nodes += len(parts[-1])
            if nodes > len(flags):
                raise ValueError("there are fewer split flags than blocks")
        if flags[nodes:].any():
            raise ValueError("there are more split flags than blocks")
        levels = np.concatenate([part.levels for part in parts])
        indices = np.concatenate([part.indices for part in parts])
        return Tree(root.dimension, depth, root.extent, levels, indices)

    def _children_of(self, rows: IntArray) -> Tree:
        """The children of ``rows``, as one sorted list of nodes, no whole tree."""
        if len(rows) and int(self.levels[0]) >= self.depth:
            raise ValueError("a block at the finest level is split")
        levels = np.repeat(self.levels[rows] + np.uint8(1), 1 << self.dimension)
        coordinates = self.child_coordinates(rows).reshape(-1, self.dimension)
        inside = self.inside(levels.astype(np.int64), coordinates)
        corners = np.arange(1 << self.dimension, dtype=np.uint64)
        indices = (self.indices[rows, None] << np.uint64(self.dimension)) | corners
        return Tree(self.dimension, self.depth, self.extent, levels[inside], indices.reshape(-1)[inside])

    def __len__(self) -> int:
        return len(self.levels)

    @cached_property
    def coordinates(self) -> IntArray:
        """``[nodes, dimension]``: position of each block within its level, in blocks."""
        return morton_decode(self.indices, self.dimension)

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return self._key(self.levels.astype(np.int64), self.indices)

    @staticmethod
    def _key(levels: IntArray, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
        key: NDArray[np.uint64] = (levels.astype(np.uint64) << np.uint64(58)) | indices
        return key

    def find(self, levels: IntArray | int, coordinates: IntArray) -> IntArray:
        """Rows of the blocks at ``levels`` and ``coordinates [n, dimension]``; -1 where there is none."""
        levels = np.broadcast_to(np.asarray(levels, np.int64), coordinates.shape[:-1])
        inside = self.inside(levels, coordinates)
        keys = self._key(np.maximum(levels, 0), morton_encode(np.where(inside[..., None], coordinates, 0)))
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(inside & (self._keys[rows] == keys), rows, ABSENT)

    def inside(self, levels: IntArray | int, coordinates: IntArray) -> BoolArray:
        """Whether blocks at these ``levels`` and ``coordinates`` would touch the extent."""
        levels = np.asarray(levels, np.int64)
        start = coordinates << (self.depth - levels)[..., None]
        touches = ((coordinates >= 0) & (start < np.asarray(self.extent))).all(axis=-1)
        result: BoolArray = touches & (levels >= 0)
        return result

    @cached_property
    def parents(self) -> IntArray:
        """``[nodes]``: row of each block's parent; -1 for the root."""
        return self.find(self.levels.astype(np.int64) - 1, self.coordinates >> 1)

    @cached_property
    def children(self) -> IntArray:
        """``[nodes, 2**dimension]``: rows of the children; -1 where absent."""
        table = np.full((len(self), 1 << self.dimension), ABSENT, np.int64)
        rows = np.arange(1, len(self))
        corner = (self.indices[1:] & np.uint64((1 << self.dimension) - 1)).astype(np.int64)
        table[self.parents[1:], corner] = rows
        return table

    @cached_property
    def is_leaf(self) -> BoolArray:
        """``[nodes]``: whether a block has no children."""
        result: BoolArray = (self.children == ABSENT).all(axis=1)
        return result

    @property
    def split_flags(self) -> BoolArray:
        """``[nodes]``: whether a block has children. With depth and extent it says the whole tree."""
        return ~self.is_leaf

    @cached_property
    def leaf_rows(self) -> IntArray:
        """Rows of the leaves, ascending."""
        return np.flatnonzero(self.is_leaf)

    @cached_property
    def ancestors(self) -> IntArray:
        """``[nodes, depth + 1]``: row of each block's ancestor (or itself) at every level; -1 below it."""
        table = np.full((len(self), self.depth + 1), ABSENT, np.int64)
        for level in range(self.depth + 1):
            rows = np.flatnonzero(self.levels == level)
            if level:
                table[rows] = table[self.parents[rows]]
            table[rows, level] = rows
        return table

    @cached_property
    def leaf_map(self) -> NDArray[np.int32]:
        """Row of the leaf over every finest-level block, indexed ``[(z,) y, x]``."""
        table = np.full(self.extent[::-1], ABSENT, np.int32)
        for level in np.unique(self.levels[self.leaf_rows]):
            rows = self.leaf_rows[self.levels[self.leaf_rows] == level]
            side = 1 << (self.depth - int(level))
            leaves = np.full([-(-length // side) for length in self.extent[::-1]], ABSENT, np.int32)
            leaves[tuple(self.coordinates[rows].T[::-1])] = rows
            for axis, length in enumerate(self.extent[::-1]):
                leaves = np.repeat(leaves, side, axis=axis).take(range(length), axis=axis)
            np.copyto(table, leaves, where=leaves != ABSENT)
        return table

    def locate(self, blocks: IntArray) -> IntArray:
        """Rows of the leaves over finest-level block ``blocks [n, dimension]`` (clamped to the extent)."""
        clamped = np.clip(blocks, 0, np.asarray(self.extent) - 1)
        return self.leaf_map[tuple(clamped[..., axis] for axis in reversed(range(self.dimension)))].astype(
            np.int64
        )

    def neighbours(self, rows: IntArray, offset: Sequence[int]) -> IntArray:
        """Rows of the blocks of the same level at ``offset`` blocks; -1 where there is none."""
        return self.find(self.levels[rows].astype(np.int64), self.coordinates[rows] + np.asarray(offset))

    def child_coordinates(self, rows: IntArray) -> IntArray:
        """``[n, 2**dimension, dimension]``: positions of all children, inside the extent or not."""
        corners = morton_decode(np.arange(1 << self.dimension, dtype=np.uint64), self.dimension)
        coordinates: IntArray = (self.coordinates[rows][:, None] << 1) + corners
        return coordinates

    def inside_children(self, rows: IntArray) -> IntArray:
        """How many children of each of ``rows`` lie inside the extent."""
        levels = np.minimum(self.levels[rows].astype(np.int64) + 1, self.depth)
        count: IntArray = self.inside(levels[:, None], self.child_coordinates(rows)).sum(axis=1)
        return count

    def split(self, rows: IntArray) -> Tree:
        """Splits the leaves ``rows`` into their children.

        Raises:
            ValueError: a row is no leaf, or lies at the finest level.
        """
        return self.refine(rows, np.empty(0, np.int64))

    def merge(self, rows: IntArray) -> Tree:
        """Merges the children of ``rows``, all of them leaves, into their parents.

        Raises:
            ValueError: a row is a leaf, or one of its children is none.
        """
        return self.refine(np.empty(0, np.int64), rows)

    def refine(self, split_rows: IntArray, merge_rows: IntArray) -> Tree:
        """Splits and merges at once; see :meth:`split` and :meth:`merge`."""
        if len(np.unique(split_rows)) < len(split_rows):
            raise ValueError("a block cannot be split twice")
        if not self.is_leaf[split_rows].all() or (self.levels[split_rows] >= self.depth).any():
            raise ValueError("only leaves above the finest level can be split")
        merged = self.children[merge_rows]
        if self.is_leaf[merge_rows].any() or not (self.is_leaf[merged] | (merged == ABSENT)).all():
            raise ValueError("only blocks whose children are all leaves can be merged")
        if np.isin(split_rows, merged).any():
            raise ValueError("a block cannot be split and merged at once")
        keep = np.ones(len(self), bool)
        keep[merged[merged != ABSENT]] = False
        new = self.child_coordinates(split_rows)
        levels = np.repeat(self.levels[split_rows] + 1, 1 << self.dimension)
        new = new.reshape(-1, self.dimension)
        inside = self.inside(levels.astype(np.int64), new)
        return Tree.from_nodes(
            self.depth,
            self.extent,
            np.concatenate([self.levels[keep], levels[inside].astype(np.uint8)]),
            np.concatenate([self.indices[keep], morton_encode(new[inside])]),
        )

    def validate(self) -> None:
        """Checks every invariant of the arrays.

        Raises:
            ValueError: which invariant is broken.
        """
        if self.dimension not in MAX_DEPTH or len(self.extent) != self.dimension:
            raise ValueError(f"the dimension must be 2 or 3, not {self.dimension}")
        if not 0 <= self.depth <= MAX_DEPTH[self.dimension]:
            raise ValueError(f"the depth must lie in 0..{MAX_DEPTH[self.dimension]}, not {self.depth}")
        if not all(1 <= side <= 1 << self.depth for side in self.extent):
            raise ValueError(f"an extent of {self.extent} blocks does not fit a depth of {self.depth}")
        if not len(self) or len(self.levels) != len(self.indices):
            raise ValueError("levels and indices must be of one length, at least 1")
        if int(self.levels.max()) > self.depth:
            raise ValueError("a block lies below the finest level")
        limit = np.uint64(1) << (self.levels.astype(np.uint64) * np.uint64(self.dimension))
        if (self.indices >= limit).any():
            raise ValueError("a block's index lies outside its level")
        if (self._keys[1:] <= self._keys[:-1]).any():
            raise ValueError("blocks must be sorted by level, then index, without repeats")
        if not self.inside(self.levels.astype(np.int64), self.coordinates).all():
            raise ValueError("a block lies outside the extent")
        self._validate_families()

    def _validate_families(self) -> None:
        if self.levels[0] != 0 or (self.parents[1:] == ABSENT).any():
            raise ValueError("a block has no parent")
        internal = np.flatnonzero(~self.is_leaf)
        present = (self.children[internal] != ABSENT).sum(axis=1)
        if (present != self.inside_children(internal)).any():
            raise ValueError("a split block lacks a child")
