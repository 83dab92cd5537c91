"""Damaged meshes become the shape that a person would expect: that of the mesh before it was damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from acorn_svc.field.kinds import as_shape
from acorn_svc.formats.meshes import read_mesh
from acorn_svc.training import loop
from acorn_svc.training.distance import SurfaceIndex
from acorn_svc.training.presets import configure
from acorn_svc.training.targets import ShapeTarget

SPOT = Path(__file__).parents[3] / "shared" / "data" / "meshes" / "spot_6k.obj"
POINTS = 100_000

pytestmark = pytest.mark.skipif(not SPOT.is_file(), reason="shared/data/meshes is not there")


def without_some(mesh: trimesh.Trimesh) -> None:
    """Twenty holes of a few faces each."""
    random = np.random.default_rng(0)
    keep = np.ones(len(mesh.faces), bool)
    for face in random.choice(len(mesh.faces), 20, replace=False):
        near = np.linalg.norm(mesh.triangles_center - mesh.triangles_center[face], axis=1)
        keep[np.argsort(near)[:6]] = False
    mesh.update_faces(keep)


def with_flipped_ones(mesh: trimesh.Trimesh) -> None:
    """A patch, and faces here and there, the wrong way round."""
    random = np.random.default_rng(1)
    turned = random.random(len(mesh.faces)) < 0.1
    turned |= mesh.triangles_center[:, 1] > 0.5
    mesh.faces = np.where(turned[:, None], mesh.faces[:, ::-1], mesh.faces)


def inside_out(mesh: trimesh.Trimesh) -> None:
    mesh.invert()


def with_parts_twice(mesh: trimesh.Trimesh) -> None:
    """Faces that are there again, on vertices of their own."""
    again = mesh.faces[: len(mesh.faces) // 3]
    mesh.vertices, mesh.faces = (
        np.concatenate([mesh.vertices, mesh.vertices]),
        np.concatenate([mesh.faces, again + len(mesh.vertices)]),
    )


def of_loose_triangles(mesh: trimesh.Trimesh) -> None:
    mesh.unmerge_vertices()


DAMAGES = [without_some, with_flipped_ones, inside_out, with_parts_twice, of_loose_triangles]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_shape_is_that_of_the_mesh_before(
    damage: Callable[[trimesh.Trimesh], None], tmp_path: Path
) -> None:
    whole = trimesh.load(SPOT, process=True, force="mesh")
    whole = trimesh.Trimesh(whole.vertices, whole.faces, process=True, merge_tex=True)
    whole.merge_vertices(merge_tex=True, merge_norm=True)
    damaged = trimesh.Trimesh(whole.vertices.copy(), whole.faces.copy(), process=False)
    damage(damaged)
    damaged.export(tmp_path / "damaged.ply")
    target = ShapeTarget(read_mesh(tmp_path / "damaged.ply").mesh)
    config = replace(configure(target, "draft", steps=250), resolution=64, reallocations=0)
    *_, last = loop.fit(target, config)
    field = as_shape(last.field())
    truth = SurfaceIndex(np.ascontiguousarray(whole.vertices, np.float64), whole.faces.astype(np.int32))
    points = np.random.default_rng(2).uniform(*whole.bounds, (POINTS, 3))
    inside, expected = field.query(points)[:, 0] < 0, truth.inside(points)
    assert (inside & expected).sum() / (inside | expected).sum() >= 0.975
