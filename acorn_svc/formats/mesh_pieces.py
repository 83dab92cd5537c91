"""What the readers of mesh files share: limits, pieces of a mesh, numbers in text, polygons, colours."""

from __future__ import annotations

import codecs
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh, LimitExceeded

MeshFormat = Literal["ply", "stl", "obj", "off", "glb"]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

DAMAGED = "The mesh is damaged or cut short."
BAD_INDEX = "A face of the mesh refers to a vertex that doesn't exist."
NO_TRIANGLES = "The file holds no triangles."
QUAD = 4
OTHER_DIAGONAL = np.array([[1, 2, 3], [3, 0, 1]])
CLIPPING_BUDGET = 100_000  # the squares of polygons' corners, for cutting ears takes quadratic time


@dataclass(frozen=True)
class MeshLimits:
    """The largest mesh that is read.

    Attributes:
        max_vertices: as the file counts them, before any are joined.
        max_faces: triangles, after polygons are cut and instances are made.
        max_parts: primitives of a GLB file, as often as they are shown.
        max_textures: of a GLB file.
        max_texture_pixels: width times height of each.
        max_gltf_json_bytes: of a GLB file's description.
    """

    max_vertices: int = 20_000_000
    max_faces: int = 40_000_000
    max_parts: int = 50_000
    max_textures: int = 256
    max_texture_pixels: int = 2**26
    max_gltf_json_bytes: int = 2**25

    def check(self, vertices: int, faces: int) -> None:
        """Raises `LimitExceeded` when there are too many of either."""
        facts = (
            ("max_mesh_vertices", "vertices", vertices, self.max_vertices),
            ("max_mesh_faces", "faces", faces, self.max_faces),
        )
        for name, words, found, allowed in facts:
            if found > allowed:
                message = f"The mesh has {found} {words}; at most {allowed} are allowed."
                raise LimitExceeded(message, limit=name, value=allowed)


@dataclass(eq=False)
class Piece:
    """A part of a mesh as it stands in the file.

    Attributes:
        vertices: `float64 [n, 3]`.
        faces: `int64 [m, 3]`, rows of `vertices`; not yet checked.
        colours: `uint8 [n, 3]`, stored sRGB.
        face_colours: `uint8 [m, 3]`, stored sRGB.
        coordinates: `float32 [n, 2]`, of a texture, as `Texture` has them.
        image: which image of the file the coordinates belong to, and the linear colour it is
            multiplied by.
        repairs: what was left out on reading.
    """

    vertices: Floats
    faces: Integers
    colours: Bytes | None = None
    face_colours: Bytes | None = None
    coordinates: NDArray[np.float32] | None = None
    image: tuple[int, tuple[float, float, float]] | None = None
    repairs: list[str] = field(default_factory=list)


