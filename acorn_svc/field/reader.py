"""How a sample reads the feature grids of several levels at once.

At scale ``s`` (pixels of side ``2**s``) a sample reads five slots, concatenated::

    slot 0   level depth - s       one vertex per pixel corner; at a pixel's centre their mean
    slot 1   level depth - s - 1   vertices 2 pixels apart
    slot 2   level depth - s - 2   4 pixels
    slot 3   level depth - s - 3   8 pixels
    slot 4   all levels above, summed

Which levels are read is set by the scale of the view, never by the depth of the leaf a sample falls in;
absent blocks read as zero. Linear interpolation on nested lattices is exact, so the sum of slot 4 can be
*folded* into the vertices of one block beforehand.

Two ways in: :meth:`Reader.points` anywhere, and :meth:`Reader.patches` for aligned squares of pixels, which
gather each vertex once per patch instead of once per pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from acorn_svc.field.lattice import Lattice

SLOTS = 5
DIRECT_SLOTS = SLOTS - 1

Gather = Callable[[Tensor], Tensor]


class Reader:
    """Reads features of one lattice.

    Args:
        lattice: the vertices of all blocks.
    """

    def __init__(self, lattice: Lattice) -> None:
        tree = lattice.tree
        self.cells = lattice.cells
        self.dimension = tree.dimension
        self.depth = tree.depth
        self._absent = len(tree)
        self._table = torch.from_numpy(lattice.table).reshape(-1)
        self._row_size = lattice.table.shape[1]
        self._steps = torch.tensor([(self.cells + 1) ** axis for axis in range(self.dimension)])
        ancestors = torch.from_numpy(tree.ancestors)
        self._ancestors = torch.where(ancestors < 0, self._absent, ancestors)
        self._levels = torch.from_numpy(tree.levels).long()
        self._parents = torch.from_numpy(tree.parents)
        self._corners = torch.from_numpy(tree.indices.astype("int64")) & ((1 << self.dimension) - 1)
        self._leaf_map = torch.from_numpy(tree.leaf_map).long().reshape(-1)
        self._extent = torch.tensor(tree.extent)
        self._foldable = int((tree.levels <= self.depth - DIRECT_SLOTS).sum())

    def leaves(self, blocks: Tensor) -> Tensor:
        """Rows ``[n]`` of the leaves over finest-level ``blocks [n, dimension]``, clamped to the extent."""
        blocks = torch.minimum(blocks.clamp(min=0), self._extent - 1)
        index = blocks[:, -1]
        for axis in reversed(range(self.dimension - 1)):
            index = index * self._extent[axis] + blocks[:, axis]
        return self._leaf_map[index]

    def fold(self, features: Tensor) -> Tensor:
        """Sums every block's features with those of all its ancestors, at its own vertices.

        Args:
            features: ``[vertices + 1, channels]``, row 0 zero.

        Returns:
            ``[(foldable + 1) * (cells + 1)**dimension, channels]``: only blocks that slot 4 can read, then
            one absent block.
        """
        table = self._table.reshape(-1, self._row_size)
        folded = features.new_zeros(self._foldable + 1, self._row_size, features.shape[1])
        for level in range(self.depth - DIRECT_SLOTS + 1):
            rows = torch.nonzero(self._levels[: self._foldable] == level)[:, 0]
            folded[rows] = features[table[rows].long()]
            for corner in range(1 << self.dimension if level else 0):
                selected = rows[self._corners[rows] == corner]
                parents = folded[self._parents[selected]]
                folded[selected] += torch.matmul(_child_matrix(self.cells, self.dimension, corner), parents)
        return folded.reshape(-1, features.shape[1])

    def patches(
        self,
        features: Tensor | Gather,
        corners: Tensor,
        scale: int,
        side: int,
        folded: Tensor | None = None,
    ) -> Tensor:
        """Reads whole patches of pixels.

        Args:
            features: ``[vertices + 1, channels]``, row 0 zero; or a function from rows of it ``[v, n]`` to
                their features ``[v, n, channels]``, which is called once.
            corners: ``int64 [n, dimension]``, lowest pixel of each patch in pixels of ``scale``; multiples of
                ``side``.
            scale: 0 to ``depth``.
            side: pixels per side, a power of two, at most ``cells``.
            folded: result of :meth:`fold`; without it the ancestors are summed one by one (differentiable).

        Returns:
            ``[side**dimension, n, SLOTS * channels]``, pixels in ``(z,) y, x`` order.
        """
        leaves = self.leaves(torch.div(corners << scale, self.cells, rounding_mode="floor"))
        ancestors = self._ancestors[leaves]
        level = self.depth - scale
        fine = range(min(side.bit_length() - 1, DIRECT_SLOTS, level + 1))
        coarse = range(len(fine), 1 + (level if folded is None else min(DIRECT_SLOTS - 1, level)))
        parts, values = self._read_levels(features, ancestors, corners, level, fine, coarse, side)
        if folded is not None and level >= DIRECT_SLOTS:
            rows, shift = self._deepest(leaves, ancestors, level - DIRECT_SLOTS)
            exponents = (shift - scale)[None]
            rest = _gather(folded, self._coarse_index(rows[None], corners, exponents))
            values = torch.cat([values, _at_corners(rest[None], corners, exponents, side)])
        slots = [
            _spread(_interpolation_matrix(side, 1 << up, self.dimension), part)
            for up, part in zip(fine, parts, strict=True)
        ]
        slots += self._spread_coarse(values, DIRECT_SLOTS - len(fine), side)
        slots += [torch.zeros_like(slots[0])] * (SLOTS - len(slots))
        return torch.cat(slots, dim=2)

    def points(self, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None = None) -> Tensor:
        """Reads anywhere.

        Args:
            features: ``[vertices + 1, channels]``, row 0 zero.
            positions: ``float64 [n, dimension]`` in full-size pixels; clamped to the extent.
            scale: 0 to ``depth``.
            folded: as for :meth:`patches`.

        Returns:
            ``[n, SLOTS * channels]``.
        """
        far = (self._extent * self.cells).to(positions.dtype)
        positions = torch.minimum(positions.clamp(min=0), torch.nextafter(far, torch.zeros_like(far)))
        leaves = self.leaves(torch.div(positions, self.cells, rounding_mode="floor").long())
        ancestors = self._ancestors[leaves]
        level = self.depth - scale
        slots = [
            self._point_slot(features, ancestors[:, level - up], positions, up + scale)
            for up in range(min(DIRECT_SLOTS, level + 1))
        ]
        if level >= DIRECT_SLOTS:
            if folded is None:
                rest: Tensor = torch.stack(
                    [
                        self._point_slot(features, ancestors[:, level - up], positions, up + scale)
                        for up in range(DIRECT_SLOTS, level + 1)
                    ]
                ).sum(dim=0)
            else:
                rows, shift = self._deepest(leaves, ancestors, level - DIRECT_SLOTS)
                index, weights = self._cell(rows, positions / (1 << shift)[:, None])
                rest = _weighted(_gather(folded, index), weights)
            slots.append(rest)
        slots += [features.new_zeros(len(positions), features.shape[1])] * (SLOTS - len(slots))
        return torch.cat(slots, dim=1)

    def _deepest(self, leaves: Tensor, ancestors: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The deepest present blocks not below ``level`` and the exponent of their cells' side."""
        levels = self._levels[leaves].clamp(max=level)
        return ancestors.gather(1, levels[:, None])[:, 0], self.depth - levels

    def _vertex_index(self, rows: Tensor, cells: Tensor) -> Tensor:
        """Table index ``[...]`` of the lowest vertex of ``cells [..., dimension]``, local to their blocks."""
        index: Tensor = rows * self._row_size + (cells * self._steps).sum(dim=-1)
        return index

    def _offsets(self, ranges: Iterable[int]) -> Tensor:
        """Table offsets of a box of vertices, ``(z,) y, x`` order."""
        steps = [int(step) for step in reversed(self._steps)]
        places = itertools.product(tuple(ranges), repeat=self.dimension)
        return torch.tensor([sum(p * s for p, s in zip(place, steps, strict=True)) for place in places])

    def _read_levels(
        self,
        features: Tensor | Gather,
        ancestors: Tensor,
        corners: Tensor,
        level: int,
        fine: range,
        coarse: range,
        side: int,
    ) -> tuple[list[Tensor], Tensor]:
        """Features of the levels ``level - up`` around patches, all with one gather.

        Returns:
            the vertices ``[vertices, n, channels]`` of each ``fine`` level, whose cells are smaller than a
            patch, and the ``coarse`` ones at the patches' corners ``[levels, 2**dimension, n, channels]``.
        """
        exponents = torch.tensor(coarse, dtype=torch.int64)[:, None]
        rows = ancestors[:, [level - up for up in coarse]].T
        index = [self._fine_index(ancestors[:, level - up], corners, up, side) for up in fine]
        index.append(self._coarse_index(rows, corners, exponents))
        vertices = self._table[torch.cat(index)]
        gathered = _gather(features, vertices) if isinstance(features, Tensor) else features(vertices)
        *parts, rest = torch.split(gathered, [len(part) for part in index])
        rest = rest.reshape(len(coarse), 1 << self.dimension, *rest.shape[1:])
        return parts, _at_corners(rest, corners, exponents, side)

    def _fine_index(self, rows: Tensor, corners: Tensor, up: int, side: int) -> Tensor:
        """Table indices ``[vertices, n]`` of all vertices of patches that are larger than a cell."""
        base = self._vertex_index(rows, (corners >> up) % self.cells)
        return self._offsets(range((side >> up) + 1))[:, None] + base

    def _coarse_index(self, rows: Tensor, corners: Tensor, up: Tensor) -> Tensor:
        """Table indices ``[levels * 2**dimension, n]`` of the cells around patches.

        ``rows [levels, n]`` are the blocks, ``up [levels, n or 1]`` the exponents of their cells' sides.
        """
        base = self._vertex_index(rows, (corners >> up[..., None]) % self.cells)
        return (self._offsets((0, 1))[:, None] + base[:, None]).flatten(0, 1)

    def _spread_coarse(self, values: Tensor, direct: int, side: int) -> list[Tensor]:
        """From patch corners to pixels: ``direct`` slots of one level each, one for all the others."""
        if len(values) > direct:
            values = torch.cat([values[:direct], values[direct:].sum(dim=0, keepdim=True)])
        matrix = _interpolation_matrix(side, side, self.dimension)
        return [_spread(matrix, value) for value in values]

    def _point_slot(self, features: Tensor, rows: Tensor, positions: Tensor, shift: int) -> Tensor:
        index, weights = self._cell(rows, positions / (1 << shift))
        return _weighted(_gather(features, self._table[index]), weights)

    def _cell(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Table indices and weights ``[2**dimension, n]`` of the vertices around ``positions`` in cells."""
        local = positions % self.cells
        low = local.floor()
        index = self._offsets((0, 1))[:, None] + self._vertex_index(rows, low.long())
        return index, _product_weights(local - low)


def _gather(features: Tensor, index: Tensor) -> Tensor:
    """Rows of ``features`` at ``index [...]``: ``[..., channels]``."""
    return features.index_select(0, index.reshape(-1)).reshape(*index.shape, features.shape[1])


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the first axis: ``[v, n, channels], [v, n] -> [n, channels]``."""
    return (values * weights[..., None].to(values.dtype)).sum(dim=0)


def _at_corners(values: Tensor, corners: Tensor, up: Tensor, side: int) -> Tensor:
    """Interpolates at the corners of patches.

    Args:
        values: ``[levels, 2**dimension, n, channels]`` at the vertices of the cells that hold the patches.
        corners: ``int64 [n, dimension]``, lowest pixel of each patch.
        up: ``[levels, n or 1]``, exponent of the cells' side in pixels.
        side: pixels per side of a patch.

    Returns:
        ``[levels, 2**dimension, n, channels]``.
    """
    cell = 1 << up
    weights = torch.ones(len(up), 1, 1, len(corners), dtype=values.dtype)
    for axis in reversed(range(corners.shape[1])):
        low = corners[:, axis] % cell
        high = torch.stack([low, low + side], dim=1).to(values.dtype) / cell[:, None]
        along = torch.stack([1 - high, high], dim=2)
        weights = (weights[:, :, None, :, None] * along[:, None, :, None]).flatten(3, 4).flatten(1, 2)
    return torch.einsum("lcvn,lvnk->lcnk", weights, values)


def _spread(matrix: Tensor, values: Tensor) -> Tensor:
    """Applies ``matrix [pixels, vertices]`` to ``values [vertices, n, channels]``."""
    return (matrix.to(values.dtype) @ values.flatten(1)).reshape(len(matrix), *values.shape[1:])


def _product_weights(fractions: Tensor) -> Tensor:
    """Multilinear weights ``[2**dimension, n]`` of a cell's corners for ``fractions [n, dimension]``."""
    weights = torch.ones(1, len(fractions), dtype=fractions.dtype)
    for axis in reversed(range(fractions.shape[1])):
        along = torch.stack([1 - fractions[:, axis], fractions[:, axis]])
        weights = (weights[:, None] * along[None]).flatten(0, 1)
    return weights


@cache
@torch.inference_mode(False)  # may be kept for a later training step
def _interpolation_matrix(pixels: int, stride: int, dimension: int) -> Tensor:
    """``[pixels**dimension, (pixels / stride + 1)**dimension]``: vertices to pixel centres."""
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) / stride
    low = centres.long()
    line = torch.zeros(pixels, pixels // stride + 1, dtype=torch.float64)
    line[torch.arange(pixels), low] = 1 - (centres - low)
    line[torch.arange(pixels), low + 1] = centres - low
    return _kronecker([line] * dimension)


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
    return _kronecker(lines)


def _kronecker(lines: list[Tensor]) -> Tensor:
    result = lines[0]
    for line in lines[1:]:
        result = torch.kron(result, line)
    return result.float()
