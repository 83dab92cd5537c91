"""Clients that hold connections for nothing: each is told to go, and nobody else notices."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import pytest
from load_server import HOST, LoadServer, wait_until

from benchmarks import clients

Tell = Callable[[str, object], None]
Amount = Callable[[int, int], int]

HEADER = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
# From what everyone's addresses are; each may have few connections.
SLOW_ADDRESSES = [f"127.0.1.{number}" for number in range(1, 101)]

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, amount: Amount) -> Iterator[LoadServer]:
    deadlines = dict.fromkeys(("header_seconds", "request_seconds", "send_seconds"), amount(1, 10))
    limits = {"max_connections_per_address": 24, "max_streams": 64, "keep_alive_seconds": 1, **deadlines}
    with LoadServer(tmp_path_factory.mktemp("slow"), **limits) as server:
        yield server


@pytest.fixture
def other_process() -> Iterator[Executor]:
    """Where those are who are timed: beside the slow ones they would have to wait for those."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


class Manner(NamedTuple):
    """How a client is slow: what it begins with, and what it goes on with every now and then."""

    first: bytes
    drop: bytes = b""


class Crowd:
    """Slow clients from many addresses; those who are sent away come back, as long as they are to."""

    def __init__(self, server: LoadServer, pause: float) -> None:
        self._pause = pause
        self._server = server
        self._addresses = itertools.cycle(SLOW_ADDRESSES)
        self._going_on = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.clients: dict[socket.socket, Manner] = {}
        self.came = 0

    def add(self, manner: Manner) -> socket.socket:
        client = self._server.connect(next(self._addresses))
        client.sendall(manner.first)
        self.clients[client] = manner
        self.came += 1
        return client

    def start(self) -> None:
        self._going_on.set()
        self._thread.start()

    def stop(self) -> None:
        """Let nobody say any more, or come back."""
        self._going_on.clear()
        self._thread.join()

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def _go_on(self) -> None:
        while self._going_on.is_set():
            time.sleep(self._pause)
            for client, manner in list(self.clients.items()):
                with contextlib.suppress(OSError):
                    if manner.drop:
                        client.sendall(manner.drop)
                    if manner.drop and is_over(client):
                        client.close()
                        del self.clients[client]
                        self.add(manner)


def is_over(client: socket.socket) -> bool:
    """Whether the server has closed the connection; what it said before is read."""
    while select.select([client], [], [], 0)[0]:
        try:
            if not client.recv(65536):
                return True
        except OSError:
            return True
    return False


