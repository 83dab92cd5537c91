"""Deep Zoom: the tiles of a level cover it exactly, and a server sends them."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import httpx2
import numpy as np
import pytest
from conftest import Gallery, random_field
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acorn_svc.api.deepzoom import OVERLAP, TILE_SIDE, highest_level, tile_region
from acorn_svc.errors import NotFound
from acorn_svc.store.scenes import new_id

sides = st.integers(1, 4 * TILE_SIDE) | st.integers(1, 200_000)


@given(st.tuples(sides, sides))
def test_the_lowest_level_is_one_pixel_and_the_highest_is_the_image(size: tuple[int, int]) -> None:
    assert tile_region(size, 0, 0, 0)[1] == (1, 1)
    region, pixels = tile_region(size, highest_level(size), 0, 0)
    assert region.size == pixels


@given(st.tuples(sides, sides), st.data())
def test_tiles_cover_a_level_and_overlap_by_one_pixel(size: tuple[int, int], data: st.DataObject) -> None:
    level = data.draw(st.integers(0, highest_level(size)))
    scale = 2 ** (highest_level(size) - level)
    wide = -(-size[0] // scale)
    columns = -(-wide // TILE_SIDE)
    column = data.draw(st.integers(0, columns - 1))
    region, pixels = tile_region(size, level, column, 0)
    first = column * TILE_SIDE - (OVERLAP if column else 0)
    last = min((column + 1) * TILE_SIDE + OVERLAP, wide)
    assert pixels[0] == last - first
    assert region.x == first * scale
    assert region.x + region.width == min(last * scale, size[0])
    assert region.y == 0
    with pytest.raises(NotFound):
        tile_region(size, level, columns, 0)


@given(st.tuples(sides, sides), st.data())
def test_a_tile_is_never_enlarged_and_fits_a_texture(size: tuple[int, int], data: st.DataObject) -> None:
    level = data.draw(st.integers(0, highest_level(size)))
    region, pixels = tile_region(size, level, 0, 0)
    assert pixels[0] <= min(region.width, TILE_SIDE + 2 * OVERLAP)
    assert pixels[1] <= min(region.height, TILE_SIDE + 2 * OVERLAP)


def test_there_is_no_level_above_the_image() -> None:
    with pytest.raises(NotFound):
        tile_region((1000, 10), 11, 0, 0)


# Over HTTP

WIDTH, HEIGHT = 1101, 641


@pytest.fixture(scope="module")
def scene(gallery: Gallery) -> str:
    return gallery.add(random_field(WIDTH, HEIGHT))


def test_the_descriptor_says_what_the_tiles_are(gallery: Gallery, scene: str) -> None:
    response = gallery.client.get(f"/dzi/{scene}.dzi")
    image = ElementTree.fromstring(response.content)
    size = image.find("{http://schemas.microsoft.com/deepzoom/2008}Size")
    assert response.headers["content-type"].startswith("application/xml")
    assert image.attrib == {"Format": "jpg", "Overlap": "1", "TileSize": "510"}
    assert size is not None
    assert size.attrib == {"Width": str(WIDTH), "Height": str(HEIGHT)}


def test_an_image_with_alpha_has_tiles_that_keep_it(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(8, 8, 4))
    image = ElementTree.fromstring(gallery.client.get(f"/dzi/{scene_id}.dzi").content)
    url = f"/dzi/{scene_id}_files/3/0_0.{image.attrib['Format']}"
    assert Image.open(io.BytesIO(gallery.client.get(url).content)).mode == "RGBA"


def test_tiles_are_as_large_as_they_should_be(gallery: Gallery, scene: str) -> None:
    expected = {
        (11, 0, 0): (511, 511),
        (11, 1, 0): (512, 511),
        (11, 2, 1): (WIDTH - 1019, HEIGHT - 509),
        (10, 0, 0): (511, 321),
        (10, 1, 0): (551 - 509, 321),
        (9, 0, 0): (276, 161),
        (0, 0, 0): (1, 1),
    }
    for (level, column, row), size in expected.items():
        url = f"/dzi/{scene}_files/{level}/{column}_{row}.png"
        assert Image.open(io.BytesIO(gallery.client.get(url).content)).size == size


def test_neighbours_show_the_same_pixels_where_they_overlap(gallery: Gallery, scene: str) -> None:
    left, right = (
        np.asarray(
            Image.open(io.BytesIO(gallery.client.get(f"/dzi/{scene}_files/11/{column}_0.png").content)),
            np.int16,
        )
        for column in (0, 1)
    )
    assert np.abs(left[:, -2:] - right[:, :2]).max() <= 1


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_head_options_and_revalidation(gallery: Gallery, scene: str, extension: str) -> None:
    for url in (f"/dzi/{scene}.dzi", f"/dzi/{scene}_files/0/0_0.{extension}"):
        get = gallery.client.get(url)
        assert get.headers["access-control-allow-origin"] == "*"
        assert gallery.client.head(url).headers["etag"] == get.headers["etag"]
        assert gallery.client.options(url).status_code == 204
        known = {"If-None-Match": get.headers["etag"]}
        assert gallery.client.get(url, headers=known).status_code == 304


@pytest.mark.parametrize("tile", ["12/0_0.jpg", "11/3_0.jpg", "11/0_2.jpg", "999999999/0_0.jpg"])
def test_tiles_outside_the_pyramid_are_not_found(gallery: Gallery, scene: str, tile: str) -> None:
    assert_refused(gallery.client.get(f"/dzi/{scene}_files/{tile}"), 404)


@pytest.mark.parametrize("number", ["x", "", "-1", "1e1", "nan", "٣", "9" * 4096, "1.0", " 1"])
def test_numbers_that_are_none_are_refused(gallery: Gallery, scene: str, number: str) -> None:
    for tile in (f"11/{number}_0.jpg", f"11/0_{number}.jpg"):
        assert_refused(gallery.client.get(f"/dzi/{scene}_files/{tile}"), 400)
    assert_refused(gallery.client.get(f"/dzi/{scene}_files/{number}/0_0.jpg"), 400, 404)


@pytest.mark.parametrize("name", ["0_0.gif", "0_0.tif", "0_0", "0-0.jpg", "0_0_0.jpg", "0_0.jpg.png"])
def test_names_that_are_no_tile_are_refused(gallery: Gallery, scene: str, name: str) -> None:
    assert_refused(gallery.client.get(f"/dzi/{scene}_files/11/{name}"), 400)


def assert_refused(response: httpx2.Response, *statuses: int) -> None:
    assert response.status_code in statuses, response.text
    assert set(response.json()["error"]) == {"code", "message", "limit", "value"}


def test_unknown_scenes_are_not_found(gallery: Gallery) -> None:
    for scene_id in (new_id(), "x", gallery.add_empty()):
        for url in (f"/dzi/{scene_id}.dzi", f"/dzi/{scene_id}_files/0/0_0.jpg"):
            assert gallery.client.get(url).status_code == 404
