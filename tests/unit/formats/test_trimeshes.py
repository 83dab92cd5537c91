"""Meshes to and from trimesh."""

import numpy as np
import pytest
import trimesh
from made_shapes import ball, made_shape

import acorn_svc
from acorn_svc.errors import BadMesh
from acorn_svc.formats.trimeshes import from_trimesh, to_trimesh


def test_triangles_and_colours_come_along() -> None:
    box = trimesh.creation.box()
    plain = from_trimesh(box)
    assert np.array_equal(plain.vertices, box.vertices)
    assert np.array_equal(plain.faces, box.faces)
    assert plain.colours is None
    box.visual.vertex_colors = np.arange(8 * 4).reshape(8, 4)
    coloured = from_trimesh(box)
    assert coloured.colours is not None
    assert np.array_equal(coloured.colours, np.arange(8 * 4).reshape(8, 4)[:, :3])


def test_a_surface_becomes_one_trimesh() -> None:
    field = made_shape(ball((16, 16, 16), 9), (32, 32, 32))
    mesh = to_trimesh(field.mesh_parts(32))
    assert mesh.is_volume
    assert len(mesh.vertices) == sum(len(part.vertices) for part in field.mesh_parts(32))


def test_nothing_is_no_mesh() -> None:
    with pytest.raises(BadMesh, match="no triangles"):
        from_trimesh(trimesh.Trimesh())
    with pytest.raises(BadMesh, match="no surface"):
        to_trimesh([])


def test_a_trimesh_is_fitted() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    field = acorn_svc.fit(sphere, "draft", steps=1)
    assert isinstance(field, acorn_svc.ShapeField)
    assert np.allclose(field.to_mesh_units(np.asarray(field.signal.size) / 2), 0, atol=1e-6)
