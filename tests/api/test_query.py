"""Points in, values out: the same values in both forms, and bad input refused."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest
import pyvips
from conftest import Gallery, random_field

WIDTH, HEIGHT = 75, 50
BINARY = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
BAD_BODIES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 5000,
    b'{"points": 1}',
    b'{"points": [1, 2]}',
    b'{"points": [[1]]}',
    b'{"points": [[1, 2, 3]]}',
    b'{"points": [["1", "x"]]}',
    b'{"points": [[null, 1]]}',
    b'{"points": [], "other": 1}',
    b'{"points": [[1, 1]',
]


@pytest.fixture(scope="module")
def scene(gallery: Gallery) -> str:
    return gallery.add(random_field(WIDTH, HEIGHT))


def ask(gallery: Gallery, scene_id: str, points: Any, **more: Any) -> httpx2.Response:
    return gallery.client.post(f"/scenes/{scene_id}/query", json={"points": points, **more})


def send(gallery: Gallery, scene_id: str, body: bytes, query: str = "") -> httpx2.Response:
    url = f"/scenes/{scene_id}/query{query}"
    return gallery.client.post(url, content=body, headers=BINARY)


def assert_refused(response: httpx2.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"code", "message", "limit", "value"}


def test_values_at_pixel_centres_are_the_rendered_pixels(gallery: Gallery, scene: str) -> None:
    region = gallery.client.get(f"/iiif/{scene}/10,20,3,2/max/0/default.png").content
    pixels = pyvips.Image.new_from_buffer(region, "").numpy()
    points = [[10.5 + x, 20.5 + y] for y in range(2) for x in range(3)]
    values = np.array(ask(gallery, scene, points).json()["values"])
    np.testing.assert_array_equal(np.rint(values * 255).reshape(2, 3, 3), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("pixel_size", [1, 2.5, 16])
def test_both_forms_agree(gallery: Gallery, channels: int, pixel_size: float) -> None:
    scene_id = gallery.add(random_field(WIDTH, HEIGHT, channels))
    points = np.random.default_rng(0).uniform(0, (WIDTH, HEIGHT), (9, 2)).astype("<f4")
    listed = ask(gallery, scene_id, points.tolist(), pixel_size=pixel_size).json()["values"]
    packed = send(gallery, scene_id, points.tobytes(), f"?pixel_size={pixel_size}")
    assert packed.headers["content-type"] == "application/octet-stream"
    values = np.frombuffer(packed.content, "<f4").reshape(-1, channels)
    np.testing.assert_allclose(values, np.array(listed), atol=1e-6)
    assert values.min() >= 0
    assert values.max() <= 1


def test_the_corners_belong_to_the_image_and_no_points_give_no_values(gallery: Gallery, scene: str) -> None:
    corners = [[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]]
    assert len(ask(gallery, scene, corners).json()["values"]) == 4
    assert ask(gallery, scene, []).json() == {"values": []}
    assert send(gallery, scene, b"").content == b""


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "1e400", "-0.001", "76"])
def test_points_that_are_not_in_the_image_are_refused(gallery: Gallery, scene: str, value: str) -> None:
    body = f'{{"points": [[1, 1], [{value}, 1]]}}'
    url = f"/scenes/{scene}/query"
    assert_refused(gallery.client.post(url, content=body, headers=JSON), 400)
    if value != "1e400":
        points = np.array([[1, 1], [float(value), 1]]).astype("<f8").clip(-3e38, 3e38).astype("<f4")
        assert_refused(send(gallery, scene, points.tobytes()), 400)


@pytest.mark.parametrize("pixel_size", ["0", "-1", "5e-324", "0.999", "NaN", "Infinity", "1e308", "x"])
def test_pixel_sizes_that_are_refused(gallery: Gallery, scene: str, pixel_size: str) -> None:
    url = f"/scenes/{scene}/query"
    body = f'{{"points": [[1, 1]], "pixel_size": {pixel_size}}}'
    assert_refused(gallery.client.post(url, content=body, headers=JSON), 400)
    assert_refused(send(gallery, scene, bytes(8), f"?pixel_size={pixel_size}"), 422)


@pytest.mark.parametrize("body", BAD_BODIES)
def test_bodies_that_are_refused(gallery: Gallery, scene: str, body: bytes) -> None:
    url = f"/scenes/{scene}/query"
    assert_refused(gallery.client.post(url, content=body, headers=JSON), 400)


def test_a_cut_float_is_refused(gallery: Gallery, scene: str) -> None:
    for length in (1, 4, 7, 9, 15):
        assert_refused(send(gallery, scene, bytes(length)), 400)


def test_other_types_are_refused(gallery: Gallery, scene: str) -> None:
    for media_type in ("text/plain", "", "application/x-www-form-urlencoded"):
        response = gallery.client.post(
            f"/scenes/{scene}/query", content=b"{}", headers={"Content-Type": media_type}
        )
        assert_refused(response, 415)


def test_too_many_points_name_the_limit(gallery: Gallery, scene: str) -> None:
    response = send(gallery, scene, bytes(8 * 100_001))
    assert_refused(response, 422)
    assert response.json()["error"]["limit"] == "max_query_points"


def test_too_long_a_body_is_refused(gallery: Gallery, scene: str) -> None:
    assert_refused(send(gallery, scene, bytes(9 << 20)), 413)


def test_a_scene_with_nothing_to_show_is_not_found(gallery: Gallery) -> None:
    assert_refused(ask(gallery, gallery.add_empty(), [[1, 1]]), 404)


def test_other_sites_may_ask(gallery: Gallery, scene: str) -> None:
    response = gallery.client.options(f"/scenes/{scene}/query")
    assert "POST" in response.headers["access-control-allow-methods"]
    assert ask(gallery, scene, []).headers["access-control-allow-origin"] == "*"
