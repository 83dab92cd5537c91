"""Where the features of a sample lie: one lattice as flat arrays, as kernels read it.

At scale ``s`` (pixels of side ``2**s``) a sample reads five slots of features, concatenated::

    slot 0   level depth - s       one vertex per pixel corner; at a pixel's centre their mean
    slot 1   level depth - s - 1   vertices 2 pixels apart
    slot 2   level depth - s - 2   4 pixels
    slot 3   level depth - s - 3   8 pixels
    slot 4   all levels above, summed

Which levels are read is set by the scale of the view, never by the depth of the leaf a sample falls in;
absent blocks read as zero. Linear interpolation on nested lattices is exact, so the sum of slot 4 can be
*folded* into the vertices of one block beforehand.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acorn_svc.field.lattice import Lattice
from acorn_svc.field.tree import ABSENT

SLOTS = 5
DIRECT_SLOTS = SLOTS - 1
PATCH_SIDE = 4


class Geometry(NamedTuple):
    """One lattice.

    Attributes:
        depth: level of the finest possible block.
        cells: cells per side of a block, a power of two.
        extent: finest-level blocks per axis, x first; as many as there are dimensions.
        leaf_map: ``int32 [(z,) y, x]``, the leaf over every finest-level block.
        ancestors: ``int32 [nodes + 1, depth + 1]``, the block over each block (or itself) at every level;
            ``nodes`` stands for an absent block, and the last row is all of that.
        table: ``int32 [nodes + 1, (cells + 1)**dimension]``, the feature row of every vertex of every
            block, 0 where there is none; vertices in ``(z,) y, x`` order.
        vertices: rows of the features, the zero row not counted.
        foldable: blocks that the last slot can read; see :func:`fold`.
    """

    depth: int
    cells: int
    extent: tuple[int, ...]
    leaf_map: Tensor
    ancestors: Tensor
    table: Tensor
    vertices: int
    foldable: int

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.extent)

    @property
    def nodes(self) -> int:
        """Number of blocks, and the row that stands for an absent one."""
        return len(self.ancestors) - 1

    def to(self, device: torch.device) -> Geometry:
        """The same arrays on a device."""
        return self._replace(
            leaf_map=self.leaf_map.to(device),
            ancestors=self.ancestors.to(device),
            table=self.table.to(device),
        )


def geometry_of(lattice: Lattice) -> Geometry:
    """The arrays of a lattice, on the CPU."""
    tree = lattice.tree
    ancestors = np.full((len(tree) + 1, tree.depth + 1), len(tree), np.int32)
    ancestors[:-1] = np.where(tree.ancestors == ABSENT, len(tree), tree.ancestors)
    return Geometry(
        tree.depth,
        lattice.cells,
        tree.extent,
        torch.from_numpy(np.ascontiguousarray(tree.leaf_map)),
        torch.from_numpy(ancestors),
        torch.from_numpy(np.ascontiguousarray(lattice.table)),
        lattice.vertices,
        _foldable(lattice),
    )


def fold(lattice: Lattice, features: Tensor) -> Tensor:
    """Sums every block's features with those of all its ancestors, at its own vertices.

    Args:
        lattice: the blocks.
        features: ``[vertices + 1, channels]``, row 0 zero.

    Returns:
        ``[(foldable + 1) * (cells + 1)**dimension, channels]``: only blocks that slot 4 can read, then one
        absent block.
    """
    tree, row_size = lattice.tree, lattice.table.shape[1]
    levels, parents = torch.from_numpy(tree.levels).long(), torch.from_numpy(tree.parents)
    corners = torch.from_numpy(tree.indices.astype("int64")) & ((1 << tree.dimension) - 1)
    foldable = _foldable(lattice)
    table = torch.from_numpy(lattice.table)
    folded = features.new_zeros(foldable + 1, row_size, features.shape[1])
    for level in range(tree.depth - DIRECT_SLOTS + 1):
        rows = torch.nonzero(levels[:foldable] == level)[:, 0]
        folded[rows] = features[table[rows].long()]
        for corner in range(1 << tree.dimension if level else 0):
            selected = rows[corners[rows] == corner]
            matrix = _child_matrix(lattice.cells, tree.dimension, corner).to(features.dtype)
            folded[selected] += torch.matmul(matrix, folded[parents[selected]])
    return folded.reshape(-1, features.shape[1])


def _foldable(lattice: Lattice) -> int:
    return int((lattice.tree.levels <= lattice.tree.depth - DIRECT_SLOTS).sum())


@cache
@torch.inference_mode(False)  # may be kept for a later training step
def _child_matrix(cells: int, dimension: int, corner: int) -> Tensor:
    """``[(cells + 1)**dimension] * 2``: a parent's vertices to those of its child at ``corner``."""
    lines = []
    for axis in reversed(range(dimension)):
        places = ((corner >> axis) & 1) * cells / 2 + torch.arange(cells + 1, dtype=torch.float64) / 2
        low = places.long().clamp(max=cells - 1)
        line = torch.zeros(cells + 1, cells + 1, dtype=torch.float64)
        line[torch.arange(cells + 1), low] = 1 - (places - low)
        line[torch.arange(cells + 1), low + 1] += places - low
        lines.append(line)
    return kronecker(lines)


def kronecker(lines: list[Tensor]) -> Tensor:
    """The Kronecker product of matrices, as ``float32``."""
    result = lines[0]
    for line in lines[1:]:
        result = torch.kron(result, line)
    return result.float()
