"""Which blocks, cells and vertices lie under a position, in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from acorn_svc.field.geometry import Geometry


def clamped(geometry: Geometry, positions: Tensor) -> Tensor:
    """Positions inside the extent, its far border excluded."""
    far = torch.tensor(geometry.extent, dtype=torch.float64, device=positions.device) * geometry.cells
    return torch.minimum(positions.clamp(min=0), torch.nextafter(far, torch.zeros_like(far)))


def blocks_under(geometry: Geometry, positions: Tensor) -> Tensor:
    """Finest-level blocks ``int64 [n, dimension]`` under positions inside the extent."""
    return torch.div(positions, geometry.cells, rounding_mode="floor").long()


def leaves(geometry: Geometry, blocks: Tensor) -> Tensor:
    """Rows ``[n]`` of the leaves over finest-level ``blocks [n, dimension]``, clamped to the extent."""
    index = torch.zeros_like(blocks[:, 0])
    for axis in reversed(range(geometry.dimension)):
        side = geometry.extent[axis]
        index = index * side + blocks[:, axis].clamp(0, side - 1)
    return geometry.leaf_map.reshape(-1)[index].long()


def cell(geometry: Geometry, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Table indices and weights ``[2**dimension, n]`` of the vertices around ``positions`` in cells."""
    local = positions % geometry.cells
    low = local.floor()
    index = offsets(geometry, (0, 1))[:, None] + vertex_index(geometry, rows, low.long())
    return index, product_weights(local - low)


def vertex_index(geometry: Geometry, rows: Tensor, cells: Tensor) -> Tensor:
    """Table index ``[...]`` of the lowest vertex of ``cells [..., dimension]``, local to their blocks."""
    steps = [(geometry.cells + 1) ** axis for axis in range(geometry.dimension)]
    index: Tensor = rows * geometry.table.shape[1]
    for axis, step in enumerate(steps):
        index = index + cells[..., axis] * step
    return index


def offsets(geometry: Geometry, ranges: Iterable[int]) -> Tensor:
    """Table offsets of a box of vertices, ``(z,) y, x`` order."""
    steps = [(geometry.cells + 1) ** axis for axis in reversed(range(geometry.dimension))]
    places = itertools.product(tuple(ranges), repeat=geometry.dimension)
    offsets = [sum(p * s for p, s in zip(place, steps, strict=True)) for place in places]
    return torch.tensor(offsets, device=geometry.table.device)


def product_weights(fractions: Tensor) -> Tensor:
    """Multilinear weights ``[2**dimension, n]`` of a cell's corners for ``fractions [n, dimension]``."""
    weights = fractions.new_ones(1, len(fractions))
    for axis in reversed(range(fractions.shape[1])):
        along = torch.stack([1 - fractions[:, axis], fractions[:, axis]])
        weights = (weights[:, None] * along[None]).flatten(0, 1)
    return weights


def vertices_under(geometry: Geometry, positions: Tensor, scale: int) -> Tensor:
    """Rows of the features ``[vertices, n]`` that ``positions [n, dimension]`` read at a scale."""
    positions = clamped(geometry, positions)
    ancestors = geometry.ancestors[leaves(geometry, blocks_under(geometry, positions))].long()
    rows = []
    for level in range(geometry.depth - scale + 1):
        index, _ = cell(geometry, ancestors[:, level], positions / (1 << (geometry.depth - level)))
        rows.append(geometry.table.reshape(-1)[index])
    return torch.cat(rows).long()