def last_words(client: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and error of what a server says before it closes the connection."""
    said = b""
    while part := client.recv(65536):
        said += part
    header, _, body = said.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in header.lower()
    return int(header.split()[1]), json.loads(body)["error"]


def test_slow_clients_are_sent_away_and_others_do_not_notice(
    server: LoadServer, other_process: Executor, amount: Amount, tell: Tell
) -> None:
    headers, bodies, deaf, half, reset = (
        amount(20, 200),
        amount(20, 200),
        amount(5, 50),
        amount(5, 100),
        amount(5, 50),
    )
    seconds = amount(2, 30)
    known = next(server.tiles())
    server.client.get(known).raise_for_status()
    wait_until(lambda: not server.connections, "the connections before have ended")
    before = server.descriptors
    asking = clients.again_and_again, HOST, server.port, known, 16, seconds
    calm = other_process.submit(*asking).result()

    crowd = Crowd(server, pause=amount(1, 10) / 5)
    for manner, count in ((SLOW_HEADER, headers), (SLOW_BODY, bodies), (HALF_OPEN, half)):
        for _ in range(count):
            crowd.add(manner)
    # Of noise, so that it is more than any buffer holds.
    region = f"/scenes/{server.scene}/region?size=8000,8000&format=tif"
    listening = [
        crowd.add(Manner(f"GET {region} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())) for _ in range(deaf)
    ]
    for _ in range(reset):
        vanishing = crowd.add(SLOW_BODY)
        vanishing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        vanishing.close()
        del crowd.clients[vanishing]
    crowd.start()
    try:
        busy = other_process.submit(*asking).result()
        crowd.stop()
        begin = time.monotonic()
        talking = [client for client in crowd.clients if client not in listening]
        wait_until(lambda: all(map(is_over, talking)), "whoever talks slowly is sent away")
        # Without reading, which would be no longer deaf.
        wait_until(lambda: server.connections <= 1, "whoever does not listen is sent away")
        tell("seconds until the last slow client was gone", f"{time.monotonic() - begin:.1f}")
    finally:
        crowd.stop()
        crowd.close()
    wait_until(lambda: server.descriptors <= before, "every descriptor is given back")
    for replies in (calm, busy):
        assert {reply.status for reply in replies} == {200}
        assert len({reply.content for reply in replies}) == 1
    for name, replies in (("alone", calm), ("beside slow clients", busy)):
        times = 1e3 * np.array([reply.seconds for reply in replies])
        tell(f"requests/s {name}", f"{len(replies) / seconds:.0f}")
        tell(f"p99 in ms {name}", f"{np.percentile(times, 99):.2f}")
    tell("slow clients at a time", headers + bodies + half)
    tell("slow clients in all", crowd.came)


def post(length: int) -> bytes:
    return f"POST /scenes HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


SLOW_HEADER = Manner(HEADER, b"X-More: of it\r\n")
SLOW_BODY = Manner(post(1_000_000), b"0123456789")
HALF_OPEN = Manner(b"GET /hea")


@pytest.mark.parametrize(
    ("first", "limit"),
    [
        (HEADER, "header_seconds"),
        (b"GET /", "header_seconds"),
        (b"\r\n", "header_seconds"),
        (post(100), "min_body_bytes_per_second"),
        (post(100) + b"0123", "min_body_bytes_per_second"),
    ],
)
def test_whoever_is_too_slow_is_told_so(server: LoadServer, first: bytes, limit: str) -> None:
    with server.connect() as client:
        client.sendall(first)
        status, error = last_words(client)
    value = getattr(server.settings, limit)
    assert (status, error["code"], error["limit"], error["value"]) == (408, "too_slow", limit, value)


def test_whoever_says_nothing_is_sent_away_without_a_word(server: LoadServer) -> None:
    with server.connect() as client:
        assert client.recv(1) == b""


def test_whoever_says_nothing_more_is_sent_away(server: LoadServer) -> None:
    with server.connect() as client:
        client.sendall(HEADER + b"\r\n")
        while not client.recv(65536).endswith(b"}"):
            pass
        # Empty lines are no request.
        client.sendall(b"\r\n")
        status, error = last_words(client)
    assert (status, error["limit"]) == (408, "header_seconds")


def test_a_large_body_at_a_good_rate_may_take_longer(server: LoadServer) -> None:
    with server.connect() as client:
        client.sendall(post(40_000))
        for _ in range(20):  # twice as long as a small one may take
            client.sendall(b"0" * 2000)
            time.sleep(0.1)
        assert client.recv(65536).startswith(b"HTTP/1.1 415")


# A little more than allowed: what is not read before the answer could cost the answer.
MUCH = 33_000


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n" + b"X-More: of it, and again\r\n" * (MUCH // 26),
        b"GET / HTTP/1.1\r\nX-Long: " + b"0" * MUCH,
        b"GET /" + b"0" * MUCH + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["many fields", "long field", "long address"],
)
def test_a_header_that_is_too_large_is_refused(server: LoadServer, first: bytes) -> None:
    with server.connect() as client:
        client.sendall(first)
        assert_header_too_large(server, client)


def test_fields_that_follow_a_body_are_bounded_too(server: LoadServer) -> None:
    with server.connect() as client:
        client.sendall(
            b"POST /scenes HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"0\r\n" + b"X-More: of it, and again\r\n" * (MUCH // 26))
        assert_header_too_large(server, client)


def assert_header_too_large(server: LoadServer, client: socket.socket) -> None:
    status, error = last_words(client)
    limit = server.settings.max_header_bytes
    assert (status, error["limit"], error["value"]) == (431, "max_header_bytes", limit)


def test_what_is_not_http_is_refused_in_the_one_shape(server: LoadServer) -> None:
    with server.connect() as client:
        client.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n")
        status, error = last_words(client)
    assert (status, error["code"]) == (400, "bad_request")


def test_an_address_has_only_so_many_connections(server: LoadServer) -> None:
    held = [server.connect("127.0.2.1") for _ in range(server.settings.max_connections_per_address)]
    try:
        with server.connect("127.0.2.1") as client:
            status, error = last_words(client)
        assert (status, error["limit"]) == (503, "max_connections_per_address")
        with server.connect("127.0.2.2") as client:
            client.sendall(HEADER + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for client in held:
            client.close()
    wait_until(lambda: server.client.get("/healthz").is_success, "there is room again")
    with server.connect("127.0.2.1") as client:
        client.sendall(HEADER + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
