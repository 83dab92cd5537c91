"""What a picture costs over HTTP: a real server in a folder of its own, asked by one client.

The client keeps its connection and waits for each answer, so a time is all that passes between question and
answer, on both sides. The field is that of `astronaut`, fitted for a few seconds. Where `wrk` is installed,
it also counts the answers from the cache on 16 connections; client and server share the machine's cores.

Then ten times more tiles are asked for than can be rendered, at a fixed rate whatever becomes of the ones
before. Of those that are accepted, the slowest should take at most twice as long as without a crowd, and as
long as a full queue takes (`bound`); the others should be refused at once.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from skimage import data

from acorn_svc.field import ops
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.settings import Settings
from acorn_svc.training.loop import fit
from acorn_svc.training.presets import configure
from acorn_svc.training.targets import ImageTarget
from benchmarks import clients
from benchmarks.measurement import Action, Clock, Measurement, Times, interleaved
from benchmarks.operations import rendering

HOST = "127.0.0.1"
TILE = 256
START_SECONDS, POLL_SECONDS = 120.0, 0.1
CONNECTIONS = 16
RATE = re.compile(r"Requests/sec:\s+([0-9.]+)")
REFUSED = re.compile("Non-2xx|Socket errors")

Get = Callable[[str], bytes]
Replies = Sequence[clients.Reply]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        fit: seconds.
        requests: of each kind.
        side: of the large picture.
        seconds: of rendering it, of counting answers, and of asking for too much.
        connections: of those who ask for too much.
    """

    fit: float
    requests: int
    side: int
    seconds: float
    connections: int


FULL = Effort(4, 1000, 4096, 10, 512)
QUICK = Effort(0.3, 20, 256, 1, 100)
TOO_MUCH = 10
# One address asks for everything.
SETTINGS = {"ACORN_MAX_CONNECTIONS_PER_ADDRESS": "1024"}


class Server:
    """A running server, and one connection to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"http://{HOST}:{port}"
        self._connection = http.client.HTTPConnection(HOST, port, timeout=60)

    def get(self, path: str) -> bytes:
        """The body of an answer; raises OSError when it isn't 200."""
        return self._ask("GET", path)

    def upload(self, model: bytes) -> str:
        """The id of a scene that shows a model file."""
        return str(json.loads(self._ask("POST", "/scenes", model))["id"])

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            self._connection.request(method, path, body)
            answer = self._connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            self._connection.close()
            raise OSError(f"{path}: no answer") from error
        if answer.status not in (http.client.OK, http.client.CREATED):
            raise OSError(f"{path}: {answer.status} {content.decode()}")
        return content


