"""A server in the process of the tests, where it can be seen what is rendered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from load_server import HOST, SIDE, add_scene, noise

from acorn_svc.api import rendering
from acorn_svc.api.app import create_app
from acorn_svc.api.gate import Gate
from acorn_svc.api.rendition import encode
from acorn_svc.api.server import Server
from acorn_svc.errors import Unavailable
from acorn_svc.settings import Settings


class Studio:
    """A server in this process whose renders are counted, and go on only when they may."""

    def __init__(self, settings: Settings, scene: str) -> None:
        self.settings = settings
        self.scene = scene
        self.app = create_app(settings)
        self.server = Server(self.app, settings)
        self.port = 0
        self.thread = threading.Thread()
        self.begun = 0
        self.ended_early = 0
        self.may_go_on = threading.Event()

    @property
    def gate(self) -> Gate:
        gate: Gate = self.app.state.renderer.gate
        return gate

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended."""
        return self.thread.is_alive()

    def encode(self, field: Any, rendition: Any, go_on: Callable[[], object]) -> bytes:
        """In place of the real one."""
        self.begun += 1
        try:
            while not self.may_go_on.wait(0.01):
                go_on()
        except Unavailable:
            self.ended_early += 1
            raise
        return encode(field, rendition, go_on)

    def ask(self, number: int = 0) -> socket.socket:
        """A client that has asked for a tile."""
        client = socket.create_connection((HOST, self.port), timeout=60)
        path = f"/iiif/{self.scene}/{number},0,64,64/max/0/default.jpg"
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return client


@contextmanager
def studio(data: Path, monkeypatch: pytest.MonkeyPatch, **limits: object) -> Iterator[Studio]:
    values = {"data": data, "max_in_flight_renders": 1, "max_connections_per_address": 1000, **limits}
    settings = Settings.model_validate(values)
    here = Studio(settings, add_scene(data, noise(SIDE)))
    monkeypatch.setattr(rendering, "encode", here.encode)
    with socket.create_server((HOST, 0)) as listener:
        here.port = listener.getsockname()[1]
        here.thread = threading.Thread(target=here.server.run, args=([listener],))
        here.thread.start()
        try:
            yield here
        finally:
            here.may_go_on.set()
            here.server.should_exit = True
            here.thread.join()


def answer(client: socket.socket) -> tuple[int, bytes, bytes]:
    """Status, header and body of what a client gets."""
    with client:
        said = b""
        while part := client.recv(1 << 20):
            said += part
    header, _, body = said.partition(b"\r\n\r\n")
    return int(header.split()[1]), header.lower(), body
