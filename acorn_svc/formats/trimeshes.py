"""To and from trimesh, whose meshes most Python programs exchange."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import trimesh

from acorn_svc.errors import BadMesh
from acorn_svc.field.mesh import Mesh, MeshPart


def from_trimesh(mesh: trimesh.Trimesh) -> Mesh:
    """The triangles of a trimesh, with the colours of its vertices, if it has any, but no textures.

    Raises:
        BadMesh: it holds no triangles.
    """
    if not len(mesh.faces):
        raise BadMesh("The mesh holds no triangles.")
    colours = None
    if isinstance(mesh.visual, trimesh.visual.ColorVisuals) and mesh.visual.kind == "vertex":
        colours = np.ascontiguousarray(mesh.visual.vertex_colors[:, :3], np.uint8)
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    return Mesh(vertices, np.ascontiguousarray(mesh.faces, np.int32), colours=colours)


def to_trimesh(parts: Iterable[MeshPart]) -> trimesh.Trimesh:
    """The mesh that :meth:`acorn_svc.field.shape.ShapeField.mesh_parts` yields, as one trimesh.

    Raises:
        BadMesh: there are no parts.
    """
    parts = list(parts)
    if not parts:
        raise BadMesh("The shape has no surface at this resolution.")
    colours = [part.colours for part in parts if part.colours is not None]
    return trimesh.Trimesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces for part in parts]),
        vertex_normals=np.concatenate([part.normals for part in parts]),
        vertex_colors=np.concatenate(colours) if colours else None,
        process=False,
    )
