"""Ways out of the data folder, in every part of a path and in every header that means something."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import anyio
import pytest
from conftest import random_field
from fastapi import FastAPI
from fastapi.testclient import TestClient
from test_scenes import image_bytes
from watching import confined

from acorn_svc.api.app import create_app
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.settings import Settings

SECRET = "a secret beside the data"
TARGETS = ("etc/passwd", "secret", "data/acorn.db", "proc/self/environ")
UPWARDS = (
    "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "%252e%252e%252f", "%c0%ae%c0%ae/", "..%c0%af",
    "..\\", "..%5c", "%2e%2e%5c", "....//", "..;/", "..%00/", "%u002e%u002e/",
)  # fmt: skip
OTHER_WAYS = (
    "/{}", "//{}", "%2f{}", "file:///{}", "file:%2f%2f%2f{}", "\\\\host\\share\\{}", "C:\\{}", "~root/{}",
    "{}%00.png", "{}\0", "http://127.0.0.1/{}", "%0d%0aLocation:%20/{}", "${{jndi:{}}}", "`cat {}`", "|{}",
)  # fmt: skip


def _ways_out() -> list[str]:
    ways = [up * depth + target for target in TARGETS for up in UPWARDS for depth in (1, 6)]
    ways += [way.format(target) for target in TARGETS[:2] for way in OTHER_WAYS]
    return [*ways, "../" * 1365, "%2e%2e%2f" * 455, "A" * 4096, "..", ".", "%2e", "%00"]


WAYS_OUT = _ways_out()
HEADERS = (
    "range",
    "if-none-match",
    "if-modified-since",
    "content-type",
    "accept",
    "host",
    "x-forwarded-host",
)


class Caller:
    """Sends paths as they are: other clients straighten them first."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def __call__(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        assert self._client.portal is not None
        app: Any = self._client.app
        with confined(app.state.settings.data):
            return self._client.portal.call(_call, app, method, path, headers or {})


async def _call(app: Any, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    path, _, query = path.partition("?")
    said: list[dict[str, Any]] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1), "server": ("x", 80),
        "headers": [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()],
    }  # fmt: skip

    bodies = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not bodies:
            await anyio.sleep_forever()  # the client stays
        return bodies.pop()

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    return int(said[0]["status"]), b"".join(message.get("body", b"") for message in said)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, str]]:
    """A server with one scene, and a file beside its data that nobody may see."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "secret").write_text(SECRET)
    app: FastAPI = create_app(Settings(data=folder / "data"))
    with TestClient(app, raise_server_exceptions=False) as client:
        scene = client.post("/scenes", content=field_to_bytes(random_field(16, 16)))
        assert scene.status_code == 201
        yield Caller(client), scene.json()["id"]
    assert sorted(path.name for path in folder.iterdir()) == ["data", "secret"]


def _paths(app_paths: dict[str, Any], scene: str, way: str) -> Iterator[tuple[str, str]]:
    """Each route with one parameter replaced, the others good."""
    for path, methods in app_paths.items():
        names = re.findall(r"{(\w+)}", path)
        for name, method in itertools.product(names, methods):
            filled = path
            for other in names:
                good = scene if other == "id" else "0"
                filled = filled.replace("{" + other + "}", way if other == name else good)
            yield method.upper(), filled


def _check(status: int, body: bytes, what: object) -> None:
    assert status < 500 or status == 503, (status, what)
    for leak in (SECRET.encode(), b"root:x:", b"SQLite format", b"PATH=", b"Traceback", b"/site-packages/"):
        assert leak not in body, what
    if status >= 400 and body:
        error = json.loads(body)["error"]
        assert set(error) == {"code", "message", "limit", "value"}
        assert "etc/passwd" not in error["message"], what


@pytest.mark.torture
def test_no_part_of_a_path_leads_out(
    service: tuple[Caller, str], amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    call, scene = service
    routes = call._client.app.openapi()["paths"]  # type: ignore[attr-defined]
    ways = WAYS_OUT[:: amount(2, 1)]
    count = 0
    for way in ways:
        for method, path in _paths(routes, scene, way):
            if (method, path) == ("DELETE", f"/scenes/{scene}"):
                continue
            status, body = call(method, path)
            _check(status, body, (method, path))
            count += 1
        for prefix in ("/", "/assets/", "/scenes/", "/s/"):
            _check(*call("GET", prefix + way), prefix + way)
    assert len(ways) >= len(WAYS_OUT) // 2
    tell("ways out", len(ways))
    tell("requests", count)


@pytest.mark.torture
def test_no_header_and_no_option_leads_out(
    service: tuple[Caller, str], amount: Callable[[int, int], int]
) -> None:
    call, scene = service
    for way in WAYS_OUT[:: amount(2, 1)]:
        for header in HEADERS:
            _check(*call("GET", f"/scenes/{scene}/file", {header: way}), (header, way))
        for option in ("cursor", "limit", "status", "kind"):
            _check(*call("GET", f"/scenes?{option}={quote(way)}"), (option, way))


def test_the_name_of_an_upload_is_no_path(service: tuple[Caller, str]) -> None:
    client = service[0]._client
    for way in ("../../secret", "/etc/passwd", "..\\..\\secret", "a\0b", "." * 300):
        answer = client.post("/scenes", files={"file": (way, image_bytes())})
        assert answer.status_code == 201, answer.text
        assert way not in answer.text
        client.delete(f"/scenes/{answer.json()['id']}")
