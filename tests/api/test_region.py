"""Regions as files: the same picture in one piece or in strips, and nothing for those who leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import pyvips
from conftest import Gallery, random_field

from acorn_svc.field.model import Field

WIDTH, HEIGHT = 75, 50
SYNTAX = ["", "0,0,10", "0,0,10,10,10", "full", "0x1,0,1,1", " 0,0,1,1", "٣,0,1,1", "-1,0,10,10"]
EMPTY = ["0,0,0,10", "0,0,10,0", "0,0,5e-324,1", "0,0,0.0000001,1"]
OUTSIDE = ["70,0,10,10", "0,45,10,10", "76,0,1,1", "0,0,1e308,1", "0,0,inf,1", "nan,0,1,1"]
BAD_REGIONS = [*SYNTAX, *EMPTY, *OUTSIDE, "9" * 4096]
BAD_SIZES = ["", "0,1", "1,0", "1", "1,", "-1,1", "1.5,1", "1e3,1", "nan,1", "max", "٣,1", "9" * 4096]


@pytest.fixture(scope="module")
def scene(gallery: Gallery) -> str:
    return gallery.add(random_field(WIDTH, HEIGHT))


def get(gallery: Gallery, scene_id: str, **parameters: str) -> httpx2.Response:
    return gallery.client.get(f"/scenes/{scene_id}/region", params=parameters)


def pixels(response: httpx2.Response) -> Any:
    assert response.status_code == 200, response.text
    return pyvips.Image.new_from_buffer(response.content, "").numpy()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("file_format", ["png", "tif"])
def test_every_kind_of_image_is_streamed_exactly(
    gallery: Gallery, channels: int, bit_depth: int, file_format: str
) -> None:
    field = random_field(WIDTH, HEIGHT, channels, bit_depth)
    found = pixels(get(gallery, gallery.add(field), format=file_format))
    expected = field.render()
    assert found.dtype == expected.dtype
    # The file holds parameters as 16-bit floats.
    tolerance = np.iinfo(expected.dtype).max / 100
    difference = found.reshape(expected.shape).astype(int) - expected
    assert np.abs(difference).max() <= tolerance


def test_many_strips_make_one_picture(gallery: Gallery, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = get(gallery, scene, region="1.5,2,60,40.25", size="200,130")
    monkeypatch.setattr("acorn_svc.api.region.STRIP_PIXELS", 200 * 7)
    strips = get(gallery, scene, region="1.5,2,60,40.25", size="200,130")
    assert pixels(strips).shape == (130, 200, 3)
    np.testing.assert_array_equal(pixels(strips), pixels(whole))


def test_the_size_of_a_region_is_its_own_unless_asked_for(gallery: Gallery, scene: str) -> None:
    assert pixels(get(gallery, scene, region="10,10,20.4,5.6")).shape == (6, 20, 3)
    assert pixels(get(gallery, scene, size="7,9")).shape == (9, 7, 3)


def test_a_picture_larger_than_the_image(gallery: Gallery, scene: str) -> None:
    assert pixels(get(gallery, scene, size="1500,1000")).shape == (1000, 1500, 3)


@pytest.mark.parametrize("region", BAD_REGIONS)
def test_regions_that_are_refused(gallery: Gallery, scene: str, region: str) -> None:
    assert_refused(get(gallery, scene, region=region), 400)


@pytest.mark.parametrize("size", BAD_SIZES)
def test_sizes_that_are_refused(gallery: Gallery, scene: str, size: str) -> None:
    assert_refused(get(gallery, scene, size=size), 400)


def test_sizes_over_a_limit_name_it(gallery: Gallery, scene: str) -> None:
    for size, limit in (("999999999,1", "max_region_side"), ("999999,999999", "max_region_pixels")):
        response = get(gallery, scene, size=size)
        assert_refused(response, 422)
        assert response.json()["error"]["limit"] == limit


def test_unknown_formats_and_scenes_are_refused(gallery: Gallery, scene: str) -> None:
    assert_refused(get(gallery, scene, format="gif"), 422)
    assert_refused(get(gallery, gallery.add_empty()), 404)


def test_head_options_and_revalidation(gallery: Gallery, scene: str) -> None:
    url = f"/scenes/{scene}/region?size=9,9"
    etag = gallery.client.get(url).headers["etag"]
    assert gallery.client.head(url).headers["etag"] == etag
    assert gallery.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert gallery.client.options(url).status_code == 204


def assert_refused(response: httpx2.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"code", "message", "limit", "value"}


def test_rendering_stops_when_the_client_leaves(
    live_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture would have a million strips; the client takes the first bytes and goes."""
    begun, stopped = threading.Event(), threading.Event()
    render = Field.render_strips

    def observed(*arguments: Any) -> Iterator[Any]:
        begun.set()
        try:
            yield from render(*arguments)
        finally:
            stopped.set()

    monkeypatch.setattr(Field, "render_strips", observed)
    monkeypatch.setattr("acorn_svc.api.region.STRIP_PIXELS", 1000)
    url = f"/scenes/{live_gallery.add(random_field(8, 8))}/region"
    parameters = {"size": "1000,1000000", "format": "tif"}
    with live_gallery.client.stream("GET", url, params=parameters) as response:
        assert response.status_code == 200
        parts = response.iter_raw()  # held: the connection is closed when it goes
        assert next(parts)
        assert begun.wait(30)
        assert not stopped.is_set()
    assert stopped.wait(30)
