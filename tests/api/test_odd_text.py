"""Text that not every database takes: refused before one is asked, and by every database alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Gallery, random_field
from fastapi.testclient import TestClient
from test_scenes import image_bytes
from tus_client import PART, TUS, labels

from acorn_svc.api.app import create_app
from acorn_svc.settings import Settings

METHODS = {"get", "post", "patch", "delete", "head"}


@pytest.fixture
def on_postgres(tmp_path: Path, database_url: str) -> Iterator[TestClient]:
    app = create_app(Settings(data=tmp_path, database_url=database_url, embedded_workers=0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_no_id_and_no_cursor_is_too_odd(on_postgres: TestClient) -> None:
    paths: dict[str, dict[str, Any]] = on_postgres.app.openapi()["paths"]  # type: ignore[attr-defined]
    routes = [(path, how) for path, ways in paths.items() for how in METHODS & set(ways) if "{id}" in path]
    assert len(routes) > 20
    for (path, how), odd in itertools.product(routes, ("%00", "0" * 25 + "%00")):
        plain = path.replace("{id}", odd).replace("{", "").replace("}", "")
        kind = {**PART, "Upload-Offset": "0"} if "uploads" in path else {"Content-Type": "application/json"}
        answer = on_postgres.request(how, plain, headers=kind, content=b"{}")
        assert 400 <= answer.status_code < 500, (how, path, answer.text)
    assert on_postgres.get("/scenes?cursor=%00").status_code == 404


@pytest.mark.parametrize("name", ["title", "description", "attribution", "rights"])
def test_no_database_keeps_control_characters(gallery: Gallery, name: str) -> None:
    scene = gallery.add(random_field(32, 32))
    odd = "http://example.org/\0"
    content = image_bytes()
    answers = [
        gallery.client.patch(f"/scenes/{scene}", json={name: odd}),
        gallery.client.post("/scenes", params={name: odd}, content=content),
        gallery.client.post("/scenes", data={name: odd}, files={"file": content}),
        gallery.client.post(
            "/uploads", headers={**TUS, "Upload-Length": "9", "Upload-Metadata": labels(**{name: odd})}
        ),
    ]
    assert [answer.status_code for answer in answers] == [422] * len(answers)
    assert all(name in answer.json()["error"]["message"] for answer in answers)


def test_line_ends_are_kept(gallery: Gallery) -> None:
    scene = gallery.add(random_field(32, 32))
    text = "One line,\r\n\tand another: ä€🌰"
    assert gallery.client.patch(f"/scenes/{scene}", json={"description": text}).json()["description"] == text


@pytest.mark.parametrize("charset", ["utf-16", "undefined", "punycode", "none-such"])
def test_forms_are_utf8_whatever_they_say(gallery: Gallery, charset: str) -> None:
    title, content = "Straße", image_bytes()
    body = (
        f'--cut\r\nContent-Disposition: form-data; name="title"\r\n\r\n{title}\r\n'
        '--cut\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
    ).encode() + b"".join([content, b"\r\n--cut--\r\n"])
    kind = {"Content-Type": f"multipart/form-data; boundary=cut; charset={charset}"}
    answer = gallery.client.post("/scenes", content=body, headers=kind)
    assert (answer.status_code, answer.json().get("title")) == (201, title)


def test_no_key_is_called_by_control_characters(gallery: Gallery) -> None:
    assert gallery.client.post("/keys", json={"name": "a\0b", "scope": "read"}).status_code == 422