def numbers(text: str, dtype: type = np.float64) -> NDArray[Any]:
    """The numbers of a text, which are separated by white space.

    Raises:
        BadMesh: anything in it isn't one.
    """
    if not text or text.isspace():
        return np.zeros(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise BadMesh("The mesh holds something else where a number should be.") from error


def decode_text(content: bytes) -> str:
    """Text in UTF-16 with its mark, else bytes as characters: names in any encoding don't matter."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).decode("latin-1")


def number_rows(lines: list[str], least: int) -> tuple[Floats, Integers, Integers]:
    """The numbers of all lines one after the other, where each line starts, and how many it has.

    Raises:
        BadMesh: there are no lines, or one has fewer than `least` numbers.
    """
    lengths = np.array([len(line.split()) for line in lines], np.int64)
    values = numbers(" ".join(lines))
    if not len(lengths) or lengths.min() < least or lengths.sum() != len(values):
        raise BadMesh(DAMAGED)
    return values, np.cumsum(lengths) - lengths, lengths


def whole_numbers(values: NDArray[Any]) -> Integers:
    """Values as integers; what isn't whole or far too large becomes -1, which no vertex is."""
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if values.dtype.kind == "f":
        whole[~(np.abs(values) < 2**53) | (whole != values)] = -1
    return whole


def dropped_polygons(count: int) -> list[str]:
    """The sentence about polygons with fewer than three corners, if there are any."""
    faces = "1 face" if count == 1 else f"{count} faces"
    return [f"dropped {faces} with fewer than three corners"] if count else []


def local_indices(lengths: Integers) -> Integers:
    """0, 1, ... for each run of `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def check_indices(indices: NDArray[Any], vertices: int) -> None:
    """Raises `BadMesh` when an index is not that of a vertex."""
    if indices.size and (indices.min() < 0 or indices.max() >= vertices):
        raise BadMesh(BAD_INDEX)


def triangulate(
    vertices: Floats, corners: Integers, lengths: Integers, limits: MeshLimits
) -> tuple[Integers, Integers]:
    """Polygons as triangles.

    Args:
        vertices: `[n, 3]`.
        corners: the corners of all polygons, one after the other, rows of `vertices`.
        lengths: how many corners each polygon has, at least three.
        limits: checked before anything is made.

    Returns:
        `[m, 3]` triangles and `[m]` the polygon of each. Quads are cut along the diagonal that lies
        inside, larger polygons into fans or, when they aren't convex and not huge, ear by ear.
    """
    limits.check(len(vertices), int((lengths - 2).sum()))
    check_indices(corners, len(vertices))
    starts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(lengths)), lengths - 2)
    first = starts[owners]
    step = local_indices(lengths - 2)
    triangles = np.stack([first, first + step + 1, first + step + 2], axis=1)
    faces: Integers = corners[triangles]
    if len(lengths) and lengths.max() >= QUAD:
        concave = _concave(vertices, faces, owners, lengths)
        quads = starts[concave[lengths[concave] == QUAD]][:, None]
        at = np.searchsorted(owners, concave[lengths[concave] == QUAD])
        faces[at], faces[at + 1] = corners[quads + OTHER_DIAGONAL[0]], corners[quads + OTHER_DIAGONAL[1]]
        for polygon in _affordable(concave, lengths):
            start, length = int(starts[polygon]), int(lengths[polygon])
            first_face = int(np.searchsorted(owners, polygon))
            faces[first_face : first_face + length - 2] = _ears(vertices, corners[start : start + length])
    return faces, owners


def _affordable(polygons: Integers, lengths: Integers) -> list[int]:
    """Those of more than four corners, as many as can be cut in a second or two."""
    larger = polygons[lengths[polygons] > QUAD]
    affordable = np.cumsum(np.minimum(lengths[larger], 2**30) ** 2) <= CLIPPING_BUDGET
    return [int(polygon) for polygon in larger[affordable]]


def _concave(vertices: Floats, faces: Integers, owners: Integers, lengths: Integers) -> Integers:
    """Polygons whose fan has triangles that turn both ways."""
    larger = np.flatnonzero(lengths[owners] >= QUAD)
    a, b, c = (vertices[faces[larger, corner]] for corner in range(3))
    with np.errstate(all="ignore"):
        normals = np.cross(b - a, c - a)
        sums = np.stack([np.bincount(owners[larger], normals[:, i], len(lengths)) for i in range(3)], 1)
        turned = (normals * sums[owners[larger]]).sum(1) < 0
    return np.unique(owners[larger[turned]])


def _ears(vertices: Floats, ring: Integers) -> Integers:
    """`[n - 2, 3]` triangles of one polygon, by cutting off ears in its plane."""
    points = vertices[ring]
    with np.errstate(all="ignore"):
        normal = np.cross(points - points[0], np.roll(points, -1, 0) - points[0]).sum(0)
    axis = int(np.abs(normal).argmax())
    flat = np.delete(points, axis, axis=1) * [np.sign(normal[axis]) * (-1) ** axis, 1.0]
    left = list(range(len(ring)))
    triangles = []
    while len(left) > 3:
        ear = next((i for i in range(len(left)) if _is_ear(flat, left, i)), 0)
        triangles.append([left[ear - 1], left[ear], left[(ear + 1) % len(left)]])
        del left[ear]
    return np.asarray(ring[np.array([*triangles, left])], np.int64)


def _is_ear(flat: Floats, left: list[int], i: int) -> bool:
    """Whether corner `i` of those left turns left and has no other corner in its triangle."""
    a, b, c = flat[left[i - 1]], flat[left[i]], flat[left[(i + 1) % len(left)]]
    others = flat[[j for j in left if j not in (left[i - 1], left[i], left[(i + 1) % len(left)])]]
    if _turn(a, b, c[None])[0] <= 0:
        return False
    inside = (_turn(a, b, others) >= 0) & (_turn(b, c, others) >= 0) & (_turn(c, a, others) >= 0)
    return not bool(inside.any())


def _turn(a: Floats, b: Floats, points: Floats) -> Floats:
    """Positive for points that lie left of the line from `a` to `b`."""
    along = b - a
    turn = along[0] * (points[:, 1] - a[1]) - along[1] * (points[:, 0] - a[0])
    return np.asarray(turn, np.float64)


def to_uint8(values: NDArray[Any], dtype: np.dtype[Any]) -> Bytes:
    """Colours of the type `dtype` (whole numbers: all of their range; else 0 to 1) as bytes.

    What isn't a number becomes 0.
    """
    largest = np.iinfo(dtype).max if dtype.kind in "ui" else 1.0
    with np.errstate(all="ignore"):
        scaled = np.nan_to_num(np.asarray(values, np.float64) * (255.0 / largest), posinf=255.0)
    return np.asarray(np.rint(scaled.clip(0, 255)), np.uint8)
