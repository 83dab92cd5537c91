"""IIIF over HTTP: what clients and caches rely on, and nonsense answered with one JSON shape."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
import pyvips
from conftest import Gallery, random_field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from acorn_svc.store.scenes import Status, new_id

WIDTH, HEIGHT = 75, 50
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "tif": "image/tiff"}
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
LICENCE = "http://creativecommons.org/licenses/by/4.0/"
NONSENSE = ["", " ", "nan", "1e308", "-1", "٣,٣,٣,٣", "9" * 4096, "%00", "..", "💥", "^", "!", "0"]


@pytest.fixture(scope="module")
def scene(gallery: Gallery) -> str:
    return gallery.add(random_field(WIDTH, HEIGHT), rights=LICENCE)


def get_info(gallery: Gallery, scene_id: str) -> dict[str, Any]:
    document: dict[str, Any] = gallery.client.get(f"/iiif/{scene_id}/info.json").json()
    return document


def open_image(response: httpx2.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content))


def assert_refused(response: httpx2.Response, *statuses: int) -> None:
    assert response.status_code in statuses, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"code", "message", "limit", "value"}
    assert response.headers["access-control-allow-origin"] == "*"


def test_info_describes_the_image(gallery: Gallery, scene: str) -> None:
    info = get_info(gallery, scene)
    assert info["id"] == f"http://testserver/iiif/{scene}"
    assert (info["width"], info["height"]) == (WIDTH, HEIGHT)
    assert info["profile"] == "level2"
    assert info["rights"] == LICENCE
    assert info["sizes"] == [{"width": WIDTH, "height": HEIGHT}]
    assert info["tiles"] == [{"width": 512, "height": 512, "scaleFactors": [1]}]


def test_a_small_image_advertises_no_limits_and_a_large_one_does(gallery: Gallery) -> None:
    assert "maxWidth" not in get_info(gallery, gallery.add(random_field(1000, 700)))
    info = get_info(gallery, gallery.add(random_field(5000, 3000)))
    assert (info["maxWidth"], info["maxHeight"], info["maxArea"]) == (4096, 4096, 2048 * 2048)
    assert info["tiles"][0]["scaleFactors"] == [1, 2, 4, 8, 16]
    assert info["sizes"][0] == {"width": 313, "height": 188}
    assert info["sizes"][-1] == {"width": 2500, "height": 1500}


def test_every_advertised_size_and_every_kind_of_tile_is_served(gallery: Gallery) -> None:
    """Regions and sizes as OpenSeadragon asks for them: edge tiles, every scale."""
    width, height = 1101, 641
    base = f"/iiif/{gallery.add(random_field(width, height))}"
    for size in gallery.client.get(f"{base}/info.json").json()["sizes"]:
        url = f"{base}/full/{size['width']},{size['height']}/0/default.jpg"
        assert open_image(gallery.client.get(url)).size == (size["width"], size["height"])
    for factor in (1, 2):
        left, top = (-(-side // factor) // 512 * 512 * factor for side in (width, height))
        region = (left, top, width - left, height - top)
        size = tuple(-(-side // factor) for side in region[2:])
        url = f"{base}/{','.join(map(str, region))}/{size[0]},{size[1]}/0/default.jpg"
        assert open_image(gallery.client.get(url)).size == size


@pytest.mark.parametrize("extension", FORMATS)
def test_formats(gallery: Gallery, scene: str, extension: str) -> None:
    response = gallery.client.get(f"/iiif/{scene}/full/max/0/default.{extension}")
    image = open_image(response)
    assert response.headers["content-type"] == MEDIA_TYPES[extension]
    assert (image.format, image.size, image.mode) == (FORMATS[extension], (WIDTH, HEIGHT), "RGB")


def test_an_image_is_the_field_at_that_place(gallery: Gallery) -> None:
    field = random_field(WIDTH, HEIGHT)
    url = f"/iiif/{gallery.add(field)}/10,5,30,20/60,/!90/default.png"
    image = open_image(gallery.client.get(url.replace("/60,", "/^60,")))
    expected = np.rot90(field.render((10, 5, 30, 20), (60, 40))[:, ::-1], axes=(1, 0))
    # The file holds parameters as 16-bit floats.
    difference = np.abs(np.asarray(image, np.int16) - expected)
    assert image.size == (40, 60)
    assert difference.max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_every_kind_of_image_in_every_quality_and_format(
    gallery: Gallery, channels: int, bit_depth: int
) -> None:
    base = f"/iiif/{gallery.add(random_field(20, 30, channels, bit_depth))}"
    for quality in ("default", "color", "gray", "bitonal"):
        for extension in FORMATS:
            response = gallery.client.get(f"{base}/full/max/90/{quality}.{extension}")
            image = pyvips.Image.new_from_buffer(response.content, "")
            color = quality == "color" or (quality == "default" and channels > 2)
            alpha = channels in (2, 4) and quality != "bitonal" and extension != "jpg"
            # WebP knows no gray.
            assert image.bands == (3 if color or extension == "webp" else 1) + alpha
            deep = bit_depth == 16 and extension in ("png", "tif")
            assert image.format == ("ushort" if deep else "uchar")
            assert (image.width, image.height) == (30, 20)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_angle_gives_transparent_corners_where_the_format_has_them(
    gallery: Gallery, channels: int
) -> None:
    base = f"/iiif/{gallery.add(random_field(40, 40, channels))}/full/max/!22.5/default"
    image = pyvips.Image.new_from_buffer(gallery.client.get(f"{base}.png").content, "")
    assert image.hasalpha()
    assert image.getpoint(0, 0)[-1] == 0
    jpeg = pyvips.Image.new_from_buffer(gallery.client.get(f"{base}.jpg").content, "")
    white = channels in (2, 4)
    assert all(abs(value - 255 * white) < 5 for value in jpeg.getpoint(0, 0))


def test_head_says_what_get_says(gallery: Gallery, scene: str) -> None:
    for path in ("", "/info.json", "/full/max/0/default.jpg"):
        url = f"/iiif/{scene}{path}"
        get = gallery.client.get(url, follow_redirects=False)
        head = gallery.client.head(url, follow_redirects=False)
        assert head.status_code == get.status_code
        assert head.content == b""
        own = dict.fromkeys(("content-length", "x-request-id"), "")
        assert {**head.headers, **own} == {**get.headers, **own}
        assert set(get.headers) - set(head.headers) <= {"content-length"}


def test_options_answers_with_and_without_a_preflight(gallery: Gallery, scene: str) -> None:
    for path in ("", "/info.json", "/full/max/0/default.jpg"):
        response = gallery.client.options(f"/iiif/{scene}{path}")
        assert response.status_code == 204
        assert response.headers["access-control-allow-origin"] == "*"
        assert "GET" in response.headers["access-control-allow-methods"]


def test_a_client_that_has_it_already_is_told_so(gallery: Gallery, scene: str) -> None:
    for path in ("/info.json", "/full/max/0/default.jpg"):
        url = f"/iiif/{scene}{path}"
        etag = gallery.client.get(url).headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            response = gallery.client.get(url, headers={"If-None-Match": known})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == etag
        assert gallery.client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_running_fit_shows_its_newest_version(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(WIDTH, HEIGHT, seed=1), status=Status.FITTING)
    url = f"/iiif/{scene_id}/full/max/0/default.png"
    first = gallery.client.get(url)
    gallery.publish(scene_id, random_field(WIDTH, HEIGHT, seed=2))
    second = gallery.client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    assert second.content != first.content
    assert second.headers["cache-control"] == "public, max-age=2"


def test_a_ready_scene_may_be_kept_for_minutes_under_its_plain_address(gallery: Gallery, scene: str) -> None:
    response = gallery.client.get(f"/iiif/{scene}/full/max/0/default.jpg?v=7")
    assert response.headers["cache-control"] == "public, max-age=300"


def test_new_rights_appear_at_once(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(8, 8))
    url = f"/iiif/{scene_id}/info.json"
    etag = gallery.client.get(url).headers["etag"]
    assert "rights" not in get_info(gallery, scene_id)
    gallery.client.patch(f"/scenes/{scene_id}", json={"rights": LICENCE})
    response = gallery.client.get(url, headers={"If-None-Match": etag})
    assert response.json()["rights"] == LICENCE


def test_json_ld_for_those_who_ask(gallery: Gallery, scene: str) -> None:
    url = f"/iiif/{scene}/info.json"
    plain = gallery.client.get(url)
    linked = gallery.client.get(url, headers={"Accept": "application/ld+json"})
    assert plain.headers["content-type"] == "application/json"
    assert linked.headers["content-type"].startswith("application/ld+json;profile=")
    assert linked.headers["etag"] != plain.headers["etag"]
    assert linked.json() == plain.json()


def test_the_base_uri_leads_to_the_description(gallery: Gallery, scene: str) -> None:
    response = gallery.client.get(f"/iiif/{scene}", follow_redirects=False)
    assert response.status_code == 303
    assert response.headers["location"] == f"http://testserver/iiif/{scene}/info.json"


def test_the_canonical_link_leads_to_the_same_picture(gallery: Gallery, scene: str) -> None:
    response = gallery.client.get(f"/iiif/{scene}/pct:0,0,50,50/^pct:200/0/color.png")
    link = response.headers["link"].partition(";")[0].strip("<>")
    assert link.endswith("/0,0,38,25/%5E76,50/0/default.png")
    assert gallery.client.get(link).content == response.content


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("place", range(4))
def test_nonsense_is_refused(gallery: Gallery, scene: str, nonsense: str, place: int) -> None:
    parts = ["full", "max", "0", "default.jpg"]
    if (parts[place], nonsense) == ("0", "0"):
        return
    parts[place] = nonsense
    path = "/".join(quote(part, safe=",:!^") for part in parts)
    assert_refused(gallery.client.get(f"/iiif/{scene}/{path}"), 400, 404)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), min_size=4, max_size=4))
def test_any_text_is_a_picture_or_refused(gallery: Gallery, scene: str, parts: list[str]) -> None:
    path = "/".join(quote(part, safe="") for part in parts)
    response = gallery.client.get(f"/iiif/{scene}/{path}")
    if response.status_code != 200:
        assert_refused(response, 400, 404)


@pytest.mark.parametrize(
    "path",
    ["", "/info.json", "/full/max/0/default.jpg"],
)
def test_unknown_and_empty_scenes_are_not_found(gallery: Gallery, path: str) -> None:
    for scene_id in (new_id(), "x", "%2e%2e", "A" * 26, "0" * 4096, gallery.add_empty()):
        assert_refused(gallery.client.get(f"/iiif/{scene_id}{path}"), 404)


def test_a_deleted_scene_is_not_found(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(8, 8))
    url = f"/iiif/{scene_id}/full/max/0/default.jpg"
    assert gallery.client.get(url).status_code == 200
    assert gallery.client.delete(f"/scenes/{scene_id}").status_code == 204
    assert_refused(gallery.client.get(url), 404)
