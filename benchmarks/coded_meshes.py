"""What a field is measured against in bytes: the same surface as a decimated mesh, coded with Draco.

Quadric decimation is that of fast-simplification, the codec Google's Draco; both come with
``pip install -e '.[benchmark]'``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from acorn_svc.field.mesh import Mesh
from acorn_svc.training.distance import SurfaceIndex

FEWEST_FACES = 64
PRECISION = 0.02  # of the number of faces, relative
COMPRESSION = 10  # of 0 to 10: smallest files


class CodedMesh(NamedTuple):
    """A mesh as a file holds it: its bytes, and the surface that is read back from them."""

    bytes: int
    faces: int
    surface: SurfaceIndex


class Decimator:
    """Meshes of fewer and fewer faces; each is made once."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._made: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def faces(self) -> int:
        """Of the mesh itself."""
        return len(self._mesh.faces)

    def coded(self, faces: int, bits: int) -> CodedMesh:
        """About so many faces, coded with coordinates of so many bits."""
        import DracoPy
        from fast_simplification import simplify

        if faces not in self._made:
            vertices, triangles = np.ascontiguousarray(self._mesh.vertices), self._mesh.faces
            whole = faces >= len(triangles)
            self._made[faces] = (
                (vertices, triangles) if whole else simplify(vertices, triangles, target_count=faces)[:2]
            )
        vertices, triangles = self._made[faces]
        data = DracoPy.encode(
            np.asarray(vertices, np.float32),
            np.asarray(triangles, np.uint32),
            quantization_bits=bits,
            compression_level=COMPRESSION,
        )
        read = DracoPy.decode(data)
        surface = SurfaceIndex(
            np.ascontiguousarray(read.points, np.float64), np.ascontiguousarray(read.faces, np.int32)
        )
        return CodedMesh(len(data), len(read.faces), surface)


def smallest(
    decimator: Decimator, bits: int, quality: Callable[[SurfaceIndex], float], goal: float
) -> CodedMesh | None:
    """The mesh of fewest faces, by bisection, that is as good as the goal; None if there is none."""
    found = decimator.coded(decimator.faces, bits)
    if quality(found.surface) < goal:
        return None
    low, high = FEWEST_FACES, decimator.faces
    while high > low * (1 + PRECISION):
        middle = round(math.sqrt(low * high))
        if middle in (low, high):
            break
        tried = decimator.coded(middle, bits)
        if quality(tried.surface) >= goal:
            found, high = tried, middle
        else:
            low = middle
    return found
