"""Scenes over HTTP, without a worker: upload, list, describe, download, delete."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from conftest import Gallery, random_field
from fastapi.responses import StreamingResponse
from PIL import Image
from sqlalchemy import text

from acorn_svc.formats.container import field_to_bytes

LINKS = {
    "self": "/scenes/{id}",
    "events": "/scenes/{id}/events",
    "file": "/scenes/{id}/file",
    "original": "/scenes/{id}/original",
    "tree": "/scenes/{id}/tree",
    "query": "/scenes/{id}/query",
    "region": "/scenes/{id}/region",
    "iiif": "/iiif/{id}/info.json",
    "dzi": "/dzi/{id}.dzi",
    "thumbnail": "/iiif/{id}/full/^!400,400/0/default.jpg",
}
NO_LINKS = {"mesh": None, "tiles3d": None}


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (20, 10)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = BytesIO()
    Image.fromarray(noise).save(content, kind)
    return content.getvalue()


def upload(gallery: Gallery, content: bytes, **options: Any) -> dict[str, Any]:
    answer = gallery.client.post("/scenes", content=content, params=options)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_image_is_taken_by_its_content(gallery: Gallery, kind: str) -> None:
    content = image_bytes(kind)
    scene = upload(gallery, content)
    assert re.fullmatch("[0-9a-z]{26}", scene["id"])
    assert scene["status"] == "queued"
    assert (scene["width"], scene["height"]) == (20, 10)
    assert (scene["channels"], scene["bit_depth"]) == (3, 8)
    assert (scene["format_original"], scene["bytes_original"]) == (kind.lower(), len(content))
    assert (scene["version"], scene["progress"], scene["error"]) == (0, None, None)
    links = {name: f"http://testserver{path.format(id=scene['id'])}" for name, path in LINKS.items()}
    assert scene["links"] == {**links, **NO_LINKS}
    assert (scene["kind"], scene["shape"]) == ("image", None)


def test_options_come_with_the_url_or_with_a_form(gallery: Gallery) -> None:
    options = {"title": "Noise", "attribution": "Nobody", "preset": "draft", "encoder": "coordinate"}
    raw = upload(gallery, image_bytes(), **options)
    answer = gallery.client.post("/scenes", data=options, files={"file": ("x", image_bytes())})
    assert answer.status_code == 201, answer.text
    for scene in (raw, answer.json()):
        assert options.items() <= scene.items()
        assert gallery.store.original(scene["id"]).read_bytes() == image_bytes()


def test_fields_of_a_form_that_are_empty_count_as_left_out(gallery: Gallery) -> None:
    form = {"title": "", "rights": "", "seconds": "", "preset": ""}
    answer = gallery.client.post("/scenes", data=form, files={"file": ("x.png", image_bytes())})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["title"], answer.json()["preset"]) == (None, "standard")


def test_an_acorn_file_becomes_a_ready_scene(gallery: Gallery) -> None:
    content = field_to_bytes(random_field(40, 30))
    scene = upload(gallery, content, title="Given")
    assert (scene["status"], scene["version"], scene["format_original"]) == ("ready", 1, "acorn")
    assert (scene["width"], scene["height"], scene["title"]) == (40, 30, "Given")
    for part in ("file", "original"):
        assert gallery.client.get(f"/scenes/{scene['id']}/{part}").content == content
    answer = gallery.client.get(f"/iiif/{scene['id']}/full/20,15/0/default.png")
    assert Image.open(BytesIO(answer.content)).size == (20, 15)


def test_the_list_is_newest_first_and_continues(gallery: Gallery) -> None:
    ids = [upload(gallery, image_bytes())["id"] for _ in range(3)]
    first = gallery.client.get("/scenes", params={"limit": 2}).json()
    second = gallery.client.get("/scenes", params={"limit": 2, "cursor": first["next"]}).json()
    listed = [scene["id"] for scene in first["items"] + second["items"]]
    assert listed[:3] == sorted(ids, reverse=True)
    assert first["total"] >= 3
    everything: list[str] = []
    cursor = None
    while True:
        page = gallery.client.get("/scenes", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        everything += [scene["id"] for scene in page.json()["items"]]
        cursor = page.json()["next"]
        if cursor is None:
            break
    assert len(everything) == len(set(everything)) == first["total"]


def test_patch_changes_what_it_names(gallery: Gallery) -> None:
    scene = upload(gallery, image_bytes(), title="Before", description="Kept")
    licence = "https://creativecommons.org/publicdomain/zero/1.0/"
    path = f"/scenes/{scene['id']}"
    changed = gallery.client.patch(path, json={"title": None, "rights": licence}).json()
    assert (changed["title"], changed["rights"], changed["description"]) == (None, licence, "Kept")
    assert changed["updated_at"] > scene["updated_at"]
    assert gallery.client.get(path).json() == changed


def test_rights_are_shown_to_iiif_clients(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    licence = "https://creativecommons.org/licenses/by/4.0/"
    gallery.client.patch(f"/scenes/{scene_id}", json={"rights": licence})
    assert gallery.client.get(f"/iiif/{scene_id}/info.json").json()["rights"] == licence


@pytest.mark.parametrize("rights", ["javascript:alert(1)", "CC0", "ftp://a/b", "http://", 7])
def test_rights_must_be_a_web_address(gallery: Gallery, rights: object) -> None:
    scene = upload(gallery, image_bytes())
    answer = gallery.client.patch(f"/scenes/{scene['id']}", json={"rights": rights})
    assert answer.status_code == 422


def test_a_deleted_scene_leaves_nothing(gallery: Gallery) -> None:
    scene = upload(gallery, image_bytes(size=(9, 9)))  # no other scene has the same original
    original = gallery.store.original(scene["id"])
    assert original.is_file()
    assert _waiting_jobs(gallery, scene["id"]) == [f"{scene['id']}-0"]
    assert gallery.client.delete(f"/scenes/{scene['id']}").status_code == 204
    assert not original.exists()
    assert _waiting_jobs(gallery, scene["id"]) == []
    for method, part in [("GET", ""), ("DELETE", ""), ("GET", "/file"), ("GET", "/events")]:
        assert gallery.client.request(method, f"/scenes/{scene['id']}{part}").status_code == 404


def _waiting_jobs(gallery: Gallery, scene_id: str) -> list[str]:
    """The names of the scene's jobs in the table of the queue."""
    jobs = "SELECT workflow_uuid FROM workflow_status WHERE status = 'ENQUEUED' AND workflow_uuid LIKE :job"
    with gallery.store.database.read() as session:
        return list(session.scalars(text(jobs), {"job": f"{scene_id}-%"}))


