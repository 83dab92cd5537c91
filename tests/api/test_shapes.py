"""Shapes over HTTP, without a worker: upload, describe, look up, draw."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import CENTRE, ORIGIN, RADIUS, VOXEL, Gallery, random_field
from PIL import Image
from test_scenes import image_bytes

from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import field_to_bytes

BINARY = {"Content-Type": "application/octet-stream"}
LINKS = {
    "self": "/scenes/{id}",
    "events": "/scenes/{id}/events",
    "file": "/scenes/{id}/file",
    "original": "/scenes/{id}/original",
    "tree": "/scenes/{id}/tree",
    "query": "/scenes/{id}/query",
    "mesh": "/scenes/{id}/mesh",
    "tiles3d": "/tiles3d/{id}/tileset.json",
    "thumbnail": "/scenes/{id}/thumbnail.webp",
}
IMAGE_ADDRESSES = (
    "/iiif/{id}",
    "/iiif/{id}/info.json",
    "/iiif/{id}/full/max/0/default.jpg",
    "/dzi/{id}.dzi",
    "/dzi/{id}_files/0/0_0.jpg",
    "/scenes/{id}/region",
    "/scenes/{id}/region?region=0,0,1,1&size=1,1",
)
SHAPE_ADDRESSES = (
    "/scenes/{id}/mesh",
    "/scenes/{id}/thumbnail.webp",
    "/tiles3d/{id}/tileset.json",
    "/tiles3d/{id}/subtrees/0.0.0.0.subtree",
    "/tiles3d/{id}/content/0/0/0/0.glb",
)
TRIANGLE = b"v 0 0 0\nv 2 0 0\nv 0 1 0\nv 0 0 3\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"


@pytest.fixture(scope="module")
def shape(gallery: Gallery, ball_field: ShapeField) -> str:
    return gallery.add(ball_field)


def refused(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "limit", "value"}
    return dict(answer.json()["error"])


def test_a_mesh_is_taken_by_its_content(gallery: Gallery) -> None:
    answer = gallery.client.post("/scenes", content=TRIANGLE, params={"preset": "draft", "iou": 0.9})
    assert answer.status_code == 201, answer.text
    scene = answer.json()
    assert (scene["kind"], scene["status"], scene["format_original"]) == ("shape", "queued", "obj")
    assert [scene[name] for name in ("width", "height", "channels", "bit_depth")] == [None] * 4
    expected = {"vertices": 4, "faces": 4, "colours": False, "bounds": [[0, 0, 0], [2, 1, 3]], "repairs": []}
    assert scene["shape"] == expected
    links = {name: f"http://testserver{path.format(id=scene['id'])}" for name, path in LINKS.items()}
    assert scene["links"] == {**links, "region": None, "iiif": None, "dzi": None}
    assert gallery.client.get(f"/scenes/{scene['id']}/original").content == TRIANGLE
    assert gallery.store.get(scene["id"]).options == {"iou": 0.9}
    refused(gallery.client.get(f"/scenes/{scene['id']}/mesh"), 404)


def test_what_was_mended_is_told(gallery: Gallery) -> None:
    twisted = TRIANGLE.replace(b"f 3 1 4", b"f 1 3 4\nf 1 1 2")
    answer = gallery.client.post("/scenes", content=twisted)
    assert answer.status_code == 201, answer.text
    repairs = answer.json()["shape"]["repairs"]
    assert repairs
    assert all(isinstance(sentence, str) for sentence in repairs)
    again = gallery.client.get(f"/scenes/{answer.json()['id']}").json()
    assert again["shape"]["repairs"] == repairs


def test_an_acorn_file_of_a_shape_becomes_a_ready_scene(gallery: Gallery, ball_field: ShapeField) -> None:
    content = field_to_bytes(ball_field)
    answer = gallery.client.post("/scenes", content=content)
    assert answer.status_code == 201, answer.text
    scene = answer.json()
    assert (scene["kind"], scene["status"], scene["version"]) == ("shape", "ready", 1)
    assert (scene["shape"]["vertices"], scene["shape"]["colours"]) == (None, True)
    low = np.array(ORIGIN)
    np.testing.assert_allclose(
        scene["shape"]["bounds"], [low, low + np.array(ball_field.signal.size) * VOXEL]
    )
    assert scene["progress"]["iou"] is None
    assert gallery.client.get(f"/scenes/{scene['id']}/file").content == content


@pytest.mark.parametrize(("content", "options"), [(TRIANGLE, {"psnr": 30}), (image_bytes(), {"iou": 0.9})])
def test_goals_of_the_other_kind_are_refused(
    gallery: Gallery, content: bytes, options: dict[str, Any]
) -> None:
    refused(gallery.client.post("/scenes", content=content, params=options), 400)


@pytest.mark.parametrize("address", IMAGE_ADDRESSES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_shape_is_no_image(gallery: Gallery, shape: str, address: str, method: str) -> None:
    answer = gallery.client.request(method, address.format(id=shape), follow_redirects=False)
    assert answer.status_code == 400
    if method == "GET":
        assert "shape" in refused(answer, 400)["message"]


@pytest.mark.parametrize("address", SHAPE_ADDRESSES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_image_is_no_shape(gallery: Gallery, address: str, method: str) -> None:
    image = gallery.add(random_field(8, 8))
    answer = gallery.client.request(method, address.format(id=image))
    assert answer.status_code == 400
    if method == "GET":
        assert "image" in refused(answer, 400)["message"]


def test_the_blocks_of_a_shape_hold_its_surface(gallery: Gallery, shape: str) -> None:
    tree = gallery.client.get(f"/scenes/{shape}/tree").json()
    assert (tree["kind"], tree["version"], tree["voxel"]) == ("shape", 1, VOXEL)
    blocks = np.array(tree["blocks"])
    low, side = blocks[:, :3], blocks[:, 3:4]
    # Points of the surface, each in exactly one of the blocks.
    directions = np.random.default_rng(0).standard_normal((500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = np.array(ORIGIN) + (np.array(CENTRE) + RADIUS * directions) * VOXEL
    inside = ((points[:, None] >= low) & (points[:, None] < low + side)).all(axis=2)
    assert (inside.sum(axis=1) == 1).all()
    np.testing.assert_allclose(tree["bounds"][0], ORIGIN)


@pytest.mark.parametrize("voxel_size", [0, 1.3])
def test_distances_in_the_units_of_the_mesh(gallery: Gallery, shape: str, voxel_size: float) -> None:
    # Near the surface, where distances don't end yet.
    directions = np.random.default_rng(1).standard_normal((40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    offsets = np.random.default_rng(2).uniform(-0.3, 0.3, (40, 1))
    centre = np.array(ORIGIN) + np.array(CENTRE) * VOXEL
    points = (centre + (RADIUS * VOXEL + offsets) * directions).astype("<f4")
    body = {"points": points.tolist(), "voxel_size": voxel_size}
    listed = np.array(gallery.client.post(f"/scenes/{shape}/query", json=body).json()["values"])
    assert listed.shape == (40, 4)
    np.testing.assert_allclose(listed[:, 0], offsets[:, 0], atol=0.25 * VOXEL)
    url = f"/scenes/{shape}/query?voxel_size={voxel_size}"
    packed = gallery.client.post(url, content=points.tobytes(), headers=BINARY)
    np.testing.assert_allclose(np.frombuffer(packed.content, "<f4").reshape(-1, 4), listed, atol=1e-5)


def test_every_place_in_space_has_a_value(gallery: Gallery, shape: str) -> None:
    body = {"points": [[1e308, -1e308, 1e308], [-1e300, 0, 0], [0, 0, 0]]}
    values = np.array(gallery.client.post(f"/scenes/{shape}/query", json=body).json()["values"])
    assert (values[:, 0] > 0).all()
    assert gallery.client.post(f"/scenes/{shape}/query", json={"points": []}).json() == {"values": []}


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"points": [[1, 2]]}', b'{"points": [[1, 2, NaN]]}', b'{"points": [], "pixel_size": 1}',
     b'{"points": [], "voxel_size": -1}', b'{"points": [[1, 2, 3, 4]]}'],
)  # fmt: skip
def test_queries_that_are_refused(gallery: Gallery, shape: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused(gallery.client.post(f"/scenes/{shape}/query", content=body, headers=headers), 400)


def test_binary_queries_that_are_refused(gallery: Gallery, shape: str) -> None:
    url = f"/scenes/{shape}/query"
    refused(gallery.client.post(url, content=bytes(8), headers=BINARY), 400)
    nan = np.array([[0, np.nan, 0]], "<f4").tobytes()
    refused(gallery.client.post(url, content=nan, headers=BINARY), 400)
    refused(gallery.client.post(f"{url}?voxel_size=-1", content=bytes(12), headers=BINARY), 422)


def test_the_thumbnail_shows_the_shape(gallery: Gallery, shape: str) -> None:
    answer = gallery.client.get(f"/scenes/{shape}/thumbnail.webp")
    assert answer.headers["content-type"] == "image/webp"
    pixels = np.array(Image.open(BytesIO(answer.content)).convert("RGBA"))
    alpha = pixels[..., 3] > 127
    # A ball is a disc: as wide as high, and as large as its width says.
    height, width = (np.ptp(np.flatnonzero(alpha.any(axis=axis))) + 1 for axis in (1, 0))
    assert abs(height - width) <= 2
    assert alpha.sum() == pytest.approx(np.pi / 4 * width**2, rel=0.03)
    assert not alpha[0, 0]
    revalidated = gallery.client.get(
        f"/scenes/{shape}/thumbnail.webp", headers={"If-None-Match": answer.headers["etag"]}
    )
    assert revalidated.status_code == 304
