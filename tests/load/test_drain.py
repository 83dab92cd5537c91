"""A server that is asked to stop: what was begun is finished, what would never end is ended, all in time."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from load_server import HOST, PATIENCE_SECONDS, SIDE, LoadServer, add_scene, noise, wait_until
from studio import studio

from acorn_svc.store.scenes import Status

QUERY = b'{"points": [[0.5, 0.5]]}'

pytestmark = pytest.mark.torture


def test_a_stopping_server_finishes_what_was_begun(tmp_path: Path) -> None:
    fitting = add_scene(tmp_path, noise(SIDE), Status.FITTING)
    with LoadServer(tmp_path, shutdown_seconds=PATIENCE_SECONDS // 2) as server:
        idle, following, asking = (server.connect() for _ in range(3))
        idle.sendall(request("GET /healthz"))
        assert read_until(idle, b"}").startswith(b"HTTP/1.1 200")
        following.sendall(request(f"GET /scenes/{fitting}/events"))
        assert read_until(following, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        asking.sendall(
            request(
                f"POST /scenes/{server.scene}/query",
                f"Content-Length: {len(QUERY)}",
                "Content-Type: application/json",
            )
            + QUERY[:5]
        )
        # Begun: it waits for the rest of the body.
        wait_until(lambda: server.connections >= 4, "all are connected")
        server.client.get("/healthz").raise_for_status()
        server.process.terminate()
        wait_until(lambda: is_closed(server.port), "no new connections are taken")
        assert rest(idle) == b""
        assert rest(following).endswith(b"0\r\n\r\n")
        asking.sendall(QUERY[5:])
        answer = rest(asking)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer
        assert b'"values"' in answer
        server.process.wait(PATIENCE_SECONDS)
        for client in (idle, following, asking):
            client.close()


def test_a_stopping_server_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both clients' own deadlines are far later than that of the shutdown.
    with studio(tmp_path, monkeypatch, shutdown_seconds=1) as here:
        deaf, slow = (socket.create_connection((HOST, here.port), timeout=60) for _ in range(2))
        deaf.sendall(request(f"GET /scenes/{here.scene}/region?size=8000,8000&format=tif"))
        assert deaf.recv(12) == b"HTTP/1.1 200"
        slow.sendall(request("POST /scenes", "Content-Length: 1000") + b"0")
        rendering = here.ask()
        wait_until(lambda: here.begun == 1, "a render begins that never ends")
        here.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not here.is_running, "the server has ended")
        assert here.ended_early == 1
        for client in (deaf, slow, rendering):
            client.close()


def request(line: str, *fields: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def read_until(client: socket.socket, end: bytes) -> bytes:
    read = b""
    while end not in read:
        part = client.recv(65536)
        assert part, read
        read += part
    return read


def rest(client: socket.socket) -> bytes:
    """What still comes, until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def is_closed(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return True
    return False
