"""The field of a shape: a surface, by its signed distance, at any resolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.errors import BadModel, BadRequest
from acorn_svc.field import ops
from acorn_svc.field.base import BaseField, rebuild
from acorn_svc.field.isosurface import extract
from acorn_svc.field.mesh import MeshPart
from acorn_svc.field.ops.learning import scale_layers
from acorn_svc.field.state import FieldState, ShapeInfo, ShapeSignal
from acorn_svc.field.tree import ABSENT, BoolArray, IntArray

POINTS_AT_ONCE = 1 << 16
SIGNAL_KEYS = ("size", "channels", "truncation", "origin", "voxel", "kind")
MAX_TRUNCATION = 64.0
HALF_VOXEL = 0.5

Points = NDArray[np.float64]
Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ShapeField(BaseField):
    """A surface; see :class:`acorn_svc.field.base.BaseField`.

    Positions are in voxels of the full size (:mod:`acorn_svc.field.conventions`), unless they are said to be
    in the units of the mesh.

    Attributes:
        signal: the box, and what the values mean.
        signs: ``int8 [nodes]``: +1 for a leaf wholly outside the surface, -1 for one inside, else 0.
    """

    signal: ShapeSignal
    signs: NDArray[np.int8] | None = None

    # --- asking ---

    def values(self, positions: Points, scale: int = 0) -> Values:
        """Values at points, of one scale.

        Args:
            positions: ``[n, 3]`` in voxels; outside the box the border is repeated.
            scale: 0 to ``depth``.

        Returns:
            ``[n, channels]`` as :class:`acorn_svc.field.state.ShapeSignal` says; not clipped.
        """
        signs = self._signs_at(positions, scale)
        values = np.zeros((len(positions), self.signal.channels), np.float32)
        values[:, 0] = signs
        rows = np.flatnonzero((signs == 0) | self.signal.has_colour)
        if len(rows):
            read = self._read(positions[rows], scale)
            known = signs[rows] != 0
            read[known, 0] = signs[rows[known]]
            values[rows] = read
        return values

    def distance(self, positions: Points, scale: int = 0) -> Values:
        """Signed distances ``[n]`` in voxels, negative inside, saturated at :meth:`truncation`.

        Args:
            positions: ``[n, 3]`` in voxels.
            scale: 0 to ``depth``.
        """
        signs = self._signs_at(positions, scale)
        distance = signs.astype(np.float32)
        rows = np.flatnonzero(signs == 0)
        if len(rows):
            distance[rows] = np.clip(self._read(positions[rows], scale)[:, 0], -1, 1)
        distance *= np.float32(self.truncation(scale))
        return distance

    def truncation(self, scale: int = 0) -> float:
        """Voxels at which the distance of a scale saturates."""
        return self.signal.truncation * 2.0**scale

    def query(self, points: Points, voxel_size: float = 0.0) -> Values:
        """Distance and colour at points in the units of the mesh.

        Args:
            points: ``[n, 3]`` in the units of the mesh.
            voxel_size: side of the cube that a value stands for, in the same units; at least a full-size
                voxel. Between two scales the values are blended.

        Returns:
            ``[n, channels]``: distance in the units of the mesh, negative inside, saturated; then red, green
            and blue, 0 to 1, of the nearest surface.

        Raises:
            BadRequest: points are not finite or not of that shape, or the size is negative.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise BadRequest("points must be a list of finite [x, y, z] triples")
        if not (math.isfinite(voxel_size) and voxel_size >= 0):
            raise BadRequest("voxel_size must be finite and not negative")
        positions = self.to_voxels(points)
        exponent = min(max(math.log2(max(voxel_size / self.signal.voxel, 1.0)), 0.0), float(self.depth))
        scale = min(int(exponent), max(self.depth - 1, 0))
        blend = exponent - scale
        values = self._in_mesh_units(positions, scale)
        if blend:
            values = (1 - blend) * values + blend * self._in_mesh_units(positions, scale + 1)
        return values.astype(np.float32)

    def to_voxels(self, points: Points) -> Points:
        """Positions of points that are given in the units of the mesh."""
        with np.errstate(over="ignore"):  # beyond all numbers is outside of the box, too
            result: Points = (points - np.asarray(self.signal.origin)) / self.signal.voxel
        return result

    def to_mesh_units(self, positions: Points) -> Points:
        """Inverse of :meth:`to_voxels`."""
        result: Points = positions * self.signal.voxel + np.asarray(self.signal.origin)
        return result

    def normals(self, positions: Points, scale: int = 0) -> Values:
        """Unit vectors ``[n, 3]`` along which the distance grows: outwards.

        By central differences over a voxel of the scale; a vector along z where the distance does not change.
        """
        step = HALF_VOXEL * 2**scale
        moved = positions[:, None, None] + step * _DIRECTIONS
        distances = self.distance(moved.reshape(-1, 3), scale).reshape(-1, 2, 3)
        gradient = distances[:, 1] - distances[:, 0]
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        normals: Values = np.divide(gradient, length, out=np.zeros_like(gradient), where=length > 0)
        normals[length[:, 0] == 0, 2] = 1
        return normals

    def colours(self, positions: Points, scale: int = 0) -> NDArray[np.uint8] | None:
        """Colours ``uint8 [n, 3]`` of the surface near points, if there are any."""
        if not self.signal.has_colour:
            return None
        values = np.clip(self._read(positions, scale)[:, 1:], 0, 1)
        return np.rint(values * 255).astype(np.uint8)

    def mesh_parts(
        self, resolution: int, on_progress: Callable[[float], None] | None = None
    ) -> Iterator[MeshPart]:
        """A watertight mesh of the surface, part by part; closing the iterator ends the work.

        The scale that is shown has voxels no larger than the cells, but at most twice as small, if there is
        such a scale: coarse meshes don't alias.

        Args:
            resolution: cells along the longest side of the box.
            on_progress: is told what part of the work is done, 0 to 1; may raise to end it.

        Yields:
            parts whose vertices are in the units of the mesh, with normals and, if there are any, colours.

        Raises:
            BadRequest: the resolution is out of range.
        """
        if resolution < 1:
            raise BadRequest("the resolution must be at least 1")
        cell = max(self.signal.size) / resolution
        scale = min(max(math.floor(math.log2(cell)), 0), self.depth)
        blocks, signs = self.blocks_of(scale)
        parts = extract(
            lambda positions: self.distance(positions, scale),
            self.signal.size,
            blocks,
            signs,
            resolution,
            self.truncation(scale),
            on_progress,
        )
        for part in parts:
            positions = part.vertices.astype(np.float64)
            vertices = self.to_mesh_units(positions).astype(np.float32)
            yield MeshPart(vertices, part.normals, self.colours(positions, scale), part.faces)

    def blocks_of(self, scale: int) -> tuple[IntArray, NDArray[np.int8]]:
        """The deepest blocks that a scale reads: ``int64 [n, 4]``, corner and side in voxels; their signs."""
        tree = self.lattice.tree
        deepest = tree.depth - scale
        shown = (tree.levels == deepest) | (tree.is_leaf & (tree.levels < deepest))
        side = self.architecture.cells << (tree.depth - tree.levels[shown].astype(np.int64))
        corners = tree.coordinates[shown] * side[:, None]
        return np.concatenate([corners, side[:, None]], axis=1), self._signs[shown]

    def leaf_signs(self) -> NDArray[np.int8]:
        """``int8 [leaves]``, in the order of :meth:`blocks`."""
        return self._signs[self.lattice.tree.leaf_rows]

    def info(self) -> ShapeInfo:
        """A summary."""
        tree = self.lattice.tree
        return ShapeInfo(
            kind=self.signal.kind,
            size=self.signal.size,
            channels=self.signal.channels,
            encoder=self.encoder,
            blocks=len(tree.leaf_rows),
            surface_blocks=int((self.leaf_signs() == 0).sum()),
            levels=int(tree.levels.max()) + 1,
            parameters=self.parameter_count,
            preset=self.record.preset,
            steps=self.record.steps,
            seed=self.record.seed,
            iou=self.record.iou,
        )

    # --- reading ---

    @property
    def _signs(self) -> NDArray[np.int8]:
        assert self.signs is not None
        return self.signs

    @cached_property
    def _sign_maps(self) -> dict[int, NDArray[np.int8]]:
        return {}

    def _sign_map(self, scale: int) -> NDArray[np.int8]:
        """Sign of the deepest block of a scale over every finest-level block ``[z, y, x]``."""
        if scale not in self._sign_maps:
            tree = self.lattice.tree
            ancestors = tree.ancestors[tree.leaf_map.reshape(-1)][:, : tree.depth - scale + 1]
            deepest = (ancestors != ABSENT).sum(axis=1) - 1
            rows = ancestors[np.arange(len(ancestors)), deepest]
            self._sign_maps[scale] = self._signs[rows].reshape(tree.leaf_map.shape)
        return self._sign_maps[scale]

    def _signs_at(self, positions: Points, scale: int) -> NDArray[np.int8]:
        """Signs ``[n]``; on a face between two blocks that of the one that holds surface, for it was learned
        there, and next door the distance is only known to be large.
        """
        signs = self._sign_map(scale)
        places = np.clip(positions, 0, self.signal.size) / self.architecture.cells
        last = np.asarray(self.lattice.tree.extent) - 1
        above, below = np.floor(places).astype(np.int64), np.ceil(places).astype(np.int64) - 1
        above, below = np.minimum(above, last), np.maximum(below, 0)
        result: NDArray[np.int8] = signs[tuple(above.T[::-1])]
        rows = np.flatnonzero((result != 0) & (below < above).any(axis=1))
        for sides in _FACES if len(rows) else ():
            touched = np.where(sides, below[rows], above[rows])
            result[rows[signs[tuple(touched.T[::-1])] == 0]] = 0
        return result

    @torch.inference_mode()
    def _read(self, positions: Points, scale: int) -> Values:
        """What the networks say, whatever the signs of the blocks are."""
        layers = scale_layers(self.parameters, scale)
        limit = np.array(self.signal.size, np.float64)
        inside = torch.from_numpy(np.ascontiguousarray(np.clip(positions, 0, limit)))
        values = [
            ops.render_points(self._geometry, self._features, self._folded, layers, part, scale)
            for part in torch.split(inside, POINTS_AT_ONCE)
        ]
        result: Values = torch.cat(values).numpy()
        return result

    def _in_mesh_units(self, positions: Points, scale: int) -> Values:
        values = np.clip(self.values(positions, scale), (-1, 0, 0, 0)[: self.signal.channels], 1)
        values[:, 0] *= self.truncation(scale) * self.signal.voxel
        return values

    # --- plain data ---

    def to_state(self) -> FieldState:
        """The field as plain arrays."""
        state = super().to_state()
        return FieldState(**{**vars(state), "signs": self._signs})

    @staticmethod
    def from_state(state: FieldState) -> ShapeField:
        """Rebuilds a field.

        Raises:
            BadModel: the arrays do not fit together.
        """
        try:
            signal = _read_signal({key: state.header[key] for key in SIGNAL_KEYS})
            parts = rebuild(state, signal)
            signs = _checked_signs(state.signs, parts.lattice.tree.is_leaf)
            return ShapeField(signal, **vars(parts), signs=signs)
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(f"the model's parts do not fit together: {error}") from error


