"""The truth about a surface: distances to its triangles, what is inside, and which cubes it touches.

The native module does the work where it was built, else libigl and numpy do, some ten times slower. Positions
are ``float64 [n, 3]``, C-contiguous, in the unit of the vertices; nothing is converted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh

try:
    from acorn_svc import _native
except ImportError:  # no compiler at installation
    _native = None  # type: ignore[assignment]

Positions = NDArray[np.float64]
Faces = NDArray[np.int32]
Floats = NDArray[np.float32]

INSIDE = 0.5  # of the absolute winding number
ACCURACY = 2.0  # triangles farther than so many of their cluster's radii are taken together
MOST_FACES = 1 << 28
MOST_CELLS = 1 << 20  # along an axis of a grid

WIDEST = ""
lanes = WIDEST  # or one of _native.lanes(), for tests and benchmarks


class Closest(NamedTuple):
    """The closest points of a surface.

    Attributes:
        distance: ``float32 [n]``; `most` where nothing is as near.
        face: ``int32 [n]``; -1 where nothing is as near.
        barycentric: ``float32 [n, 3]``, the weights of the face's corners; 0 where nothing is as near.
    """

    distance: Floats
    face: NDArray[np.int32]
    barycentric: Floats


class Samples(NamedTuple):
    """Points of a surface: ``float64 [n, 3]``, their faces ``int32 [n]``, barycentric ``float32 [n, 3]``."""

    points: Positions
    face: NDArray[np.int32]
    barycentric: Floats


class _BackEnd(Protocol):
    closed: bool

    def closest(self, points: Positions, most: float) -> Closest: ...
    def winding(self, points: Positions) -> Floats: ...
    def inside(self, points: Positions) -> NDArray[np.bool_]: ...
    def signed_distance(self, points: Positions, most: float) -> Floats: ...
    def occupied(self, origin: Sequence[float], side: float, counts: Sequence[int]) -> NDArray[np.int64]: ...


class SurfaceIndex:
    """Answers questions about triangles.

    Neither holes, faces the wrong way round, duplicates nor triangles without area are errors. Distances are
    right to about 1e-7 of the extent, winding numbers to about 0.01; what is nearer to the surface than 1e-6
    of the extent may fall on either side. Answers do not depend on the number of threads, which is PyTorch's.

    Args:
        vertices: ``float64 [n, 3]``, C-contiguous; must not change later.
        faces: ``int32 [m, 3]``, C-contiguous, counterclockwise from outside; must not change later.
        plain: use libigl and numpy in any case.

    Raises:
        TypeError: an array of another dtype or not C-contiguous.
        ValueError: an array of another shape.
        BadMesh: no triangle, too many, a face of a vertex that does not exist, a vertex that is not finite.
    """

    def __init__(self, vertices: Positions, faces: Faces, *, plain: bool = False) -> None:
        _require(vertices, np.float64, "vertices")
        _require(faces, np.int32, "faces")
        if not 0 < len(faces) <= MOST_FACES:
            raise BadMesh(f"a surface has 1 to {MOST_FACES} triangles, not {len(faces)}")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise BadMesh("a face names a vertex that does not exist")
        if not np.isfinite(vertices).all() and not np.isfinite(vertices[faces]).all():
            raise BadMesh("a vertex is not finite")
        self.vertices = vertices
        self.faces = faces
        self._end: _BackEnd = (
            _Plain(vertices, faces) if plain or _native is None else _Native(vertices, faces)
        )

    @property
    def closed(self) -> bool:
        """Whether each edge is used as often one way as the other; winding numbers are then whole."""
        return self._end.closed

    def closest(self, points: Positions, most: float = math.inf) -> Closest:
        """The closest points, no farther than `most`.

        Raises:
            TypeError: points of another dtype or not C-contiguous.
            ValueError: points of another shape or not finite; `most` below 0 or not a number.
        """
        _require_points(points)
        return self._end.closest(points, _checked(most))

    def winding(self, points: Positions) -> Floats:
        """The generalised winding numbers ``float32 [n]``: 1 inside, 0 outside, between them near holes.

        Barill et al., Fast Winding Numbers for Soups and Clouds, SIGGRAPH 2018.

        Raises:
            TypeError: points of another dtype or not C-contiguous.
            ValueError: points of another shape or not finite.
        """
        _require_points(points)
        return self._end.winding(points)

    def inside(self, points: Positions) -> NDArray[np.bool_]:
        """Whether the surface goes around a point, any way round: ``bool [n]``. Raises as :meth:`winding`."""
        _require_points(points)
        return self._end.inside(points)

    def signed_distance(self, points: Positions, most: float = math.inf) -> Floats:
        """Distances ``float32 [n]``, negative inside, within `most` of 0. Raises as :meth:`closest`."""
        _require_points(points)
        return self._end.signed_distance(points, _checked(most))

    def occupied(self, origin: Sequence[float], side: float, counts: Sequence[int]) -> NDArray[np.int64]:
        """Which cubes of a grid a triangle touches; cubes and triangles are closed sets.

        Args:
            origin: where the grid starts, x, y, z.
            side: of a cube.
            counts: of cubes along x, y, z.

        Returns:
            ``int64 [k, 3]``, the cubes' coordinates, each once, in lexicographic order.

        Raises:
            ValueError: numbers that make no grid.
        """
        numbers = (*origin, side)
        if len(origin) != 3 or not all(math.isfinite(number) for number in numbers) or side <= 0:
            raise ValueError("a grid has an origin of three finite numbers and a side above 0")
        if len(counts) != 3 or not all(0 < count <= MOST_CELLS for count in counts):
            raise ValueError(f"a grid has 1 to {MOST_CELLS} cells along each of three axes")
        return self._end.occupied(origin, side, counts)

    def sample(self, count: int, generator: np.random.Generator | int) -> Samples:
        """Points that are spread evenly over the area.

        Raises:
            BadMesh: the surface has no area.
        """
        generator = np.random.default_rng(generator)
        corners = self.vertices[self.faces]
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        reached = np.cumsum(areas)
        if not 0 < reached[-1] < math.inf:
            raise BadMesh("the surface has no area")
        face = np.searchsorted(reached, generator.random(count) * reached[-1], side="right").astype(np.int32)
        root, other = np.sqrt(generator.random(count)), generator.random(count)
        weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)
        points = np.einsum("nk,nkd->nd", weights, corners[face])
        return Samples(points, face, weights.astype(np.float32))


def _require(array: NDArray[np.generic], dtype: type[np.generic], name: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{name} must be a C-contiguous array of {dtype.__name__}")
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{name} must be [n, 3], not {list(array.shape)}")


def _require_points(points: Positions) -> None:
    _require(points, np.float64, "points")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite")


def _checked(most: float) -> float:
    if not most >= 0:
        raise ValueError("distances saturate at 0 or above")
    return most


class _Native:
    """The kernels of ``cuda_ext/triangles.h``."""

    def __init__(self, vertices: Positions, faces: Faces) -> None:
        self._triangles = _native.Triangles(vertices, faces, _threads())
        self.closed = self._triangles.closed

    def closest(self, points: Positions, most: float) -> Closest:
        count = len(points)
        found = Closest(
            np.empty(count, np.float32), np.empty(count, np.int32), np.empty((count, 3), np.float32)
        )
        self._triangles.closest(points, most, *found, lanes, _threads())
        return found

    def winding(self, points: Positions) -> Floats:
        out = np.empty(len(points), np.float32)
        self._triangles.winding(points, ACCURACY, out, lanes, _threads())
        return out

    def inside(self, points: Positions) -> NDArray[np.bool_]:
        out = np.empty(len(points), np.bool_)
        self._triangles.inside(points, ACCURACY, out, lanes, _threads())
        return out

    def signed_distance(self, points: Positions, most: float) -> Floats:
        out = np.empty(len(points), np.float32)
        self._triangles.signed_distance(points, most, ACCURACY, out, lanes, _threads())
        return out

    def occupied(self, origin: Sequence[float], side: float, counts: Sequence[int]) -> NDArray[np.int64]:
        (x, y, z), (nx, ny, nz) = map(float, origin), counts
        cells = self._triangles.occupied(x, y, z, side, nx, ny, nz, _threads())
        return _coordinates(cells, counts)


def _threads() -> int:
    return torch.get_num_threads()


def _coordinates(cells: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
    """Of numbers of cells, which count along z first."""
    rest, z = np.divmod(cells, counts[2])
    x, y = np.divmod(rest, counts[1])
    return np.stack([x, y, z], axis=1)


class _Plain:
    """libigl and numpy."""

    def __init__(self, vertices: Positions, faces: Faces) -> None:
        self._vertices = vertices
        self._faces = faces
        self.closed = _is_closed(vertices, faces)

    def closest(self, points: Positions, most: float) -> Closest:
        import igl

        if not len(points):
            return Closest(np.empty(0, np.float32), np.empty(0, np.int32), np.empty((0, 3), np.float32))
        found = igl.point_mesh_squared_distance(points, self._vertices, self._faces.astype(np.int64))
        distance, face, nearest = np.sqrt(np.reshape(found[0], -1)), np.reshape(found[1], -1), found[2]
        beyond = distance > most
        weights = _barycentric(self._vertices[self._faces[face]], nearest)
        weights[beyond] = 0
        return Closest(
            np.where(beyond, most, distance).astype(np.float32),
            np.where(beyond, -1, face).astype(np.int32),
            weights.astype(np.float32),
        )

    def winding(self, points: Positions) -> Floats:
        import igl

        if not len(points):
            return np.empty(0, np.float32)
        found = igl.fast_winding_number(self._vertices, self._faces.astype(np.int64), points)
        return np.reshape(found, -1).astype(np.float32)

    def inside(self, points: Positions) -> NDArray[np.bool_]:
        return np.abs(self.winding(points)) > INSIDE

    def signed_distance(self, points: Positions, most: float) -> Floats:
        distance = self.closest(points, most).distance
        return np.where(self.inside(points), -distance, distance)

    def occupied(self, origin: Sequence[float], side: float, counts: Sequence[int]) -> NDArray[np.int64]:
        corners = (self._vertices[self._faces] - np.asarray(origin, np.float64)) / side
        first = np.clip(np.ceil(corners.min(axis=1)) - 1, 0, np.asarray(counts)).astype(np.int64)
        last = np.clip(np.floor(corners.max(axis=1)), -1, np.asarray(counts) - 1).astype(np.int64)
        spans = np.maximum(last - first + 1, 0)
        found = [np.empty(0, np.int64)]
        for part in _parts(np.prod(spans, axis=1)):
            triangle, cell = _candidates(first[part], spans[part])
            cell = cell[_touch(corners[part][triangle], cell)]
            found.append(np.unique(cell[:, 2] + counts[2] * (cell[:, 1] + counts[1] * cell[:, 0])))
        return _coordinates(np.unique(np.concatenate(found)), counts)


def _is_closed(vertices: Positions, faces: Faces) -> bool:
    same = np.unique(vertices + 0.0, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    edges = np.concatenate([same[faces[:, [i, (i + 1) % 3]]] for i in range(3)])
    names = np.unique(edges.min(axis=1) * len(vertices) + edges.max(axis=1), return_inverse=True)[1]
    return not np.bincount(names.reshape(-1), np.sign(edges[:, 1] - edges[:, 0])).any()


def _barycentric(corners: Positions, points: Positions) -> Positions:
    """Of points ``[n, 3]`` in triangles ``[n, 3, 3]``; in those without area, along the longest edge."""
    edges = np.roll(corners, -1, axis=1) - corners
    normals = np.cross(edges[:, 0], -edges[:, 2])
    square = np.sum(normals**2, axis=1)
    to = points[:, None] - corners
    opposite = np.sum(np.cross(edges, to) * normals[:, None], axis=2)  # to the corner before the edge
    rows, first = np.arange(len(points)), np.argmax(np.sum(edges**2, axis=2), axis=1)
    longest = edges[rows, first]
    length = np.sum(longest**2, axis=1)
    along = np.sum(to[rows, first] * longest, axis=1) / np.where(length > 0, length, 1)
    weights = np.zeros((len(points), 3))
    weights[rows, first] = 1 - along
    weights[rows, (first + 1) % 3] = along
    with_area = square > 0
    weights[with_area] = (np.roll(opposite, 2, axis=1) / np.where(with_area, square, 1)[:, None])[with_area]
    return np.clip(weights, 0, 1)


def _parts(sizes: NDArray[np.int64], most: int = 1 << 20) -> list[slice]:
    """Ranges of triangles with about `most` candidate cells each, or one triangle."""
    ends = np.unique(
        np.searchsorted(np.cumsum(sizes), np.arange(most, sizes.sum() + most, most), side="right")
    )
    borders = np.unique(np.concatenate([[0], ends, [len(sizes)]]))
    return [slice(int(a), int(b)) for a, b in pairwise(borders)]


def _candidates(
    first: NDArray[np.int64], spans: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All cells of each triangle's box: the triangles ``[k]`` and the cells ``[k, 3]``."""
    sizes = np.prod(spans, axis=1)
    triangle = np.repeat(np.arange(len(sizes)), sizes)
    number = np.arange(len(triangle)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rest, z = np.divmod(number, spans[triangle, 2])
    x, y = np.divmod(rest, spans[triangle, 1])
    return triangle, first[triangle] + np.stack([x, y, z], axis=1)


def _touch(corners: Positions, cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether triangles ``[k, 3, 3]`` touch unit cubes ``[k, 3]``, given that their boxes do.

    Akenine-Möller, Fast 3D Triangle-Box Overlap Testing, 2001.
    """
    local = corners - (cells[:, None] + 0.5)
    edges = np.roll(local, -1, axis=1) - local
    axes = [np.cross(edges[:, 0], edges[:, 1])]
    axes += [np.cross(edges[:, i], unit) for i in range(3) for unit in np.eye(3)]
    touch = np.ones(len(cells), bool)
    for axis in axes:
        reach = np.abs(axis).sum(axis=1) / 2
        along = np.einsum("nkd,nd->nk", local, axis)
        slack = 1e-14 * reach * (1 + np.abs(corners).max(axis=(1, 2)))
        touch &= (along.min(axis=1) <= reach + slack) & (along.max(axis=1) >= -reach - slack)
    return touch
