"""The fit of a shape: its surface in a box of voxels, the samples it is learned from, and how good it is.

Samples lie where the field has to be right: near the surface, and anywhere in the blocks that hold it. All
other blocks are known to be empty or full, and are never learned.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.field.base import empty_tree
from acorn_svc.field.kinds import AnyField, as_shape
from acorn_svc.field.metrics import overlap
from acorn_svc.field.ops.learning import FEATURES, RUN, PointSampling, Samples
from acorn_svc.field.quantisation import dtype_for, rounded, row_levels
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import FitRecord
from acorn_svc.field.tree import IntArray, Tree, morton_encode
from acorn_svc.training.distance import SurfaceIndex
from acorn_svc.training.model import TrainableField
from acorn_svc.training.presets import FitConfig
from acorn_svc.training.targets import ShapeTarget
from acorn_svc.training.tasks import Quality

Points = NDArray[np.float64]

NEAR_SHARE = 0.9
NEAR_SPREAD = 0.2  # voxels of the scale, standard deviation
LEAST_SAMPLES = 4096
MOST_SAMPLES = 4_000_000
ESTIMATE_POINTS = 1 << 16
MEASURE_POINTS = 1_000_000
NEAR_ERROR = 0.1  # of the mean error of a leaf that holds surface
START_SHARE = 0.75  # of the budget of blocks, for the first tree; the rest goes where the errors are


class ShapeTask:
    """A surface that is fitted with a configuration; see :class:`acorn_svc.training.tasks.Task`."""

    def __init__(self, target: ShapeTarget, config: FitConfig) -> None:
        self.signal = target.signal(config.resolution)
        self._target = target
        self._config = config
        self._root = empty_tree(self.signal, config.architecture.cells)
        vertices = (target.mesh.vertices - np.asarray(self.signal.origin)) / self.signal.voxel
        self._surface = SurfaceIndex(np.ascontiguousarray(vertices), np.ascontiguousarray(target.mesh.faces))

    # --- the tree ---

    def initial_tree(self) -> Tree:
        """All blocks near the surface, split level by level as long as the budget allows.

        Near: within a cell of their children, so that every vertex around the surface exists on each level.
        """
        tree = self._root
        budget = max(1, int(START_SHARE * self._config.blocks))
        for level in range(tree.depth):
            leaves = tree.leaf_rows[tree.levels[tree.leaf_rows] == level]
            near = np.isin(tree.indices[leaves], self._near[level])
            following = tree.split(leaves[near])
            if len(following.leaf_rows) > budget:
                break
            tree = following
        return tree

    @cached_property
    def _voxels(self) -> IntArray:
        """``[n, 3]``: the full-size voxels that hold surface."""
        return self._surface.occupied((0, 0, 0), 1, self.signal.size)

    @cached_property
    def _occupied(self) -> list[NDArray[np.uint64]]:
        """Sorted Morton indices of the blocks that hold surface, for each level."""
        levels = [np.unique(morton_encode(self._voxels // self._config.architecture.cells))]
        for _ in range(self._root.depth):
            levels.insert(0, np.unique(levels[0] >> np.uint64(3)))
        return levels

    @cached_property
    def _near(self) -> list[NDArray[np.uint64]]:
        """Sorted Morton indices of the blocks near the surface, for each level but the finest."""
        return [self._blocks_near(level) for level in range(self._root.depth)]

    def _blocks_near(self, level: int) -> NDArray[np.uint64]:
        cell = 1 << (self._root.depth - level - 1)
        side = 2 * cell * self._config.architecture.cells
        moved = [self._voxels + cell * np.array(way) for way in itertools.product((-1, 1), repeat=3)]
        # numbers are sorted out far faster than rows; a block may lie just before or behind the box
        counts = np.asarray(self.signal.size) // side + 3
        numbers = [np.ravel_multi_index(tuple((voxels // side + 1).T), tuple(counts)) for voxels in moved]
        blocks = np.stack(np.unravel_index(np.unique(np.concatenate(numbers)), tuple(counts)), axis=1) - 1
        return np.unique(morton_encode(blocks[self._root.inside(level, blocks)]))

    def _holds_surface(self, tree: Tree) -> NDArray[np.bool_]:
        """``[leaves]``: whether each leaf holds surface."""
        leaves = tree.leaf_rows
        result = np.zeros(len(leaves), bool)
        for level in range(tree.depth + 1):
            rows = np.flatnonzero(tree.levels[leaves] == level)
            result[rows] = np.isin(tree.indices[leaves[rows]], self._occupied[level])
        return result

    def signs(self, tree: Tree) -> NDArray[np.int8]:
        """``int8 [nodes]``: +1 for a leaf wholly outside, -1 for one inside, else 0."""
        signs = np.zeros(len(tree), np.int8)
        leaves = tree.leaf_rows[~self._holds_surface(tree)]
        side = self._config.architecture.cells << (tree.depth - tree.levels[leaves].astype(np.int64))
        centres = (tree.coordinates[leaves] + 0.5) * side[:, None]
        signs[leaves] = np.where(self._surface.inside(centres), -1, 1)
        return signs

    # --- samples ---

    def sampling(self, tree: Tree) -> PointSampling:
        """Points of every scale with the truth about them."""
        config = self._config
        samples = [self._samples(tree, scale) for scale in range(tree.depth + 1)]
        samples = [Samples(*(part.to(config.device) for part in pair)) for pair in samples]
        return PointSampling(samples, config.patches, config.coarse_patches, config.seed, config.loss)

    def _samples(self, tree: Tree, scale: int) -> Samples:
        generator = np.random.default_rng([self._config.seed, scale])
        blocks = self._surface_blocks(tree, scale)
        wanted = len(blocks) * self._config.samples_per_block
        count = min(max(wanted, LEAST_SAMPLES), MOST_SAMPLES) // RUN * RUN
        near = int(NEAR_SHARE * count)
        on_surface = self._surface.sample(near, generator).points
        spread = NEAR_SPREAD * 2**scale
        close = on_surface + spread * generator.standard_normal((near, 3))
        chosen = blocks[np.arange(count - near) % len(blocks)]
        anywhere = chosen[:, :3] + generator.random((count - near, 3)) * chosen[:, 3:4]
        limit = np.asarray(self.signal.size, np.float32)
        positions = np.concatenate([close, anywhere]).astype(np.float32)
        positions = np.clip(positions, 0, np.nextafter(limit, np.float32(0)))
        cells = np.floor(positions / 2.0**scale).astype(np.int64)
        positions = positions[np.argsort(morton_encode(cells), kind="stable")]
        truth = self._truth(positions.astype(np.float64), scale)
        return Samples(torch.from_numpy(positions), torch.from_numpy(truth))

    def _surface_blocks(self, tree: Tree, scale: int) -> IntArray:
        """``[n, 4]``: corner and side, in voxels, of the blocks of a scale that hold surface."""
        deepest = tree.depth - scale
        internal = ~tree.is_leaf
        holds = np.zeros(len(tree), bool)
        holds[tree.leaf_rows] = self._holds_surface(tree)
        shown = (tree.levels == deepest) & (holds | internal) | (tree.levels < deepest) & holds
        side = self._config.architecture.cells << (tree.depth - tree.levels[shown].astype(np.int64))
        return np.concatenate([tree.coordinates[shown] * side[:, None], side[:, None]], axis=1)

    def _truth(self, positions: Points, scale: int) -> NDArray[np.float32]:
        most = self.signal.truncation * 2.0**scale
        surface = self._surface
        truth = np.empty((len(positions), self.signal.channels), np.float32)
        if self.signal.has_colour:
            closest = surface.closest(positions)
            distance = np.minimum(closest.distance, most)
            truth[:, 0] = np.where(surface.inside(positions), -distance, distance) / most
            truth[:, 1:] = self._target.colours(closest.face, closest.barycentric)
        else:
            truth[:, 0] = surface.signed_distance(positions, most) / most
        return truth

    # --- errors and quality ---

    def leaf_errors(self, tree: Tree, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the errors seen in every leaf.

        Leaves without surface have none, unless surface is so near that it reads their vertices: to merge
        those is to take the vertices away, and counts as a little.
        """
        holds = self._holds_surface(tree)
        little = NEAR_ERROR * seen[0][holds].mean() if holds.any() else 0.0
        errors = np.where(holds, seen[0], 0.0)
        leaves = tree.leaf_rows
        for level in range(1, tree.depth + 1):
            rows = np.flatnonzero((tree.levels[leaves] == level) & ~holds)
            near = np.isin(tree.indices[leaves[rows]] >> np.uint64(tree.dimension), self._near[level - 1])
            errors[rows[near]] = little
        return errors

    @cached_property
    def _estimate_truth(self) -> tuple[Points, NDArray[np.bool_]]:
        return self._uniform(ESTIMATE_POINTS)

    def _uniform(self, count: int) -> tuple[Points, NDArray[np.bool_]]:
        """Points in the bounding box of the surface, and whether they lie inside."""
        low = (self._target.low - np.asarray(self.signal.origin)) / self.signal.voxel
        high = (self._target.high - np.asarray(self.signal.origin)) / self.signal.voxel
        points = np.random.default_rng(0).uniform(low, high, (count, 3))
        return points, self._surface.inside(points)

    def estimate(self, model: TrainableField) -> Quality:
        """Intersection over union on a fixed sample of points."""
        points, inside = self._estimate_truth
        snapshot = self.field(model, FitRecord())
        return Quality(iou=overlap(snapshot.distance(points) < 0, inside))

    def measure(self, field: AnyField) -> Quality:
        """Intersection over union on a million points."""
        points, inside = self._uniform(MEASURE_POINTS)
        return Quality(iou=overlap(as_shape(field).distance(points) < 0, inside))

    def field(self, model: TrainableField, record: FitRecord) -> ShapeField:
        """A snapshot, with features rounded as a file holds them."""
        parameters = model.copy_parameters(forget_untouched=True)
        tree = model.lattice.tree
        if FEATURES in parameters:
            features = parameters[FEATURES].numpy()
            features[1:] = rounded(dtype_for("shape"), features[1:], row_levels(model.lattice), tree.depth)
        return ShapeField(
            self.signal, self._config.architecture, model.lattice, parameters, record, self.signs(tree)
        )
