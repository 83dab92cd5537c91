"""Fields of shapes that are made, not fitted: their features are the distance, level by level.

What a block adds to the levels above it is what linear interpolation between its vertices needs, and the
decoder adds up what it reads. So every scale is the distance, interpolated on the lattice of that scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.field import ops
from acorn_svc.field.base import empty_tree
from acorn_svc.field.geometry import SLOTS, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, FitRecord, ShapeSignal
from acorn_svc.field.tree import Tree

Distance = Callable[[NDArray[np.float64]], NDArray[np.float64]]
CELLS = 4
NEAR = 2.0  # sides
CHANNELS = 4
ARCHITECTURE = Architecture(cells=CELLS, features=CHANNELS, decoder_width=2 * CHANNELS)


def ball(centre: tuple[float, float, float], radius: float) -> Distance:
    """Distances to a sphere, in voxels."""
    return lambda positions: np.linalg.norm(positions - np.array(centre), axis=1) - radius


def torus(centre: tuple[float, float, float], large: float, small: float) -> Distance:
    """Distances to a torus around the z axis, in voxels."""

    def distance(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = (positions - np.array(centre)).T
        return np.hypot(np.hypot(x, y) - large, z) - small

    return distance


def made_shape(
    distance: Distance,
    size: tuple[int, int, int] = (64, 56, 60),
    *,
    colour: bool = False,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    voxel: float = 1.0,
    levels: int = 99,
    finer: Callable[[NDArray[np.float64]], NDArray[np.bool_]] | None = None,
) -> ShapeField:
    """The field of a distance in voxels; its colour is the position in the box.

    Blocks deeper than level `levels` are only made where `finer` says so of their parents' centres.
    """
    signal = ShapeSignal(size, 4 if colour else 1, 2.0, origin, voxel)
    tree = empty_tree(signal, CELLS)
    while True:
        rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
        # Neighbours of blocks that hold surface too: towards an absent block features are zero.
        side = CELLS << (tree.depth - tree.levels[rows].astype(np.int64))
        centres = (tree.coordinates[rows] + 0.5) * side[:, None]
        wanted = tree.levels[rows] < levels
        if finer is not None:
            wanted |= finer(centres)
        rows = rows[wanted & (np.abs(distance(centres)) < NEAR * side)]
        if not len(rows):
            break
        tree = tree.split(rows)
    lattice = Lattice.build(tree, CELLS)
    parameters = {"encoder.features": _features(lattice, distance, size), **_decoder(tree.depth, signal)}
    record = FitRecord(preset="custom")
    return ShapeField(signal, ARCHITECTURE, lattice, parameters, record, signs_of(tree, distance))


def signs_of(tree: Tree, distance: Distance) -> NDArray[np.int8]:
    """`[nodes]`: 0 for what isn't a leaf, or may hold surface."""
    side = CELLS << (tree.depth - tree.levels.astype(np.int64))
    values = distance((tree.coordinates + 0.5) * side[:, None])
    clear = tree.is_leaf & (np.abs(values) > side * np.sqrt(3) / 2)
    return np.where(clear, np.sign(values), 0).astype(np.int8)


def _features(lattice: Lattice, distance: Distance, size: tuple[int, int, int]) -> torch.Tensor:
    tree, geometry = lattice.tree, geometry_of(lattice)
    features = torch.zeros(lattice.vertices + 1, CHANNELS)
    corners = np.stack(np.meshgrid(*[np.arange(CELLS + 1)] * 3, indexing="ij"), axis=-1)[..., ::-1]
    corners = corners.reshape(-1, 3)
    for level in range(tree.depth + 1):
        nodes = np.flatnonzero(tree.levels == level)
        if not len(nodes):
            break
        stride = 1 << (tree.depth - level)
        places = (tree.coordinates[nodes][:, None] * CELLS + corners) * stride
        rows, first = np.unique(lattice.table[nodes].reshape(-1), return_index=True)
        positions = places.reshape(-1, 3)[first].astype(np.float64)
        wanted = np.concatenate([distance(positions)[:, None], positions / np.array(size)], axis=1)
        if level:
            read = ops.encode_points(geometry, features, torch.from_numpy(positions), tree.depth - level + 1)
            wanted -= read.reshape(len(rows), SLOTS, CHANNELS).sum(dim=1).numpy()
        features[torch.from_numpy(rows).long()] = torch.from_numpy(wanted).float()
        features[0] = 0
    return features


def _decoder(depth: int, signal: ShapeSignal) -> dict[str, torch.Tensor]:
    """Sums the slots of each channel; distances become parts of what they saturate at."""
    both = torch.cat([torch.eye(CHANNELS), -torch.eye(CHANNELS)], dim=1)
    scales = torch.tensor([1 / (signal.truncation * 2**scale) for scale in range(depth + 1)])
    out = both.T[:, : signal.channels].repeat(depth + 1, 1, 1)
    out[:, :, 0] *= scales[:, None]
    return {
        "decoder.0.weight": both.repeat(SLOTS, 1).repeat(depth + 1, 1, 1),
        "decoder.0.bias": torch.zeros(depth + 1, 2 * CHANNELS),
        "decoder.1.weight": out,
        "decoder.1.bias": torch.zeros(depth + 1, signal.channels),
    }
