"""The demonstration uploads its photo once, to the service on this machine."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from acorn_svc import demo
from acorn_svc.errors import NotFound


class Service(BaseHTTPRequestHandler):
    """As much of the API as the demonstration uses; one scene to a page."""

    scenes: list[dict[str, Any]]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("cursor", ["0"])[0])
        more = str(first + 1) if first + 1 < len(self.scenes) else None
        self._answer(200, {"items": self.scenes[first : first + 1], "next": more})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        scene = {**query, "id": f"id{len(self.scenes)}", "status": "queued", "bytes": len(body)}
        self.scenes.append(scene)
        self._answer(201, scene)

    def _answer(self, status: int, document: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Service.scenes = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(b"picture")
    return path


def test_the_photo_is_uploaded_once(url: str, photo: Path) -> None:
    first = demo.upload_once(url, photo)
    Service.scenes.insert(0, {"id": "other", "title": "Other", "status": "ready"})
    assert demo.upload_once(url, photo) == first
    uploaded = [scene for scene in Service.scenes if scene["title"] == "Astronaut"]
    assert [scene["bytes"] for scene in uploaded] == [len(b"picture")]
    assert uploaded[0]["attribution"] == "NASA"


def test_a_failed_scene_does_not_count(url: str, photo: Path) -> None:
    Service.scenes.append({"id": "old", "title": "Astronaut", "status": "failed"})
    assert demo.upload_once(url, photo) != "old"


def test_it_says_where_to_look(url: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    done = threading.Event()
    opened: list[str] = []
    monkeypatch.setattr(demo, "_has_display", lambda: True)
    monkeypatch.setattr("webbrowser.open", lambda page: (opened.append(page), done.set()))
    demo.show_when_ready(url, photo, said.append, browser=True)
    assert done.wait(30)
    assert opened == [f"{url}/"]
    assert f"{url}/" in said[0]
    assert len(Service.scenes) == 1


def test_proxies_are_not_asked(url: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert demo.upload_once(url, photo) == "id0"


def test_a_taken_port_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(demo, "DEFAULT_PORT", taken.getsockname()[1])
        assert demo.free_port(None) not in (0, taken.getsockname()[1])


def test_the_photo_comes_with_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.photo().read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match="scikit-image"):
        demo.photo()
