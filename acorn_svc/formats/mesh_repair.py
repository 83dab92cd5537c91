"""Meshes as people have them, made fit for the question "inside or outside?".

Faces that say nothing are dropped, vertices at the same place become one, faces that are wound
against their neighbours are turned round. Nothing is moved and no hole is filled. Every step is
arithmetic on whole arrays: a million triangles take a second or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from acorn_svc.errors import BadMesh
from acorn_svc.field.mesh import Mesh, Texture
from acorn_svc.formats.mesh_pieces import NO_TRIANGLES, Floats, Integers

Flags = NDArray[np.bool_]

LARGEST_COORDINATE = 1e30
NESTING_BUDGET = 50_000_000  # triangles that are looked at to tell which part lies inside which
INSIDE = 0.5  # winding number
ROUNDING = 1e-10  # of a sum of volumes, relative to its terms
SMALLEST_AREA = 1e-30  # of a triangle, of a mesh of size 1


@dataclass(frozen=True, eq=False)
class _Edges:
    """How triangles meet.

    Attributes:
        edges: `[m, 3]` the edge from each corner to the next, counted from 0.
        counts: `[edges]` how many triangles have it.
        upwards: `[m, 3]` whether the triangle runs along it towards the larger number.
        pairs: `[k, 2]` the triangles at each edge of exactly two.
        clashing: `[k]` whether both run along the edge in the same direction.
        boundary, non_manifold: how many edges have one triangle, and how many more than two.
    """

    edges: Integers
    counts: Integers
    upwards: Flags
    pairs: Integers
    clashing: Flags
    boundary: int
    non_manifold: int

    def closed(self, part: Integers, against: Flags) -> Flags:
        """`[parts]` which parts meet themselves in the opposite direction at all of their edges.

        Triangles of `against` count as turned round.
        """
        parts = int(part.max()) + 1
        sharing = self.counts[self.edges]
        opened = _marked(part[(sharing == 1).any(axis=1)], parts)
        # two triangles at an edge are of one part and agree; of more, each part must balance
        face, side = np.nonzero(sharing > 2)
        spot = self.edges[face, side] * parts + part[face]
        _, first, number = np.unique(spot, return_index=True, return_inverse=True)
        directions = np.where(self.upwards[face, side] ^ against[face], 1.0, -1.0)
        unbalanced = np.bincount(number, directions, len(first)) != 0
        return ~(opened | _marked(part[face[first[unbalanced]]], parts))


def repair(mesh: Mesh, tell_joined: bool = True) -> tuple[Mesh, list[str]]:
    """The mesh with what can be repaired repaired, and a sentence for each thing that was done.

    Args:
        mesh: with indices that are in range.
        tell_joined: whether there is a sentence about vertices that were joined.

    Raises:
        BadMesh: it has no triangle with an area, or a coordinate that is no number or too large.
    """
    _check(mesh)
    said: list[str] = []
    used = _marked(mesh.faces, len(mesh.vertices))
    given = int(used.sum())
    say(said, len(mesh.vertices) - given, "dropped {} that no face uses", "vertex", "vertices")
    place = _places(mesh.vertices)
    faces = _distinct(mesh.faces.astype(np.int64), place, said)
    faces = _turned(mesh.vertices, faces, place, said)
    has_area = _areas(mesh.vertices, faces) > SMALLEST_AREA
    say(said, int((~has_area).sum()), "dropped {} without an area", "face", "faces")
    if not has_area.any():
        raise BadMesh("The mesh has no triangle with an area.")
    welded = _welded(mesh, faces[has_area], place)
    if tell_joined:
        joined = given - len(welded.vertices)
        say(said, joined, "joined {} with others at the same place", "vertex", "vertices")
    return welded, said


def say(said: list[str], count: int, sentence: str, one: str, many: str) -> None:
    """Adds a sentence about `count` things, unless there are none."""
    if count > 0:
        said.append(sentence.format(f"{count} {one if count == 1 else many}"))


def _check(mesh: Mesh) -> None:
    if not len(mesh.faces):
        raise BadMesh(NO_TRIANGLES)
    with np.errstate(invalid="ignore"):
        if not np.isfinite(mesh.vertices).all():
            raise BadMesh("A vertex of the mesh has a coordinate that is not a number.")
        if np.abs(mesh.vertices).max() > LARGEST_COORDINATE:
            raise BadMesh("A vertex of the mesh lies too far away.")
    if not _size(mesh.vertices, mesh.faces) > 0:
        raise BadMesh("The mesh is a single point.")


def _marked(numbers: NDArray[Any], length: int) -> Flags:
    """`[length]` which of 0, 1, ... are among the numbers."""
    marked = np.zeros(length, bool)
    marked[numbers] = True
    return marked


def _size(vertices: Floats, faces: NDArray[Any]) -> float:
    """The longest side of the box around the vertices that are used."""
    used = vertices[_marked(faces, len(vertices))]
    return float(max(np.ptp(used[:, axis]) for axis in range(3)))


def _places(vertices: Floats) -> Integers:
    """`[n]` a number for each vertex, the same for vertices at exactly the same place."""
    return _same_rows(vertices + 0.0)  # -0 becomes 0


def _same_rows(rows: NDArray[Any]) -> Integers:
    """`[n]` a number for each row, the same for equal rows, counting from 0."""
    order = np.lexsort(rows.T)
    fresh = np.zeros(len(rows), bool)
    fresh[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = np.cumsum(fresh)
    return numbers


def _firsts(numbers: Integers) -> Integers:
    """Where each number occurs first."""
    first = np.full(int(numbers.max()) + 1, len(numbers))
    np.minimum.at(first, numbers, np.arange(len(numbers)))
    return first


def _distinct(faces: Integers, place: Integers, said: list[str]) -> Integers:
    """Faces with three different corners, none twice. A face and its reverse are two faces."""
    a, b, c = place[faces].T
    proper = (a != b) & (b != c) & (c != a)
    say(said, int((~proper).sum()), "dropped {} with two corners at the same place", "face", "faces")
    faces = faces[proper]
    if not len(faces):
        raise BadMesh("The mesh has no triangle with an area.")
    corners = place[faces]
    turn = (corners.argmin(axis=1)[:, None] + np.arange(3)) % 3
    same = _same_rows(np.take_along_axis(corners, turn, axis=1))
    once = np.sort(_firsts(same))
    say(said, len(faces) - len(once), "dropped {} that another repeats", "face", "faces")
    return faces[once]


def _edges(corners: Integers) -> _Edges:
    """`corners` are `[m, 3]` places."""
    start = corners.ravel()
    end = np.roll(corners, -1, axis=1).ravel()
    low, high = np.minimum(start, end), np.maximum(start, end)
    key = low * (int(corners.max()) + 1) + high
    order = np.argsort(key, kind="stable")
    fresh = np.flatnonzero(np.r_[True, key[order[1:]] != key[order[:-1]]])
    counts = np.diff(np.r_[fresh, len(order)])
    twice = fresh[counts == 2]
    first, second = order[twice], order[twice + 1]
    edges = np.empty(len(order), np.int64)
    edges[order] = np.repeat(np.arange(len(counts)), counts)
    upwards = start < end
    return _Edges(
        edges.reshape(-1, 3),
        counts,
        upwards.reshape(-1, 3),
        np.stack([first, second], axis=1) // 3,
        upwards[first] == upwards[second],
        int((counts == 1).sum()),
        int((counts > 2).sum()),
    )


def _turned(vertices: Floats, faces: Integers, place: Integers, said: list[str]) -> Integers:
    """Faces wound as their neighbours are, closed parts with their outside out."""
    edges = _edges(place[faces])
    part, against, one_sided = _windings(edges, len(faces))
    say(said, int(against.sum()), "turned {} round to agree with the others", "face", "faces")
    faces = np.where(against[:, None], faces[:, ::-1], faces)
    inside_out = _inside_out(vertices, faces, part, edges.closed(part, against))
    say(said, int(inside_out.sum()), "turned {} right side out", "closed part", "closed parts")
    faces = np.where(inside_out[part][:, None], faces[:, ::-1], faces)
    meaning = ": the shape has holes; they are closed by winding number"
    say(said, edges.boundary, "{}" + meaning, "boundary edge", "boundary edges")
    say(said, edges.non_manifold, "{} where more than two faces meet", "edge", "edges")
    say(said, one_sided, "{} with one side only, as a Möbius strip has", "part", "parts")
    return faces


def _windings(edges: _Edges, faces: int) -> tuple[Integers, Flags, int]:
    """Parts that hang together, the minority in each that is wound against the rest, and how many
    parts cannot be wound.

    Every face is there twice, as it is and turned round, and those are joined that agree: a part
    then falls into two halves, each the reverse of the other.
    """
    a, b = edges.pairs.T
    other = b + faces * edges.clashing
    rows = np.concatenate([a, a + faces])
    columns = np.concatenate([other, (other + faces) % (2 * faces)])
    ones = np.ones(len(rows), np.int8)
    graph = coo_array((ones, (rows, columns)), shape=(2 * faces, 2 * faces))
    _, label = connected_components(graph.tocsr(), directed=False)
    straight, reverse = label[:faces].astype(np.int64), label[faces:].astype(np.int64)
    part = np.minimum(straight, reverse)
    against = straight > reverse
    part = (np.cumsum(_marked(part, 2 * faces)) - 1)[part]
    votes = np.bincount(part, np.where(against, -1.0, 1.0))
    one_sided = np.bincount(part, straight == reverse) > 0
    against ^= (votes < 0)[part]
    return part, against & ~one_sided[part], int(one_sided.sum())


def _inside_out(vertices: Floats, faces: Integers, part: Integers, closed: Flags) -> Flags:
    """`[parts]` which closed parts enclose a negative volume, and whatever lies inside those.

    A part inside another keeps its direction relative to it: it may be a cavity.
    """
    corners = (vertices - vertices[faces[:, 0]].mean(axis=0))[faces]
    a, b, c = (corners[:, i] for i in range(3))
    terms = np.einsum("ij,ij->i", a, np.cross(b, c))
    volumes, sizes = np.bincount(part, terms), np.bincount(part, np.abs(terms))
    turned = np.zeros(len(closed), bool)
    negative = np.flatnonzero(closed & (volumes < -ROUNDING * sizes))
    if not len(negative):
        return turned
    nesting = _Nesting(corners, part)
    for child in negative.tolist():
        turned[child] = nesting.container(child) is None
    for parent in np.flatnonzero(turned).tolist():
        for child in nesting.candidates_inside(parent).tolist():
            turned[child] |= bool(closed[child]) and nesting.is_inside(child, parent)
    return turned


class _Nesting:
    """Which part lies inside which: by boxes first, then by the winding number of a corner."""

    def __init__(self, corners: Floats, part: Integers) -> None:
        self._order = np.argsort(part, kind="stable")
        self._bounds = np.r_[0, np.cumsum(np.bincount(part))]
        starts = self._bounds[:-1]
        self._corners = corners[self._order]
        self._low = np.minimum.reduceat(self._corners.min(axis=1), starts)
        self._high = np.maximum.reduceat(self._corners.max(axis=1), starts)
        self._left = NESTING_BUDGET

    def container(self, child: int) -> int | None:
        """A part that the child lies in; the child itself when that would take too long to tell."""
        within = (self._low <= self._low[child]).all(1) & (self._high >= self._high[child]).all(1)
        larger = np.flatnonzero(within)
        sizes = (self._high - self._low)[larger].sum(axis=1)
        for parent in larger[np.argsort(-sizes)]:
            if parent != child and self.is_inside(child, int(parent)):
                return int(parent)
        return child if self._left <= 0 else None

    def candidates_inside(self, parent: int) -> Integers:
        """Parts whose boxes lie in the parent's."""
        within = (self._low >= self._low[parent]).all(1) & (self._high <= self._high[parent]).all(1)
        within[parent] = False
        return np.flatnonzero(within)

    def is_inside(self, child: int, parent: int) -> bool:
        """Whether the first corner of the child lies inside the parent."""
        faces = self._corners[self._bounds[parent] : self._bounds[parent + 1]]
        self._left -= len(faces)
        if self._left <= 0:
            return False
        point = self._corners[self._bounds[child]].mean(axis=0)
        return abs(_winding(faces, point)) > INSIDE


