"""Triangle meshes as plain arrays: what is fitted, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Texture:
    """An image that is wrapped around a mesh.

    Attributes:
        coordinates: ``float32 [vertices, 2]``, (u, v) of each vertex; v points up; the image
            repeats outside 0..1.
        pixels: ``uint8 [height, width, 3]``, stored sRGB, the first row at v = 1.
    """

    coordinates: NDArray[np.float32]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in space.

    Attributes:
        vertices: ``float64 [vertices, 3]``, x, y, z in the units of whoever made it.
        faces: ``int32 [faces, 3]``, rows of ``vertices``, counter-clockwise seen from outside.
        normals: ``float32 [vertices, 3]``, unit vectors that point outwards, when known.
        colours: ``uint8 [vertices, 3]``, stored sRGB, when there are any.
        texture: colours between the vertices; then ``colours`` is None.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32] | None = None
    colours: NDArray[np.uint8] | None = None
    texture: Texture | None = None


@dataclass(frozen=True, eq=False)
class MeshPart:
    """Some triangles of a mesh that is made part by part.

    Attributes:
        vertices: ``float32 [vertices, 3]``, x, y, z.
        normals: ``float32 [vertices, 3]``, unit vectors that point outwards.
        colours: ``uint8 [vertices, 3]``, stored sRGB, when there are any.
        faces: ``int32 [faces, 3]``, rows of the vertices of all parts so far, this one among them,
            counter-clockwise seen from outside.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    colours: NDArray[np.uint8] | None
    faces: NDArray[np.int32]