@contextmanager
def running() -> Iterator[Server]:
    """A server that has started, with its worker; it is asked to end on leaving."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = [sys.executable, "-m", "acorn_svc.cli", "serve", "--data", folder, "--port", str(port)]
        environment = {**os.environ, **SETTINGS}
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment)
        server = Server(port)
        try:
            _wait_for(server, process)
            yield server
        finally:
            server.close()
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.get("/healthz")
            return
        except OSError:
            time.sleep(POLL_SECONDS)
    raise TimeoutError("the server did not start")


def measure(quick: bool = False) -> Iterator[Measurement]:
    """All rows; with ``quick`` few requests, to see that everything runs."""
    effort = QUICK if quick else FULL
    model = _model(effort.fit)
    with running() as server:
        scene = server.upload(model)
        yield from requests(server.get, scene, effort.requests)
        yield from _rate(f"{server.address}{next(tiles(scene))}", effort.seconds)
        yield from _overload(server.port, _other_tiles(scene, effort.requests), effort)
    yield from _large(effort)


def _model(seconds: float) -> bytes:
    target = ImageTarget(data.astronaut())
    *_, last = fit(target, configure(target, seconds=seconds))
    return field_to_bytes(last.field())


def tiles(scene: str) -> Iterator[str]:
    """Paths of tiles at full size, each of them another one."""
    sides = range(TILE, TILE // 2, -1)
    places = itertools.product(sides, range(TILE), range(TILE))
    return (f"/iiif/{scene}/{x},{y},{side},{side}/{side},/0/default.jpg" for side, y, x in places)


def requests(get: Get, scene: str, count: int, clock: Clock = time.perf_counter) -> Iterator[Measurement]:
    """Tiles that nobody has asked for before, the same tile again and again, and the state of the service."""
    paths = tiles(scene)
    known = next(paths)
    get(known)
    yield from _summary("cold tile", _times(lambda: get(next(paths)), count, clock))
    yield from _summary("cached tile", _times(lambda: get(known), count, clock))
    yield from _summary("/healthz", _times(lambda: get("/healthz"), count, clock))


def _times(action: Action, count: int, clock: Clock) -> Times:
    marks = [clock()]
    for _ in range(count):
        action()
        marks.append(clock())
    return np.diff(marks)


def _summary(case: str, times: Times) -> Iterator[Measurement]:
    for metric, percent in (("median", 50), ("min", 0), ("p90", 90)):
        yield Measurement(case, metric, 1e3 * float(np.percentile(times, percent)), "ms")


def _rate(address: str, seconds: float) -> Iterator[Measurement]:
    if shutil.which("wrk") is None:
        print("wrk is not installed: answers are not counted", file=sys.stderr)
        return
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", address]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = RATE.search(report)
    if found is None or REFUSED.search(report):
        raise OSError(f"wrk counted errors: {report}")
    yield Measurement(f"cached tile, {CONNECTIONS} connections", "rate", float(found[1]), "requests/s")


def _other_tiles(scene: str, asked: int) -> Iterator[str]:
    """Tiles but for the first, which others have asked for."""
    return itertools.islice(tiles(scene), asked + 2, None)


def _overload(port: int, paths: Iterator[str], effort: Effort) -> Iterator[Measurement]:
    """What becomes of ten times as many requests as can be answered."""
    alone = clients.run(clients.closed_loop(HOST, port, paths, 1, effort.seconds / 2))
    width = Settings().max_in_flight_renders
    most = clients.run(clients.closed_loop(HOST, port, paths, 2 * width, effort.seconds / 2))
    capacity = len(most) / (effort.seconds / 2)
    flood = clients.open_loop(HOST, port, paths, TOO_MUCH * capacity, effort.seconds, effort.connections)
    yield from overload(alone, capacity, clients.run(flood), effort.seconds)


def overload(alone: Replies, capacity: float, flood: Replies, seconds: float) -> Iterator[Measurement]:
    """Times without a crowd, and in a `flood` that lasted for so many seconds; capacity in requests/s."""
    accepted = [reply.seconds for reply in flood if reply.status == http.client.OK]
    refused = [reply.seconds for reply in flood if reply.status == http.client.SERVICE_UNAVAILABLE]
    if len(accepted) + len(refused) < len(flood):
        raise OSError("neither accepted nor refused")
    unloaded = _percentile([reply.seconds for reply in alone], 99)
    queue = 1e3 * Settings().render_queue / capacity
    case = f"cold tiles, {TOO_MUCH} times too many"
    yield Measurement(case, "capacity", capacity, "requests/s")
    yield Measurement(case, "offered", len(flood) / seconds, "requests/s")
    yield Measurement(case, "accepted", len(accepted) / seconds, "requests/s")
    yield Measurement(case, "p99 unloaded", unloaded, "ms")
    yield Measurement(case, "p99 accepted", _percentile(accepted, 99), "ms")
    yield Measurement(case, "bound of p99 accepted", 2 * unloaded + queue, "ms")
    for percent in (50, 99):
        yield Measurement(case, f"p{percent} refused", _percentile(refused, percent), "ms")


def _percentile(seconds: Sequence[float], percent: float) -> float:
    """In ms; not a number of nothing."""
    return 1e3 * float(np.percentile(seconds, percent)) if seconds else math.nan


def _large(effort: Effort) -> Iterator[Measurement]:
    """One render of a large picture on one and on two threads, taking turns."""
    counts = [1, 2][: len(os.sched_getaffinity(0))]
    case = rendering(effort.side, "cpu")
    operations = ops.choose("cpu")

    def render_on(threads: int) -> Action:
        def render() -> None:
            torch.set_num_threads(threads)
            case.call(operations)

        return render

    before = torch.get_num_threads()
    try:
        found = interleaved([render_on(count) for count in counts], effort.seconds)
    finally:
        torch.set_num_threads(before)
    for count, times in zip(counts, found, strict=True):
        name = f"{effort.side} x {effort.side} render, threads {count}"
        yield from _summary(name, times)