def test_a_queued_job_can_be_cancelled_and_queued_again(gallery: Gallery) -> None:
    path = f"/scenes/{upload(gallery, image_bytes())['id']}"
    assert gallery.client.post(f"{path}/retry").status_code == 409
    assert gallery.client.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert gallery.client.post(f"{path}/cancel").status_code == 409
    assert gallery.client.post(f"{path}/retry").json()["status"] == "queued"


def test_a_file_knows_its_version(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    path = f"/scenes/{scene_id}/file"
    first = gallery.client.get(path)
    assert gallery.client.get(path, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    gallery.publish(scene_id, random_field(16, 16, seed=1))
    second = gallery.client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert second.status_code == 200
    assert second.content != first.content


def test_head_is_get_without_a_body(gallery: Gallery) -> None:
    path = f"/scenes/{gallery.add(random_field(16, 16))}/file"
    get, head = gallery.client.get(path), gallery.client.head(path)
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(get.content)
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=0-9", slice(0, 10)), ("bytes=5-", slice(5, None)), ("bytes=-7", slice(-7, None))],
)
def test_one_range_of_a_file(gallery: Gallery, header: str, expected: slice) -> None:
    path = f"/scenes/{gallery.add(random_field(16, 16))}/file"
    whole = gallery.client.get(path).content
    part = gallery.client.get(path, headers={"Range": header})
    assert part.status_code == 206
    assert part.content == whole[expected]
    assert part.headers["content-range"].endswith(f"/{len(whole)}")


@pytest.mark.parametrize(
    "header", ["bytes=0-1,4-5", "lines=1-2", "bytes=9-3", "bytes=0 0-5", "b ytes=0-5", "x" * 500]
)
def test_other_ranges_get_the_whole_file(gallery: Gallery, header: str) -> None:
    path = f"/scenes/{gallery.add(random_field(16, 16))}/file"
    answer = gallery.client.get(path, headers={"Range": header})
    assert answer.status_code == 200
    assert answer.content == gallery.client.get(path).content


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(gallery: Gallery, header: str) -> None:
    path = f"/scenes/{gallery.add(random_field(16, 16))}/file"
    answer = gallery.client.get(path, headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"].startswith("bytes */")
    assert set(answer.json()["error"]) == {"code", "message", "limit", "value"}


def test_a_range_goes_on_with_the_file_it_began_with_or_brings_all_of_another(gallery: Gallery) -> None:
    path = f"/scenes/{gallery.add(random_field(16, 16))}/file"
    whole = gallery.client.get(path)
    for known in (whole.headers["etag"], whole.headers["last-modified"]):
        part = gallery.client.get(path, headers={"Range": "bytes=5-", "If-Range": known})
        assert (part.status_code, part.content) == (206, whole.content[5:])
    for header in ("bytes=5-", "bytes=99999999-"):
        answer = gallery.client.get(path, headers={"Range": header, "If-Range": '"an older one"'})
        assert (answer.status_code, answer.content) == (200, whole.content)


def test_an_original_is_never_shown_inline(gallery: Gallery) -> None:
    scene = upload(gallery, image_bytes())
    answer = gallery.client.get(f"/scenes/{scene['id']}/original")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_download_is_whole_though_its_scene_is_deleted(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = image_bytes()
    scene = upload(gallery, content)
    send_file = StreamingResponse.__call__

    async def send_late(response: StreamingResponse, *connection: Any) -> None:
        gallery.store.delete(scene["id"])
        await send_file(response, *connection)

    monkeypatch.setattr(StreamingResponse, "__call__", send_late)
    assert gallery.client.get(f"/scenes/{scene['id']}/original").content == content
    assert gallery.client.get(f"/scenes/{scene['id']}/original").status_code == 404


def test_the_tree_covers_the_image(gallery: Gallery) -> None:
    field = random_field(50, 30)
    tree = gallery.client.get(f"/scenes/{gallery.add(field)}/tree").json()
    assert (tree["version"], tree["width"], tree["height"]) == (1, 50, 30)
    assert tree["levels"] == field.info().levels
    assert tree["blocks"] == field.blocks().tolist()


def test_a_scene_without_a_snapshot_has_no_file(gallery: Gallery) -> None:
    scene_id = gallery.add_empty()
    for part in ("file", "tree"):
        assert gallery.client.get(f"/scenes/{scene_id}/{part}").status_code == 404
