"""More than can be done: some get what they ask for, all others a quick no, nobody anything wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import numpy as np
import pytest
from load_server import HOST, LoadServer, roomy_server, wait_until
from studio import Studio, answer, studio

from acorn_svc.store.scenes import Status
from benchmarks import clients
from benchmarks.clients import Reply

Tell = Callable[[str, object], None]
Amount = Callable[[int, int], int]

OK, BUSY = 200, 503

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadServer]:
    with roomy_server(tmp_path_factory.mktemp("load")) as server:
        yield server


def percentile(replies: list[Reply], percent: float) -> str:
    """Of the times, in ms."""
    return f"{1e3 * np.percentile([reply.seconds for reply in replies], percent):.1f}"


def with_status(replies: list[Reply], status: int) -> list[Reply]:
    return [reply for reply in replies if reply.status == status]


def assert_right(server: LoadServer, replies: list[Reply], most: int) -> None:
    """Some of the replies hold what the server answers when nobody else asks."""
    for reply in replies[:: max(1, len(replies) // most)]:
        assert reply.content == hash(server.client.get(reply.path).raise_for_status().content)


def test_ten_times_too_many_requests(server: LoadServer, amount: Amount, tell: Tell) -> None:
    paths = server.tiles()
    calm = clients.run(clients.closed_loop(HOST, server.port, paths, 2, amount(1, 10)))
    assert {reply.status for reply in calm} == {OK}
    capacity = len(calm) / amount(1, 10)
    asking = clients.open_loop(HOST, server.port, paths, 10 * capacity, amount(1, 60), amount(200, 1000))
    replies = clients.run(asking)
    accepted, refused = with_status(replies, OK), with_status(replies, BUSY)
    assert len(accepted) + len(refused) == len(replies)
    assert accepted
    assert refused
    assert all(b"\r\nretry-after: " in reply.header.lower() for reply in refused)
    assert_right(server, accepted, amount(20, 500))
    tell("offered requests/s", f"{10 * capacity:.0f}")
    tell("p99 in ms, unloaded", percentile(calm, 99))
    tell("accepted requests/s", f"{len(accepted) / amount(1, 60):.0f}")
    tell("p99 in ms, accepted", percentile(accepted, 99))
    tell("p50 in ms, refused", percentile(refused, 50))
    tell("p99 in ms, refused", percentile(refused, 99))


def test_any_number_of_connections(server: LoadServer, amount: Amount, tell: Tell) -> None:
    known = next(server.tiles())
    for connections in (1, 16, 64, 256, 1024)[amount(3, 0) : amount(4, 5)]:
        replies = clients.run(
            clients.closed_loop(HOST, server.port, itertools.repeat(known), connections, amount(1, 20))
        )
        assert {reply.status for reply in replies} == {OK}
        assert len({reply.content for reply in replies}) == 1
        tell(f"cached requests/s, {connections} connections", f"{len(replies) / amount(1, 20):.0f}")
        tell(f"cached p99 in ms, {connections} connections", percentile(replies, 99))


# In this process, where it can be seen what is rendered


def test_a_herd_is_served_by_one_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: Amount, tell: Tell
) -> None:
    count = amount(100, 900)
    with studio(tmp_path, monkeypatch, render_queue=1) as here:
        herd = [here.ask() for _ in range(count)]
        wait_until(lambda: here.begun == 1, "the render begins")
        here.may_go_on.set()
        answers = [answer(client) for client in herd]
    assert here.begun == 1
    assert {status for status, *_ in answers} == {OK}
    assert len({body for *_, body in answers}) == 1
    tell("clients served by one render", count)


def test_whoever_finds_no_place_is_told_which_limit_and_when_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with studio(tmp_path, monkeypatch, render_queue=2) as here:
        first = here.ask(0)
        wait_until(lambda: here.begun == 1, "the render begins")
        waiting = [here.ask(number) for number in (1, 2)]
        wait_until(lambda: here.gate.waiting == 2, "two wait")
        status, header, body = answer(here.ask(3))
        assert (status, b"\r\nretry-after: 5\r\n" in header + b"\r\n") == (BUSY, True)
        error = json.loads(body)["error"]
        assert (error["limit"], error["value"]) == ("render_queue", 2)
        here.may_go_on.set()
        assert [answer(client)[0] for client in [first, *waiting]] == [OK] * 3


def test_a_refusal_leaves_the_connection_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, render_queue=1) as here:
        crowd = [here.ask(0)]
        wait_until(lambda: here.begun == 1, "the render begins")
        crowd.append(here.ask(1))
        wait_until(lambda: here.gate.waiting == 1, "one waits")
        tile = f"/iiif/{here.scene}/2,0,64,64/max/0/default.jpg HTTP/1.1\r\nHost: localhost\r\n"
        asked = [
            f"GET {tile}\r\n",
            f"GET {tile}Content-Length: 5\r\n\r\nabcde",
            f"HEAD {tile}\r\n",
            f"GET {tile}\r\n",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            f"GET {tile}Connection: close\r\n\r\n",
        ]
        with (
            socket.create_connection((HOST, here.port), timeout=60) as client,
            client.makefile("rb") as answers,
        ):
            client.sendall("".join(asked).encode())
            told = [read_answer(answers, has_body=not text.startswith("HEAD")) for text in asked]
            assert answers.read() == b""
        assert [status for status, _ in told] == [BUSY] * 4 + [OK, BUSY]
        assert [b"render_queue" in body for _, body in told] == [True, True, False, True, False, True]
        here.may_go_on.set()
        assert [answer(client)[0] for client in crowd] == [OK] * 2


def read_answer(answers: BinaryIO, *, has_body: bool) -> tuple[int, bytes]:
    """Status and body of the next answer of a connection that goes on."""
    status = int(answers.readline().split()[1])
    header = dict(line.lower().split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
    assert b"date" in header
    return status, answers.read(int(header[b"content-length"])) if has_body else b""


def test_what_has_been_rendered_is_there_in_a_crowd_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with studio(tmp_path, monkeypatch, render_queue=1) as here:
        here.may_go_on.set()
        _, _, known = answer(here.ask(0))
        here.may_go_on.clear()
        crowd = [here.ask(1)]
        wait_until(lambda: here.begun == 2, "the render begins")
        crowd.append(here.ask(2))
        wait_until(lambda: here.gate.waiting == 1, "one waits")
        assert answer(here.ask(3))[0] == BUSY
        assert answer(here.ask(0))[::2] == (OK, known)
        # What describes the picture needs no render.
        with httpx2.Client(base_url=f"http://{HOST}:{here.port}") as client:
            assert client.get(f"/iiif/{here.scene}/info.json").status_code == OK
        here.may_go_on.set()
        assert [answer(client)[0] for client in crowd] == [OK] * 2


def test_whoever_leaves_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, render_queue=1) as here:
        first = here.ask(0)
        wait_until(lambda: here.begun == 1, "the render begins")
        here_and_gone = here.ask(1)
        wait_until(lambda: here.gate.waiting == 1, "one waits")
        here_and_gone.close()
        wait_until(lambda: here.gate.waiting == 0, "its place in the queue is free")
        second = here.ask(2)
        wait_until(lambda: here.gate.waiting == 1, "another waits")
        first.close()
        wait_until(lambda: here.ended_early == 1, "what nobody waits for is not rendered any more")
        wait_until(lambda: here.begun == 2, "the next render begins")
        here.may_go_on.set()
        assert answer(second)[0] == OK


def test_a_render_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, render_seconds=0.1) as here:
        status, _, body = answer(here.ask())
        error = json.loads(body)["error"]
        assert (status, error["limit"], error["value"]) == (BUSY, "render_seconds", 0.1)
        here.may_go_on.set()
        assert answer(here.ask())[0] == OK


def test_only_so_many_requests_are_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, max_requests=2) as here:
        working = [here.ask(number) for number in (0, 1)]
        wait_until(lambda: here.begun == 1 and here.gate.waiting == 1, "two are worked on")
        status, header, body = answer(here.ask(2))
        assert (status, json.loads(body)["error"]["limit"]) == (BUSY, "max_requests")
        assert b"\r\nretry-after: " in header
        refused = {"method": "other", "route": "other", "status": str(BUSY)}
        assert here.app.state.metrics.registry.get_sample_value("acorn_http_requests_total", refused) == 1
        here.may_go_on.set()
        assert [answer(client)[0] for client in working] == [OK] * 2


def test_only_so_many_connections_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, max_connections=2) as here:
        first, second = here.ask(0), here.ask(1)
        wait_until(lambda: here.begun == 1 and here.gate.waiting == 1, "two are there")
        with socket.create_connection((HOST, here.port), timeout=60) as third:
            assert b'"max_connections"' in third.recv(65536)
        here.may_go_on.set()
        assert [answer(client)[0] for client in (first, second)] == [OK] * 2


def test_only_so_many_regions_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(here: Studio) -> socket.socket:
        # More than all buffers hold, for a client that does not read.
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect((HOST, here.port))
        path = f"/scenes/{here.scene}/region?size=8000,8000&format=tif"
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return client

    with studio(tmp_path, monkeypatch, max_streams=1) as here:
        first = ask(here)
        assert first.recv(12) == b"HTTP/1.1 200"
        status, _, body = answer(ask(here))
        assert (status, json.loads(body)["error"]["limit"]) == (BUSY, "max_streams")
        first.close()
        wait_until(lambda: status_of(ask(here)) == b"HTTP/1.1 200", "there is room again")


def status_of(client: socket.socket) -> bytes:
    with client:
        return client.recv(12)


def test_only_so_many_follow_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch, max_event_streams=1) as here:
        with here.app.state.store.edit(here.scene) as scene:
            scene.status = Status.FITTING

        def follow() -> socket.socket:
            client = socket.create_connection((HOST, here.port), timeout=60)
            client.sendall(
                f"GET /scenes/{here.scene}/events HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
            )
            return client

        first = follow()
        assert first.recv(12) == b"HTTP/1.1 200"
        status, _, body = answer(follow())
        assert (status, json.loads(body)["error"]["limit"]) == (BUSY, "max_event_streams")
        first.close()
        wait_until(lambda: status_of(follow()) == b"HTTP/1.1 200", "there is room again")


def test_the_state_of_the_service_is_looked_up_once_for_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with studio(tmp_path, monkeypatch) as here:
        looked = 0
        counts = here.app.state.store.counts

        def slow_counts(*statuses: Any) -> Any:
            nonlocal looked
            looked += 1
            here.may_go_on.wait(60)
            return counts(*statuses)

        monkeypatch.setattr(here.app.state.store, "counts", slow_counts)

        async def ask() -> list[int]:
            links = [await clients.connect(HOST, here.port) for _ in range(50)]
            asking = [asyncio.create_task(link.ask("/healthz")) for link in links]
            while not looked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # all are there
            here.may_go_on.set()
            found = [(await one)[0] for one in asking]
            for link in links:
                await link.close()
            return found

        assert clients.run(ask()) == [OK] * 50
        assert looked < 5
