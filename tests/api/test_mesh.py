"""The mesh of a shape as a file: closed, where the shape is, in every format; made for one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import trimesh
from conftest import CENTRE, ORIGIN, RADIUS, VOXEL, Gallery
from made_shapes import made_shape, torus
from test_shapes import refused

from acorn_svc.field.shape import ShapeField

FORMATS = {
    "glb": "model/gltf-binary",
    "ply": "application/ply",
    "stl": "model/stl",
    "obj": "model/obj",
}


@pytest.fixture(scope="module")
def shape(gallery: Gallery, ball_field: ShapeField) -> str:
    return gallery.add(ball_field)


def get(gallery: Gallery, scene_id: str, **parameters: Any) -> httpx2.Response:
    return gallery.client.get(f"/scenes/{scene_id}/mesh", params=parameters)


def mesh_of(content: bytes, file_format: str) -> trimesh.Trimesh:
    return trimesh.load(BytesIO(content), file_type=file_format, force="mesh")


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_is_the_ball(gallery: Gallery, shape: str, file_format: str) -> None:
    answer = get(gallery, shape, resolution=40, format=file_format)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith(FORMATS[file_format])
    assert answer.headers["content-disposition"] == f'attachment; filename="{shape}.{file_format}"'
    mesh = mesh_of(answer.content, file_format)
    mesh.merge_vertices(merge_norm=True, merge_tex=True)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (RADIUS * VOXEL) ** 3, rel=0.03)
    centre = np.array(ORIGIN) + np.array(CENTRE) * VOXEL
    distance = np.linalg.norm(mesh.vertices - centre, axis=1)
    np.testing.assert_allclose(distance, RADIUS * VOXEL, atol=0.5 * VOXEL)


def test_a_mesh_of_any_resolution_is_watertight(gallery: Gallery, shape: str) -> None:
    counts = []
    for resolution in (8, 21, 64, 100):
        mesh = mesh_of(get(gallery, shape, resolution=resolution, format="ply").content, "ply")
        assert mesh.is_watertight
        counts.append(len(mesh.faces))
    assert counts == sorted(counts)


def test_colours_come_along(gallery: Gallery, shape: str) -> None:
    mesh = mesh_of(get(gallery, shape, resolution=32, format="ply").content, "ply")
    positions = (mesh.vertices - np.array(ORIGIN)) / VOXEL / np.array([64, 56, 60])
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3], 255 * positions, atol=4)


@pytest.mark.parametrize("parameters", [{"resolution": 7}, {"resolution": "x"}, {"format": "fbx"}])
def test_parameters_that_are_refused(gallery: Gallery, shape: str, parameters: dict[str, Any]) -> None:
    refused(get(gallery, shape, **parameters), 422)


def test_too_fine_a_mesh_names_the_limit(gallery: Gallery, shape: str) -> None:
    assert refused(get(gallery, shape, resolution=100_000), 422)["limit"] == "max_mesh_resolution"


def test_head_options_and_revalidation(gallery: Gallery, shape: str) -> None:
    url = f"/scenes/{shape}/mesh?resolution=16"
    etag = gallery.client.get(url).headers["etag"]
    assert gallery.client.head(url).headers["etag"] == etag
    assert gallery.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert gallery.client.options(url).status_code == 204
    assert gallery.client.get(url).headers["access-control-allow-origin"] == "*"
    assert not list(gallery.store.blobs.spool.iterdir())


def test_a_shape_without_surface_has_no_mesh(gallery: Gallery) -> None:
    nothing = made_shape(torus((16, 16, 16), 200, 1), (32, 32, 32))
    assert "surface" in refused(get(gallery, gallery.add(nothing)), 400)["message"]


def test_the_work_ends_when_the_client_leaves_and_others_wait_no_longer(
    live_gallery: Gallery, ball_field: ShapeField, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(_field: ShapeField, _resolution: int, on_progress: Any) -> Iterator[Any]:
        begun.set()
        try:
            while True:
                on_progress(0.5)
                time.sleep(0.01)
        finally:
            ended.set()
        yield

    scene_id = live_gallery.add(ball_field)
    with monkeypatch.context() as patched:
        patched.setattr(ShapeField, "mesh_parts", endless)
        with pytest.raises(httpx2.TimeoutException):
            live_gallery.client.get(f"/scenes/{scene_id}/mesh", timeout=2)
        assert begun.is_set()
        assert ended.wait(30)
    assert get(live_gallery, scene_id, resolution=16).status_code == 200


def test_one_mesh_at_a_time(
    live_gallery: Gallery, ball_field: ShapeField, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, most, lock = [0], [0], threading.Lock()
    whole = ShapeField.mesh_parts

    def counted(self: ShapeField, resolution: int, on_progress: Any = None) -> Iterator[Any]:
        with lock:
            made[0] += 1
            most[0] = max(most[0], made[0])
        yield from whole(self, resolution, on_progress)
        with lock:
            made[0] -= 1

    monkeypatch.setattr(ShapeField, "mesh_parts", counted)
    scene_id = live_gallery.add(ball_field)
    answers: list[int] = []

    def ask() -> None:
        answers.append(get(live_gallery, scene_id, resolution=24, format="stl").status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert most == [1]
