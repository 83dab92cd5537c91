"""Uploads in one request: digests are held against what arrives, and who leaves leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest
from conftest import Gallery
from test_scenes import image_bytes

from acorn_svc.api import uploads as api_uploads
from acorn_svc.api.intake import Intake
from acorn_svc.errors import BadImage
from acorn_svc.jobs.inspection import Inspection, Inspector
from acorn_svc.settings import MIB, Settings

PATIENCE_SECONDS = 60


def digest(content: bytes, name: str = "sha256") -> str:
    text = base64.b64encode(hashlib.new(name, content).digest()).decode()
    return f"sha-{name.removeprefix('sha')}=:{text}:"


def spool_of(gallery: Gallery) -> list[str]:
    return [path.name for path in gallery.store.blobs.spool.iterdir()]


def form(content: bytes, **part_headers: str) -> tuple[bytes, dict[str, str]]:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in part_headers.items()]
    head = '--cut\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n' + "".join(lines)
    body = head.encode() + b"\r\n" + content + b"\r\n--cut--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=cut"}


@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
def test_a_body_is_held_against_its_digest(gallery: Gallery, name: str) -> None:
    content = image_bytes()
    sent = {name: f"{digest(content, 'sha512')}, {digest(content)}"}
    assert gallery.client.post("/scenes", content=content, headers=sent).status_code == 201
    wrong = gallery.client.post("/scenes", content=content + b"x", headers=sent)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "digest_mismatch")
    assert spool_of(gallery) == []


def test_both_digests_must_be_right(gallery: Gallery) -> None:
    content = image_bytes()
    sent = {"Content-Digest": digest(content), "Repr-Digest": digest(b"another file")}
    assert gallery.client.post("/scenes", content=content, headers=sent).status_code == 422


def test_a_form_and_the_file_in_it_may_have_digests(gallery: Gallery) -> None:
    content = image_bytes()
    body, kind = form(content, Content_Digest=digest(content))
    right = {**kind, "Content-Digest": digest(body)}
    assert gallery.client.post("/scenes", content=body, headers=right).status_code == 201
    wrong = {**kind, "Content-Digest": digest(content)}
    assert gallery.client.post("/scenes", content=body, headers=wrong).status_code == 422
    body, kind = form(content, Repr_Digest=digest(b"another file"))
    assert gallery.client.post("/scenes", content=body, headers=kind).status_code == 422
    assert spool_of(gallery) == []


@pytest.mark.parametrize(
    "value", ["", "sha-256", "sha-256=abc", "sha-256=:!:", "sha-256=:YWJj:", digest(b"x", "sha512")]
)
def test_a_digest_that_cannot_be_checked_is_refused(gallery: Gallery, value: str) -> None:
    answer = gallery.client.post("/scenes", content=image_bytes(), headers={"Content-Digest": value})
    assert answer.status_code == 400


def test_room_is_looked_for_while_bytes_arrive(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([Settings().min_free_disk_bytes + 100, Settings().min_free_disk_bytes - 1])
    usage = type("Usage", (), {"free": property(lambda _self: next(free))})()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    answer = gallery.client.post("/scenes", content=iter([b"no length is announced"]))
    assert (answer.status_code, answer.json()["error"]["limit"]) == (507, "min_free_disk_bytes")
    assert spool_of(gallery) == []


@pytest.mark.parametrize(("missing", "status"), [(1, 507), (0, 415)])
def test_a_form_needs_room_for_one(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, missing: int, status: int
) -> None:
    """Room is looked for at the start and for what has come, but not for a copy."""
    body, kind = form(bytes(MIB + 1000))
    least = Settings().min_free_disk_bytes
    free = iter([least, least + len(body) - missing])
    usage = type("Usage", (), {"free": property(lambda _self: next(free))})()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    answer = gallery.client.post("/scenes", content=iter([body]), headers=kind)
    assert answer.status_code == status
    assert answer.json()["error"]["limit"] == ("min_free_disk_bytes" if missing else None)
    assert next(free, None) is None
    assert spool_of(gallery) == []


def test_the_file_of_a_form_is_written_once(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it arrives is where the check finds it, and no other file is made beside it."""
    seen: list[list[str]] = []

    def look(_inspector: Inspector, path: Path) -> Inspection:
        seen.append([path.name])
        seen.append(spool_of(gallery))
        raise BadImage("Not this one.")

    def no_other(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was rolled out to the disk")

    monkeypatch.setattr(Inspector, "inspect", look)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_other)
    body, kind = form(bytes(2 * MIB))
    assert gallery.client.post("/scenes", content=body, headers=kind).status_code == 422
    assert seen[0] == seen[1]
    assert spool_of(gallery) == []


def test_a_form_is_parsed_little_by_little(gallery: Gallery) -> None:
    """Others have their turn of the event loop in between, even if all of it came at once."""
    state = gallery.client.app.state  # type: ignore[attr-defined]
    intake = Intake(gallery.store, state.jobs, state.inspector)
    turns, seen = 0, []

    async def body() -> AsyncIterator[bytes]:
        yield bytes(MIB)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async def parse() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            async for part in api_uploads._with_room(body(), lambda _size: None, intake):
                seen.append((len(part), turns))
            tasks.cancel_scope.cancel()

    anyio.run(parse)
    sizes, moments = zip(*seen, strict=True)
    assert sum(sizes) == MIB
    assert max(sizes) <= 64 * 1024
    assert len(set(moments)) == len(moments)


@pytest.mark.parametrize("kind", ["application/octet-stream", "multipart/form-data; boundary=cut"])
def test_who_leaves_leaves_nothing_behind(live_gallery: Gallery, kind: str) -> None:
    gallery = live_gallery
    address = urlsplit(str(gallery.client.base_url))
    total = gallery.client.get("/scenes").json()["total"]
    head = f"POST /scenes HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 5000000\r\n\r\n"
    body = form(bytes(3_000_000))[0][:-10]
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        _wait_for(lambda: spool_of(gallery) != [])
    _wait_for(lambda: spool_of(gallery) == [])
    assert gallery.client.get("/scenes").json()["total"] == total


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
