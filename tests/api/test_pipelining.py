"""Requests that a client sends before the first one is answered: so many wait, in order, and no more."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import Gallery, random_field, served

from acorn_svc.api import events, rendering
from acorn_svc.api.app import create_app
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Status

MOST = 2
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER


class Render:
    """In place of the real one: it goes on until it may end, or nobody waits for it."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))

    def encode(self, _field: object, _rendition: object, go_on: Callable[[], None]) -> bytes:
        self.begun.set()
        try:
            while not self.may_end.wait(0.01):
                go_on()
        finally:
            self.ended.set()
        return b"a picture"


class Server:
    """A server with a scene whose fit goes on, and a render that is watched."""

    def __init__(self, url: str, scene: str, render: Render) -> None:
        self._place = urlsplit(url)
        self.scene = scene
        self.render = render

    def ask(self, path: str) -> socket.socket:
        client = socket.create_connection((self._place.hostname, self._place.port), timeout=60)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return client

    def ask_for_a_picture(self) -> socket.socket:
        client = self.ask(f"/iiif/{self.scene}/full/max/0/default.jpg")
        assert self.render.begun.wait(60)
        return client

    def follow(self) -> socket.socket | None:
        """A client that gets the scene's events, if there is room for one."""
        client = self.ask(f"/scenes/{self.scene}/events")
        if client.recv(12) == b"HTTP/1.1 200":
            return client
        client.close()
        return None

    def wait_for_room_to_follow(self) -> None:
        end = time.monotonic() + 60
        while (client := self.follow()) is None:
            assert time.monotonic() < end, "the stream of a client that has gone goes on"
            time.sleep(0.05)
        client.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    render = Render()
    monkeypatch.setattr(rendering, "encode", render.encode)
    monkeypatch.setattr(events, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    settings = Settings(
        data=tmp_path,
        max_pipelined_requests=MOST,
        max_event_streams=1,
        render_seconds=3600,
        embedded_workers=0,
    )
    app = create_app(settings)
    with served(app) as url:
        scene = Gallery(None, app.state.store).add(random_field(16, 16), status=Status.FITTING)  # type: ignore[arg-type]
        yield Server(url, scene, render)
        render.may_end.set()


def test_so_many_wait_and_are_answered_in_order(server: Server) -> None:
    with server.ask_for_a_picture() as client, client.makefile("rb") as answers:
        client.sendall(HEALTH * (MOST - 1) + HEALTH.replace(b"Host", b"Connection: close\r\nHost"))
        server.render.may_end.set()
        said = answers.read()
    assert said.count(b"HTTP/1.1 200") == said.count(b"HTTP/1.1") == 1 + MOST
    assert said.index(b"a picture") < said.index(b'"status"')


def test_with_one_more_the_connection_is_closed_and_says_why(server: Server) -> None:
    with server.ask_for_a_picture() as client, client.makefile("rb") as answers:
        client.sendall(HEALTH * (MOST + 1))
        header, _, body = answers.read().partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 503")
    error = json.loads(body)["error"]
    assert (error["limit"], error["value"]) == ("max_pipelined_requests", MOST)
    assert server.render.ended.wait(60)  # nobody waits for it any more


def test_nothing_is_said_within_an_answer_that_has_begun(server: Server) -> None:
    client = server.follow()
    assert client is not None
    with client, client.makefile("rb") as answers:
        client.sendall(HEALTH * (MOST + 1))
        assert b"HTTP/1.1" not in answers.read()
    server.wait_for_room_to_follow()


def test_whoever_leaves_with_requests_waiting_makes_room(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.follow()
    assert client is not None
    with client.makefile("rb") as stream:
        client.sendall(HEALTH)
        signs = (line for line in stream if line.startswith(b":"))
        for _ in range(4):  # of life, so that the request has been read
            next(signs)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    server.wait_for_room_to_follow()
    assert not caplog.records  # nothing was sent to nobody