def _winding(corners: Floats, point: Floats) -> float:
    """The winding number of triangles `[m, 3, 3]` around a point (van Oosterom and Strackee, 1983)."""
    a, b, c = (corners[:, i] - point for i in range(3))
    la, lb, lc = (np.sqrt((v * v).sum(1)) for v in (a, b, c))
    above = (a * np.cross(b, c)).sum(1)
    below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(above, below).sum() / (2 * np.pi))


def _areas(vertices: Floats, faces: Integers) -> Floats:
    """Twice the area of each face, of the mesh scaled to size 1."""
    scaled = (vertices - vertices[faces[0, 0]]) / _size(vertices, faces)
    a, b, c = (scaled[faces[:, i]] for i in range(3))
    return np.asarray(np.linalg.norm(np.cross(b - a, c - a), axis=1), np.float64)


def _welded(mesh: Mesh, faces: Integers, place: Integers) -> Mesh:
    """The used vertices, one for all that are equal in everything, in the order of the file."""
    same = place
    if mesh.colours is not None:
        colour = mesh.colours.astype(np.int64) @ np.array([1, 256, 65_536])
        same = _same_rows(np.stack([same, colour], axis=1))
    if mesh.texture is not None:
        spots = np.ascontiguousarray(mesh.texture.coordinates + np.float32(0)).view(np.int64)
        same = _same_rows(np.stack([same, spots[:, 0]], axis=1))
    representative = _firsts(same)[same]
    kept = np.flatnonzero(_marked(representative[faces], len(place)))
    new = np.empty(len(place), np.int64)
    new[kept] = np.arange(len(kept))
    texture = mesh.texture and Texture(mesh.texture.coordinates[kept], mesh.texture.pixels)
    return Mesh(
        mesh.vertices[kept],
        new[representative[faces]].astype(np.int32),
        colours=None if mesh.colours is None else mesh.colours[kept],
        texture=texture,
    )
