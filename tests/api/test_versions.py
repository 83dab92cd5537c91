"""Addresses with a version: kept for ever once a scene is ready, and never showing anything else."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

import pytest
from conftest import Gallery, random_field

from acorn_svc.api.caching import FOR_EVER
from acorn_svc.api.rendering import OPEN_ATTEMPTS
from acorn_svc.field.shape import ShapeField
from acorn_svc.store.scenes import Status

PICTURE = "full/max/0/default.png"


@pytest.fixture(scope="module")
def image(gallery: Gallery) -> str:
    return gallery.add(random_field(40, 24))


@pytest.fixture(scope="module")
def shape(gallery: Gallery, ball_field: ShapeField) -> str:
    return gallery.add(ball_field)


def links_of(gallery: Gallery, scene_id: str) -> dict[str, str]:
    links: dict[str, str] = gallery.client.get(f"/scenes/{scene_id}").json()["links"]
    return links


def ask(gallery: Gallery, url: str, **more: Any) -> Any:
    return gallery.client.get(url, follow_redirects=False, **more)


def test_the_links_of_a_ready_scene_may_be_kept_for_ever(gallery: Gallery, image: str, shape: str) -> None:
    of_image, of_shape = links_of(gallery, image), links_of(gallery, shape)
    for link in (
        of_image["thumbnail"],
        of_image["region"],
        of_image["dzi"],
        of_shape["thumbnail"],
        of_shape["mesh"] + "?resolution=8",
        of_shape["tiles3d"],
    ):
        answer = ask(gallery, link)
        assert answer.status_code == 200, (link, answer.text)
        assert answer.headers["cache-control"] == FOR_EVER, link
        known = {"If-None-Match": answer.headers["etag"]}
        assert ask(gallery, link, headers=known).status_code == 304
        head = gallery.client.head(link)
        assert (head.status_code, head.headers["cache-control"]) == (200, FOR_EVER)


def test_viewers_are_led_from_a_versioned_description_to_versioned_tiles(
    gallery: Gallery, image: str, shape: str
) -> None:
    links = links_of(gallery, image)
    info = ask(gallery, links["iiif"])
    assert info.json()["id"] == links["iiif"].removesuffix("/info.json")
    # The rights may be edited at any time.
    assert info.headers["cache-control"] == "no-cache"
    tile = ask(gallery, f"{info.json()['id']}/{PICTURE}")
    assert f"<{info.json()['id']}/full/max/" in tile.headers["link"]
    dzi = ask(gallery, links["dzi"].removesuffix(".dzi") + "_files/0/0_0.png")
    # 3D Tiles lead there from the plain address, too.
    plain = f"/tiles3d/{shape}/tileset.json"
    uri = ask(gallery, plain).json()["root"]["content"]["uri"].format(level=0, x=0, y=0, z=0)
    content = ask(gallery, urljoin(plain, uri))
    for answer in (tile, dzi, content):
        assert (answer.status_code, answer.headers["cache-control"]) == (200, FOR_EVER)


def test_both_addresses_show_the_same(gallery: Gallery, image: str) -> None:
    plain, versioned = (ask(gallery, f"/iiif/{name}/{PICTURE}") for name in (image, f"{image}-1"))
    assert plain.content == versioned.content
    assert plain.headers["etag"] == versioned.headers["etag"]
    assert plain.headers["cache-control"] == "public, max-age=300"


def test_while_a_fit_runs_nothing_is_kept_for_long(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    assert "-1" not in links_of(gallery, scene_id)["thumbnail"].removeprefix("http://")
    answer = ask(gallery, f"/iiif/{scene_id}-1/{PICTURE}")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "public, max-age=2")


def test_any_other_version_leads_to_the_plain_address(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    gallery.publish(scene_id, random_field(16, 16, seed=1))
    for version in (1, 3, 999_999_999):
        answer = ask(gallery, f"/iiif/{scene_id}-{version}/0,0,8,8/^16,/0/default.png?a=b%20c")
        assert answer.status_code == 307
        assert answer.headers["location"] == f"/iiif/{scene_id}/0,0,8,8/%5E16,/0/default.png?a=b%20c"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert gallery.client.get(f"/iiif/{scene_id}-{version}/{PICTURE}").status_code == 200
    assert ask(gallery, f"/dzi/{scene_id}-1_files/0/0_0.jpg").status_code == 307
    assert ask(gallery, f"/scenes/{scene_id}-1/region").status_code == 307


@pytest.mark.parametrize("version", ["0", "01", "-1", "x", "1.0", "9999999999", "1-1", ""])
def test_what_is_no_version_is_not_found(gallery: Gallery, image: str, version: str) -> None:
    answer = ask(gallery, f"/iiif/{image}-{version}/{PICTURE}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["cache-control"] == "no-store"


def test_no_other_version_is_shown_under_a_version_that_is_overtaken(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    gallery.publish(scene_id, random_field(16, 16))  # the first was also the original, which stays
    look_up = gallery.store.snapshot_of
    left = OPEN_ATTEMPTS - 1

    def overtaken(scene: Any) -> Any:
        nonlocal left
        found = look_up(scene)
        for _ in range(2 if left else 0):
            gallery.publish(scene_id, random_field(16, 16, seed=left))
        left = 0
        return found

    monkeypatch.setattr(gallery.store, "snapshot_of", overtaken)
    answer = ask(gallery, f"/iiif/{scene_id}-2/{PICTURE}")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/iiif/{scene_id}/{PICTURE}")