_FACES = np.array(list(itertools.product((False, True), repeat=3)))[1:]
_DIRECTIONS = np.stack([-np.eye(3), np.eye(3)])


def _read_signal(entries: dict[str, Any]) -> ShapeSignal:
    signal = ShapeSignal(**{**entries, "size": tuple(entries["size"]), "origin": tuple(entries["origin"])})
    numbers = (signal.truncation, signal.voxel, *signal.origin)
    if signal.kind != "shape" or len(signal.size) != 3 or len(signal.origin) != 3:
        raise ValueError("a shape lies in a box of three sides")
    if not all(type(side) is int for side in signal.size):
        raise ValueError("a shape has a whole number of voxels")
    if type(signal.channels) is not int or signal.channels not in (1, 4):
        raise ValueError("a shape has 1 or 4 channels")
    if not (
        all(map(math.isfinite, numbers)) and signal.voxel > 0 and 0 < signal.truncation <= MAX_TRUNCATION
    ):
        raise ValueError("a shape's voxel and truncation must be positive")
    return signal


def _checked_signs(signs: NDArray[np.int8] | None, is_leaf: BoolArray) -> NDArray[np.int8]:
    if signs is None or signs.dtype != np.int8 or signs.shape != is_leaf.shape:
        raise ValueError("a shape has a sign for every block")
    if not np.isin(signs, (-1, 0, 1)).all() or signs[~is_leaf].any():
        raise ValueError("the blocks' signs do not fit the tree")
    return signs
